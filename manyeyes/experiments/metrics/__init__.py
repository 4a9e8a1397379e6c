"""Figures of an evaluation: exact, from sufficient statistics, with their uncertainty, and honest where undefined.

``maps.evaluate_maps`` measures a folder of maps; it reads files and is therefore not imported here.
"""

from manyeyes.experiments.metrics.bootstrap import paired_difference
from manyeyes.experiments.metrics.delong import Difference, paired_test
from manyeyes.experiments.metrics.figure import Figure, undefined
from manyeyes.experiments.metrics.image import ImageStatistics, image_figures
from manyeyes.experiments.metrics.pixel import PixelStatistics
from manyeyes.experiments.metrics.resampling import paired_differences
from manyeyes.experiments.metrics.summary import summarise

__all__ = [
    "Difference",
    "Figure",
    "ImageStatistics",
    "PixelStatistics",
    "image_figures",
    "paired_difference",
    "paired_differences",
    "paired_test",
    "summarise",
    "undefined",
]
