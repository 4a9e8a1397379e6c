"""Any timm architecture as a frozen trunk: CNN pyramids and vision transformers, all stages of a call in one pass.

Stages are timm's feature indices: ResNet 0 is the stem and 1 to 4 are its layers; EfficientNet 0 to 4 are its five
reductions; in a plain transformer they are its blocks from 0, as maps and after the network's own final norm.
``pooled`` is the network's own descriptor before its classifier: (b, c, 1, 1), not spatial.
Source: timm's ``forward_intermediates``. Where we differ: classifiers are left out, so weights with any number of
classes load; transformers with a dynamic size take any size that their patch divides; batch norms are folded into the
convolutions before them (`batch_norm`).
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from einops import rearrange
from pydantic import Field
from torch import Tensor, nn

from manyeyes.backbones.batch_norm import without_batch_norms
from manyeyes.backbones.contract import Stage, Trunk
from manyeyes.backbones.pixels import Channels, Pixels, Size, as_grid
from manyeyes.backbones.weights import find_weights, load_strictly, state_digest
from manyeyes.config import Config, Seed
from manyeyes.errors import ConfigError, WeightsError
from manyeyes.maps import Grid

POOLED = "pooled"


class TimmTrunkConfig(Config):
    """A timm architecture, its weights and its input size."""

    kind: Literal["timm"] = "timm"
    architecture: str = Field("tf_efficientnet_lite0", min_length=1, description="Name of a timm model, without tag.")
    weights: str = Field(
        "bundled",
        min_length=1,
        description="A path (.safetensors, .pth), a timm tag such as tv_in1k, bundled (EfficientNet-Lite0), or random.",
    )
    size: Size = Field(256, description="Input size in pixels: one number, or [height, width].")
    seed: Seed = Field(0, description="Seed of the weights, used by weights: random only.")

    def build(self) -> TimmTrunk:
        """The trunk, frozen. Raises: ConfigError for a bad architecture or size, WeightsError."""
        size = as_grid(self.size)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            network = create(self.architecture, size)
        declared = network.pretrained_cfg
        if self.weights == "random":
            source = f"random, seed {self.seed}"
            mean, std = declared["mean"], declared["std"]
        else:
            weights = find_weights(self.architecture, self.weights)
            try:
                load_strictly(network, weights.state, weights.source, ignored=_classifiers(declared))
            except WeightsError as error:
                native = tuple(declared.get("input_size", ())[1:])
                if declared.get("fixed_input_size") and native and native != size:
                    raise WeightsError(f"{error}; its published weights are made for size: {list(native)}") from None
                raise
            source = weights.source
            declared = _pretrained_cfg(self.architecture, self.weights) or declared
            mean, std = weights.mean or declared["mean"], weights.std or declared["std"]
        taken = {"mean": torch.tensor(mean, dtype=torch.float32), "std": torch.tensor(std, dtype=torch.float32)}
        digest = state_digest({**network.state_dict(prefix="network."), **taken})
        stages = declare(self.architecture, network, size)
        network = without_batch_norms(network.eval().requires_grad_(False), every_map(size))
        return TimmTrunk(network, stages, size, mean, std, f"{self.fingerprint()}-{digest[:8]}", source, digest)


class TimmTrunk(Trunk):
    """A frozen timm network. Convolutional ones run with channels last.

    Shapes: (b, 3, H, W) RGB in [0, 1] -> {stage: (b, c, h, w)} as `stage` declares.
    """

    def __init__(
        self,
        network: nn.Module,
        stages: dict[str, Stage],
        input_size: Grid,
        mean: Channels,
        std: Channels,
        key: str,
        source: str,
        digest: str,
    ) -> None:
        super().__init__()
        self.key = key
        self.input_size = input_size
        self.weights_source = source
        self.weights_digest = digest
        self.stages = stages
        self.layout = torch.contiguous_format if is_plain(network) else torch.channels_last
        self.network = network.to(memory_format=self.layout)
        self.pixels = Pixels(input_size, mean, std)
        self.requires_grad_(False)
        self.eval()

    def stage(self, name: str) -> Stage:
        if name in self.stages:
            return self.stages[name]
        indices = [key for key in self.stages if key != POOLED]
        if name.startswith("-") and name[1:].isdigit() and 1 <= int(name[1:]) <= len(indices):
            return self.stages[indices[int(name)]]
        pooled = f" or {POOLED}" if POOLED in self.stages else ""
        raise ConfigError(f"stage {name!r} does not exist; this trunk has stages 0 to {len(indices) - 1}{pooled}")

    @torch.no_grad()
    def forward(self, images: Tensor, stages: Sequence[str]) -> dict[str, Tensor]:
        names = {name: self.stage(name).name for name in stages}
        wanted = set(names.values())
        pixels = self.pixels(images).contiguous(memory_format=self.layout)
        found = tap(self.network, pixels, sorted(int(name) for name in wanted - {POOLED}), POOLED in wanted)
        return {name: found[stage] for name, stage in names.items()}


def tap(network: Any, pixels: Tensor, indices: list[int], pooled: bool) -> dict[str, Tensor]:
    """Maps at ascending ``indices`` and, if asked, the pooled descriptor, in one pass over the network.

    Shapes: (b, 3, H, W) normalised -> {"index": (b, c, h, w), "pooled": (b, c, 1, 1)}.
    """
    maps: list[Tensor] = []
    found: dict[str, Tensor] = {}
    if pooled:
        if indices:
            last, maps = intermediates(network, pixels, indices=indices)
        else:
            last = network.forward_features(pixels)
        found[POOLED] = rearrange(network.forward_head(last, pre_logits=True), "b c -> b c 1 1")
    elif indices:
        maps = intermediates(network, pixels, indices=indices, stop_early=True, intermediates_only=True)
    return found | {str(index): as_map(network, pixels, value) for index, value in zip(indices, maps, strict=True)}


def intermediates(network: Any, pixels: Tensor, **options: Any) -> Any:
    """timm's ``forward_intermediates``; of a plain transformer normed, as tokens (b, h w, c) where it gives them."""
    if not is_plain(network) or not hasattr(getattr(network, "patch_embed", None), "dynamic_feat_size"):
        return network.forward_intermediates(pixels, **options)
    try:
        return network.forward_intermediates(pixels, norm=True, output_fmt="NLC", **options)
    except AssertionError:  # at once, from those that give maps only
        return network.forward_intermediates(pixels, norm=True, **options)


