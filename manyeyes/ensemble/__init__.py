"""The ensemble: a config that declares, an object that fits, predicts, saves and loads."""

from manyeyes.ensemble.config import EnsembleConfig, MemberConfig, ThresholdConfig
from manyeyes.ensemble.ensemble import Ensemble
from manyeyes.ensemble.prediction import Prediction
from manyeyes.ensemble.presets import PRESETS, load_config, with_choice
from manyeyes.ensemble.run import load_run, save_run
from manyeyes.ensemble.store import FeatureStore
from manyeyes.ensemble.training import Extraction, fit_ensemble, train_run
from manyeyes.ensemble.verdicts import Verdict

__all__ = [
    "PRESETS",
    "Ensemble",
    "EnsembleConfig",
    "Extraction",
    "FeatureStore",
    "MemberConfig",
    "Prediction",
    "ThresholdConfig",
    "Verdict",
    "fit_ensemble",
    "load_config",
    "load_run",
    "save_run",
    "train_run",
    "with_choice",
]
