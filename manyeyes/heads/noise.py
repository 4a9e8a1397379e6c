"""What the discriminators share: noise relative to the features, their schedule, a batch norm folded away."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from manyeyes.errors import DataError
from manyeyes.maps import total_variance


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


def one_cycle(optimiser: torch.optim.Optimizer, peak: float, steps: int) -> torch.optim.lr_scheduler.OneCycleLR:
    warm = 0.1 if steps == 20 else 0.05  # PyTorch divides by the steps of the first phase less one
    return torch.optim.lr_scheduler.OneCycleLR(optimiser, peak, steps, pct_start=warm)


@torch.no_grad()
def folded(hidden: nn.Linear, norm: nn.BatchNorm1d) -> tuple[Tensor, Tensor]:
    """Weights (h, d) and biases (h,) of the hidden layer with the batch norm in them, as it is outside training."""
    mean, variance = norm.get_buffer("running_mean"), norm.get_buffer("running_var")
    gain = norm.weight / torch.sqrt(variance + norm.eps)
    return hidden.weight * gain[:, None], (hidden.bias - mean) * gain + norm.bias
