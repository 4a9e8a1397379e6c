"""Least squares for the last convolution of a network, which is linear in what the layers before it give."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import cast

import torch
from einops import rearrange
from torch import Tensor, nn

from manyeyes.errors import DataError
from manyeyes.maps import upper_gram

BLOCK = 4096
"""Rows that are multiplied at once."""
SMALLEST_SPREAD = 1e-6
"""Variance of the inputs, as a share of their mean square, below which float32 sums hold nothing but rounding."""


class LeastSquares:
    """Streamed normal equations of a linear map from inputs to outputs, both centred.

    Memory: one square matrix of the inputs, in float64, and what is given until `BLOCK` rows have come together.
    """

    def __init__(self, inputs: int, outputs: int) -> None:
        self.square = torch.zeros(inputs, inputs, dtype=torch.float64)
        self.product = torch.zeros(inputs, outputs, dtype=torch.float64)
        self.sums = torch.zeros(inputs, dtype=torch.float64), torch.zeros(outputs, dtype=torch.float64)
        self.count = 0.0
        self._waiting: list[tuple[Tensor, Tensor, Tensor]] = []

    def see(self, rows: Tensor, wanted: Tensor, weights: Tensor | None = None) -> None:
        """Shapes: (n, inputs), (n, outputs), and how much each row counts (n,)."""
        weights = rows.new_ones(len(rows)) if weights is None else weights
        self.count += float(weights.double().sum())
        for start in range(0, len(rows), BLOCK):
            some = slice(start, start + BLOCK)
            self._waiting.append((rows[some], wanted[some], weights[some]))
            if sum(len(each) for _, _, each in self._waiting) >= BLOCK:
                self._settle()

    def _settle(self) -> None:
        """Count the rows that wait: few at a time would cost more in additions of large matrices than in products."""
        if not self._waiting:
            return
        rows, wanted, weights = (torch.cat(parts) for parts in zip(*self._waiting, strict=True))
        self._waiting.clear()
        for total, values in zip(self.sums, (rows, wanted), strict=True):
            total += (weights[:, None] * values).sum(dim=0, dtype=torch.float64).cpu()
        root = weights.sqrt()[:, None]
        rows = root * rows
        self.square += upper_gram(rows).double().cpu()  # only the upper triangle counts
        self.product += (rows.T @ (root * wanted)).double().cpu()

    def only(self, outputs: slice) -> LeastSquares:
        """The same of some outputs alone, as a copy."""
        self._settle()
        part = LeastSquares(0, 0)
        part.square, part.product = self.square.clone(), self.product[:, outputs].clone()
        part.sums = self.sums[0].clone(), self.sums[1][outputs].clone()
        part.count = self.count
        return part

    def add(self, other: LeastSquares, weight: float) -> None:
        """Count what ``other`` has seen, too, ``weight`` times."""
        self._settle()
        other._settle()
        self.square.add_(other.square, alpha=weight)
        self.product.add_(other.product, alpha=weight)
        for total, values in zip(self.sums, other.sums, strict=True):
            total.add_(values, alpha=weight)
        self.count += weight * other.count

    def solve(self, ridge: float) -> tuple[Tensor, Tensor]:
        """Weight (outputs, inputs) and bias (outputs,); ``ridge`` is relative to an input's mean variance.

        Raises: DataError if the inputs never change or the ridge is too small for float32 inputs.
        """
        self._settle()
        if not self.count:
            raise DataError("a layer cannot be fitted to no position at all; use more pictures, or more of them")
        mean, middle = (total / self.count for total in self.sums)
        square = self.square.triu() + self.square.triu(1).T - self.count * torch.outer(mean, mean)
        spread = float(square.diagonal().mean())
        if not spread > SMALLEST_SPREAD * float(self.square.diagonal().mean()):
            raise DataError("a layer cannot be fitted to pictures that all look the same everywhere")
        square.diagonal().add_(ridge * spread)
        factor, failed = torch.linalg.cholesky_ex(square)
        if int(failed):
            raise DataError(f"a ridge of {ridge:g} is lost in the rounding of these pictures' features; raise it")
        weight = torch.cholesky_solve(self.product - self.count * torch.outer(mean, middle), factor).T
        return weight.float(), (middle - weight @ mean).float()


def position_rows(
    network: nn.Sequential, batches: Iterable[tuple[Tensor, Tensor]], share: float, generator: torch.Generator
) -> Iterator[tuple[Tensor, Tensor]]:
    """Inputs of the network's last convolution and what is wanted of it, at a random ``share`` of the positions.

    Shapes: normalised images (b, 3, H, W), what is wanted of them (b, c, h, w) -> (n, inputs), (n, c) for each batch.
    """
    last = cast(nn.Conv2d, network[-1])
    kernel = cast(tuple[int, int], last.kernel_size)
    for images, targets in batches:
        windows = network[:-1](images).unfold(2, kernel[0], 1).unfold(3, kernel[1], 1)
        windows = rearrange(windows, "b c h w y x -> b h w c y x")  # a view: only what is chosen is copied
        shape = windows.shape[:3]
        chosen = (torch.rand(math.prod(shape), generator=generator) < share).view(shape).to(windows.device)
        yield windows[chosen].flatten(1), rearrange(targets.to(windows), "b c h w -> b h w c")[chosen]
