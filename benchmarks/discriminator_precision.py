"""The discriminator's large product in float32 and in bfloat16: seconds, and image AUROC on held-out made defects.

    python benchmarks/discriminator_precision.py --data sets

Fused map of ``bundled``, on the training pictures less those held out; defects are made from the held-out ones, which
are also the normals that they are ranked against. No test picture is read. Writes
benchmarks/results/discriminator_precision.md.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import sys
import tempfile
import time
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import torch
import torch.nn.functional as F
from accuracy import SETS, bundled
from torch import Tensor, nn

from manyeyes.data import read_image_set
from manyeyes.data.made import made_frame, make_defects
from manyeyes.device import multiplies_bfloat16
from manyeyes.ensemble import Ensemble, Extraction, FeatureStore
from manyeyes.ensemble.store import StoredTaps
from manyeyes.ensemble.training import split
from manyeyes.experiments.metrics import image_figures
from manyeyes.files import make_folder, write_text
from manyeyes.heads import DiscriminatorConfig
from manyeyes.progress import Silent

RESULTS = Path(__file__).parent / "results" / "discriminator_precision.md"
CPU = torch.device("cpu")


def half(layer: nn.Linear, value: Tensor) -> Tensor:
    """A linear layer whose product is in bfloat16; the last one, a single output, stays as it is."""
    if layer.out_features == 1:
        return F.linear(value, layer.weight, layer.bias)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        return F.linear(value, layer.weight, layer.bias).float()


def embeddings(root: Path, folder: Path, images: int, defects: int) -> tuple[list[Tensor], ...]:
    """Of training pictures, of held-out normals and of defects made from these."""
    config = bundled()
    ensemble = Ensemble(config)
    frame = config.frame.sized(ensemble.canvas)
    found = read_image_set(root)
    train, held = split(replace(found, train=found.train[:images], validation=()), config)
    extraction = Extraction(FeatureStore(folder), CPU)
    taps, _ = extraction(ensemble.eyes, train, frame, "training", Silent())
    normal, _ = extraction(ensemble.eyes, held, frame, "held out", Silent())
    where = make_folder(folder / "made")
    made = make_defects(
        held, frame, where, count=defects, seed=0, skip_bad=False, progress=Silent().step("making defects")
    )
    spoilt, _ = extraction(ensemble.eyes, made, made_frame(frame), "made", Silent())
    branch = ensemble._branches()[0]
    assert branch.fusion is not None
    branch.fusion.fit(branch.pyramids(taps))
    branch.finish_fusion()

    def embed(stored: StoredTaps) -> list[Tensor]:
        with torch.no_grad():
            return [branch.embed(branch.raw_maps(batch)) for batch in stored]

    return embed(taps), embed(normal), embed(spoilt)


def judged(parts: tuple[list[Tensor], ...], seed: int, precision: str) -> tuple[float, float]:
    """Image AUROC in % and seconds of the fit."""
    train, normal, spoilt = parts
    head = DiscriminatorConfig().build(train[0].shape[1])
    begun = time.perf_counter()
    with patch.object(nn.Linear, "forward", half) if precision == "bfloat16" else nullcontext():
        head.fit(train, seed)
    seconds = time.perf_counter() - begun
    good, bad = (torch.cat([head.score(value) for value in part]).double().numpy() for part in (normal, spoilt))
    return 100 * float(image_figures(good, bad)["auroc"].value or 0), seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--sets", nargs="+", default=["bottle", "transistor", "juice_bottle"], choices=list(SETS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--images", type=int, default=209)
    parser.add_argument("--defects", type=int, default=90)
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    lines = [
        "# Discriminator: float32 and bfloat16",
        "",
        f"`python {' '.join(sys.argv)}`",
        f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}, bfloat16 instructions: "
        f"{'yes' if multiplies_bfloat16() else 'no'}.",
        "",
        "| set | precision | image AUROC on made defects, by seed | mean | fit, s |",
        "|---|---|---|---|---|",
    ]
    with tempfile.TemporaryDirectory() as folder:
        for name in arguments.sets:
            parts = embeddings(arguments.data / SETS[name], Path(folder) / name, arguments.images, arguments.defects)
            for precision in ("float32", "bfloat16"):
                found = [judged(parts, seed, precision) for seed in arguments.seeds]
                figures, seconds = zip(*found, strict=True)
                row = f"{', '.join(f'{value:.2f}' for value in figures)} | {statistics.fmean(figures):.2f}"
                lines.append(f"| {name} | {precision} | {row} | {statistics.median(seconds):.1f} |")
                print(lines[-1], flush=True)
    write_text(arguments.out, "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
