"""Files that are whole or absent: everything is written under a temporary name, flushed and renamed."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import stat
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from manyeyes.errors import RunError

LIBRARIES = (  # what arithmetic depends on
    *("torch", "torchvision", "timm", "numpy", "scipy", "scikit-learn", "pillow", "FrEIA"),
    *("opencv-python", "opencv-python-headless", "opencv-contrib-python", "opencv-contrib-python-headless"),
)

ADVICE = {
    errno.ENOSPC: "the disk is full; free some space or choose another folder",
    errno.EDQUOT: "the disk quota is used up; free some space or choose another folder",
    errno.EACCES: "no permission; choose another folder",
    errno.EROFS: "the file system is read-only; choose another folder",
    errno.EEXIST: "there is a file of that name; choose another folder",
    errno.ENOTDIR: "part of the path is a file; choose another folder",
}


def reason_of(error: OSError) -> str:
    """What the system says, with the way out where one is known."""
    return ADVICE.get(error.errno or 0, error.strerror or str(error))


@contextmanager
def writing(path: str | Path) -> Iterator[Path]:
    """Give a temporary path beside ``path`` to write to; rename it into place if the body succeeds.

    A killed process leaves the old file whole. Missing folders are made. A link stays a link, and what is no plain file
    (a pipe, a device such as /dev/stdout) is written into instead of being replaced.
    Raises: RunError naming the file and the way out if the disk is full or the folder cannot be written.
    """
    if _is_special(path):
        with _writing_into(Path(path)) as temporary:
            yield temporary
        return
    path = Path(os.path.realpath(path))
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.touch()
        mode = temporary.stat().st_mode
        yield temporary
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        temporary.chmod(mode)  # safetensors makes files that only their owner may read
        temporary.replace(path)
    except OSError as error:
        raise RunError(f"{path}: cannot be written: {reason_of(error)}") from error
    finally:
        with suppress(OSError):  # it would hide the error above, such as a path that leads through a file
            temporary.unlink(missing_ok=True)


def _is_special(path: str | Path) -> bool:
    """Whether there is something that a file must not take the place of."""
    if is_stdout(path):
        return True
    try:
        mode = Path(path).stat().st_mode
    except OSError:
        return False
    return not stat.S_ISREG(mode) and not stat.S_ISDIR(mode)


def is_stdout(path: str | Path) -> bool:
    """Whether a path names the standard output of this process, wherever that leads."""
    return os.fspath(path) in ("/dev/stdout", "/dev/fd/1", "/proc/self/fd/1")


@contextmanager
def _writing_into(path: Path) -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as folder:
        temporary = Path(folder) / path.name
        temporary.touch()
        yield temporary
        try:
            if is_stdout(path):  # opened anew it would begin at the start of the file that it leads to
                sys.stdout.flush()
                sys.stdout.buffer.write(temporary.read_bytes())
                sys.stdout.buffer.flush()
                return
            with open(path, "wb") as target:
                target.write(temporary.read_bytes())
        except OSError as error:
            raise RunError(f"{path}: cannot be written: {reason_of(error)}") from None


@cache
def library_versions() -> dict[str, str]:
    """Versions of the installed ones of `LIBRARIES`; OpenCV's packages are several, one of which is there."""
    found = {}
    for name in LIBRARIES:
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


@cache
def source_digest(*parts: str) -> str:
    """16 hexadecimal digits of the SHA-256 of the package's sources in these files and folders, relative to it, and of
    the versions of the libraries that they call.

    The package's version would not do for what is kept between runs: it stays the same while the code is being worked
    on, and changes where nothing that counts has changed.
    """
    root = Path(__file__).parent
    sources: set[Path] = set()
    for part in parts:
        sources.update((root / part).rglob("*.py") if (root / part).is_dir() else [root / part])
    digest = hashlib.sha256(repr(library_versions()).encode())
    for path in sorted(sources):
        digest.update(f"{path.relative_to(root).as_posix()}\n".encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def write_text(path: str | Path, text: str) -> None:
    with writing(path) as temporary:
        # A file name that is no UTF-8 is the only thing that could not be encoded.
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")


def write_json(path: str | Path, values: Any) -> None:
    """Indented JSON. NaN and infinity are refused: an undefined figure is null with its reason beside it."""
    write_text(path, json.dumps(values, indent=2, allow_nan=False) + "\n")


def read_json(path: str | Path, advice: str = "delete it and run again") -> Any:
    """Raises: RunError with ``advice`` if the file cannot be read or is no JSON."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise RunError(f"{path}: cannot be read ({error.strerror}); {advice}") from None
    except ValueError as error:
        raise RunError(f"{path}: is no valid JSON ({error}); {advice}") from None


def make_folder(path: str | Path) -> Path:
    """Make a folder and prove that it can be written. Raises: RunError with the way out."""
    path = Path(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
        probe = path / f".probe.{os.getpid()}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise RunError(f"{path}: cannot be used as an output folder: {reason_of(error)}") from None
    return path


def reserve(file: int, needed: int, path: str | Path) -> None:
    """Take ``needed`` bytes for an open ``file`` (its descriptor) that will be written through a memory map.

    A map into a file with holes dies with a bus error once the disk is full: here it fails with words, before.
    Raises: RunError naming ``path`` if the disk has not so much space.
    """
    if hasattr(os, "posix_fallocate"):
        try:
            os.posix_fallocate(file, 0, needed)
        except OSError as error:
            raise RunError(f"{path}: {_in_words(needed)} are needed: {reason_of(error)}") from None


def require_space(path: str | Path, needed: int) -> None:
    """Raises: RunError if the disk under ``path`` has fewer than ``needed`` bytes free."""
    free = shutil.disk_usage(path).free
    if needed > free:
        raise RunError(
            f"{path}: {_in_words(needed)} are needed and {_in_words(free)} are free; "
            "free some space or choose another folder"
        )


def _in_words(size: int) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.2f} MB"
