"""The patch description network of EfficientAD, and its frozen teacher as a trunk.

Source: Batzner, Heckler, Koenig, WACV 2024, arXiv 2303.14535, tables 6 and 7. A receptive field of 33 px, stride 4.
Where we differ: the unpadded network gives 56 x 56 positions of a 256 px image, none of them centred in its outer
16 px. Here the image is mirrored at its border before, by 14 px and 15 px, so that there is a position for every
4 x 4 px and its centre lies half a pixel from theirs.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from einops import rearrange
from pydantic import Field
from torch import Tensor, nn

from manyeyes.backbones.bundled import pdn_file
from manyeyes.backbones.contract import Stage, Trunk
from manyeyes.backbones.pixels import Pixels, Size, as_grid
from manyeyes.backbones.weights import find_file, load_strictly, read_state, state_digest
from manyeyes.config import Config, Seed
from manyeyes.errors import ConfigError, WeightsError
from manyeyes.maps import Grid

PdnSize = Literal["small", "medium"]

TEACHER = "teacher"
CHANNELS = 384
STRIDE = 4
RECEPTIVE_FIELD = 33
CENTRE = RECEPTIVE_FIELD / 2
"""Position j of an unpadded map is centred at CENTRE + j * STRIDE px from the edge of the image."""
BUNDLED = {"bundled": "", "bundled-long": ".long"}
"""What follows pdn_small in the file names of the teachers that come with the package (docs/pdn_small.md)."""

# Kernel, width and padding (where padding is on) of each convolution; an average pool follows each of the first two.
LAYERS: dict[str, tuple[tuple[int, int, int], ...]] = {
    "small": ((4, 128, 3), (4, 256, 3), (3, 256, 1), (4, CHANNELS, 0)),
    "medium": ((4, 256, 3), (4, 512, 3), (1, 512, 0), (3, 512, 1), (4, CHANNELS, 0), (1, CHANNELS, 0)),
}


def patch_description_network(size: PdnSize, out: int = CHANNELS, padding: bool = False) -> nn.Sequential:
    """A plain sequence of layers, so that published files with keys ``0.weight``, ``3.weight`` ... load as they are.

    Shapes: (b, 3, 256, 256) -> (b, out, 56, 56), with padding (b, out, 64, 64).
    """
    layers: list[nn.Module] = []
    widths = [3, *(width for _, width, _ in LAYERS[size][:-1]), out]
    for index, ((before, after), (kernel, _, margin)) in enumerate(zip(pairwise(widths), LAYERS[size], strict=True)):
        layers.append(nn.Conv2d(before, after, kernel, padding=margin if padding else 0))
        if index < len(LAYERS[size]) - 1:
            layers.append(nn.ReLU())
        if index < 2:
            layers.append(nn.AvgPool2d(2, stride=2, padding=1 if padding else 0))
    return nn.Sequential(*layers)


def positions(side: int) -> int:
    """Positions of an unpadded map along a side of ``side`` px."""
    return (side - RECEPTIVE_FIELD) // STRIDE + 1


def cells(side: int) -> int:
    """Positions of a map with mirrored borders along a side of ``side`` px: one for every 4 px."""
    return -(-side // STRIDE)


def mirrored(pixels: Tensor) -> Tensor:
    """Mirror the borders, so that an unpadded network has a position for every 4 x 4 px.

    Shapes: (b, 3, H, W) -> (b, 3, H + 29, W + 29) where 4 divides H and W.
    """
    margins = []
    for side in reversed(pixels.shape[-2:]):
        total = STRIDE * (cells(side) - 1) + RECEPTIVE_FIELD - side
        margins += [total // 2, total - total // 2]
    return F.pad(pixels, margins, mode="reflect")


class PdnTrunkConfig(Config):
    """One patch description network in the role of teacher."""

    kind: Literal["pdn"] = "pdn"
    size: PdnSize = Field("small", description="PDN-S or PDN-M.")
    weights: str = Field(
        "bundled",
        min_length=1,
        description="A path, a name looked for as pdn_<size>.<name> in MANYEYES_WEIGHTS, bundled, bundled-long "
        "(learned for longer; both PDN-S), or random.",
    )
    image_size: Size = Field(256, description="Input size in pixels: one number, or [height, width].")
    padding: bool = Field(False, description="Pad with zeros inside the network instead of mirroring the image.")
    seed: Seed = Field(0, description="Seed of the weights, used by weights: random only.")

    def build(self) -> PdnTrunk:
        """The trunk, frozen. Raises: ConfigError if the image is too small, WeightsError."""
        image_size = as_grid(self.image_size)
        if min(image_size) < RECEPTIVE_FIELD:
            raise ConfigError(f"image_size: a PDN needs at least {RECEPTIVE_FIELD} px a side, got {image_size}")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            network = patch_description_network(self.size, padding=self.padding)
        scale = Standardisation(CHANNELS)
        if self.weights == "random":
            source = f"random, seed {self.seed}"
        else:
            path = self._find()
            state = read_state(path)
            scale.take(state, str(path))
            load_strictly(network, state, str(path))
            source = str(path)
        digest = state_digest({**network.state_dict(), **scale.state_dict(prefix="scale.")})
        return PdnTrunk(self, network, scale, f"{self.fingerprint()}-{digest[:8]}", source, digest)

    def _find(self) -> Path:
        name, tried = f"pdn_{self.size}", "the package itself"
        if self.weights in BUNDLED:
            path: Path | None = pdn_file(name + BUNDLED[self.weights])
        else:
            path, tried = find_file(name, self.weights)
        if path is None:
            raise WeightsError(
                f"{name}: weights {self.weights!r} were not found; tried {tried}; set weights to the path of a file "
                f"(`manyeyes distill --size {self.size}` makes one), to {' or '.join(BUNDLED)} for size: small, or to "
                "random"
            )
        return path


class Standardisation(nn.Module):
    """Per-channel mean and standard deviation of a teacher's output; changes nothing unless a file brings them.

    Shapes: (b, c, h, w) -> (b, c, h, w).
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(channels, 1, 1))
        self.register_buffer("std", torch.ones(channels, 1, 1))
        self.mean: Tensor
        self.std: Tensor

    def take(self, state: dict[str, Tensor], source: str) -> None:
        """Take ``mean`` and ``std`` out of a network's state. Raises: WeightsError unless both fit or both lack."""
        found = {name: state.pop(name) for name in ("mean", "std") if name in state}
        if not found:
            return
        if len(found) < 2 or any(value.numel() != self.mean.numel() for value in found.values()):
            shapes = {name: tuple(value.shape) for name, value in found.items()}
            raise WeightsError(f"{source}: expected mean and std of {self.mean.numel()}, got {shapes}")
        if not bool((found["std"] > 0).all()):
            raise WeightsError(f"{source}: expected a positive std in every channel")
        self.mean, self.std = (rearrange(found[name].flatten(), "c -> c 1 1") for name in ("mean", "std"))

    def forward(self, maps: Tensor) -> Tensor:
        return (maps - self.mean) / self.std


