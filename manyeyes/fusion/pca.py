"""The global transformation block: one PCA over all members' channels.

Source: Heller et al., Intelligent Systems with Applications 19 (2023) 200264. Where we differ: the PCA is exact and
streams (`moments`); every member can be given the same weight first (``balance``), because otherwise the member with
most channels or the largest variance swallows the components; the components can be whitened in part.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
from einops import einsum, rearrange
from pydantic import BeforeValidator, Field
from torch import Tensor

from manyeyes.config import Config
from manyeyes.errors import DataError
from manyeyes.fusion.contract import Fusion, Projection
from manyeyes.fusion.moments import KnownMoments, Wanted
from manyeyes.maps import Grid, MapSpec, to_grid, total_variance


def _number_or_fraction(value: Any) -> Any:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not (0 < value < 1 or (isinstance(value, int) and value >= 1)):
        raise ValueError(f"expected a whole number of at least 1, or a fraction between 0 and 1, got {value!r}")
    return value


Components = Annotated[
    Annotated[int, Field(ge=1, strict=True)] | Annotated[float, Field(gt=0, lt=1)], BeforeValidator(_number_or_fraction)
]
"""A number of components, or the fraction of the variance to keep."""

SMALLEST = 1e-6
"""Whitening treats variances below this part of the largest as if they were this large: they are mostly rounding."""


@dataclass(frozen=True)
class Axes:
    """Principal axes by falling variance: ``variances`` (c,), ``vectors`` (c, c) with one axis per row, float64."""

    variances: Tensor
    vectors: Tensor

    @property
    def ratio(self) -> Tensor:
        """(c,) Part of the total variance along each axis; zero if there is none."""
        total = self.variances.sum()
        return self.variances / total if total > 0 else torch.zeros_like(self.variances)


def principal_axes(covariance: Tensor) -> Axes:
    """Eigenvectors of a covariance, each with its largest loading positive. Shapes: (c, c) float64."""
    variances, vectors = torch.linalg.eigh(covariance)
    rows = vectors.T.flip(0)
    largest = rows.gather(1, rows.abs().argmax(dim=1, keepdim=True))
    return Axes(variances.flip(0).clamp_min(0), rows * torch.where(largest < 0, -1.0, 1.0))


def kept(components: int | float, ratio: Tensor, limit: int) -> int:
    """How many axes to keep: the number itself, or as few as reach the fraction; between 1 and ``limit``."""
    if isinstance(components, int):
        return max(1, min(components, limit))
    below = ratio.cumsum(0) < components - 1e-9
    return max(1, min(int(below.sum()) + 1, limit))


def gains(variances: Tensor, whiten: float) -> Tensor:
    """What each component is multiplied with: its std to the power of ``-whiten``. Shapes: (c,) -> (c,).

    Tiny variances are lifted to ``SMALLEST`` times the largest. All zero where no variance is: a constant gives zeros.
    """
    largest = variances.max()
    if largest <= 0:
        return torch.zeros_like(variances)
    return variances.clamp_min(SMALLEST * float(largest)) ** (-whiten / 2)


def most_components(count: int, channels: int, wanted: int | float) -> int:
    """At most min(channels, positions - 1). Raises: DataError if fewer positions were seen than components wanted."""
    needed = max(2, min(wanted, channels) if isinstance(wanted, int) else 2)
    if count < needed:
        raise DataError(
            f"expected at least {needed} positions to find {needed} principal components, got {count}; "
            "supply more images of normal parts or lower its fusion.components"
        )
    return min(channels, count - 1)


class GlobalPca(Fusion):
    """Project all members' maps, concatenated over channels, onto their leading principal axes.

    Constant features give a map of zeros.
    Shapes: k x (b, c_i, h_i, w_i) -> (b, d, *grid).
    Units:  the members' own; with ``balance`` each member is divided by the root of its total variance, so that every
            member has variance one however many channels it has; component k is divided by its std ** whiten.
    Raises: as `Fusion`; DataError if fewer than d positions were seen.
    Equals scikit-learn's PCA up to sign (tests/fusion/test_pca.py).
    """

    mean_: Tensor
    weight_: Tensor
    explained_variance_ratio_: Tensor
    shares_: Tensor

    def __init__(self, config: GlobalPcaConfig, specs: Sequence[MapSpec], grid: Grid) -> None:
        super().__init__(specs, grid)
        self.config = config
        self.declare("mean_", "weight_", "explained_variance_ratio_", "shares_")

    @property
    def channels(self) -> int:
        self.require_fit()
        return self.weight_.shape[0]

    def shares(self) -> dict[str, float]:
        self.require_fit()
        return dict(zip(self.members, self.shares_.tolist(), strict=True))

    def projections(self) -> tuple[tuple[Projection, ...], Tensor]:
        self.require_fit()
        slices = torch.split(self.weight_, [spec.channels for spec in self.specs], dim=1)
        bias = -(self.weight_.double() @ self.mean_.double()).float()
        return tuple(Projection(weight, 0, self.grid) for weight in slices), bias

    def _fit(self, batches: Iterator[tuple[Tensor, ...]], known: KnownMoments) -> None:
        (moments,) = known.take({Wanted(self.specs, self.grid): range(len(self.specs))}, batches)
        mean, covariance = moments.mean, moments.covariance()
        limit = most_components(moments.count, moments.channels, self.config.components)
        owner = channel_owners(self).to(mean.device)
        scale = torch.zeros_like(mean)
        for number in range(len(self.members)):
            mine = owner == number
            total = total_variance(covariance.diagonal()[mine], mean[mine])
            if total > 0:
                scale[mine] = total**-0.5 if self.config.balance else 1.0
        axes = principal_axes(scale[:, None] * covariance * scale)
        d = kept(self.config.components, axes.ratio, limit)
        gain = gains(axes.variances, self.config.whiten)[:d]
        vectors = axes.vectors[:d]
        energy = (axes.variances[:d] * gain**2) @ vectors**2
        parts = torch.stack([energy[owner == number].sum() for number in range(len(self.members))])
        self.mean_ = mean.float()
        self.weight_ = (gain[:, None] * vectors * scale).float()
        self.explained_variance_ratio_ = axes.ratio[:d].float()
        self.shares_ = (parts / parts.sum().clamp_min(1e-30)).float()

    def _transform(self, maps: tuple[Tensor, ...]) -> Tensor:
        features = torch.cat([to_grid(value, self.grid) for value in maps], dim=1)
        centred = features - rearrange(self.mean_, "c -> c 1 1")
        return einsum(self.weight_, centred, "d c, b c h w -> b d h w")


def channel_owners(fusion: Fusion) -> Tensor:
    """The number of the member that each concatenated channel belongs to. Shapes: (sum of c_i,) int64."""
    owners = {index: number for number, maps in enumerate(fusion.members.values()) for index in maps}
    return torch.cat([torch.full((spec.channels,), owners[index]) for index, spec in enumerate(fusion.specs)])


class GlobalPcaConfig(Config):
    """One PCA over all members' channels. See `GlobalPca`."""

    kind: Literal["global_pca"] = "global_pca"
    components: Components = Field(256, description="components in all: a number, or the fraction of variance to keep")
    balance: bool = Field(True, description="give every member the same total variance before the PCA")
    whiten: float = Field(
        0.5,
        ge=0,
        le=1,
        description="components are divided by their std to this power: 0 (false) none, 1 (true) all",
    )

    def build(self, specs: Sequence[MapSpec], grid: Grid) -> GlobalPca:
        return GlobalPca(self, specs, grid)
