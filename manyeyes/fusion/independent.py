"""The independent transformation block: a PCA for each member, side by side.

Source: Heller et al., Intelligent Systems with Applications 19 (2023) 200264. Where we differ: ``components`` is the
budget of the whole block, shared evenly, so that it compares with the global block at equal cost; with ``balance``
every member's components have variance one in all.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Literal

import torch
from einops import einsum, rearrange
from pydantic import Field
from torch import Tensor

from manyeyes.config import Config
from manyeyes.errors import ConfigError
from manyeyes.fusion.contract import Fusion, Projection
from manyeyes.fusion.moments import KnownMoments, Wanted
from manyeyes.fusion.pca import Components, gains, kept, most_components, principal_axes
from manyeyes.maps import Grid, MapSpec, finest_grid, to_grid, total_variance


def share_out(total: int, limits: Mapping[str, int]) -> dict[str, int]:
    """Share ``total`` evenly, the odd ones to the first; what is over a member's limit goes to the others.

    >>> share_out(10, {"a": 2, "b": 9, "c": 9})
    {'a': 2, 'b': 4, 'c': 4}
    """
    given = dict.fromkeys(limits, 0)
    while total > 0 and (room := [name for name in limits if given[name] < limits[name]]):
        each = max(1, total // len(room))
        for name in room:
            more = min(each, limits[name] - given[name], total)
            given[name] += more
            total -= more
    return given


class IndependentPca(Fusion):
    """Project each member's maps onto that member's own principal axes, and stack the components.

    A member's maps are resized to the member's finest grid and concatenated there; its components are then resized to
    the grid of the block. A member whose features are constant gives zeros.
    Shapes: k x (b, c_i, h_i, w_i) -> (b, d, *grid), the members in order.
    Units:  with ``balance`` each member's components are divided by the root of their total variance, else its own;
            before that, component k is divided by its std ** whiten.
    Raises: as `Fusion`; DataError if a member saw fewer positions than it is to have components.
    Each member equals scikit-learn's PCA up to sign (tests/fusion/test_pca.py).
    """

    mean_: Tensor
    weight_: Tensor
    """Block-diagonal (d, c): a row reads the channels of one member only."""
    sizes_: Tensor
    explained_variance_ratio_: Tensor
    """(d,) of each component within its own member."""
    shares_: Tensor

    def __init__(self, config: IndependentPcaConfig, specs: Sequence[MapSpec], grid: Grid) -> None:
        super().__init__(specs, grid)
        unknown = sorted(set(config.per_member) - set(self.members))
        if unknown:
            raise ConfigError(f"fusion.per_member: unknown members {unknown}; allowed: {list(self.members)}")
        self.config = config
        if isinstance(config.components, int):
            fixed = [config.per_member.get(name) for name in self.members]
            least = sum(value if isinstance(value, int) else 1 for value in fixed)
            if config.components < least:
                raise ConfigError(
                    f"fusion.components: {config.components} are too few for the members {list(self.members)}; "
                    f"expected at least {least}, per_member included"
                )
        self.grids = {
            name: finest_grid(tuple(self.specs[index] for index in maps)) for name, maps in self.members.items()
        }
        self.declare("mean_", "weight_", "sizes_", "explained_variance_ratio_", "shares_")

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
        parts: dict[int, Projection] = {}
        start = 0
        for (name, maps), size in zip(self.members.items(), self.sizes_.tolist(), strict=True):
            for index in maps:
                parts[index] = Projection(slices[index][start : start + size], start, self.grids[name])
            start += size
        bias = -(self.weight_.double() @ self.mean_.double()).float()
        return tuple(parts[index] for index in range(len(self.specs))), bias

    def _fit(self, batches: Iterator[tuple[Tensor, ...]], known: KnownMoments) -> None:
        wanted = {
            Wanted(tuple(self.specs[index] for index in maps), self.grids[name]): maps
            for name, maps in self.members.items()
        }
        moments = dict(zip(self.members, known.take(wanted, batches), strict=True))
        means = {name: value.mean for name, value in moments.items()}
        axes = {}
        for name, value in moments.items():
            covariance = value.covariance()
            if total_variance(covariance.diagonal(), means[name]) == 0:
                covariance = torch.zeros_like(covariance)
            axes[name] = principal_axes(covariance)
        sizes = self._sizes({name: (axes[name].ratio, moments[name].count) for name in axes})

        device = means[next(iter(means))].device
        columns = self._columns()
        channels = sum(spec.channels for spec in self.specs)
        weight = torch.zeros(sum(sizes.values()), channels, dtype=torch.float64, device=device)
        mean = torch.zeros(channels, dtype=torch.float64, device=device)
        energy, start = [], 0
        for name, size in sizes.items():
            gain = gains(axes[name].variances, self.config.whiten)[:size]
            total = (axes[name].variances[:size] * gain**2).sum()
            if self.config.balance and total > 0:
                gain, total = gain * total**-0.5, torch.ones_like(total)
            weight[start : start + size, columns[name].to(device)] = gain[:, None] * axes[name].vectors[:size]
            mean[columns[name].to(device)] = means[name]
            energy.append(total)
            start += size
        parts = torch.stack(energy)
        self.mean_, self.weight_ = mean.float(), weight.float()
        self.sizes_ = torch.tensor(list(sizes.values()), device=device)
        self.explained_variance_ratio_ = torch.cat([axes[name].ratio[:size] for name, size in sizes.items()]).float()
        self.shares_ = (parts / parts.sum().clamp_min(1e-30)).float()

    def _sizes(self, seen: Mapping[str, tuple[Tensor, int]]) -> dict[str, int]:
        """Components per member from the variance ratios and the number of positions that each has seen."""
        total, chosen, limits = self.config.components, self.config.per_member, {}
        sizes: dict[str, int] = {}
        for name, (ratio, count) in seen.items():
            wanted = chosen.get(name, total)
            open_share = name not in chosen and isinstance(total, int)
            limits[name] = most_components(count, len(ratio), 1 if open_share else wanted)
            if not open_share:
                sizes[name] = kept(wanted, ratio, limits[name])
        if isinstance(total, int):
            rest = {name: len(seen[name][0]) for name in seen if name not in sizes}
            for name, size in share_out(max(total - sum(sizes.values()), len(rest)), rest).items():
                most_components(seen[name][1], len(seen[name][0]), size)
                sizes[name] = kept(size, seen[name][0], limits[name])
        return {name: sizes[name] for name in seen}

    def _columns(self) -> dict[str, Tensor]:
        """Where each member's channels lie among all channels."""
        channels = [spec.channels for spec in self.specs]
        ranges = torch.split(torch.arange(sum(channels)), channels)
        return {name: torch.cat([ranges[index] for index in maps]) for name, maps in self.members.items()}

    def _transform(self, maps: tuple[Tensor, ...]) -> Tensor:
        fused, start, columns = [], 0, self._columns()
        for (name, indices), size in zip(self.members.items(), self.sizes_.tolist(), strict=True):
            mine = columns[name].to(self.weight_.device)
            features = torch.cat([to_grid(maps[index], self.grids[name]) for index in indices], dim=1)
            centred = features - rearrange(self.mean_[mine], "c -> c 1 1")
            projected = einsum(self.weight_[start : start + size, mine], centred, "d c, b c h w -> b d h w")
            fused.append(to_grid(projected, self.grid))
            start += size
        return torch.cat(fused, dim=1)


class IndependentPcaConfig(Config):
    """A PCA for each member. See `IndependentPca`."""

    kind: Literal["independent_pca"] = "independent_pca"
    components: Components = Field(
        256, description="components of all members together, shared evenly; or the fraction of variance each one keeps"
    )
    per_member: dict[str, Components] = Field(
        {}, description="a number or fraction for single members by name; a number is taken out of the total"
    )
    balance: bool = Field(True, description="give every member's components the same total variance")
    whiten: float = Field(
        0.5,
        ge=0,
        le=1,
        description="components are divided by their std to this power: 0 (false) none, 1 (true) all",
    )

    def build(self, specs: Sequence[MapSpec], grid: Grid) -> IndependentPca:
        return IndependentPca(self, specs, grid)
