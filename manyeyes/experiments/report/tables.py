"""Rows of the page's tables. Every cell is a `Shown`: its text, and a title with what stands behind it."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from manyeyes.experiments.report.contest import Contest, overall
from manyeyes.experiments.report.standings import Standing
from manyeyes.experiments.report.words import DASH, number, percent, points, significance, span, whole_percent

SPRO_LIMIT = "0.05"
"""The false-positive rate up to which LOCO's AU-sPRO is headlined."""


@dataclass(frozen=True)
class Shown:
    """``text`` large, ``small`` beneath it; ``title`` explains, above all why a figure is undefined."""

    text: str
    small: str = ""
    title: str = ""
    value: float | None = None


def figure(contest: Contest, ensemble: str, *path: str) -> Shown:
    """A figure in %, mean over seeds with their standard deviation beneath."""
    values = contest.values(ensemble, *path)
    if not values:
        return Shown(DASH, title=contest.reason(ensemble, *path))
    spread = f"± {100 * statistics.stdev(values):.1f}" if len(values) > 1 else ""
    value = statistics.fmean(values)
    title = f"mean and standard deviation over {len(values)} seeds" if spread else ""
    return Shown(percent(value), spread, title, value)


@dataclass(frozen=True)
class Row:
    ensemble: str
    colour: int
    best: bool
    auroc: Shown
    difference: Shown
    f1: Shown
    pixel: Shown
    pro: Shown
    spro: Shown
    false_alarms: Shown
    misses: Shown
    cost: Shown
    fit: Shown


def rows(contest: Contest, colours: dict[str, int]) -> list[Row]:
    """One per ensemble, best first."""
    return [
        Row(
            ensemble=name,
            colour=colours[name],
            best=name == contest.best and contest.mean(name, "image", "auroc") is not None,
            auroc=_auroc(contest, name),
            difference=_difference(contest, name),
            f1=figure(contest, name, "image", "f1_max"),
            pixel=figure(contest, name, "pixel", "auroc"),
            pro=figure(contest, name, "pixel", "au_pro"),
            spro=figure(contest, name, "au_spro", "mean", SPRO_LIMIT),
            false_alarms=_false_alarms(contest, name),
            misses=_misses(contest, name),
            cost=_cost(contest, name),
            fit=_fit(contest, name),
        )
        for name in contest.ranking
    ]


def _auroc(contest: Contest, name: str) -> Shown:
    shown = figure(contest, name, "image", "auroc")
    if shown.value is None:
        return shown
    interval = span(contest.interval(name))
    spread = f"; {shown.small} between {contest.runs} {contest.run_word}s" if shown.small else ""
    title = f"95 % interval {interval}{spread}" if interval else "no interval can be given on so few pictures"
    return Shown(shown.text, interval, title, shown.value)


def _difference(contest: Contest, name: str) -> Shown:
    if name == contest.best and contest.mean(name, "image", "auroc") is not None:
        return Shown("best", title="the highest image AUROC on this set")
    found = contest.behind.get(name)
    if found is None:
        return Shown(DASH, title="differences need good and defective pictures")
    title = f"95 % interval of the difference {span(found.interval, sign=True)}; paired DeLong test, corrected by Holm"
    if found.p is None:
        title = "the pictures allow no test of this difference"
    return Shown(points(found.value), significance(found.p), title, found.value)


def _false_alarms(contest: Contest, name: str) -> Shown:
    rate = contest.mean(name, "false_alarm_rate", "observed")
    promised = contest.mean(name, "false_alarm_rate", "guaranteed") or 0.0
    asked = contest.first(name).figures["false_alarm_rate"]["asked"]
    title = f"asked for {100 * asked:.1f} %, the validation pictures can promise {100 * promised:.1f} %"
    if rate is None:
        return Shown(DASH, title="there is no good test picture")
    good = contest.first(name).figures["counts"]["good"]
    count = f"{round(rate * good)} of {good}" if contest.runs == 1 else f"of {good}"
    return Shown(f"{100 * rate:.0f} %", f"{count}\npromised ≤\u00a0{whole_percent(promised)}\u00a0%", title, rate)


def _misses(contest: Contest, name: str) -> Shown:
    recall = contest.mean(name, "image", "recall")
    if recall is None:
        return Shown(DASH, title=contest.reason(name, "image", "recall"))
    defective = contest.first(name).figures["counts"]["defective"]
    missed = (1 - recall) * defective
    count = f"{round(missed)} of {defective}" if contest.runs == 1 else f"of {defective}"
    return Shown(f"{100 * (1 - recall):.0f} %", count, "defective pictures under the calibrated threshold", 1 - recall)


