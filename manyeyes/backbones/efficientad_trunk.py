"""EfficientAD as a trunk: a frozen teacher, and a student and an autoencoder that learn from good pictures first.

Source: Batzner, Heckler, Koenig, WACV 2024, arXiv 2303.14535. ``local`` is the mean over channels of
(teacher - student)^2, ``global`` that of (autoencoder - student)^2; the teacher is standardised per channel.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Literal, Self

import torch
from pydantic import Field
from torch import Tensor, nn

from manyeyes.backbones.autoencoder import autoencoder
from manyeyes.backbones.contract import PicturesIn, Stage, TrainableTrunk
from manyeyes.backbones.pdn import (
    CHANNELS,
    STRIDE,
    PdnTrunk,
    PdnTrunkConfig,
    Standardisation,
    mirrored,
    patch_description_network,
)
from manyeyes.backbones.student_schedule import TrainingConfig
from manyeyes.backbones.student_training import StudentTraining
from manyeyes.backbones.weights import load_strictly, state_digest
from manyeyes.config import Config
from manyeyes.errors import ConfigError, NotFittedError
from manyeyes.progress import Progress

TEACHER, STUDENT, AUTOENCODER = "teacher", "student", "autoencoder"
CHANNELS_OF = {
    TEACHER: CHANNELS,
    STUDENT: 2 * CHANNELS,
    "student_teacher": CHANNELS,
    "student_autoencoder": CHANNELS,
    AUTOENCODER: CHANNELS,
    "local": 1,
    "global": 1,
}
POOLED = {"teacher_pooled": TEACHER, "student_teacher_pooled": "student_teacher"}
NEEDS = {
    TEACHER: {TEACHER},
    STUDENT: {STUDENT},
    "student_teacher": {STUDENT},
    "student_autoencoder": {STUDENT},
    AUTOENCODER: {AUTOENCODER},
    "local": {TEACHER, STUDENT},
    "global": {STUDENT, AUTOENCODER},
}


class EfficientAdTrunkConfig(Config):
    """Teacher, student and autoencoder. The student has the teacher's size and sees the same pixels."""

    kind: Literal["efficientad"] = "efficientad"
    teacher: PdnTrunkConfig = Field(PdnTrunkConfig(), description="The frozen teacher.")
    training: TrainingConfig = Field(TrainingConfig(), description="How student and autoencoder learn.")

    def build(self) -> EfficientAdTrunk:
        """The trunk, its student untrained. Raises: ConfigError if the image is too small, WeightsError."""
        return EfficientAdTrunk(self, self.teacher.build())


