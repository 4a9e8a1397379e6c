"""Ensembles over all sets of a study: mean, rank, difference to a baseline, cost, and who is dominated by nobody.

Two questions, two tests. On these sets, is the mean difference real? Its variance is that of the sets' paired
differences (`Contest.variance`), which are independent of each other. Would it hold on other sets? Wilcoxon's
signed-rank test takes the sets as the sample (Demsar 2006); under six it cannot reach 5 %, and is not given.
Both are corrected by Holm for the number of ensembles.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.stats import rankdata, wilcoxon

from manyeyes.experiments.metrics.delong import LEVEL, Difference, student
from manyeyes.experiments.metrics.figure import Interval
from manyeyes.experiments.report.contest import Contest, holm

FEWEST_SETS = 6
COSTS = ("ms_per_image", "fit_seconds", "peak_memory_mb", "artefact_mb")


@dataclass(frozen=True)
class Standing:
    """One ensemble over all sets; AUROCs are shares, None where they are undefined on some set."""

    ensemble: str
    auroc: float | None
    interval: Interval | None
    rank: float | None
    """Mean over sets of its rank by image AUROC; 1 is the best, ties share their mean."""
    difference: Difference | None
    """Mean over sets of the difference to the baseline; ``p`` says whether it is real on these sets."""
    p_over_sets: float | None
    """Wilcoxon's, whether it would hold on other sets; None under six sets."""
    costs: dict[str, float | None]
    on_front: bool


def standings(contests: Sequence[Contest], baseline: str) -> list[Standing]:
    """One for each ensemble, in the study's order."""
    names = list(dict.fromkeys(name for contest in contests for name in contest.ensembles))
    whole = [c for c in contests if all(n in c.results and c.mean(n, "image", "auroc") is not None for n in names)]
    ranks = _ranks(whole, names)
    rivals = [name for name in names if name != baseline]
    differences = {name: _difference(whole, name, baseline) for name in rivals}
    p_here = holm({name: d.p if d else None for name, d in differences.items()})
    p_beyond = holm({name: _signed_rank(whole, name, baseline) for name in rivals})
    found = []
    for name in names:
        mean, interval = _mean(whole, name)
        difference = differences.get(name)
        found.append(
            Standing(
                ensemble=name,
                auroc=mean,
                interval=interval,
                rank=ranks.get(name),
                difference=difference and replace(difference, p=p_here[name]),
                p_over_sets=p_beyond.get(name),
                costs={cost: _cost(contests, name, cost) for cost in COSTS},
                on_front=False,
            )
        )
    return [replace(standing, on_front=_on_front(standing, found)) for standing in found]


def _mean(contests: Sequence[Contest], name: str) -> tuple[float | None, Interval | None]:
    values = [value for contest in contests if (value := contest.mean(name, "image", "auroc")) is not None]
    if not values:
        return None, None
    return statistics.fmean(values), mean_interval(values, [contest.interval(name) for contest in contests])


def mean_interval(values: Sequence[float], intervals: Sequence[Interval | None]) -> Interval | None:
    """Of the mean of independent values, from the interval of each; None if one of them has none.

    Each side's distances add up as standard errors do, so that the intervals may be lopsided, as those of AUROCs near 1
    are, and the mean's stays inside [0, 1]. Source: Zou and Donner 2008 (variance estimates recovery).
    """
    known = [interval for interval in intervals if interval is not None]
    if not known or len(known) < len(values):
        return None
    mean, count = statistics.fmean(values), len(values)
    below = math.hypot(*(value - low for value, (low, _) in zip(values, known, strict=True))) / count
    above = math.hypot(*(high - value for value, (_, high) in zip(values, known, strict=True))) / count
    return mean - below, mean + above


def _difference(contests: Sequence[Contest], name: str, baseline: str) -> Difference | None:
    if len(contests) == 1:
        return contests[0].difference(name, baseline)
    gaps = [d.value for contest in contests if (d := contest.difference(name, baseline)) is not None]
    if not gaps:
        return None
    mean = statistics.fmean(gaps)
    variances = [contest.variance(name, baseline) for contest in contests]
    error = _error(variances)
    if error is None:
        return Difference(mean, None)
    if error < 1e-9:
        return Difference(mean, (mean, mean), 1.0 if mean == 0 else None)
    law = student(_freedom(variances, [contest.freedom(name, baseline) for contest in contests]))
    half = float(law.ppf((1 + LEVEL) / 2)) * error
    return Difference(mean, (mean - half, mean + half), float(2 * law.sf(abs(mean) / error)))


def _error(variances: Sequence[float | None]) -> float | None:
    """Standard error of the mean of independent values."""
    known = [value for value in variances if value is not None and math.isfinite(value)]
    return math.sqrt(max(0.0, sum(known))) / len(known) if known and len(known) == len(variances) else None


def _freedom(variances: Sequence[float | None], degrees: Sequence[float]) -> float:
    """Of the sum of independent variances (Satterthwaite)."""
    pairs = [(v, d) for v, d in zip(variances, degrees, strict=True) if v is not None and math.isfinite(v)]
    unsure = sum(v**2 / d for v, d in pairs)
    return sum(v for v, _ in pairs) ** 2 / unsure if unsure > 0 else math.inf


def _signed_rank(contests: Sequence[Contest], name: str, baseline: str) -> float | None:
    gaps = [d.value for contest in contests if (d := contest.difference(name, baseline)) is not None]
    if len(gaps) < FEWEST_SETS:
        return None
    return float(wilcoxon(gaps, zero_method="pratt").pvalue) if any(gaps) else 1.0


def _ranks(contests: Sequence[Contest], names: Sequence[str]) -> dict[str, float]:
    if not contests:
        return {}
    table = np.array([[contest.mean(name, "image", "auroc") for name in names] for contest in contests], dtype=float)
    # Rounded, so that equal figures tie whatever the order in which seeds were summed.
    ranks = rankdata(-table.round(9), axis=1).mean(axis=0)
    return dict(zip(names, ranks.tolist(), strict=True))


def _cost(contests: Sequence[Contest], name: str, cost: str) -> float | None:
    known = [c.mean(name, "cost", cost) for c in contests if name in c.results]
    values = [value for value in known if value is not None]
    return statistics.fmean(values) if values else None


def _on_front(standing: Standing, all_: Sequence[Standing]) -> bool:
    """Whether no other ensemble is at least as good and at least as quick, and better in one of both."""
    mine = standing.auroc, standing.costs["ms_per_image"]
    if mine[0] is None or mine[1] is None:
        return False
    for other in all_:
        auroc, ms = other.auroc, other.costs["ms_per_image"]
        if auroc is None or ms is None:
            continue
        if auroc >= mine[0] and ms <= mine[1] and (auroc > mine[0] or ms < mine[1]):
            return False
    return True
