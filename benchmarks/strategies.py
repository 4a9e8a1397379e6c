"""What a study of eight strategies on one set costs, beside the dearest of them alone.

    MANYEYES_WEIGHTS=weights python benchmarks/strategies.py --data sets/mvtec_ad/bottle

Every study starts in an empty folder: decoding, extraction, fits, figures, intervals, tables and report are all in its
seconds. The eight: each of the three eyes of accuracy.py with its own heads, their scores at score level, the global
block, the independent block, concatenation, and the choice without labels. Which one is the dearest is not assumed:
each is run alone, or those that ``--alone`` names. Writes benchmarks/results/strategies.md.
"""

from __future__ import annotations

import argparse
import platform
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from accuracy import CANVAS, three

from manyeyes.data import ImageSet, read_image_set
from manyeyes.ensemble import EnsembleConfig
from manyeyes.ensemble.presets import score_level
from manyeyes.experiments.compare import run_study
from manyeyes.files import write_text
from manyeyes.fusion import AutoConfig, ConcatenateConfig, FusionConfig, GlobalPcaConfig, IndependentPcaConfig
from manyeyes.progress import shown

RESULTS = Path(__file__).parent / "results" / "strategies.md"


def strategies() -> list[EnsembleConfig]:
    """Eight, on one canvas, so that they see the same pictures."""
    config = three()
    eyes = [score_level(member.name, (member,)) for member in config.members]
    fusions: dict[str, FusionConfig | AutoConfig] = {
        "global": GlobalPcaConfig(),
        "independent": IndependentPcaConfig(),
        "concatenation": ConcatenateConfig(),
        "auto": AutoConfig(),
    }
    fused = [config.model_copy(update={"name": name, "fusion": fusion}) for name, fusion in fusions.items()]
    found = [*eyes, score_level("score", config.members), *fused]
    return [each.model_copy(update={"frame": each.frame.sized(CANVAS)}) for each in found]


def seconds(configs: Sequence[EnsembleConfig], image_set: ImageSet) -> float:
    """Of a whole study in an empty folder."""
    with tempfile.TemporaryDirectory() as folder, shown() as progress:
        begun = time.perf_counter()
        run_study(configs, [image_set], folder, progress=progress)
        return time.perf_counter() - begun


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    declared = strategies()
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--alone", nargs="+", choices=[config.name for config in declared])
    parser.add_argument("--images", type=int, default=None, help="training and test pictures at most, for a quick try")
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    found, most = read_image_set(arguments.data), arguments.images
    step = max(1, len(found.test) // most) if most else 1
    image_set = replace(found, train=found.train[:most], test=found.test[::step])
    chosen = [config for config in declared if arguments.alone is None or config.name in arguments.alone]
    alone = {config.name: seconds([config], image_set) for config in chosen}
    together = seconds(declared, image_set)
    dearest = max(alone, key=lambda name: alone[name])
    text = "\n".join(
        [
            "# Eight strategies in one study",
            "",
            f"`python {' '.join(sys.argv)}`",
            f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}; "
            f"{len(image_set.train)} training and {len(image_set.test)} test pictures; whole studies.",
            "",
            "| study | s |",
            "|---|---|",
            *(f"| {name} alone | {value:.0f} |" for name, value in alone.items()),
            f"| all eight | {together:.0f} |",
            "",
            f"All eight cost **{together / alone[dearest]:.2f} x** the dearest one, {dearest}.",
            "",
        ]
    )
    print(text)
    write_text(arguments.out, text)


if __name__ == "__main__":
    main()
