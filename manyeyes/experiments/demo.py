"""``manyeyes demo``: the whole way on parts that the package draws itself."""

from __future__ import annotations

from pathlib import Path

from manyeyes.data import read_image_set
from manyeyes.data.synthesize import synthesize_flat_connector
from manyeyes.ensemble import load_config
from manyeyes.experiments.compare import run_study
from manyeyes.experiments.study import Study
from manyeyes.files import make_folder
from manyeyes.progress import Progress, Silent

ENSEMBLES = ("bundled-single", "bundled-score", "bundled-global", "bundled-independent")


def run_demo(out: str | Path, *, seed: int = 0, progress: Progress | None = None) -> Study:
    """Draw flat connectors, train a single member and three ways of fusion, compare them, write the report.

    What an earlier demo in the same folder has finished is used again.
    """
    progress = progress or Silent()
    folder = make_folder(out)
    parts = folder / f"flat-connector-{seed}"
    if not parts.exists():
        synthesize_flat_connector(parts, seed=seed, progress=progress.step("drawing flat connectors"))
    image_set = read_image_set(parts)
    configs = [load_config(name) for name in ENSEMBLES]
    return run_study(configs, [image_set], folder / "study", seeds=[seed], progress=progress)
