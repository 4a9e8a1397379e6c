"""Made defects on disk: pictures on the canvas and masks, as samples like any others.

What becomes of a good picture depends on its name, the seed and the names of the others, not on their order. Files are
written whole or not at all, and those that are there are kept, so that a killed run goes on where it stopped.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np

from manyeyes.data.frame import Frame
from manyeyes.data.images import read_image
from manyeyes.data.made.contract import Kind, Mask, Picture, Subject
from manyeyes.data.made.kinds import KINDS, spoil
from manyeyes.data.made.part import subject
from manyeyes.data.sample import Region, Sample
from manyeyes.errors import DataError
from manyeyes.files import writing

VERSION = 2
"""Raised when the same numbers make other pictures, so that no old file is taken for a new one."""


@dataclass(frozen=True)
class Order:
    """One picture to make: of which good one, which kind first, with which random numbers."""

    source: Sample
    donor: Sample
    kind: Kind
    key: str

    def generator(self) -> np.random.Generator:
        return np.random.default_rng(int(self.key, 16))


def made_frame(frame: Frame) -> Frame:
    """The frame that made pictures are read with: they are on the canvas already."""
    return Frame(size=frame.canvas)


def make_defects(
    samples: Sequence[Sample],
    frame: Frame,
    folder: str | Path,
    *,
    count: int,
    seed: int,
    skip_bad: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[Sample, ...]:
    """Spoil good pictures ``count`` times in all, structural and logical defects in turn, and write them to ``folder``.

    Each good picture is used equally often, give or take one. A kind that finds no place on a picture gives way to the
    next of its group, in the end to any. Read the result with `made_frame`.

    Returns: samples with ``defect`` the kind, ``group`` structural or logical, and their mask as region.
    Raises: DataError naming an unreadable picture unless ``skip_bad``, or if none is readable or there are none;
            RunError if the folder cannot be written.
    """
    if not samples:
        raise DataError("there is no good picture to make defects from")
    folder = Path(folder)
    read = _Reader(frame)
    made: list[Sample] = []
    orders = list(_orders(samples, frame, count, seed))
    error: DataError | None = None
    for done, order in enumerate(orders, start=1):
        try:
            made.append(_make(order, read, folder))
        except DataError as reason:
            if not skip_bad:
                raise
            error = error or reason
        if progress:
            progress(done, len(orders))
    if not made:
        raise error or DataError("no defect can be made: all good pictures are of one colour")
    return tuple(made)


class _Reader:
    """Placed pictures, the last few kept: orders of one picture follow each other."""

    def __init__(self, frame: Frame) -> None:
        self.frame = frame
        self.placed = lru_cache(maxsize=4)(self._placed)

    def _placed(self, path: Path) -> Picture:
        return self.frame.place(read_image(path, self.frame.bits))

    def subject(self, source: Path, donor: Path) -> Subject:
        """With ``donor`` unreadable, the picture is its own donor."""
        picture = self.placed(source)
        try:
            other = self.placed(donor)
        except DataError:
            other = picture
        return subject(picture, other)


def _orders(samples: Sequence[Sample], frame: Frame, count: int, seed: int) -> Iterator[Order]:
    """What to make, picture after picture; kinds go round so that each comes equally often."""

    def digest(*parts: object) -> str:
        text = "/".join(str(part) for part in (VERSION, seed, frame.fingerprint(), *parts))
        return hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()

    ranked = sorted(samples, key=lambda sample: (digest(sample.path.parent.name, sample.path.name), str(sample.path)))
    by_group = [[kind for kind in KINDS.values() if kind.group == group] for group in ("structural", "logical")]
    numbers = sorted(range(count), key=lambda number: number % len(ranked))  # one picture's orders together
    for number in numbers:
        round_, place = divmod(number, len(ranked))
        source = ranked[place]
        kinds = by_group[(place + round_) % 2]  # every picture has both in turn
        kind = kinds[number // 2 % len(kinds)]
        key = digest(source.path.parent.name, source.path.name, number)
        others = [sample for sample in ranked if sample is not source] or [source]
        yield Order(source, others[int(key, 16) % len(others)], kind, key[:32])


def _make(order: Order, read: _Reader, folder: Path) -> Sample:
    """The sample of an order, made now or found. Raises: DataError if the picture is unreadable or nothing shows."""
    for kind in _alternatives(order.kind):
        sample = _sample(order, kind, folder)
        if sample.path.exists() and sample.regions[0].path.exists():
            return sample
    spoilt = read.subject(order.source.path, order.donor.path)
    rng = order.generator()
    for kind in _alternatives(order.kind):
        made = spoil(kind, spoilt, rng)
        if made is not None:
            sample = _sample(order, kind, folder)
            _write(sample.regions[0].path, made[1])
            _write(sample.path, made[0])  # last, because it says that both are there
            return sample
    raise DataError(f"{order.source.path}: no defect shows on it")


def _alternatives(kind: Kind) -> list[Kind]:
    """The kind, then the others of its group, then those of the other group."""
    return sorted(KINDS.values(), key=lambda other: (other is not kind, other.group != kind.group))


def _sample(order: Order, kind: Kind, folder: Path) -> Sample:
    name = f"{order.source.path.stem[:40]}-{order.key[:12]}.png"
    mask = folder / "masks" / kind.name / name
    return Sample(folder / kind.name / name, kind.name, kind.group, (Region(mask, whole=True, defect=kind.name),))


def _write(path: Path, values: Picture | Mask) -> None:
    pixels = np.asarray(values * 255 if values.dtype == bool else values[..., ::-1], np.uint8)
    encoded = cv2.imencode(".png", pixels)[1]
    with writing(path) as temporary:
        temporary.write_bytes(encoded.tobytes())
