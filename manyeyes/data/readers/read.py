"""Read an image set, and look at one picture for the trap that no reader can see: 16-bit files of fewer bits."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from manyeyes.data.images import unused_bits
from manyeyes.data.readers.auto import Auto
from manyeyes.data.readers.layout import Layout
from manyeyes.data.sample import ImageSet
from manyeyes.errors import DataError

AUTO = Auto()


def read_image_set(root: str | Path, config: Layout = AUTO, seed: int = 0, train: bool = True) -> ImageSet:
    """The set under ``root``; opens the first picture to note whether ``frame.bits`` may be needed.

    Without ``train``, test pictures are enough. Raises: DataError as `Layout.read`.
    """
    found = config.read(root, seed, train)
    first = (*found.train[:1], *found.test[:1])[0].path
    try:
        bits = unused_bits(first)
    except DataError:  # whoever loads the pictures reports it, or skips it if told to
        return found
    if not bits:
        return found
    note = f"{first.name} has 16 bits of which {bits} are used: if the camera gives no more, set frame.bits: {bits}"
    return replace(found, notes=(*found.notes, note))
