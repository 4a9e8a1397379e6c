"""All kinds of made defects, and one of them made so that it can be seen."""

from __future__ import annotations

import numpy as np

from manyeyes.data.made import logical, structural
from manyeyes.data.made.contract import Kind, Mask, Picture, Subject

KINDS: dict[str, Kind] = {
    kind.name: kind
    for kind in (
        Kind("cut_paste", "structural", structural.cut_paste),
        Kind("scar", "structural", structural.scar),
        Kind("texture", "structural", structural.texture),
        Kind("blur", "structural", structural.blur),
        Kind("colour", "structural", structural.colour),
        Kind("removed", "logical", logical.removed),
        Kind("doubled", "logical", logical.doubled),
        Kind("moved", "logical", logical.moved),
        Kind("swapped", "logical", logical.swapped),
    )
}
VISIBLE = 10.0
"""Grey levels by which a changed pixel differs."""
ENOUGH = 0.0003
"""Part of the picture that must differ by so much; at least 6 px."""
ATTEMPTS = 6


def spoil(kind: Kind, subject: Subject, rng: np.random.Generator) -> tuple[Picture, Mask] | None:
    """A defect that changes the picture visibly, its strength drawn from faint to plain.

    A draw that changes next to nothing, such as a blur where nothing is sharp, is drawn again, each time plainer; None
    where the picture has no place for this kind.

    Shapes: (h, w, 3), (h, w).
    """
    strength = float(rng.random())
    for attempt in range(ATTEMPTS):
        made = kind.make(subject, strength + (1 - strength) * attempt / ATTEMPTS, rng)
        if made is not None and _visible(subject.picture, made[0]):
            return made
    return None


def _visible(before: Picture, after: Picture) -> bool:
    changed = np.abs(after.astype(np.int16) - before).max(axis=2) >= VISIBLE
    return bool(changed.sum() >= max(6.0, ENOUGH * changed.size))
