"""Frozen eyes: trunks built once and run once, and the extractors that say which of their features a member sees."""

from typing import Annotated

from pydantic import Field

from manyeyes.backbones.contract import (
    Eyes,
    FeatureExtractor,
    Stage,
    Tap,
    Taps,
    TrainableTrunk,
    Trunk,
    check_images,
)
from manyeyes.backbones.efficientad import EfficientAdConfig
from manyeyes.backbones.efficientad_trunk import EfficientAdTrunkConfig
from manyeyes.backbones.pdn import PdnTrunkConfig
from manyeyes.backbones.pool import TrunkConfig, TrunkPool
from manyeyes.backbones.stages import PatchCoreConfig, TimmConfig
from manyeyes.backbones.student_schedule import Schedule, TrainingConfig
from manyeyes.backbones.trunk import TimmTrunkConfig
from manyeyes.backbones.uflow import ScalesConfig, UFlowConfig, uflow_cait, uflow_pyramid
from manyeyes.backbones.weights import find_weights

ExtractorConfig = Annotated[
    TimmConfig | PatchCoreConfig | UFlowConfig | EfficientAdConfig,
    Field(discriminator="kind"),
]

__all__ = [
    "EfficientAdConfig",
    "EfficientAdTrunkConfig",
    "ExtractorConfig",
    "Eyes",
    "FeatureExtractor",
    "PatchCoreConfig",
    "PdnTrunkConfig",
    "ScalesConfig",
    "Schedule",
    "Stage",
    "Tap",
    "Taps",
    "TimmConfig",
    "TimmTrunkConfig",
    "TrainableTrunk",
    "TrainingConfig",
    "Trunk",
    "TrunkConfig",
    "TrunkPool",
    "UFlowConfig",
    "check_images",
    "find_weights",
    "uflow_cait",
    "uflow_pyramid",
]
