"""The numpy kernel of a perceptron: float32, in place, one buffer per layer, nothing allocated per step.

For networks as small as those of the Parity network a step is a dozen small matrix products, and a framework's
dispatch costs more than the arithmetic: by hand an epoch takes a fraction of the time. Large batches go to
``parity_fl.engines.torch`` where that is installed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, NoReturn

import numpy as np
from numpy.typing import NDArray

from parity_fl.models.layout import Layout
from parity_fl.models.optimizers import make_step
from parity_fl.prng import Sha256Stream, derive_key, shuffled
from parity_fl.spec import TrainConfig
from parity_protocol.errors import ExecutionFailed, FailureReason

__all__ = ["Problem", "diverged", "epoch_order", "outputs", "train_dense"]

_BLOCK_FLOATS: Final = 1 << 20  # rows are gathered in blocks of 4 MiB: fewer calls, and still in the cache
_CHUNK_FLOATS: Final = 1 << 22  # widest buffer of a forward pass: 16 MiB


@dataclass(frozen=True, slots=True)
class Problem:
    """What a perceptron computes.

    Attributes:
        layout: Its layers.
        activation: Of the hidden layers: ``relu``, ``tanh`` or ``sigmoid``.
        loss: ``softmax`` (cross-entropy), ``sigmoid`` (binary cross-entropy) or ``squared`` (half the squared error).
    """

    layout: Layout
    activation: str
    loss: str


class _Buffers:
    """Room for one batch of ``rows`` rows: each layer's output, and the loss's derivative by it."""

    def __init__(self, layout: Layout, rows: int) -> None:
        self.active = [np.empty((rows, width), dtype=np.float32) for width in layout.widths[1:]]
        self.slope = [np.empty((rows, width), dtype=np.float32) for width in layout.widths[1:]]
        self.mask = [np.empty((rows, width), dtype=np.bool_) for width in layout.widths[1:-1]]
        self.column = np.empty((rows, 1), dtype=np.float32)
        self.ones = np.ones(rows, dtype=np.float32)
        self.share = np.float32(1.0 / rows)


def train_dense(
    problem: Problem,
    start: NDArray[np.float32],
    features: NDArray[np.float32],
    truth: NDArray[np.float64],
    config: TrainConfig,
    *,
    seed: bytes,
    proximal_mu: float,
) -> tuple[NDArray[np.float32], int]:
    """Train by mini-batches, each epoch in an order of its own.

    Args:
        problem: What is trained.
        start: Flat parameters to start from, and the anchor of the proximal term; without one they are trained in place.
        features: Scaled rows, shape ``(n, d)``, ``n`` at least 1.
        truth: Class indices, or scaled targets, shape ``(n,)``.
        config: Epochs, batch size, rate, optimizer.
        seed: 32 bytes; keys the orders.
        proximal_mu: FedProx's coefficient.

    Returns:
        The flat parameters after training, and the steps taken.

    Raises:
        ExecutionFailed: ``numerical_instability``: a gradient is not finite; the message names the step.
    """
    layout, rows = problem.layout, len(features)
    batch = min(config.batch_size, rows)
    weights = start.copy() if proximal_mu else start
    gradient, proximal = np.empty_like(start), np.empty_like(start)
    step = make_step(config, weights, gradient)
    buffers = {size: _Buffers(layout, size) for size in {batch, rows % batch or batch}}
    forward, backward = layout.pairs(weights), layout.pairs(gradient)

    block = min(rows, batch * max(1, _BLOCK_FLOATS // (batch * layout.widths[0])))
    inputs = np.empty((block, layout.widths[0]), dtype=np.float32)
    wanted = np.zeros((block, layout.widths[-1]), dtype=np.float32)
    steps = 0
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        for epoch in range(1, config.epochs + 1):
            order = epoch_order(seed, epoch, rows)
            for first in range(0, rows, block):
                some = order[first : first + block]
                np.take(features, some, axis=0, out=inputs[: len(some)], mode="clip")
                _targets(problem.loss, truth[some], wanted)
                for at in range(0, len(some), batch):
                    end = min(at + batch, len(some))
                    room = buffers[end - at]
                    _forward(problem, inputs[at:end], forward, room.active)
                    _loss_slope(problem.loss, room, wanted[at:end])
                    _backward(problem, inputs[at:end], forward, backward, room)
                    if proximal_mu:
                        np.subtract(weights, start, out=proximal)
                        np.multiply(proximal, np.float32(proximal_mu), out=proximal)
                        np.add(gradient, proximal, out=gradient)
                    # One product finds a NaN or Inf anywhere in the gradient.
                    if not np.isfinite(np.dot(gradient, gradient)):
                        diverged(epoch, (first + at) // batch + 1)
                    step()
                    steps += 1
    if not np.isfinite(np.dot(weights, weights)):
        diverged(config.epochs, -(-rows // batch))
    return weights, steps


def outputs(
    problem: Problem,
    pairs: list[tuple[NDArray[np.float32], NDArray[np.float32]]],
    features: NDArray[np.float32],
) -> NDArray[np.float32]:
    """Return the last layer's values before softmax or sigmoid, shape ``(n, outputs)``.

    Args:
        problem: What is computed.
        pairs: Each layer's ``(weight, bias)``.
        features: Scaled rows, shape ``(n, d)``.
    """
    widths = problem.layout.widths
    found = np.empty((len(features), widths[-1]), dtype=np.float32)
    chunk = max(1, _CHUNK_FLOATS // max(widths))
    with np.errstate(over="ignore", invalid="ignore"):
        for first in range(0, len(features), chunk):
            some = features[first : first + chunk]
            active = [np.empty((len(some), width), dtype=np.float32) for width in widths[1:-1]]
            _forward(problem, some, pairs, [*active, found[first : first + chunk]])
    return found


def epoch_order(seed: bytes, epoch: int, rows: int) -> NDArray[np.intp]:
    """Return the order in which an epoch (1, 2, …) visits its rows; every kernel uses this one."""
    stream = Sha256Stream(derive_key("batches", seed, epoch.to_bytes(4, "big")))
    return shuffled(np.arange(rows, dtype=np.uint32), stream).astype(np.intp)


def diverged(epoch: int, batch: int) -> NoReturn:
    """Raise ``ExecutionFailed`` with ``numerical_instability``, naming the step."""
    raise ExecutionFailed(
        FailureReason.NUMERICAL_INSTABILITY,
        f"training produced NaN/Inf loss at epoch {epoch}, batch {batch} - this indicates numerical instability",
        hint="Lower learning_rate, or set standardize.",
    )


def _targets(loss: str, truth: NDArray[np.float64], wanted: NDArray[np.float32]) -> None:
    """Write what the outputs should be: one-hot rows for softmax, the values themselves otherwise."""
    rows = len(truth)
    if loss == "softmax":
        wanted[:rows] = 0
        wanted[np.arange(rows), truth.astype(np.intp)] = 1
    else:
        wanted[:rows, 0] = truth


def _forward(
    problem: Problem,
    inputs: NDArray[np.float32],
    pairs: list[tuple[NDArray[np.float32], NDArray[np.float32]]],
    active: list[NDArray[np.float32]],
) -> None:
    below, last = inputs, len(pairs) - 1
    for layer, (weight, bias) in enumerate(pairs):
        here = active[layer]
        np.dot(below, weight, out=here)
        np.add(here, bias, out=here)
        if layer != last:
            _activate(problem.activation, here)
        below = here


def _activate(activation: str, values: NDArray[np.float32]) -> None:
    if activation == "relu":
        np.maximum(values, 0, out=values)
    elif activation == "tanh":
        np.tanh(values, out=values)
    else:
        _sigmoid(values)


def _sigmoid(values: NDArray[np.float32]) -> None:
    """Apply the logistic function as ``(1 + tanh(z / 2)) / 2``, which never overflows."""
    np.multiply(values, 0.5, out=values)
    np.tanh(values, out=values)
    np.add(values, 1, out=values)
    np.multiply(values, 0.5, out=values)


def _loss_slope(loss: str, room: _Buffers, wanted: NDArray[np.float32]) -> None:
    """Put the derivative of the batch's mean loss by the last layer into its ``slope``."""
    out, slope = room.active[-1], room.slope[-1]
    if loss == "softmax":
        np.max(out, axis=1, keepdims=True, out=room.column)
        np.subtract(out, room.column, out=out)
        np.exp(out, out=out)
        np.sum(out, axis=1, keepdims=True, out=room.column)
        np.divide(out, room.column, out=out)
    elif loss == "sigmoid":
        _sigmoid(out)
    np.subtract(out, wanted, out=slope)
    np.multiply(slope, room.share, out=slope)


