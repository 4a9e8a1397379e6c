"""What the discriminators share: noise relative to the features, the steps of learning, a batch norm folded away."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

import torch
from pydantic import AfterValidator
from torch import Tensor, nn

from manyeyes.errors import DataError
from manyeyes.maps import total_variance


def _from_weak_to_strong(noise: tuple[float, float]) -> tuple[float, float]:
    if not 0 < noise[0] <= noise[1]:
        raise ValueError(f"expected 0 < weakest <= strongest, got {list(noise)}")
    return noise


NoiseRange = Annotated[tuple[float, float], AfterValidator(_from_weak_to_strong)]
"""Weakest and strongest standard deviation of the noise, in root-mean-squares of the centred features."""


def root_mean_square(features: Tensor, name: str) -> float:
    """Of the centred features: a constant that some blocks leave in them is no part of their spread.

    Shapes: (n, d). Raises: DataError naming the head if all features are equal.
    """
    spread, centre = torch.var_mean(features, dim=0, correction=0)
    scale = (total_variance(spread, centre) / features.shape[1]) ** 0.5
    if scale == 0:
        raise DataError(f"{name}: all features are equal; the training pictures may be constant")
    return float(scale)


def strengths(count: int, low: float, high: float, generator: torch.Generator) -> Tensor:
    """Log-uniform between the exponentials of ``low`` and ``high``. Shapes: -> (count, 1)."""
    drawn = torch.rand((count, 1), generator=generator, device=generator.device)
    return drawn.mul_(high - low).add_(low).exp_()


def learn(network: nn.Module, loss: Callable[[], Tensor], steps: int, peak: float, weight_decay: float) -> None:
    """Minimise what ``loss`` returns at each of ``steps``, on a fixed one-cycle schedule up to the rate ``peak``."""
    weights = list(network.parameters())
    fused = weights[0].device.type in ("cpu", "cuda")
    optimiser = torch.optim.AdamW(weights, peak, weight_decay=weight_decay, fused=fused)
    warm = 0.1 if steps == 20 else 0.05  # PyTorch divides by the steps of the first phase less one
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, peak, steps, pct_start=warm)
    for _ in range(steps):
        value = loss()
        optimiser.zero_grad(set_to_none=True)
        torch.autograd.backward(value)
        optimiser.step()
        schedule.step()


@torch.no_grad()
def folded(hidden: nn.Linear, norm: nn.BatchNorm1d) -> tuple[Tensor, Tensor]:
    """Weights (h, d) and biases (h,) of the hidden layer with the batch norm in them, as it is outside training."""
    mean, variance = norm.get_buffer("running_mean"), norm.get_buffer("running_var")
    gain = norm.weight / torch.sqrt(variance + norm.eps)
    return hidden.weight * gain[:, None], (hidden.bias - mean) * gain + norm.bias