def as_map(network: Any, pixels: Tensor, value: Tensor) -> Tensor:
    """Tokens as a map with channels last in memory, which costs nothing and is what fusion reads fastest."""
    if value.ndim == 4:
        return value
    height, _ = network.patch_embed.dynamic_feat_size(tuple(pixels.shape[2:]))
    return rearrange(value, "b (h w) c -> b c h w", h=height)


def every_map(size: Grid) -> Callable[[nn.Module], list[Tensor]]:
    """What a network shows at all its stages and pooled, of one picture of noise."""
    pixels = torch.rand(1, 3, *size, generator=torch.Generator().manual_seed(0))

    def look(network: Any) -> list[Tensor]:
        return list(tap(network, pixels, list(range(len(network.feature_info))), True).values())

    return look


def is_plain(network: Any) -> bool:
    """Whether all stages have one width and one stride, as the blocks of a plain transformer, which share one norm."""
    return len({(info["num_chs"], info["reduction"]) for info in network.feature_info}) == 1


def create(architecture: str, size: Grid) -> Any:
    """The timm network without classifier, with freshly drawn weights.

    Raises: ConfigError if timm does not know it, or gives no intermediate features for it.
    """
    import timm

    if not timm.is_model(architecture) or "." in architecture:
        name, _, tag = architecture.partition(".")
        close = difflib.get_close_matches(name, timm.list_models(), n=3)
        hint = f"write architecture: {name} and weights: {tag}" if tag and timm.is_model(name) else ""
        hint = hint or (f"did you mean {', '.join(close)}?" if close else "timm.list_models() lists all")
        raise ConfigError(f"architecture {architecture!r}: timm {timm.__version__} has no such model; {hint}")
    network = _create_for(architecture, size)
    if not hasattr(network, "forward_intermediates"):
        raise ConfigError(
            f"architecture {architecture!r}: timm {timm.__version__} gives no intermediate features for it; "
            "upgrade timm or choose another architecture"
        )
    return network


def _create_for(architecture: str, size: Grid) -> Any:
    import timm

    # Networks of one fixed size: the position embedding is resampled on the fly where timm can, else made to size.
    if (_pretrained_cfg(architecture) or {}).get("fixed_input_size"):
        for options in ({"dynamic_img_size": True}, {"img_size": size}):
            try:
                return timm.create_model(architecture, num_classes=0, **options)
            except TypeError:  # not an option of this network
                continue
    return timm.create_model(architecture, num_classes=0)


def declare(architecture: str, network: Any, size: Grid) -> dict[str, Stage]:
    """All stages of the network at an input size, from a pass that computes shapes only.

    Raises: ConfigError if the network cannot take this size.
    """
    indices = list(range(len(network.feature_info)))
    try:
        try:
            with torch.device("meta"), torch.no_grad():
                shadow = _create_for(architecture, size).eval()
                found = tap(shadow, torch.zeros(1, 3, *size), indices, True)
        except Exception:  # some networks compute with values, which a shape-only pass has not
            network.eval()
            with torch.no_grad():
                found = tap(network, torch.zeros(1, 3, *size), indices, True)
    except (AssertionError, AttributeError, RuntimeError, TypeError, ValueError) as error:
        reason = _why(network, size, error)
        raise ConfigError(f"{architecture} cannot take {size[0]} x {size[1]} px: {reason}") from None
    stages = {
        str(index): Stage(str(index), found[str(index)].shape[1], info["reduction"], _grid(found[str(index)]))
        for index, info in enumerate(network.feature_info)
    }
    stages[POOLED] = Stage(POOLED, found[POOLED].shape[1], max(size), (1, 1), spatial=False)
    return stages


def _grid(value: Tensor) -> Grid:
    return value.shape[2], value.shape[3]


def _why(network: Any, size: Grid, error: Exception) -> str:
    patch = getattr(getattr(network, "patch_embed", None), "patch_size", None)
    for side, unit in zip(size, patch if isinstance(patch, tuple) else (1, 1), strict=True):
        if side % unit:
            below = side // unit * unit
            return f"its patches are {unit} px; set size to a multiple, such as {below} or {below + unit}"
    return " ".join(str(error).split())[:160]


def _classifiers(declared: dict[str, Any]) -> tuple[str, ...]:
    names = declared.get("classifier") or ()
    return tuple(f"{name}." for name in ((names,) if isinstance(names, str) else names))


def _pretrained_cfg(architecture: str, tag: str = "") -> dict[str, Any] | None:
    """What timm declares for an architecture with a tag; None if it does not know the tag."""
    from timm.models import get_pretrained_cfg

    name = f"{architecture}.{tag}" if tag else architecture
    try:
        found = get_pretrained_cfg(name, allow_unregistered=False)
    except RuntimeError:
        return None
    return None if found is None else dict(vars(found))
