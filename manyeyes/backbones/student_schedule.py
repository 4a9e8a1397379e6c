"""How long EfficientAD's student and autoencoder learn, and on what.

Source: Batzner, Heckler, Koenig, WACV 2024, arXiv 2303.14535: 70,000 steps of one picture, Adam 1e-4,
weight decay 1e-5.
"""

from __future__ import annotations

import torch
from pydantic import Field

from manyeyes.backbones.pdn import RECEPTIVE_FIELD, STRIDE
from manyeyes.backbones.student_fit import StudentFit
from manyeyes.config import Config

LATE, LATE_RATE = 0.95, 0.1


class Schedule(Config):
    """The defaults are the paper's."""

    steps: int = Field(70_000, ge=1, description="optimiser steps")
    images: int = Field(1, ge=1, description="pictures per step")
    crop: int | None = Field(
        None,
        ge=RECEPTIVE_FIELD + STRIDE,
        description="side in px of what teacher and student see; null: the whole",
    )
    learning_rate: float = Field(1e-4, gt=0, description="Adam's rate, a tenth of it for the last 5 % of the steps")
    weight_decay: float = Field(1e-5, ge=0, description="of all that learns in the steps")
    fit: StudentFit | None = Field(
        None,
        description="fit the student in closed form after the steps; null: it learns in them",
    )
    he: bool = Field(False, description="the autoencoder is drawn as He et al. 2015 do, so that it learns at once")
    statistics: int | None = Field(None, ge=1, description="pictures that the teacher is standardised on; null: all")

    def rate(self, step: int) -> float:
        """Adam's rate at a step, counted from 0."""
        return (LATE_RATE if step >= LATE * self.steps else 1.0) * self.learning_rate


PAPER = Schedule()
SHORT = Schedule(steps=1000, images=2, crop=96, learning_rate=1e-3, fit=StudentFit(), he=True, statistics=64)
"""What a CPU affords (docs/efficientad.md)."""


class TrainingConfig(Config):
    """``schedule`` is `PAPER` on an accelerator and `SHORT` on a CPU unless it is given."""

    schedule: Schedule | None = Field(None, description="by default the paper's, on a CPU a short one")
    steps: int | None = Field(None, ge=1, description="optimiser steps instead of the schedule's own number")
    hard: float = Field(
        0.999, ge=0, lt=1, description="quantile of the differences that a student learns from, unless it is fitted"
    )
    penalty: str | None = Field(
        None,
        description="folder of natural pictures on which the student must not follow the teacher; by default views of "
        "two photographs",
    )
    penalty_pictures: int = Field(4096, ge=1, description="at most, evenly spread; a fit has its own number")

    def schedule_for(self, device: torch.device) -> Schedule:
        schedule = self.schedule or (SHORT if device.type == "cpu" else PAPER)
        return schedule if self.steps is None else schedule.model_copy(update={"steps": self.steps})
