"""The fast way through a fitted fusion: project first, move to the common grid afterwards.

Source: neighbourhood mean and resizing act on rows and columns, projection acts on channels; all are linear, so they
commute (Heller et al. 2023, global block: sum_i resize(W_i F_i) - W m). The concatenation of all channels never exists.
Neighbourhood mean and both resizings of a map are each a small matrix for its rows and one for its columns,
borders included; their product is one matrix per axis, and two matrix products replace pooling and interpolation.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from torch import Tensor, nn

from manyeyes.errors import ShapeError
from manyeyes.fusion.contract import Fusion, Projection
from manyeyes.maps import Grid, MapSpec, check_maps, to_grid


def axis_matrix(size: int, neighbourhood: int, sizes: Sequence[int]) -> Tensor:
    """Neighbourhood mean, then resizing to each of ``sizes`` in turn, as one matrix along one axis.

    Shapes: (sizes[-1], size) float64. Its columns are what the plain operations make of each unit vector.
    """
    side = neighbourhood
    unit = rearrange(torch.eye(size, dtype=torch.float64), "c h -> 1 c h 1")
    moved = F.avg_pool2d(unit, (side, 1), stride=1, padding=(side // 2, 0))
    # Two equal columns, because torch (2.15) resizes a single column wrongly when antialiasing.
    moved = repeat(moved, "1 c h 1 -> 1 c h 2")
    for target in sizes:
        moved = to_grid(moved, (target, 2))
    return rearrange(moved[..., 0], "1 c h -> h c")


class Group(nn.Module):
    """Maps that share size, neighbourhood and rows of the fused map: the sum of their projections, on the grid."""

    weight: Tensor
    along_rows: Tensor
    along_columns: Tensor

    def __init__(self, indices: Sequence[int], spec: MapSpec, parts: Sequence[Projection], grid: Grid) -> None:
        super().__init__()
        self.indices = tuple(indices)
        self.grid = grid
        part = parts[0]
        self.diagonal = part.weight.ndim == 1
        self.widths = [part.weight.shape[-1] for part in parts]
        self.moves = spec.neighbourhood > 1 or spec.grid != part.via or part.via != grid
        (h, w), (rows, columns) = spec.grid, grid
        cost = h * w * columns + h * columns * rows if self.moves else 0
        d, c = part.size, sum(self.widths)
        self.moves_first = c * cost + d * c * rows * columns < d * c * h * w + d * cost
        along = [axis_matrix(spec.grid[axis], spec.neighbourhood, (part.via[axis], grid[axis])) for axis in (0, 1)]
        device = part.weight.device
        self.register_buffer("weight", torch.cat([part.weight for part in parts], dim=-1), persistent=False)
        self.register_buffer("along_rows", along[0].float().to(device), persistent=False)
        self.register_buffer("along_columns", along[1].float().to(device), persistent=False)

    def forward(self, maps: tuple[Tensor, ...], bias: Tensor) -> Tensor:
        """Shapes: k x (b, c_i, h_i, w_i), (d,) -> (b, *grid, d)."""
        # Channels last, as convolutional trunks give them and as heads read them: no position is ever transposed.
        mine = [rearrange(maps[index].float(), "b c h w -> b h w c") for index in self.indices]
        if self.diagonal:
            return torch.addcmul(bias, self.move(mine[0]), self.weight)
        if self.moves_first or not self.moves:
            return self.project([self.move(value) for value in mine], bias)
        # The mean with zeros beyond the border changes a constant there, so the bias comes last.
        return self.move(self.project(mine, torch.zeros_like(bias))).add_(bias)

    def project(self, maps: list[Tensor], bias: Tensor) -> Tensor:
        total = bias
        for value, weight in zip(maps, torch.split(self.weight, self.widths, dim=1), strict=True):
            total = torch.addmm(total, rearrange(value, "b h w c -> (b h w) c"), weight.T)
        b, h, w, _ = maps[0].shape
        return rearrange(total, "(b h w) d -> b h w d", b=b, h=h, w=w)

    def move(self, maps: Tensor) -> Tensor:
        """Shapes: (b, h, w, d) -> (b, *grid, d)."""
        if not self.moves:
            return maps
        wide = self.along_columns @ maps
        tall = self.along_rows @ rearrange(wide, "b h w d -> b h (w d)")
        return rearrange(tall, "b h (w d) -> b h w d", w=self.grid[1])


class Folded(nn.Module):
    """A fitted fusion that takes the maps BEFORE their neighbourhood mean.

    Equals ``fusion.transform`` of the maps after it, to rounding (tests/fusion/test_folded.py). The maps must have the
    grids that the specs declare. It is derived: it has no state to save.
    Shapes: k x (b, c_i, h_i, w_i) -> (b, d, *grid).
    Raises: NotFittedError if ``fusion`` is not fitted; ShapeError if a map is not as declared.
    """

    bias: Tensor

    def __init__(self, fusion: Fusion) -> None:
        super().__init__()
        self.specs, self.grid = fusion.specs, fusion.grid
        parts, bias = fusion.projections()
        self.register_buffer("bias", bias, persistent=False)
        together: dict[tuple[int, Grid, Grid, int], list[int]] = {}
        for index, (spec, part) in enumerate(zip(self.specs, parts, strict=True)):
            together.setdefault((part.start, part.via, spec.grid, spec.neighbourhood), []).append(index)
        groups = [
            Group(indices, self.specs[indices[0]], [parts[i] for i in indices], self.grid)
            for indices in together.values()
        ]
        self.groups = nn.ModuleList(groups)
        self.rows = [(parts[group.indices[0]].start, parts[group.indices[0]].size) for group in groups]

    def forward(self, maps: tuple[Tensor, ...]) -> Tensor:
        check_maps(maps, self.specs)
        for value, spec in zip(maps, self.specs, strict=True):
            if tuple(value.shape[2:]) != tuple(spec.grid):
                raise ShapeError(f"map {spec.name!r}: expected the grid {spec.grid}, got {tuple(value.shape[2:])}")
        with torch.no_grad():
            b, d = len(maps[0]), len(self.bias)
            fused = maps[0].new_empty((b, *self.grid, d), dtype=self.bias.dtype)
            started: set[int] = set()
            for group, (start, size) in zip(self.groups, self.rows, strict=True):
                rows = fused[..., start : start + size]
                if start in started:
                    rows += group(maps, torch.zeros_like(self.bias[:size]))
                else:
                    rows.copy_(group(maps, self.bias[start : start + size]))
                    started.add(start)
            return rearrange(fused, "b h w d -> b d h w")
