"""The torch kernel of a perceptron: for large batches, and for a GPU where there is one.

It does what ``parity_fl.models.dense`` does, step for step: the same first weights, the same order of rows, the same
optimizer without autograd's freedoms. Results differ by float32 rounding only, and are not bit-equal across devices.
Needs the extra ``[torch]``, which is imported only when something trains: use it through ``engines.large_kernel``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import NDArray

from parity_fl.models.dense import Problem, diverged, epoch_order
from parity_fl.models.optimizers import ADAM_BETA_1, ADAM_BETA_2, ADAM_EPSILON

if TYPE_CHECKING:
    import torch  # type: ignore[import-not-found, unused-ignore]  # an extra

    from parity_fl.spec import TrainConfig

__all__ = ["device_for", "train_torch"]

_GPU_ROOM: Final = 0.5  # of the free memory may hold the rows; the rest is for activations


def device_for(features: NDArray[np.float32]) -> torch.device:
    """Return the GPU if there is one with room for the rows, else the CPU."""
    import torch

    if torch.cuda.is_available():
        free, _ = torch.cuda.mem_get_info()
        if features.nbytes < free * _GPU_ROOM:
            return torch.device("cuda")
    return torch.device("cpu")


def train_torch(
    problem: Problem,
    start: NDArray[np.float32],
    features: NDArray[np.float32],
    truth: NDArray[np.float64],
    config: TrainConfig,
    *,
    seed: bytes,
    proximal_mu: float,
) -> tuple[NDArray[np.float32], int]:
    """Train as ``train_dense`` does: same arguments, same result within float32 rounding.

    Raises:
        ExecutionFailed: ``numerical_instability``: a gradient is not finite; the message names the step.
    """
    import torch

    device = device_for(features)
    rows, batch = len(features), min(config.batch_size, len(features))
    inputs = torch.from_numpy(np.ascontiguousarray(features)).to(device)
    kind = torch.int64 if problem.loss == "softmax" else torch.float32
    wanted = torch.from_numpy(np.ascontiguousarray(truth)).to(device=device, dtype=kind)
    anchors = [torch.from_numpy(value.copy()).to(device) for value in problem.layout.views(start).values()]
    weights = [anchor.clone().requires_grad_() for anchor in anchors]  # bias, weight, bias, weight …
    optimizer = _optimizer(weights, config)
    steps = 0
    for epoch in range(1, config.epochs + 1):
        order = torch.from_numpy(epoch_order(seed, epoch, rows).astype(np.int64)).to(device)
        for first in range(0, rows, batch):
            some = order[first : first + batch]
            loss = _loss(problem, weights, inputs[some], wanted[some])
            gradients = torch.autograd.grad(loss, weights)
            total = torch.zeros((), device=device)
            for weight, anchor, gradient in zip(weights, anchors, gradients, strict=True):
                if proximal_mu:
                    gradient.add_(weight.detach() - anchor, alpha=proximal_mu)
                weight.grad = gradient
                total += torch.dot(gradient.view(-1), gradient.view(-1))
            if not bool(torch.isfinite(total)):
                diverged(epoch, first // batch + 1)
            optimizer.step()
            steps += 1
    found: NDArray[np.float32] = np.concatenate([weight.detach().cpu().numpy().ravel() for weight in weights])
    if not np.isfinite(found).all():
        diverged(config.epochs, -(-rows // batch))
    return found, steps


def _optimizer(weights: list[torch.Tensor], config: TrainConfig) -> torch.optim.Optimizer:
    import torch

    if config.optimizer == "adam":
        return torch.optim.Adam(weights, lr=config.learning_rate, betas=(ADAM_BETA_1, ADAM_BETA_2), eps=ADAM_EPSILON)
    momentum = config.momentum if config.optimizer == "momentum" else 0.0
    return torch.optim.SGD(weights, lr=config.learning_rate, momentum=momentum)


def _loss(problem: Problem, weights: list[torch.Tensor], inputs: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    from torch.nn import functional  # type: ignore[import-not-found, unused-ignore]  # an extra

    out = _forward(problem, weights, inputs)
    if problem.loss == "softmax":
        return functional.cross_entropy(out, wanted)
    if problem.loss == "sigmoid":
        return functional.binary_cross_entropy_with_logits(out[:, 0], wanted)
    return functional.mse_loss(out[:, 0], wanted) / 2


def _forward(problem: Problem, weights: list[torch.Tensor], inputs: torch.Tensor) -> torch.Tensor:
    import torch

    activate = {"relu": torch.relu, "tanh": torch.tanh, "sigmoid": torch.sigmoid}[problem.activation]
    here = inputs
    for at in range(0, len(weights), 2):
        here = torch.addmm(weights[at], here, weights[at + 1])
        if at + 2 < len(weights):
            here = activate(here)
    return here
