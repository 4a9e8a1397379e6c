"""Plain concatenation of all members' maps: no projection, nothing lost, and the most expensive for every head."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal

import torch
from einops import rearrange
from pydantic import Field
from torch import Tensor

from manyeyes.config import Config
from manyeyes.fusion.contract import Fusion, Projection
from manyeyes.fusion.moments import KnownMoments, channel_variance, positions
from manyeyes.fusion.pca import channel_owners
from manyeyes.maps import Grid, MapSpec, to_grid, total_variance


class Concatenate(Fusion):
    """Resize all maps to the grid and stack them.

    Shapes: k x (b, c_i, h_i, w_i) -> (b, sum of c_i, *grid).
    Units:  with ``balance`` each member is divided by the root of its total variance (a member whose features are
            constant is left as it is); else the members' own. Never centred.
    Raises: as `Fusion`.
    """

    scale_: Tensor
    shares_: Tensor

    def __init__(self, config: ConcatenateConfig, specs: Sequence[MapSpec], grid: Grid) -> None:
        super().__init__(specs, grid)
        self.config = config
        self.declare("scale_", "shares_")

    @property
    def channels(self) -> int:
        return sum(spec.channels for spec in self.specs)

    def shares(self) -> dict[str, float]:
        self.require_fit()
        return dict(zip(self.members, self.shares_.tolist(), strict=True))

    def projections(self) -> tuple[tuple[Projection, ...], Tensor]:
        self.require_fit()
        parts, start = [], 0
        for spec in self.specs:
            parts.append(Projection(self.scale_[start : start + spec.channels], start, self.grid))
            start += spec.channels
        return tuple(parts), torch.zeros_like(self.scale_)

    def _fit(self, batches: Iterator[tuple[Tensor, ...]], known: KnownMoments) -> None:
        del known  # variances alone are cheap
        mean, variance = channel_variance(chunk for maps in batches for chunk in positions(maps, self.grid))
        owner = channel_owners(self).to(mean.device)
        scale, energy = torch.ones_like(mean), []
        for number in range(len(self.members)):
            mine = owner == number
            total = total_variance(variance[mine], mean[mine])
            if self.config.balance and total > 0:
                scale[mine], total = total**-0.5, 1.0
            energy.append(total)
        parts = torch.tensor(energy, device=mean.device)
        self.scale_ = scale.float()
        self.shares_ = (parts / parts.sum().clamp_min(1e-30)).float()

    def _transform(self, maps: tuple[Tensor, ...]) -> Tensor:
        stacked = torch.cat([to_grid(value, self.grid) for value in maps], dim=1)
        return stacked * rearrange(self.scale_, "c -> c 1 1")


class ConcatenateConfig(Config):
    """All channels side by side. See `Concatenate`."""

    kind: Literal["concatenate"] = "concatenate"
    balance: bool = Field(True, description="give every member the same total variance")

    def build(self, specs: Sequence[MapSpec], grid: Grid) -> Concatenate:
        return Concatenate(self, specs, grid)
