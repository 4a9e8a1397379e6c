"""What U-Flow looks at: one map per scale, each normalised on its own.

Source: Tailanian, Pardo, Muse, arXiv 2211.12353, section 3.1 (facts from the paper only).
Where we differ: the layer norm has no learned affine part, because the flow that follows begins with one.
"""

from __future__ import annotations

from collections import Counter
from typing import Literal

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from manyeyes.backbones.contract import FeatureExtractor, Tap
from manyeyes.backbones.pool import TrunkPool
from manyeyes.backbones.stages import distinct, spec_of
from manyeyes.backbones.trunk import TimmTrunkConfig
from manyeyes.config import Config


class ScalesConfig(Config):
    """Scales that one trunk gives."""

    trunk: TimmTrunkConfig = Field(TimmTrunkConfig(), description="The network that gives these scales.")
    stages: tuple[int, ...] = Field((1, 2, 3), min_length=1, description="timm's feature indices, one per scale.")
    layer_norm: bool = Field(
        True,
        description="Normalise each scale over (c, h, w); off where the trunk's own final norm does it, as in CaiT.",
    )


class UFlowConfig(Config):
    """A pyramid of one trunk, or a pair of trunks that give one scale each."""

    kind: Literal["uflow"] = "uflow"
    sources: tuple[ScalesConfig, ...] = Field((ScalesConfig(),), min_length=1, description="Trunks and their scales.")

    def build(self, pool: TrunkPool) -> UFlowExtractor:
        """Raises: ConfigError if a stage does not exist or is named twice; WeightsError."""
        return UFlowExtractor(self, pool)


def uflow_pyramid(architecture: str = "resnet18", weights: str = "tv_in1k", size: int = 448) -> UFlowConfig:
    """Layers 1 to 3 of a ResNet, each with a layer norm over (c, h, w)."""
    trunk = TimmTrunkConfig(architecture=architecture, weights=weights, size=size)
    return UFlowConfig(sources=(ScalesConfig(trunk=trunk, stages=(1, 2, 3)),))


def uflow_cait(weights: str = "fb_dist_in1k") -> UFlowConfig:
    """Blocks 0-40 of CaiT-M48 at 448 px (768 x 28 x 28) and 0-20 of CaiT-S24 at 224 px (384 x 14 x 14).

    ``forward_intermediates`` puts each through its own final norm. ``weights`` is a tag that both have, or random.
    """
    pairs = (("cait_m48_448", 448, 40), ("cait_s24_224", 224, 20))
    return UFlowConfig(
        sources=tuple(
            ScalesConfig(
                trunk=TimmTrunkConfig(architecture=architecture, weights=weights, size=size),
                stages=(block,),
                layer_norm=False,
            )
            for architecture, size, block in pairs
        )
    )


class UFlowExtractor(FeatureExtractor):
    """One normalised map per scale. Shapes: (b, 3, H, W) in [0, 1] -> k x (b, c_i, h_i, w_i).

    A scale is named after its stage, after its architecture too where there are several trunks, and after the input
    size where an architecture looks twice.
    """

    def __init__(self, config: UFlowConfig, pool: TrunkPool) -> None:
        taps, specs = [], []
        self_named = len(config.sources) == 1
        architectures = Counter(source.trunk.architecture for source in config.sources)
        for source in config.sources:
            trunk = pool.get(source.trunk)
            owner = source.trunk.architecture
            if architectures[owner] > 1:
                owner += "-" + "x".join(map(str, trunk.input_size))
            for index in source.stages:
                stage = trunk.stage(str(index))
                taps.append(Tap(trunk, stage))
                specs.append(spec_of(stage, stage.name if self_named else f"{owner}.{stage.name}"))
        super().__init__(taps, distinct(specs))
        self.layer_norms = tuple(source.layer_norm for source in config.sources for _ in source.stages)

    def shape(self, raw: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return tuple(
            F.layer_norm(value, value.shape[1:]) if norm else value
            for value, norm in zip(raw, self.layer_norms, strict=True)
        )
