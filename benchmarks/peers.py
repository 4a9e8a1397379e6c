"""PatchCore of Anomalib 2.7.0 and of manyeyes, one after the other: fit, prediction, peak memory and image AUROC.

    python benchmarks/peers.py --data sets/mvtec_ad/bottle --weights weights/resnet18.safetensors --env peers_env

Same trunk (ResNet-18, stages 2 and 3), weights, size (256 px), ratio (0.01), neighbours (the nearest for the map, nine
to re-weight the image score), pictures and threads. ``--env`` is a folder for Anomalib's own environment: made where it
does not exist (some gigabytes), used again where it does; without it a temporary one is made. Each side is a process of
its own, so that its peak memory is its own; never both at once. Decoding is part of the fit, not of the prediction.
manyeyes keeps two of the training pictures out of its bank, for scale and threshold.
Writes benchmarks/results/peers.md.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import venv
from pathlib import Path
from typing import Any

import torch

from manyeyes.data import read_image_set
from manyeyes.files import write_text

HERE = Path(__file__).parent
ANOMALIB = "anomalib==2.7.0"
COLUMNS = {"fit": "fit, s", "ms": "prediction, ms per image", "peak": "peak memory, MB", "auroc": "image AUROC, %"}


def environment(folder: Path) -> Path:
    """The Python of an environment with Anomalib, made if it is not there, with this environment's torch."""
    python = folder / "bin" / "python"
    installed = folder / "installed"
    if not installed.exists():
        venv.create(folder, with_pip=True)
        release = torch.__version__.partition("+")[0]
        wanted = [ANOMALIB, f"torch=={release}", "torchvision", "safetensors"]
        subprocess.run([python, "-m", "pip", "install", "--quiet", *wanted], check=True)
        installed.touch()
    return python


def measured(python: Path | str, side: str, task: dict[str, Any], folder: Path) -> dict[str, float]:
    (folder / "task.json").write_text(json.dumps(task))
    threads = {name: str(task["threads"]) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")}
    quiet = {"TQDM_DISABLE": "1", "PYTHONWARNINGS": "ignore"}
    command = [python, HERE / f"peers_{side}.py", folder / "task.json", folder / "result.json"]
    subprocess.run(command, check=True, env={**os.environ, **threads, **quiet})
    result: dict[str, float] = json.loads((folder / "result.json").read_text())
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--weights", type=Path, required=True, help="ResNet-18 in timm naming, safetensors")
    parser.add_argument("--env", type=Path, help="folder of Anomalib's environment, kept")
    parser.add_argument("--ratio", type=float, default=0.01)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--limit", type=int, help="training and test pictures at most, for a quick try")
    parser.add_argument("--out", type=Path, default=HERE / "results" / "peers.md")
    arguments = parser.parse_args()
    found = read_image_set(arguments.data)
    train, test = found.train[: arguments.limit], found.test
    if arguments.limit:
        test = test[:: max(1, len(test) // arguments.limit)]
    task = {
        "root": str(arguments.data.resolve()),
        "train": [str(sample.path.resolve()) for sample in train],
        "test": [str(sample.path.resolve()) for sample in test],
        "labels": [sample.label for sample in test],
        "weights": str(arguments.weights.resolve()),
        "ratio": arguments.ratio,
        "threads": arguments.threads,
    }
    with tempfile.TemporaryDirectory() as folder:
        peer = environment(arguments.env or Path(folder) / "env")
        theirs = measured(peer, "anomalib", task, Path(folder))
        ours = measured(sys.executable, "manyeyes", task, Path(folder))
    lines = [
        "# PatchCore beside Anomalib's",
        "",
        f"`python {' '.join(sys.argv)}`",
        f"{platform.processor() or platform.machine()}, {arguments.threads} threads, torch {torch.__version__}; "
        f"{len(train)} training and {len(test)} test pictures of {found.name}; ResNet-18 stages 2 and 3, 256 px, ratio "
        f"{arguments.ratio}, batch 8, one process after the other. The fit holds decoding, the prediction does not.",
        "",
        f"| | {' | '.join(COLUMNS.values())} | bank entries |",
        f"|---|{'---|' * (len(COLUMNS) + 1)}",
    ]
    for name, side in ((ANOMALIB.replace("==", " "), theirs), ("manyeyes", ours)):
        figures = (f"{side[key]:.2f}" if key == "auroc" else f"{side[key]:.1f}" for key in COLUMNS)
        lines.append(f"| {name} | {' | '.join(figures)} | {side['entries']} |")
    lines += [
        "",
        f"Fit {theirs['fit'] / ours['fit']:.1f} x as fast, prediction {theirs['ms'] / ours['ms']:.2f} x as fast, "
        f"peak memory {ours['peak'] / theirs['peak']:.2f} x, image AUROC {ours['auroc'] - theirs['auroc']:+.2f}.",
    ]
    text = "\n".join(lines) + "\n"
    print(text)
    write_text(arguments.out, text)


if __name__ == "__main__":
    main()
