"""The table of the six defects: three that break the plate's logic, three that break its metal.

Saturation areas follow MVTec LOCO (Bergmann et al. 2022): a missing or superfluous object counts as found
once an area as large as the object is marked; a wrong size shows at the rim only, so half of that is enough; structural
damage must be marked in full.
"""

from __future__ import annotations

from manyeyes.data.synthesize.contract import Defect
from manyeyes.data.synthesize.damage import CutCorner, DamagedEdge, DeepScratch
from manyeyes.data.synthesize.holes import ExtraHole, MissingHole, WrongSizedHole

DEFECTS: tuple[type[Defect], ...] = (MissingHole, ExtraHole, WrongSizedHole, DamagedEdge, CutCorner, DeepScratch)
"""All kinds, in the order of their pixel values from 255 down, as LOCO counts."""
GROUPS: tuple[str, ...] = ("logical_anomalies", "structural_anomalies")