class EfficientAdTrunk(TrainableTrunk):
    """Teacher, student, autoencoder.

    Shapes: (b, 3, H, W) RGB in [0, 1] -> {stage: (b, c, h, w)}, h and w a quarter of the input; c is 384, for
    ``student`` 768 and 1 for ``local`` and ``global``. Stages that end in ``_pooled`` are (b, 384, 1, 1).
    Raises: NotFittedError before ``fit``.
    """

    def __init__(self, config: EfficientAdTrunkConfig, teacher: PdnTrunk) -> None:
        super().__init__()
        self.config = config
        self.input_size, self.grid = teacher.input_size, teacher.grid
        self.weights_source = teacher.weights_source
        self.weights_digest = teacher.weights_digest
        self.declared_key = f"{config.fingerprint()}-{teacher.weights_digest[:8]}"
        self.key = self.declared_key
        self.teacher = teacher
        self.pixels = teacher.pixels
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.student = patch_description_network(config.teacher.size, 2 * CHANNELS)
            self.autoencoder = autoencoder(self.input_size, self.grid, CHANNELS)
        self.scale = Standardisation(CHANNELS)
        self.shared = False
        self.requires_grad_(False)
        self.eval()

    def stage(self, name: str) -> Stage:
        if name in POOLED:
            return Stage(name, CHANNELS, max(self.input_size), (1, 1), spatial=False)
        if name not in CHANNELS_OF:
            raise ConfigError(f"stage {name!r} does not exist; this trunk has {', '.join([*CHANNELS_OF, *POOLED])}")
        return Stage(name, CHANNELS_OF[name], STRIDE, self.grid)

    @property
    def reads(self) -> tuple[str, ...]:
        penalty = self.config.training.penalty
        return () if penalty is None else (penalty,)

    @property
    def is_fitted(self) -> bool:
        return self.key != self.declared_key

    def identity(self, seed: int, pictures: str) -> str:
        schedule = self.config.training.schedule_for(next(self.parameters()).device)
        text = f"{self.declared_key}|{schedule.fingerprint()}|{seed}|{pictures}"
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def fit(
        self,
        images: Iterable[Tensor],
        identity: str,
        seed: int,
        pictures_in: PicturesIn,
        checkpoint: Path | None,
        progress: Progress,
    ) -> Self:
        training = StudentTraining(self.config.training, self.teacher, self.grid, seed)
        learned = training.run(images, identity, pictures_in, checkpoint, progress)
        return self.restore(learned, identity)

    def learned(self) -> dict[str, Tensor]:
        if not self.is_fitted:
            raise NotFittedError("EfficientAD has not been trained; fit an ensemble with it, or load a run")
        parts = (("student", self.student), ("autoencoder", self.autoencoder), ("scale", self.scale))
        return {f"{name}.{key}": value for name, part in parts for key, value in part.state_dict().items()}

    def restore(self, learned: Mapping[str, Tensor], identity: str) -> Self:
        parts: tuple[tuple[str, nn.Module], ...] = (
            ("student", self.student),
            ("autoencoder", self.autoencoder),
            ("scale", self.scale),
        )
        for name, part in parts:
            state = {key[len(name) + 1 :]: value for key, value in learned.items() if key.startswith(f"{name}.")}
            load_strictly(part, state, f"trained {name}")
        # A fitted student has the teacher's layers but for the last, so that they need to run only once.
        mine, its = self.student[:-1].state_dict(), self.teacher.network[:-1].state_dict()
        self.shared = all(torch.equal(mine[key], its[key].to(mine[key])) for key in mine)
        self.key = f"{self.declared_key}-{identity}"
        self.weights_source = f"{self.teacher.weights_source}, student trained"
        self.weights_digest = state_digest(self.learned())
        self.requires_grad_(False)
        return self

    @torch.no_grad()
    def forward(self, images: Tensor, stages: Sequence[str]) -> dict[str, Tensor]:
        for name in stages:
            self.stage(name)
        if not self.is_fitted:
            raise NotFittedError("EfficientAD has not been trained; fit an ensemble with it, or load a run")
        needed = set().union(*(NEEDS[POOLED.get(name, name)] for name in stages))
        pixels = self.pixels(images)
        extended = mirrored(pixels).contiguous(memory_format=torch.channels_last)
        found: dict[str, Tensor] = {}
        if TEACHER in needed and STUDENT in needed and self.shared:
            body = self.student[:-1](extended)
            found[TEACHER] = self.scale(self.teacher.scale(self.teacher.network[-1](body)))
            found[STUDENT] = self.student[-1](body)
        else:
            if TEACHER in needed:
                found[TEACHER] = self.scale(self.teacher.describe(extended))
            if STUDENT in needed:
                found[STUDENT] = self.student(extended)
        if STUDENT in needed:
            found["student_teacher"], found["student_autoencoder"] = found[STUDENT].chunk(2, dim=1)
        if AUTOENCODER in needed:
            found[AUTOENCODER] = self.autoencoder(pixels)
        if "local" in stages:
            found["local"] = disagreement(found[TEACHER], found["student_teacher"])
        if "global" in stages:
            found["global"] = disagreement(found[AUTOENCODER], found["student_autoencoder"])
        for name in POOLED.keys() & set(stages):
            found[name] = found[POOLED[name]].mean(dim=(2, 3), keepdim=True)
        return {name: found[name] for name in stages}


def disagreement(first: Tensor, second: Tensor) -> Tensor:
    """Mean over channels of the squared difference. Shapes: 2 x (b, c, h, w) -> (b, 1, h, w)."""
    return (first.float() - second.float()).square().mean(dim=1, keepdim=True)