class PdnTrunk(Trunk):
    """A frozen teacher; its input is normalised with ImageNet's mean and standard deviation.

    Shapes: (b, 3, H, W) RGB in [0, 1] -> {"teacher": (b, 384, h, w)}, h and w a quarter of the input.
    """

    def __init__(
        self,
        config: PdnTrunkConfig,
        network: nn.Sequential,
        scale: Standardisation,
        key: str,
        source: str,
        digest: str,
    ) -> None:
        super().__init__()
        self.key, self.size = key, config.size
        self.input_size = as_grid(config.image_size)
        self.weights_source = source
        self.weights_digest = digest
        self.padding = config.padding
        self.network = network.to(memory_format=torch.channels_last)
        self.scale = scale
        H, W = self.input_size
        self.grid = map_grid(self.network, self.input_size) if config.padding else (cells(H), cells(W))
        self.pixels = Pixels(self.input_size)
        self.requires_grad_(False)
        self.eval()

    def stage(self, name: str) -> Stage:
        if name != TEACHER:
            raise ConfigError(f"stage {name!r} does not exist; this trunk has {TEACHER}")
        return Stage(name, CHANNELS, STRIDE, self.grid)

    @torch.no_grad()
    def forward(self, images: Tensor, stages: Sequence[str]) -> dict[str, Tensor]:
        for name in stages:
            self.stage(name)
        pixels = self.pixels(images)
        return {TEACHER: self.describe(pixels if self.padding else mirrored(pixels))}

    def describe(self, pixels: Tensor) -> Tensor:
        """The map of normalised pixels as they are. Shapes: (b, 3, H, W) -> (b, 384, h, w)."""
        value: Tensor = self.scale(self.network(pixels.contiguous(memory_format=torch.channels_last)))
        return value


def map_grid(network: nn.Sequential, size: Grid) -> Grid:
    """(h, w) of the map for an input of (H, W), from the layers' kernels, strides and margins."""
    h, w = size
    for layer in network:
        if isinstance(layer, nn.Conv2d):
            kernel, margin, stride = layer.kernel_size[0], int(layer.padding[0]), layer.stride[0]
        elif isinstance(layer, nn.AvgPool2d):
            # The pools of these networks are square, with one number where PyTorch allows a pair.
            kernel, margin, stride = int(layer.kernel_size), int(layer.padding), int(layer.stride)  # type: ignore[arg-type]
        else:
            continue
        h, w = ((side + 2 * margin - kernel) // stride + 1 for side in (h, w))
    return h, w
