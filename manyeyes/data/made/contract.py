"""What a made defect is: a function from one good picture to the same picture with a defect, and where that is.

Sources of the idea: CutPaste (Li et al. 2021, arXiv 2104.04015), DRAEM (Zavrtanik et al. 2021, arXiv 2108.07610). Made
defects are no likeness of real ones; they ask whether a head sees that something was changed. All functions are pure:
picture, donor and random numbers in, picture and mask out.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Picture = NDArray[np.uint8]
"""(h, w, 3) RGB."""
Mask = NDArray[np.bool_]
"""(h, w)."""
Group = Literal["structural", "logical"]


@dataclass(frozen=True, eq=False)
class Subject:
    """A good picture to spoil."""

    picture: Picture
    donor: Picture
    """Another good picture of the same size; the same one where there is no other."""
    part: Mask
    """Where the part is, as opposed to the background; never empty."""
    regions: tuple[Mask, ...]
    """Pieces of the part that differ from what surrounds them: a label, a lead, a hole. None on plain textures."""

    @property
    def is_grey(self) -> bool:
        return bool((self.picture == self.picture[..., :1]).all())


Make = Callable[[Subject, float, np.random.Generator], tuple[Picture, Mask] | None]
"""``(subject, strength in 0..1, random numbers)`` -> changed picture and mask; None where the subject has no place."""


@dataclass(frozen=True)
class Kind:
    """One way to spoil a picture. Structural: the surface is wrong; logical: a piece is missing, extra or misplaced."""

    name: str
    group: Group
    make: Make
