"""Fusion by choice: candidates are fitted side by side, and defects made from good pictures say which one is kept.

Here is the declaration only. Whoever composes fits the candidates and chooses (manyeyes.ensemble.choice).
"""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from manyeyes.config import Config
from manyeyes.fusion.concatenate import ConcatenateConfig
from manyeyes.fusion.independent import IndependentPcaConfig
from manyeyes.fusion.pca import GlobalPcaConfig
from manyeyes.fusion.score_level import FusionConfig, ScoreLevelConfig


class AutoConfig(Config):
    """Find out which of the candidates suits the part, and how much each head's score counts."""

    kind: Literal["auto"] = "auto"
    candidates: tuple[FusionConfig, ...] = Field(
        (ScoreLevelConfig(), GlobalPcaConfig(), IndependentPcaConfig()),
        min_length=1,
        description="ways of fusion to choose among; each kind once",
    )
    defects: int = Field(
        150, ge=10, le=2000, description="made defects to judge by, at most; three per validation normal, 60 at least"
    )

    @model_validator(mode="after")
    def _each_once(self) -> Self:
        kinds = [candidate.kind for candidate in self.candidates]
        if len(set(kinds)) < len(kinds):
            raise ValueError(f"candidates must be of different kinds, got {', '.join(kinds)}")
        return self

    @property
    def fused(self) -> tuple[FusionConfig, ...]:
        """The candidates that build a fused map."""
        return tuple(candidate for candidate in self.candidates if not isinstance(candidate, ScoreLevelConfig))


EnsembleFusionConfig = Annotated[
    GlobalPcaConfig | IndependentPcaConfig | ConcatenateConfig | ScoreLevelConfig | AutoConfig,
    Field(discriminator="kind"),
]
"""All that ``fusion`` can be at the top of a config; members' own maps have nothing to choose."""
