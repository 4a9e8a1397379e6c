"""What EfficientAD and PUAD look at: the maps of teacher, student and autoencoder, and what they disagree on.

Source: EfficientAD (arXiv 2303.14535); PUAD (arXiv 2402.15143) pools ``student_teacher`` or ``teacher``.
"""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator
from torch import Tensor

from manyeyes.backbones.contract import FeatureExtractor, Tap
from manyeyes.backbones.efficientad_trunk import EfficientAdTrunkConfig
from manyeyes.backbones.pdn import TEACHER
from manyeyes.backbones.pool import TrunkPool
from manyeyes.backbones.stages import distinct, spec_of
from manyeyes.config import Config

MapName = Literal[
    "local",
    "global",
    "teacher",
    "student",
    "student_teacher",
    "student_autoencoder",
    "autoencoder",
    "teacher_pooled",
    "student_teacher_pooled",
]


class EfficientAdConfig(Config):
    """Maps of one EfficientAD. With ``maps: [teacher]`` nothing is trained: the teacher looks as it is.

    Every other map looks through the trained trunk, ``teacher_pooled`` too, so that beside others it costs nothing. A
    Gaussian head pools the maps that it is given: ``[teacher]`` is the way to the teacher's pooled features alone.
    """

    kind: Literal["efficientad"] = "efficientad"
    trunk: EfficientAdTrunkConfig = Field(
        EfficientAdTrunkConfig(), description="The teacher, and how student and autoencoder are trained."
    )
    maps: tuple[MapName, ...] = Field(
        ("local", "global"),
        min_length=1,
        description="local and global (disagreement, 1 channel each); teacher, autoencoder (384 channels), "
        "student (768) or its halves student_teacher and student_autoencoder; teacher_pooled, student_teacher_pooled.",
    )

    @property
    def frozen(self) -> bool:
        """Whether nothing is trained."""
        return set(self.maps) == {TEACHER}

    @model_validator(mode="after")
    def _mirrors(self) -> Self:
        if self.trunk.teacher.padding and not self.frozen:
            raise ValueError("trunk.teacher: a student learns from crops without padding: expected padding: false")
        return self

    def build(self, pool: TrunkPool) -> EfficientAdExtractor:
        """Raises: ConfigError if a map is named twice or the image is too small; WeightsError."""
        return EfficientAdExtractor(self, pool)


class EfficientAdExtractor(FeatureExtractor):
    """Maps of one EfficientAD as they are. Shapes: (b, 3, H, W) in [0, 1] -> k x (b, c_i, h_i, w_i)."""

    def __init__(self, config: EfficientAdConfig, pool: TrunkPool) -> None:
        trunk = pool.get(config.trunk.teacher if config.frozen else config.trunk)
        taps = [Tap(trunk, trunk.stage(name)) for name in config.maps]
        super().__init__(taps, distinct([spec_of(tap.stage, tap.stage.name) for tap in taps]))

    def shape(self, raw: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return raw
