"""Peak memory of a fit on 20,000 pictures beside that on 2,000.

    python benchmarks/fit_memory.py --data sets/mvtec_ad/bottle

Features of some real pictures are extracted once; the fit then reads them from the store over and over, as if there
were so many pictures, so that it takes minutes instead of hours. The ensemble is the default one with its trunks at
half the size (128 and 192 px on a 16 x 16 grid), and its discriminator takes fewer steps: neither changes what is kept
per picture besides the size of a map. Each fit is a process of its own; memory is the peak of what is resident, pages
of mapped files included. Writes benchmarks/results/fit_memory.md.
"""

from __future__ import annotations

import argparse
import platform
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from manyeyes.data import read_image_set
from manyeyes.ensemble import Ensemble, EnsembleConfig, FeatureStore
from manyeyes.ensemble.presets import load_config
from manyeyes.files import write_text

RESULTS = Path(__file__).parent / "results" / "fit_memory.md"
SMALLER = ("grid=16", "members.0.extractor.trunk.size=128", "members.1.extractor.trunk.size=192", "heads.0.steps=300")


def smaller() -> EnsembleConfig:
    return load_config("bundled", SMALLER)


def peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1e6 if sys.platform == "darwin" else 1e3)


def fit(data: Path, store: Path, images: int, real: int) -> None:
    """In a process of its own: print the peak before and after the fit, and its seconds."""
    config = smaller()
    ensemble = Ensemble(config)
    found = read_image_set(data)
    taps, _, _ = FeatureStore(store).extract(
        ensemble.eyes,
        found.train[:real],
        config.frame.sized(ensemble.canvas),
        batch_size=8,
        device=torch.device("cpu"),
    )
    held_out = round(config.validation * images)
    before, begun = peak_mb(), time.perf_counter()
    repeated = np.arange(images) % len(taps)
    ensemble.fit(taps.subset(repeated[held_out:].tolist()), taps.subset(repeated[:held_out].tolist()))
    print(f"{before:.0f} {peak_mb():.0f} {time.perf_counter() - begun:.0f}")


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--images", type=int, nargs="+", default=[2000, 20_000], help="pictures of each fit")
    parser.add_argument("--real", type=int, default=64, help="different pictures among them")
    parser.add_argument("--store", type=Path, help="fit from this feature store in this process; used by the benchmark")
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args(words)
    if arguments.store:
        fit(arguments.data, arguments.store, arguments.images[0], arguments.real)
        return
    lines, peaks = ["| pictures | peak, MB | before the fit, MB | fit, s |", "|---|---|---|---|"], []
    with tempfile.TemporaryDirectory() as folder:
        # The first process extracts and is not counted.
        for images in (64, *arguments.images):
            command = [sys.executable, __file__, "--data", str(arguments.data), "--store", folder]
            command += ["--images", str(images), "--real", str(arguments.real)]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            before, peak, seconds = done.stdout.split()
            peaks.append(float(peak))
            lines.append(f"| {images:,} | {float(peak):,.0f} | {float(before):,.0f} | {seconds} |")
            print(lines[-1], flush=True)
    del lines[2]
    text = "\n".join(
        [
            "# Peak memory of a fit",
            "",
            f"`python {' '.join(sys.argv)}`",
            f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}; `bundled` with "
            f"{', '.join(SMALLER)}; features of {arguments.real} real pictures, repeated.",
            "",
            *lines,
            "",
            f"The largest fit needs {peaks[-1] / peaks[1]:.3f} x the memory of the smallest.",
        ]
    )
    print(text)
    write_text(arguments.out, text + "\n")


if __name__ == "__main__":
    main()
