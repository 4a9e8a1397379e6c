"""The choice without labels against the best strategy in hindsight, and whether its proxies rank as the truth does.

    MANYEYES_WEIGHTS=weights python benchmarks/choice.py --data sets --out study [--pdn]

``--data`` holds the sets named in SETS of accuracy.py. One cell a set and seed: an ensemble with ``fusion.kind: auto``
fits all candidates, and what every head, member and strategy does on the test pictures is measured after the choice.
``--pdn`` adds EfficientAD's teacher, which sees little on some parts, as a fourth eye.
Writes benchmarks/results/choice.md or choice_pdn.md. One setting for all sets; this program chooses
nothing on a test split. Choices that were made with test figures in view: docs/decisions.md.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from accuracy import CANVAS, SETS, three, three_members
from scipy.stats import spearmanr

from manyeyes.data import read_image_set
from manyeyes.ensemble import EnsembleConfig, with_choice
from manyeyes.ensemble.presets import fused, teacher_member
from manyeyes.experiments.compare import run_study
from manyeyes.experiments.study import Cell
from manyeyes.files import read_json, write_text
from manyeyes.progress import shown

RESULTS = Path(__file__).parent / "results"


def four() -> EnsembleConfig:
    """`three` and the bundled PDN: what there is to choose from when one eye may be all but blind."""
    return fused("four", (*three_members(), teacher_member()))


def percent(values: Sequence[float]) -> str:
    """Mean over seeds and, where there are several, their standard deviation."""
    if not values:
        return "-"
    spread = f" ({100 * statistics.stdev(values):.1f})" if len(values) > 1 else ""
    return f"{100 * statistics.fmean(values):.1f}{spread}"


def rank_correlation(choice: dict[str, Any], parts: Sequence[str]) -> float | None:
    """Spearman's, of proxies with the truth over ``parts``; None where all true figures are equal."""
    pairs = [
        (proxy["mean"], choice["truth"][part][name])
        for part in parts
        for name, proxy in choice["proxies"][part].items()
    ]
    if len({truth for _, truth in pairs}) < 2:
        return None
    return float(spearmanr(*zip(*pairs, strict=True)).statistic)


def table(cells: Sequence[Cell]) -> list[str]:
    """Rows of image AUROC in %: the choice, all strategies, members and heads; then the rank correlations."""
    by_set = {name: [cell.figures for cell in cells if cell.data == name] for name in SETS}
    by_set = {name: found for name, found in by_set.items() if found}
    choices = {name: [figures["choice"] for figures in found] for name, found in by_set.items()}

    def row(label: str, columns: Sequence[str]) -> str:
        return f"| {label} | {' | '.join(columns)} |"

    lines = [row("image AUROC, %", list(by_set)), f"|---|{'---|' * len(by_set)}"]
    auto = {name: [figures["image"]["auroc"] for figures in found] for name, found in by_set.items()}
    lines.append(row("**auto**", [percent(values) for values in auto.values()]))
    behind = []
    for name, found in choices.items():
        best = statistics.fmean(max(choice["truth"]["strategies"].values()) for choice in found)
        behind.append(f"{100 * (statistics.fmean(auto[name]) - best):+.1f}")
    lines.append(row("auto against the best strategy in hindsight", behind))
    chosen = [", ".join(dict.fromkeys(choice["strategy"] for choice in found)) for found in choices.values()]
    lines.append(row("chosen", chosen))
    for part in ("strategies", "members", "heads"):
        for label in next(iter(choices.values()))[0]["truth"][part]:
            values = [[choice["truth"][part][label] for choice in found] for found in choices.values()]
            lines.append(row(f"{part}: {label}", [percent(each) for each in values]))
    lines += ["", row("rank correlation of proxy and truth", list(by_set)), f"|---|{'---|' * len(by_set)}"]
    for label, parts in (
        ("heads", ["heads"]),
        ("strategies", ["strategies"]),
        ("all", ["heads", "members", "strategies"]),
    ):
        columns = []
        for found in choices.values():
            values = [value for choice in found if (value := rank_correlation(choice, parts)) is not None]
            columns.append(f"{statistics.fmean(values):.2f}" if values else "all level")
        lines.append(row(label, columns))
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--sets", nargs="+", default=list(SETS), choices=list(SETS))
    parser.add_argument("--pdn", action="store_true", help="EfficientAD's teacher as a fourth eye")
    parser.add_argument("--finished", action="store_true", help="fit nothing; write the table of the cells in --out")
    arguments = parser.parse_args()
    name, result = ("auto-pdn", "choice_pdn.md") if arguments.pdn else ("auto", "choice.md")
    if arguments.finished:
        write_table(finished(arguments.out, name), RESULTS / result)
        return
    config = with_choice(four() if arguments.pdn else three(), name)
    config = config.model_copy(update={"frame": config.frame.sized(CANVAS)})
    sets = [replace(read_image_set(arguments.data / SETS[name]), name=name) for name in arguments.sets]
    with shown() as progress:
        study = run_study([config], sets, arguments.out, seeds=arguments.seeds, progress=progress)
    write_table(study.cells, RESULTS / result)


def finished(folder: Path, name: str) -> list[Cell]:
    """The cells of a study that may still be running; the newest where code or settings have changed since."""
    found: dict[tuple[str, int], Cell] = {}
    for path in sorted(folder.glob(f"cells/*--{name}--*/figures.json"), key=lambda path: path.stat().st_mtime):
        figures = read_json(path)
        found[figures["data"], figures["seed"]] = Cell(name, figures["data"], figures["seed"], path.parent)
    return list(found.values())


def write_table(cells: Sequence[Cell], result: Path) -> None:
    lines = ["# The choice without labels", "", f"`python {' '.join(sys.argv)}`"]
    lines += [f"on {platform.system()} {platform.machine()}, torch {torch.__version__}.", ""]
    counts = {name: sum(cell.data == name for cell in cells) for name in SETS}
    seeds = ", ".join(f"{name} {count}" for name, count in counts.items() if count)
    text = (
        "\n".join([*lines, *table(cells), "", f"Seeds: {seeds}. In brackets the standard deviation over seeds."]) + "\n"
    )
    print(text)
    write_text(result, text)


if __name__ == "__main__":
    main()
