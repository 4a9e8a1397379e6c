"""A digest of the code that makes a cell's figures: a cell is kept only as long as the code that made it is the same,
its libraries included.

The command line, the report, the drawing of made sets and the ways to run cells are left out.
"""

from __future__ import annotations

from manyeyes.files import source_digest

PARTS = (
    *("data/frame.py", "data/images.py", "data/listing.py", "data/loading.py", "data/made", "data/readers"),
    *("data/regions.py", "data/sample.py", "data/splits.py", "data/threads.py"),
    *("backbones", "fusion", "heads", "ensemble", "experiments/metrics"),
    *("checkpoint.py", "config.py", "device.py", "fitted.py", "maps.py"),
    *("experiments/bench.py", "experiments/evaluation.py"),
)


def code_digest() -> str:
    """16 hexadecimal digits of the sources and the libraries' versions that figures depend on."""
    return source_digest(*PARTS)
