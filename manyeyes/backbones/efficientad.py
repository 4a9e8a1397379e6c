"""What EfficientAD and PUAD look at: the maps of the patch description networks, teacher and student.

Source: EfficientAD (arXiv 2303.14535); PUAD (arXiv 2402.15143) pools ``student_teacher`` or ``teacher``.
"""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import Field, model_validator
from torch import Tensor

from manyeyes.backbones.contract import FeatureExtractor, Tap
from manyeyes.backbones.pdn import PdnTrunkConfig
from manyeyes.backbones.pool import TrunkPool
from manyeyes.backbones.stages import distinct, spec_of
from manyeyes.config import Config

MapName = Literal["teacher", "student", "student_teacher", "student_autoencoder"]


class EfficientAdConfig(Config):
    """Maps of a teacher, of a student, or of both; a network that no map names is not built."""

    kind: Literal["efficientad"] = "efficientad"
    teacher: PdnTrunkConfig = Field(PdnTrunkConfig(role="teacher"), description="The teacher network.")
    student: PdnTrunkConfig = Field(PdnTrunkConfig(role="student"), description="The student network.")
    maps: tuple[MapName, ...] = Field(
        ("teacher", "student"),
        min_length=1,
        description="teacher (384 channels), student (768), or its halves student_teacher and student_autoencoder.",
    )

    @model_validator(mode="before")
    @classmethod
    def _fill_roles(cls, values: Any) -> Any:
        """``student: {weights: student.pth}`` need not repeat its role."""
        if not isinstance(values, dict):
            return values
        given = {name: values[name] for name in ("teacher", "student") if isinstance(values.get(name), dict)}
        return values | {name: {"role": name} | trunk for name, trunk in given.items()}

    @model_validator(mode="after")
    def _check_roles(self) -> Self:
        for name, trunk in (("teacher", self.teacher), ("student", self.student)):
            if trunk.role != name:
                raise ValueError(f"{name}: expected role: {name}, got role: {trunk.role}")
        return self

    def build(self, pool: TrunkPool) -> EfficientAdExtractor:
        """Raises: ConfigError if a map is named twice or the image is too small; WeightsError."""
        return EfficientAdExtractor(self, pool)


class EfficientAdExtractor(FeatureExtractor):
    """Teacher and student maps as they are.

    Shapes: (b, 3, H, W) in [0, 1] -> k x (b, 384 or 768, h, w), a quarter of the trunk's input.
    """

    def __init__(self, config: EfficientAdConfig, pool: TrunkPool) -> None:
        taps = []
        for name in config.maps:
            trunk = pool.get(config.teacher if name == "teacher" else config.student)
            taps.append(Tap(trunk, trunk.stage(name)))
        super().__init__(taps, distinct([spec_of(tap.stage, tap.stage.name) for tap in taps]))

    def shape(self, raw: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return raw
