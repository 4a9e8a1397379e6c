"""One picture of one part, and what is known about it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Region:
    """One ground-truth mask file.

    ``whole`` files (LOCO) are ONE region however many components they have; others are split into components later.
    ``saturation`` is the area at which the region counts as found: a fraction of its area where ``relative``, else in
    pixels of the mask; 1.0 relative is plain PRO.
    """

    path: Path
    whole: bool = False
    saturation: float = 1.0
    relative: bool = True
    defect: str = ""


@dataclass(frozen=True)
class Sample:
    """``defect`` is the folder's or table's word for the defect, ``"good"`` for good parts.

    ``group`` is coarser where a set has it (LOCO: ``logical_anomalies`` or ``structural_anomalies``), else ``defect``.
    A defective sample without regions has no pixel ground truth.
    """

    path: Path
    defect: str = "good"
    group: str = "good"
    regions: tuple[Region, ...] = ()

    @property
    def label(self) -> int:
        """0 good, 1 defective."""
        return int(self.defect != "good")


@dataclass(frozen=True)
class ImageSet:
    """What a reader found under ``root``. ``validation`` holds good parts only; empty where a set has no such split."""

    name: str
    root: Path
    layout: str
    train: tuple[Sample, ...]
    validation: tuple[Sample, ...]
    test: tuple[Sample, ...]
    notes: tuple[str, ...] = field(default=())
    """What the reader recognised and left out, in words for the user."""
