"""What a patch description network learns to say: features of a large trunk, at the places that the network sees.

Source: EfficientAD (arXiv 2303.14535), appendix; PatchCore's 3 x 3 mean and its channel reduction, here at once of all
stages side by side.
Where we differ: a target is read off the trunk's map at the very pixel that a network's output is centred on, from
where each stage was measured to look, instead of taking both maps for one grid.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from manyeyes.backbones.contract import Stage, Trunk
from manyeyes.backbones.pdn import CENTRE, CHANNELS, STRIDE, positions
from manyeyes.checkpoint import drawn_at
from manyeyes.errors import ConfigError
from manyeyes.maps import Grid, neighbourhood_mean

NEIGHBOURHOOD = 3
DOTS = 16


class Targets:
    """Features of ``stages`` at the places of a patch description network's output.

    Shapes: (b, 3, H, W) in [0, 1] -> (b, 384, h, w), h and w those of the network on an image of ``image_size``.
    Raises: ConfigError if the stages have fewer than 384 channels.
    """

    def __init__(self, trunk: Trunk, stages: Sequence[int], image_size: Grid) -> None:
        self.trunk = trunk
        self.stages = [trunk.stage(str(stage)) for stage in stages]
        channels = sum(stage.channels for stage in self.stages)
        if channels < CHANNELS:
            raise ConfigError(
                f"stages: expected at least {CHANNELS} channels to learn from, got {channels}; add a stage"
            )
        self.places = [self._places(stage, image_size) for stage in self.stages]

    def _places(self, stage: Stage, image_size: Grid) -> Tensor:
        """Where the network's positions lie on a stage's map, in the units of grid_sample. Shapes: (h, w, 2)."""
        axes = []
        for axis, first in enumerate(first_centre(self.trunk, stage)):
            scale = self.trunk.input_size[axis] / image_size[axis]
            pixel = (torch.arange(positions(image_size[axis])) * STRIDE + CENTRE) * scale
            index = (pixel - first) * stage.grid[axis] / self.trunk.input_size[axis]
            axes.append((index + 0.5) / stage.grid[axis] * 2 - 1)
        rows, columns = torch.meshgrid(*axes, indexing="ij")
        return torch.stack([columns, rows], dim=-1)

    def __call__(self, images: Tensor) -> Tensor:
        found = self.trunk(images, [stage.name for stage in self.stages])
        parts = []
        for stage, places in zip(self.stages, self.places, strict=True):
            value = neighbourhood_mean(found[stage.name].float(), NEIGHBOURHOOD)
            where = places.to(value.device).expand(len(value), -1, -1, -1)
            parts.append(F.grid_sample(value, where, mode="bilinear", padding_mode="border", align_corners=False))
        joined = torch.cat(parts, dim=1)
        if joined.shape[1] == CHANNELS:
            return joined
        h = joined.shape[2]
        rows = F.adaptive_avg_pool1d(rearrange(joined, "b c h w -> b (h w) c"), CHANNELS)
        return rearrange(rows, "b (h w) c -> b c h w", h=h)


def first_centre(trunk: Trunk, stage: Stage) -> tuple[float, float]:
    """Where position 0 of a stage looks, in px of the trunk's input from its edge, measured with dots on noise.

    Nominal grids have it at half the stride s, kernels and paddings of a ResNet at 0.5; trained with flips, it looks
    somewhere between the two (layer 3 of ResNet-18 at 5.7 of 16).
    """
    H, W = trunk.input_size
    image = torch.rand(1, 3, H, W, generator=drawn_at(0))
    stride = (H / stage.grid[0], W / stage.grid[1])
    # On both sides of the middle alike: what answers everywhere, as a transformer does, draws centroids towards it.
    steps = [((i + 0.5) / DOTS - 0.5, ((i * 7) % DOTS + 0.5) / DOTS - 0.5) for i in range(DOTS)]
    dots = [(int(H / 2 + dy * stride[0]), int(W / 2 + dx * stride[1])) for dy, dx in steps]
    base = _response(trunk, stage, image)
    shifts = []
    for y, x in dots:
        dotted = image.clone()
        dotted[:, :, y, x] = 1 - dotted[:, :, y, x].round()
        changed = (_response(trunk, stage, dotted) - base).abs().sum(dim=0).double()
        h, w = (torch.arange(side, dtype=torch.float64) for side in changed.shape)
        row, column = ((changed.sum(dim=1 - axis) * at).sum() / changed.sum() for axis, at in enumerate((h, w)))
        shifts.append((y + 0.5 - float(row) * stride[0], x + 0.5 - float(column) * stride[1]))
    return sum(y for y, _ in shifts) / DOTS, sum(x for _, x in shifts) / DOTS


def _response(trunk: Trunk, stage: Stage, image: Tensor) -> Tensor:
    device = next(trunk.parameters()).device
    value: Tensor = trunk(image.to(device), [stage.name])[stage.name][0].cpu()
    return value
