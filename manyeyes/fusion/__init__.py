"""Fusion: members' maps to one map, and heads' scores to one score. The unions of configs are the registries."""

from manyeyes.fusion.auto import AutoConfig, EnsembleFusionConfig
from manyeyes.fusion.combine import (
    CombinerConfig,
    FisherConfig,
    MaxConfig,
    MeanConfig,
    PositiveSquareConfig,
    SumConfig,
    VoteConfig,
    WeightedConfig,
    require_known,
)
from manyeyes.fusion.concatenate import ConcatenateConfig
from manyeyes.fusion.contract import Combiner, Fusion, MapBatches, Projection, ScoreNormaliser
from manyeyes.fusion.folded import Folded
from manyeyes.fusion.independent import IndependentPcaConfig
from manyeyes.fusion.moments import KnownMoments
from manyeyes.fusion.normalise import (
    MinMaxConfig,
    NormaliserConfig,
    QuantileConfig,
    RobustConfig,
    TailConfig,
    ZScoreConfig,
)
from manyeyes.fusion.pca import GlobalPcaConfig
from manyeyes.fusion.score_level import FusionConfig, ScoreLevelConfig
from manyeyes.fusion.stacking import StackingForestConfig, StackingLogisticConfig

__all__ = [
    "AutoConfig",
    "Combiner",
    "CombinerConfig",
    "ConcatenateConfig",
    "EnsembleFusionConfig",
    "FisherConfig",
    "Folded",
    "Fusion",
    "FusionConfig",
    "GlobalPcaConfig",
    "IndependentPcaConfig",
    "KnownMoments",
    "MapBatches",
    "MaxConfig",
    "MeanConfig",
    "MinMaxConfig",
    "NormaliserConfig",
    "PositiveSquareConfig",
    "Projection",
    "QuantileConfig",
    "RobustConfig",
    "ScoreLevelConfig",
    "ScoreNormaliser",
    "StackingForestConfig",
    "StackingLogisticConfig",
    "SumConfig",
    "TailConfig",
    "VoteConfig",
    "WeightedConfig",
    "ZScoreConfig",
    "require_known",
]
