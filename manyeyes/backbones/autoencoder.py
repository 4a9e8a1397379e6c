"""The autoencoder of EfficientAD: what the teacher would say of a picture that is globally normal.

Source: Batzner, Heckler, Koenig, WACV 2024, arXiv 2303.14535, table 8. Sizes are those of the table at 256 x 256 px.
Where we differ: at other sizes and aspects every size follows the input, each side for itself, and the last encoding
kernel covers what is left of the image, so that the code is always one vector of 64.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from manyeyes.maps import Grid

CODE = 64
HALVINGS = 5
DROPOUT = 0.2
ENCODER = (32, 32, 64, 64, 64)


class Resize(nn.Module):
    """Bilinear resize to a fixed grid. Shapes: (b, c, h, w) -> (b, c, *grid)."""

    def __init__(self, grid: Grid) -> None:
        super().__init__()
        self.grid = grid

    def forward(self, maps: Tensor) -> Tensor:
        return F.interpolate(maps, size=self.grid, mode="bilinear", align_corners=False)


def decoder_grids(image_size: Grid, out: Grid) -> tuple[Grid, ...]:
    """The grids before each decoding convolution, (3, 8, 15, 32, 63, 127, out) at 256 px; the last before two."""
    sides = [
        [max(1, side // 64 - 1), side // 32, side // 16 - 1, side // 8, side // 4 - 1, side // 2 - 1]
        for side in image_size
    ]
    return (*((h, w) for h, w in zip(*sides, strict=True)), out)


def autoencoder(image_size: Grid, out: Grid, channels: int) -> nn.Sequential:
    """Six convolutions to the code, eight back to the teacher's map.

    Shapes: (b, 3, *image_size) -> (b, channels, *out). Both sides at least 32 px.
    """
    layers: list[nn.Module] = []
    before = 3
    for width in ENCODER:
        layers += [nn.Conv2d(before, width, 4, stride=2, padding=1), nn.ReLU(inplace=True)]
        before = width
    left = image_size[0] >> HALVINGS, image_size[1] >> HALVINGS
    layers.append(nn.Conv2d(before, CODE, left))
    *grids, last = decoder_grids(image_size, out)
    for grid in grids:
        layers += [Resize(grid), nn.Conv2d(CODE, CODE, 4, padding=2), nn.ReLU(inplace=True), nn.Dropout(DROPOUT)]
    layers += [Resize(last), nn.Conv2d(CODE, CODE, 3, padding=1), nn.ReLU(inplace=True)]
    layers.append(nn.Conv2d(CODE, channels, 3, padding=1))
    return nn.Sequential(*layers)


def draw_as_he(network: nn.Sequential) -> None:
    """Draw all convolutions anew with a variance that passes through ReLUs unchanged; biases begin at 0.

    Source: He et al., ICCV 2015, arXiv 1502.01852. PyTorch's own draw shrinks values from layer to layer, so that a
    deep network begins with a picture of nothing.
    """
    for layer in network:
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            assert layer.bias is not None
            nn.init.zeros_(layer.bias)
