"""Made parts: image sets that are drawn, not photographed, so that a fresh machine has something to look at."""

from manyeyes.data.synthesize.contract import Defect
from manyeyes.data.synthesize.defects import DEFECTS
from manyeyes.data.synthesize.flat_connector import Part, defects_config, synthesize_flat_connector
from manyeyes.data.synthesize.scene import Picture, Scene

__all__ = ["DEFECTS", "Defect", "Part", "Picture", "Scene", "defects_config", "synthesize_flat_connector"]
