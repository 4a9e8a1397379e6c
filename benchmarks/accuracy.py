"""Image AUROC of the default ensembles against each member alone with the same heads, on real sets, several seeds.

    MANYEYES_WEIGHTS=weights python benchmarks/accuracy.py --data sets --out study

``--data`` holds the sets named in SETS; the weights folder holds resnet18 and vit_small_patch14_dinov2 in timm naming.
Writes benchmarks/results/accuracy.md. One configuration for all sets; this program chooses nothing on
a test split. Choices that were made with test figures in view: docs/decisions.md.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from manyeyes.backbones import PatchCoreConfig, TimmTrunkConfig
from manyeyes.data import read_image_set
from manyeyes.ensemble import EnsembleConfig, MemberConfig
from manyeyes.ensemble.presets import LITE0, bundled_members, eye, fused
from manyeyes.experiments.compare import run_study
from manyeyes.experiments.study import Cell, Study
from manyeyes.files import read_json, write_text
from manyeyes.progress import shown

SETS = {
    "bottle": "mvtec_ad/bottle",
    "transistor": "mvtec_ad/transistor",
    "juice_bottle": "mvtec_loco/juice_bottle",
    "mtd": "mtd",
    "toy": "otx_hazelnut_toy",
}
RESULTS = Path(__file__).parent / "results" / "accuracy.md"
CANVAS = 448
"""Side in px of the canvas of `three`: strategies that are compared with it see the same pictures."""


def three_members() -> tuple[MemberConfig, ...]:
    resnet = TimmTrunkConfig(architecture="resnet18", weights="tv_in1k", size=256)
    dinov2 = TimmTrunkConfig(architecture="vit_small_patch14_dinov2", weights="lvd142m", size=448)
    return (
        eye("resnet18", PatchCoreConfig(trunk=resnet, stages=(2, 3))),
        eye("lite0", PatchCoreConfig(trunk=LITE0, stages=(2, 3, 4))),
        eye("dinov2", PatchCoreConfig(trunk=dinov2, stages=(5, 8, 11))),
    )


def three() -> EnsembleConfig:
    return fused("three", three_members())


def bundled() -> EnsembleConfig:
    return fused("bundled", bundled_members())


def alone(config: EnsembleConfig, canvas: int) -> list[EnsembleConfig]:
    """Each member by itself on the ensemble's canvas, with the same heads on its map and the same heads of its own."""
    frame = config.frame.sized(canvas)
    return [
        config.model_copy(update={"name": member.name, "members": (member,), "frame": frame})
        for member in config.members
    ]


def table(studies: Sequence[Study]) -> list[str]:
    """Rows of image AUROC in %, mean over seeds and, in brackets, the spread; heads of the fused map apart."""

    def cell(study: Study, ensemble: str, data: str, head: str | None) -> str:
        figures = [cell.figures for cell in study.of(ensemble, data)]
        if not figures:
            return "-"
        values = [100 * (f["heads"][head]["image_auroc"] if head else f["image"]["auroc"]) for f in figures]
        spread = f" ({statistics.stdev(values):.1f}, {len(values)} seeds)" if len(values) > 1 else ""
        return f"{statistics.fmean(values):.1f}{spread}"

    lines = [f"| | {' | '.join(SETS)} |", f"|---|{'---|' * len(SETS)}"]
    for study in studies:
        for index, ensemble in enumerate(study.ensembles):
            rows: list[tuple[str, str | None]] = [
                (f"**{ensemble}**" if index == 0 else f"{study.ensembles[0]}: {ensemble} alone", None)
            ]
            if index == 0:
                rows += [
                    (f"{ensemble}: fused discriminator by itself", "fused/discriminator"),
                    (f"{ensemble}: fused memory bank by itself", "fused/memory_bank"),
                ]
            for label, head in rows:
                lines.append(f"| {label} | {' | '.join(cell(study, ensemble, data, head) for data in SETS)} |")
    return [*lines, "", "One seed, or the mean over seeds with their standard deviation in brackets."]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--alone-seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--sets", nargs="+", default=list(SETS), choices=list(SETS))
    parser.add_argument("--finished", action="store_true", help="fit nothing; write the table of the cells in --out")
    parser.add_argument("--only", choices=["three", "bundled"], help="one of the two ensembles, without the table")
    arguments = parser.parse_args()
    if arguments.finished:
        write_table([finished(arguments.out / name) for name in ("three", "bundled")])
        return
    sets = [replace(read_image_set(arguments.data / SETS[name]), name=name) for name in arguments.sets]
    studies = []
    with shown() as progress:
        for config, canvas in ((three(), 448), (bundled(), 384)):
            if arguments.only in (None, config.name):
                out, framed = arguments.out / config.name, {"frame": config.frame.sized(canvas)}
                whole = run_study(
                    [config.model_copy(update=framed)], sets, out, seeds=arguments.seeds, progress=progress
                )
                parts = run_study(alone(config, canvas), sets, out, seeds=arguments.alone_seeds, progress=progress)
                studies.append(Study(out, (*whole.cells, *parts.cells)))
    if arguments.only is None:
        write_table(studies)


def finished(folder: Path) -> Study:
    """The cells of a study that may still be running, the whole ensemble's first."""
    found = []
    for path in sorted(folder.glob("cells/*/figures.json")):
        figures = read_json(path)
        found.append(Cell(figures["ensemble"], figures["data"], figures["seed"], path.parent))
    return Study(folder, tuple(sorted(found, key=lambda cell: cell.ensemble != folder.name)))


def write_table(studies: Sequence[Study]) -> None:
    lines = [
        "# Image AUROC on real sets",
        "",
        f"`python {' '.join(sys.argv)}`",
        f"on {platform.system()} {platform.machine()}.",
        "",
    ]
    text = "\n".join([*lines, *table(studies)]) + "\n"
    print(text)
    write_text(RESULTS, text)


if __name__ == "__main__":
    main()
