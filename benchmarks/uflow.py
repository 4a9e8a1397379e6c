"""U-Flow and its automatic mask on real sets, and what it adds to the default ensemble at score level.

    MANYEYES_WEIGHTS=weights python benchmarks/uflow.py alone --data sets --out study
    MANYEYES_WEIGHTS=weights python benchmarks/uflow.py member --data sets --out study

``alone``: ResNet-18 at 256 px on bottle and mtd. ``member``: the three eyes of accuracy.py without and with U-Flow's
score. ``table`` writes benchmarks/results/uflow.md from the finished cells, as the other two do at their end. A killed
run goes on with the same command. ``--set`` overrides fields of every ensemble, to try it out with few steps.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from accuracy import CANVAS, SETS, finished, three

from manyeyes.config import override
from manyeyes.data import read_image_set
from manyeyes.ensemble import PRESETS, EnsembleConfig
from manyeyes.ensemble.presets import uflow_member
from manyeyes.experiments.compare import run_study
from manyeyes.experiments.study import Cell
from manyeyes.files import write_text
from manyeyes.progress import shown

RESULTS = Path(__file__).parent / "results" / "uflow.md"
ALONE, MEMBER = ("bottle", "mtd"), tuple(SETS)


def with_uflow() -> EnsembleConfig:
    config = three()
    return config.model_copy(update={"name": "three-uflow", "members": (*config.members, uflow_member())})


def ensembles(what: str, changes: Sequence[str]) -> list[EnsembleConfig]:
    if what == "alone":
        chosen = [PRESETS["uflow"].build()]
    else:
        chosen = [config.model_copy(update={"frame": config.frame.sized(CANVAS)}) for config in (three(), with_uflow())]
    return [EnsembleConfig.parse(override(config.model_dump(mode="json"), changes)) for config in chosen]


def percent(*path: str) -> Callable[[Cell], float]:
    def value(cell: Cell) -> float:
        found: Any = cell.figures
        for key in path:
            found = found[key]
        return 100 * found

    return value


COLUMNS: dict[str, Callable[[Cell], float]] = {
    "image AUROC": percent("image", "auroc"),
    "pixel AUROC": percent("pixel", "auroc"),
    "AU-PRO": percent("pixel", "au_pro"),
    "IoU of the mask": percent("pixel", "iou_mask"),
    "IoU at the best threshold": percent("pixel", "iou_max"),
    "good pictures marked": percent("mask", "good_images"),
    "pixels of good pictures marked": percent("mask", "good_pixels"),
    "fit, s": lambda cell: float(cell.figures["cost"]["fit_seconds"]),
    "ms per image": lambda cell: float(cell.figures["cost"]["ms_per_image"]),
}


def mean(cells: Sequence[Cell], column: Callable[[Cell], float]) -> str:
    """Over the seeds, with the standard deviation in brackets."""
    values = [column(cell) for cell in cells]
    if not values:
        return "-"
    spread = f" ({statistics.stdev(values):.1f})" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.1f}{spread}"


def of(cells: Sequence[Cell], data: str, ensemble: str) -> list[Cell]:
    return [cell for cell in cells if (cell.data, cell.ensemble) == (data, ensemble)]


def table(alone: Sequence[Cell], member: Sequence[Cell]) -> list[str]:
    schedule = uflow_member().heads[0].model_dump()["training"]
    lines = [
        f"U-Flow alone, {schedule['steps']} steps of {schedule['batch']} images by default; in % but for the costs."
    ]
    lines += ["", f"| | {' | '.join(COLUMNS)} | seeds |", f"|---|{'---|' * (len(COLUMNS) + 1)}"]
    for data in ALONE:
        cells = of(alone, data, "uflow")
        lines.append(f"| {data} | {' | '.join(mean(cells, column) for column in COLUMNS.values())} | {len(cells)} |")
    lines += ["", "Image AUROC in % of the three eyes, without and with U-Flow's score, and of that score by itself."]
    lines += ["", f"| | {' | '.join(MEMBER)} |", f"|---|{'---|' * len(MEMBER)}"]
    rows = [("three", COLUMNS["image AUROC"]), ("three-uflow", COLUMNS["image AUROC"])]
    rows.append(("three-uflow", percent("members", "uflow", "image_auroc")))
    for label, (name, column) in zip(("three", "three and U-Flow", "U-Flow's score"), rows, strict=True):
        lines.append(f"| {label} | {' | '.join(mean(of(member, data, name), column) for data in MEMBER)} |")
    return [*lines, "", "One seed, or the mean over seeds with their standard deviation in brackets."]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["alone", "member", "table"])
    parser.add_argument("--data", type=Path, help="folder of the sets; not needed for table")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--sets", nargs="+", choices=list(SETS), help="by default all of the part")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--set", action="append", default=[], dest="changes", metavar="FIELD=VALUE")
    parser.add_argument("--results", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    if arguments.what != "table":
        if arguments.data is None:
            parser.error("--data is needed")
        names = arguments.sets or (ALONE if arguments.what == "alone" else MEMBER)
        sets = [replace(read_image_set(arguments.data / SETS[name]), name=name) for name in names]
        configs = ensembles(arguments.what, arguments.changes)
        with shown() as progress:
            run_study(configs, sets, arguments.out / arguments.what, seeds=arguments.seeds, progress=progress)
    lines = ["# U-Flow", "", f"`python {' '.join(sys.argv)}`", f"on {platform.system()} {platform.machine()}.", ""]
    cells = [finished(arguments.out / what).cells for what in ("alone", "member")]
    text = "\n".join([*lines, *table(*cells)]) + "\n"
    print(text)
    write_text(arguments.results, text)


if __name__ == "__main__":
    main()
