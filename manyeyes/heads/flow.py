"""A normalising flow in the shape of a U: a pyramid of maps <-> as many independent standard normal values.

Source: U-Flow (Tailanian, Pardo, Muse, arXiv 2211.12353, section 3.2; facts from the paper only), coupling steps from
FrEIA (MIT). From the coarsest scale to the finest: a stack of coupling steps, half of the channels leave to the output,
the rest is rearranged to the finer grid, 2 x 2 positions from four channels, and joined to the finer scale's map.
We differ: grids may be any whole multiple apart, so that a scale can be left out or two scales can share a grid; where
the rest does not fill the rearrangement, the surplus leaves with the first half; the subnets end in zeros, so that a
fresh flow only permutes.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, cast

import numpy as np
import torch
from einops import rearrange
from torch import Tensor, nn

from manyeyes.errors import ConfigError
from manyeyes.maps import MapSpec


class UShape(nn.Module):
    """Shapes: k x (b, c_i, h_i, w_i), coarse to fine -> k x (b, d_i, h_i, w_i) and log-determinant (b,).

    The sum of d_i h_i w_i is the sum of c_i h_i w_i. ``width`` is the hidden width of a subnet as a share of its input.
    Raises: ConfigError if a grid is no whole multiple of the next coarser one.
    """

    def __init__(self, specs: Sequence[MapSpec], steps: int, width: float, clamp: float, seed: int) -> None:
        super().__init__()
        self.factors = [_factor(coarse, fine) for coarse, fine in pairwise(specs)]
        self.joined = [spec.channels for spec in specs]  # channels of each scale's own map
        self.leaving: list[int] = []
        stacks, risen = [], 0
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            for spec, factor in zip(specs, [*self.factors, None], strict=True):
                channels = spec.channels + risen
                stacks.append(_stack(channels, spec, steps, width, clamp))
                risen = channels // 2 // factor**2 if factor else 0
                self.leaving.append(channels - risen * factor**2 if factor else channels)
        self.stacks = nn.ModuleList(stacks)

    def forward(self, maps: Sequence[Tensor]) -> tuple[tuple[Tensor, ...], Tensor]:
        latents: list[Tensor] = []
        log_determinant = torch.zeros(len(maps[0]), dtype=maps[0].dtype, device=maps[0].device)
        rest = maps[0][:, :0]
        for index, (stack, leaving) in enumerate(zip(self.stacks, self.leaving, strict=True)):
            value, added = stack(torch.cat([maps[index], rest], dim=1))
            log_determinant = log_determinant + added
            latents.append(value[:, :leaving])
            if index < len(self.factors):
                rest = rise(value[:, leaving:], self.factors[index])
        return tuple(latents), log_determinant

    def inverse(self, latents: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Shapes: k x (b, d_i, h_i, w_i) -> k x (b, c_i, h_i, w_i)."""
        maps: list[Tensor] = []
        rest = latents[-1][:, :0]
        for index in reversed(range(len(self.stacks))):
            value, _ = self.stacks[index](torch.cat([latents[index], rest], dim=1), rev=True)
            maps.append(value[:, : self.joined[index]])
            if index:
                rest = sink(value[:, self.joined[index] :], self.factors[index - 1])
        return tuple(reversed(maps))


def rise(maps: Tensor, factor: int) -> Tensor:
    """Channels to positions. Shapes: (b, c * factor^2, h, w) -> (b, c, h * factor, w * factor)."""
    return rearrange(maps, "b (c f g) h w -> b c (h f) (w g)", f=factor, g=factor)


def sink(maps: Tensor, factor: int) -> Tensor:
    """The inverse of `rise`."""
    return rearrange(maps, "b c (h f) (w g) -> b (c f g) h w", f=factor, g=factor)


def _factor(coarse: MapSpec, fine: MapSpec) -> int:
    (h, w), (tall, wide) = coarse.grid, fine.grid
    if tall % h or wide % w or tall // h != wide // w:
        raise ConfigError(
            f"u_flow: the grid {tall} x {wide} of {fine.name!r} is no whole multiple of the grid {h} x {w} of "
            f"{coarse.name!r}; choose an input size that the coarsest stride divides, such as 256 or 448"
        )
    return tall // h


def _stack(channels: int, spec: MapSpec, steps: int, width: float, clamp: float) -> nn.Module:
    """Coupling steps whose subnets have kernels 3 and 1 in turn; permutations drawn from torch's generator."""
    from FrEIA.framework import SequenceINN
    from FrEIA.modules import AllInOneBlock

    if channels < 2:
        raise ConfigError(
            f"u_flow: map {spec.name!r} has one channel, and a coupling step needs two; choose wider maps"
        )
    stack = SequenceINN(channels, *spec.grid)
    for step in range(steps):
        kernel = 1 if step % 2 else 3

        def subnet(into: int, out: int, kernel: int = kernel) -> nn.Module:
            hidden = max(1, round(width * into))
            first = nn.Conv2d(into, hidden, kernel, padding=kernel // 2)
            last = nn.Conv2d(hidden, out, kernel, padding=kernel // 2)
            nn.init.zeros_(last.weight)
            nn.init.zeros_(cast(Tensor, last.bias))
            return nn.Sequential(first, nn.ReLU(), last)

        state = np.random.get_state()  # noqa: NPY002 - FrEIA draws from it, and it is not ours to move
        stack.append(AllInOneBlock, subnet_constructor=subnet, affine_clamping=clamp)
        np.random.set_state(state)  # noqa: NPY002
        block: Any = stack[step]
        permutation = torch.eye(channels)[torch.randperm(channels)][:, :, None, None]
        block.w_perm.data, block.w_perm_inv.data = permutation, permutation.transpose(0, 1).contiguous()
    return cast(nn.Module, stack)