def _cost(contest: Contest, name: str) -> Shown:
    whole, trunks, heads = (contest.mean(name, "cost", key) for key in ("ms_per_image", "ms_trunks", "ms_heads"))
    if whole is None or trunks is None or heads is None:
        return Shown(DASH, title="not measured")
    title = "milliseconds per picture of the trunks and of all that follows, without reading the file"
    return Shown(f"{whole:.1f}", f"{trunks:.1f} + {heads:.1f}", title, whole)


def _fit(contest: Contest, name: str) -> Shown:
    seconds = contest.mean(name, "cost", "fit_seconds")
    title = "seconds to fit all blocks and heads on stored features, without extracting them"
    return Shown(DASH, title="not measured") if seconds is None else Shown(f"{seconds:.1f} s", "", title, seconds)


@dataclass(frozen=True)
class DefectRow:
    """AUROC of one kind of defect against all good pictures, a value per ensemble."""

    defect: str
    count: int
    cells: list[Shown]


def defect_rows(contest: Contest) -> list[DefectRow]:
    """Kinds of defects, the hardest first; ensembles in the order of the ranking."""
    counts = contest.any.figures["counts"]["by_defect"]
    found = []
    for defect, count in counts.items():
        cells = [figure(contest, name, "by_defect", defect, "image", "auroc") for name in contest.ranking]
        found.append(DefectRow(defect, count, cells))
    return sorted(found, key=lambda row: _average(row.cells))


def _average(cells: Sequence[Shown]) -> float:
    known = [cell.value for cell in cells if cell.value is not None]
    return statistics.fmean(known) if known else 2.0


@dataclass(frozen=True)
class OverallRow:
    ensemble: str
    colour: int
    mean: str
    cells: list[Shown]


def overall_rows(contests: Sequence[Contest], colours: dict[str, int]) -> list[OverallRow]:
    """Image AUROC of every ensemble on every set and its mean over sets, best first."""
    found = []
    for name, mean in overall(contests):
        cells = [_auroc(c, name) if name in c.results else Shown(DASH, title="not measured here") for c in contests]
        found.append(OverallRow(name, colours[name], percent(mean), cells))
    return found


@dataclass(frozen=True)
class StandingRow:
    """``costs`` are the table's last columns with their headings."""

    ensemble: str
    colour: int
    on_front: bool
    auroc: Shown
    rank: Shown
    difference: Shown
    over_sets: Shown
    costs: list[tuple[str, Shown]]


def standing_rows(standings: Sequence[Standing], baseline: str, colours: dict[str, int]) -> list[StandingRow]:
    """One per ensemble, in the order of the standings."""
    return [
        StandingRow(
            ensemble=one.ensemble,
            colour=colours[one.ensemble],
            on_front=one.on_front,
            auroc=Shown(percent(one.auroc), span(one.interval), "mean over sets and seeds, with its 95 % interval"),
            rank=Shown(DASH if one.rank is None else f"{one.rank:.1f}", title="mean over sets, 1 is best"),
            difference=_against(one, baseline),
            over_sets=Shown(DASH if one.p_over_sets is None else significance(one.p_over_sets)),
            costs=[
                ("ms per picture", _measured(one.costs["ms_per_image"], "")),
                ("Fit", _measured(one.costs["fit_seconds"], " s")),
                ("Peak memory", _measured(one.costs["peak_memory_mb"], " MB")),
                ("Size on disk", _measured(one.costs["artefact_mb"], " MB")),
            ],
        )
        for one in standings
    ]


def _against(one: Standing, baseline: str) -> Shown:
    if one.ensemble == baseline:
        return Shown("baseline")
    if one.difference is None:
        return Shown(DASH, title="differences need good and defective pictures")
    interval = span(one.difference.interval, sign=True)
    title = "points; paired by picture and seed, p corrected by Holm for the number of ensembles"
    small = "\n".join(part for part in (interval, significance(one.difference.p)) if part)
    return Shown(points(one.difference.value), small, title, one.difference.value)


def _measured(value: float | None, unit: str) -> Shown:
    return Shown(DASH, title="not measured") if value is None else Shown(number(value) + unit, value=value)
