"""The patch description network of EfficientAD as a frozen trunk, in the roles of teacher and student.

Source: Batzner, Heckler, Koenig, WACV 2024, arXiv 2303.14535, tables 6 and 7. A receptive field of 33 px, stride 4.
Where we differ: without padding the network sees the image without its border, and its 56 x 56 map of a 256 px image
is extended by replication to 64 x 64, so that it lies where its pixels lie.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

import torch
import torch.nn.functional as F
from einops import rearrange
from pydantic import Field
from torch import Tensor, nn

from manyeyes.backbones.contract import Stage, Trunk
from manyeyes.backbones.pixels import IMAGENET_MEAN, IMAGENET_STD, Size, as_grid, to_input
from manyeyes.backbones.weights import find_file, load_strictly, read_state, state_digest, weights_hash
from manyeyes.config import Config
from manyeyes.errors import ConfigError, WeightsError
from manyeyes.maps import Grid

Role = Literal["teacher", "student"]
PdnSize = Literal["small", "medium"]

CHANNELS = 384
STRIDE = 4
BORDER = 4
RECEPTIVE_FIELD = 33
CENTRE = RECEPTIVE_FIELD / 2
"""Position j of an unpadded map is centred at CENTRE + j * STRIDE px from the edge of the image."""

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


class PdnTrunkConfig(Config):
    """One patch description network. A student has 768 channels: 384 for the teacher, 384 for the autoencoder."""

    kind: Literal["pdn"] = "pdn"
    role: Role = Field("teacher", description="teacher (384 channels) or student (768 channels).")
    size: PdnSize = Field("small", description="PDN-S or PDN-M.")
    weights: str = Field(
        "random",
        min_length=1,
        description="A path, a name looked for as pdn_<size>_<role>.<name> in MANYEYES_WEIGHTS, or random.",
    )
    image_size: Size = Field(256, description="Input size in pixels: one number, or [height, width].")
    padding: bool = Field(False, description="Pad inside the network instead of extending the map.")
    seed: int = Field(0, ge=0, description="Seed of the weights, used by weights: random only.")

    def build(self) -> PdnTrunk:
        """The trunk, frozen. Raises: ConfigError if the image is too small, WeightsError."""
        image_size = as_grid(self.image_size)
        if min(image_size) < RECEPTIVE_FIELD:
            raise ConfigError(f"image_size: a PDN needs at least {RECEPTIVE_FIELD} px a side, got {image_size}")
        out = CHANNELS if self.role == "teacher" else 2 * CHANNELS
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(2 * self.seed + (self.role == "student"))
            network = patch_description_network(self.size, out, self.padding)
        scale = Standardisation(out)
        if self.weights == "random":
            source, digest = f"random, seed {self.seed}", state_digest(network.state_dict())
        else:
            name = f"pdn_{self.size}_{self.role}"
            path, tried = find_file(name, self.weights)
            if path is None:
                raise WeightsError(
                    f"{name}: weights {self.weights!r} were not found; tried {tried}; "
                    "set weights to the path of a file, or to random"
                )
            state = read_state(path)
            scale.take(state, str(path))
            load_strictly(network, state, str(path))
            source, digest = str(path), weights_hash(path)
        return PdnTrunk(self, network, scale, f"{self.fingerprint()}-{digest[:8]}", source, digest)


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
    """A frozen patch description network; its input is normalised with ImageNet's mean and standard deviation.

    Stages: ``teacher``; or ``student`` and its two halves ``student_teacher`` (PUAD's features) and
    ``student_autoencoder``. The halves are slices of one pass.
    Shapes: (b, 3, H, W) RGB in [0, 1] -> {stage: (b, 384 or 768, h, w)}, h and w a quarter of the input.
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
        self.key = key
        self.input_size = as_grid(config.image_size)
        self.weights_source = source
        self.weights_digest = digest
        self.border = 0 if config.padding else BORDER
        self.network = network.to(memory_format=torch.channels_last)
        self.scale = scale
        self.slices = (
            {"teacher": slice(0, CHANNELS)}
            if config.role == "teacher"
            else {
                "student": slice(0, 2 * CHANNELS),
                "student_teacher": slice(0, CHANNELS),
                "student_autoencoder": slice(CHANNELS, 2 * CHANNELS),
            }
        )
        self.grid = map_grid(self.network, self.input_size, self.border)
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(IMAGENET_STD).view(3, 1, 1), persistent=False)
        self.mean: Tensor
        self.std: Tensor
        self.requires_grad_(False)
        self.eval()

    def stage(self, name: str) -> Stage:
        if name not in self.slices:
            raise ConfigError(f"stage {name!r} does not exist; this trunk has {', '.join(self.slices)}")
        part = self.slices[name]
        return Stage(name, part.stop - part.start, STRIDE, self.grid)

    @torch.no_grad()
    def forward(self, images: Tensor, stages: Sequence[str]) -> dict[str, Tensor]:
        for name in stages:
            self.stage(name)
        pixels = to_input(images, self.input_size, self.mean, self.std).contiguous(memory_format=torch.channels_last)
        maps = self.scale(self.network(pixels))
        if self.border:
            maps = F.pad(maps, (self.border,) * 4, mode="replicate")
        return {name: maps[:, self.slices[name]] for name in stages}


def map_grid(network: nn.Sequential, size: Grid, border: int) -> Grid:
    """(h, w) of the map for an input of (H, W), from the layers' kernels, strides and margins."""
    h, w = size
    for layer in network:
        if isinstance(layer, nn.Conv2d):
            kernel, margin, stride = layer.kernel_size[0], int(layer.padding[0]), layer.stride[0]
        elif isinstance(layer, nn.AvgPool2d):
            kernel, margin, stride = int(layer.kernel_size), int(layer.padding), int(layer.stride)  # type: ignore[arg-type]
        else:
            continue
        h, w = ((side + 2 * margin - kernel) // stride + 1 for side in (h, w))
    return h + 2 * border, w + 2 * border
