"""Cost of fused prediction beyond the trunks: both timed in turn in one run, batch 8, medians of the ratio.

    MANYEYES_WEIGHTS=weights python benchmarks/speed.py --data sets/mvtec_ad/bottle

Fits the two default ensembles and, for each, its feature-level part alone (the fused map and its discriminator) on some
pictures of the set, then times ``predict`` against the sum of the forward passes of the distinct trunks on the same
batch. Writes benchmarks/results/speed.md.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from accuracy import bundled, three

from manyeyes.data import ImageBatches, read_image_set
from manyeyes.ensemble import Ensemble, EnsembleConfig, Extraction, FeatureStore, fit_ensemble
from manyeyes.files import write_text

BATCH = 8
RESULTS = Path(__file__).parent / "results" / "speed.md"


def feature_level(config: EnsembleConfig) -> EnsembleConfig:
    """The fused map and the discriminator on it, without any head that looks at one member."""
    members = tuple(member.model_copy(update={"heads": ()}) for member in config.members)
    return config.model_copy(
        update={"name": f"{config.name}, fused map alone", "members": members, "heads": config.heads[:1]}
    )


def seconds(function: Callable[[], object], device: torch.device) -> float:
    start = time.perf_counter()
    function()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--images", type=int, default=209, help="training pictures at most; banks grow with them")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--features", type=Path, help="feature store to use again, by ensemble name")
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    found = read_image_set(arguments.data)
    image_set = replace(found, train=found.train[: arguments.images])
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for config in (three(), bundled()):
            store = arguments.features / config.name / "features" if arguments.features else Path(folder) / config.name
            for variant in (config, feature_level(config)):
                ensemble = Ensemble(variant)
                extraction = Extraction(FeatureStore(store), device, BATCH)
                ensemble, _ = fit_ensemble(variant, image_set, extraction, ensemble=ensemble)
                frame = variant.frame.sized(ensemble.canvas)
                images = next(iter(ImageBatches(image_set.test[:BATCH], frame, BATCH))).images.to(device)
                rows.append(compare(variant.name, ensemble, images, arguments.rounds, device))
    head = [
        "# Cost of fused prediction",
        "",
        f"`python {' '.join(sys.argv)}`",
        f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}, "
        f"batch {BATCH}, medians of {arguments.rounds} rounds in turn; {len(image_set.train)} training pictures.",
        "",
        "| ensemble | trunks, ms per image | prediction, ms per image | ratio, round by round (min, median, max) |",
        "|---|---|---|---|",
    ]
    text = "\n".join([*head, *rows]) + "\n"
    print(text)
    write_text(RESULTS, text)


def compare(name: str, ensemble: Ensemble, images: torch.Tensor, rounds: int, device: torch.device) -> str:
    """A row: trunk forwards and whole predictions in turn."""

    def trunks() -> None:
        with torch.no_grad():
            for trunk in ensemble.eyes.each():
                trunk(images, ensemble.eyes.stages[trunk.key])

    trunks()
    ensemble.predict(images)
    pairs = [(seconds(trunks, device), seconds(lambda: ensemble.predict(images), device)) for _ in range(rounds)]
    ratios = sorted(whole / part for part, whole in pairs)
    part, whole = (1000 / len(images) * statistics.median(values) for values in zip(*pairs, strict=True))
    spread = f"{ratios[0]:.2f}, **{statistics.median(ratios):.2f}**, {ratios[-1]:.2f}"
    return f"| {name} | {part:.1f} | {whole:.1f} | {spread} |"


if __name__ == "__main__":
    main()
