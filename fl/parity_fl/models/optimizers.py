"""Optimizers over one flat float32 vector; no step allocates."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from parity_fl.spec import TrainConfig

__all__ = ["ADAM_BETA_1", "ADAM_BETA_2", "ADAM_EPSILON", "Step", "make_step"]

ADAM_BETA_1: Final = 0.9
ADAM_BETA_2: Final = 0.999
ADAM_EPSILON: Final = 1e-8

Step: TypeAlias = Callable[[], None]


def make_step(config: TrainConfig, weights: NDArray[np.float32], gradient: NDArray[np.float32]) -> Step:
    """Return a function that takes one step on ``weights`` down ``gradient``, both in place.

    ``momentum`` is Polyak's heavy ball, ``v ← m·v + g; w ← w − η·v``. ``adam`` is Kingma and Ba (2015), algorithm 1,
    with bias correction. The state begins empty and lives as long as the function.

    Args:
        config: Names the optimizer, its rate and its momentum.
        weights: Shape ``(d,)``; changed by every step.
        gradient: Shape ``(d,)``; used up by every step.
    """
    rate = np.float32(config.learning_rate)
    match config.optimizer:
        case "sgd":

            def sgd() -> None:
                np.multiply(gradient, rate, out=gradient)
                np.subtract(weights, gradient, out=weights)

            return sgd
        case "momentum":
            return _momentum(weights, gradient, rate, np.float32(config.momentum))
        case "adam":
            return _adam(weights, gradient, config.learning_rate)
        case _:
            raise AssertionError(f"no such optimizer: {config.optimizer}")  # spec.py admits only these


def _momentum(
    weights: NDArray[np.float32], gradient: NDArray[np.float32], rate: np.float32, momentum: np.float32
) -> Step:
    velocity = np.zeros_like(weights)

    def step() -> None:
        np.multiply(velocity, momentum, out=velocity)
        np.add(velocity, gradient, out=velocity)
        np.multiply(velocity, rate, out=gradient)
        np.subtract(weights, gradient, out=weights)

    return step


def _adam(weights: NDArray[np.float32], gradient: NDArray[np.float32], rate: float) -> Step:
    first, second, scratch = np.zeros_like(weights), np.zeros_like(weights), np.empty_like(weights)
    steps = 0

    def step() -> None:
        nonlocal steps
        steps += 1
        np.subtract(gradient, first, out=scratch)
        np.multiply(scratch, np.float32(1 - ADAM_BETA_1), out=scratch)
        np.add(first, scratch, out=first)
        np.multiply(gradient, gradient, out=gradient)
        np.subtract(gradient, second, out=gradient)
        np.multiply(gradient, np.float32(1 - ADAM_BETA_2), out=gradient)
        np.add(second, gradient, out=second)
        np.sqrt(second, out=scratch)
        np.multiply(scratch, np.float32(1 / np.sqrt(1 - ADAM_BETA_2**steps)), out=scratch)
        np.add(scratch, np.float32(ADAM_EPSILON), out=scratch)
        np.divide(first, scratch, out=scratch)
        np.multiply(scratch, np.float32(rate / (1 - ADAM_BETA_1**steps)), out=scratch)
        np.subtract(weights, scratch, out=weights)

    return step
