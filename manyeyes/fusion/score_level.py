"""Score-level fusion: no fused map; the members' own heads judge, and their scores are normalised and combined.

Here too is the union of all that ``fusion`` can be in a config.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import Field

from manyeyes.config import Config
from manyeyes.fusion.concatenate import ConcatenateConfig
from manyeyes.fusion.independent import IndependentPcaConfig
from manyeyes.fusion.pca import GlobalPcaConfig
from manyeyes.maps import Grid, MapSpec


class ScoreLevelConfig(Config):
    """Fuse scores only. There is no map to build: whoever composes asks for the kind first."""

    kind: Literal["score_level"] = "score_level"

    def build(self, specs: Sequence[MapSpec], grid: Grid) -> None:
        """No fused map, whatever the maps are."""
        return


FusionConfig = Annotated[
    GlobalPcaConfig | IndependentPcaConfig | ConcatenateConfig | ScoreLevelConfig, Field(discriminator="kind")
]