def _backward(
    problem: Problem,
    inputs: NDArray[np.float32],
    forward: list[tuple[NDArray[np.float32], NDArray[np.float32]]],
    backward: list[tuple[NDArray[np.float32], NDArray[np.float32]]],
    room: _Buffers,
) -> None:
    for layer in range(len(forward) - 1, -1, -1):
        slope = room.slope[layer]
        below = room.active[layer - 1] if layer else inputs
        np.dot(below.T, slope, out=backward[layer][0])
        np.dot(room.ones, slope, out=backward[layer][1])
        if layer:
            under = room.slope[layer - 1]
            np.dot(slope, forward[layer][0].T, out=under)
            _activation_slope(problem.activation, below, under, room.mask[layer - 1])


def _activation_slope(
    activation: str, active: NDArray[np.float32], slope: NDArray[np.float32], mask: NDArray[np.bool_]
) -> None:
    """Multiply ``slope`` by the activation's derivative, from its value; ``active`` is used up."""
    if activation == "relu":
        np.less_equal(active, 0, out=mask)
        np.copyto(slope, 0, where=mask)
        return
    if activation == "tanh":
        np.multiply(active, active, out=active)
        np.subtract(1, active, out=active)
        np.multiply(slope, active, out=slope)
        return
    np.multiply(slope, active, out=slope)
    np.subtract(1, active, out=active)
    np.multiply(slope, active, out=slope)
