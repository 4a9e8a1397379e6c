"""Files and folders of an image set, listed in natural order without opening a single one."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from manyeyes.data.sample import Sample
from manyeyes.errors import DataError

SUFFIXES = (
    *(".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".bmp", ".dib", ".tif", ".tiff", ".webp"),
    *(".ppm", ".pgm", ".pbm", ".pnm", ".gif", ".avif", ".jp2", ".hdr", ".exr", ".ras"),
)
NAMES_SHOWN = 3
DIGITS = re.compile(r"(\d+)")

NaturalKey = tuple[tuple[str | int, ...], str]


def natural_key(text: str) -> NaturalKey:
    """Sort key by which part2 stands before part10 and Part3 between them."""
    pieces = DIGITS.split(text)
    return tuple(int(piece) if index % 2 else piece.casefold() for index, piece in enumerate(pieces)), text


def is_picture(name: str) -> bool:
    """Whether the extension, upper or lower case, is that of an image."""
    return os.path.splitext(name)[1].lower() in SUFFIXES  # noqa: PTH122 - 20,000 Path objects would be slow


def listed(folder: Path) -> tuple[list[Path], list[Path], list[Path]]:
    """Pictures, other files and subfolders of one folder, in natural order; hidden ones are ignored.

    Raises: DataError if the folder cannot be listed.
    """
    pictures: list[str] = []
    others: list[str] = []
    folders: list[str] = []
    with _scan(folder) as entries:
        for entry in entries:
            if entry.name.startswith((".", "__MACOSX")):
                continue
            kind = folders if _is_folder(entry) else pictures if is_picture(entry.name) else others
            kind.append(entry.name)
    by_name = [[folder / name for name in sorted(names, key=natural_key)] for names in (pictures, others, folders)]
    return by_name[0], by_name[1], by_name[2]


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that leads to itself: no folder, and whoever opens it will name it
        return False


@contextmanager
def _scan(folder: Path) -> Iterator[Iterator[os.DirEntry[str]]]:
    try:
        with os.scandir(folder) as entries:
            yield entries
    except OSError as error:
        raise DataError(f"{folder}: cannot be listed ({error.strerror})") from None


def below(root: Path, name: str) -> Path | None:
    """The folder ``root``/``name``, upper or lower case; None if there is none."""
    folder = root
    for part in name.split("/"):
        exact = folder / part
        if not exact.is_dir():
            with _scan(folder) as entries:
                same = sorted(
                    each.name for each in entries if each.name.casefold() == part.casefold() and _is_folder(each)
                )
            if not same:
                return None
            exact = folder / same[0]
        folder = exact
    return folder


def names(paths: Sequence[Path]) -> str:
    """The first few names, and how many more there are."""
    shown = ", ".join(path.name for path in paths[:NAMES_SHOWN])
    return shown + (f" and {len(paths) - NAMES_SHOWN} more" if len(paths) > NAMES_SHOWN else "")


def paths_to_samples(paths: Iterable[str | Path]) -> tuple[Sample, ...]:
    """Pictures to predict: files as given, folders with all they hold at any depth, in natural order, none twice.

    Raises: DataError if a path does not exist, a folder holds no picture, or nothing was given.
    """
    found: dict[Path, Sample] = {}
    for path in map(Path, paths):
        if path.is_dir():
            pictures = pictures_within(path)
            if not pictures:
                raise DataError(f"{path}: holds no picture; looked for {' '.join(SUFFIXES)} at any depth")
        elif path.exists():
            pictures = [path]
        else:
            raise DataError(f"{path}: does not exist; expected an image file or a folder of them")
        for picture in pictures:
            found.setdefault(picture, Sample(picture))
    if not found:
        raise DataError("no picture was given; expected image files or folders of them")
    return tuple(found.values())


def pictures_within(folder: Path) -> list[Path]:
    """Pictures of a folder at any depth, in natural order."""
    pictures, _, folders = listed(folder)
    # Linked folders are not followed: they may lead in a circle.
    deeper = [picture for inner in folders if not inner.is_symlink() for picture in pictures_within(inner)]
    return pictures + deeper
