"""A digest of the code that makes a cell's figures: a cell is kept only as long as the code that made it is the same.

The package's version would not do: it stays the same while the code is being worked on, and changes where nothing that
counts has changed. The command line, the report, the drawing of made sets and the ways to run cells are left out.
"""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path

import manyeyes

WHOLE = ("data", "backbones", "fusion", "heads", "ensemble", "experiments/metrics")
SINGLE = ("config.py", "device.py", "fitted.py", "maps.py", "experiments/bench.py", "experiments/evaluation.py")
DRAWN = "synthesize"


@cache
def code_digest() -> str:
    """16 hexadecimal digits of the SHA-256 of the sources that figures depend on."""
    root = Path(manyeyes.__file__).parent
    sources = [root / name for name in SINGLE]
    sources += [path for room in WHOLE for path in (root / room).rglob("*.py") if DRAWN not in path.parts]
    digest = hashlib.sha256()
    for path in sorted(sources):
        digest.update(f"{path.relative_to(root).as_posix()}\n".encode() + path.read_bytes())
    return digest.hexdigest()[:16]
