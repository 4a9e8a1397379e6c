"""One set of pictures and the ensembles that were measured on it: means over seeds, intervals, paired differences.

Over several seeds the figures are means, and DeLong's placements are averaged before the test; to the variance from
the pictures comes that of a mean over so many seeds. All ensembles are compared on the pictures that all have judged.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from manyeyes.experiments.leaving_out import reduced
from manyeyes.experiments.metrics import delong
from manyeyes.experiments.metrics.delong import Difference, Placements
from manyeyes.experiments.metrics.figure import Interval
from manyeyes.experiments.study import Cell, Study

Array = NDArray[np.float64]
SIGNIFICANT = 0.05
UNKNOWN = "this figure was not measured"


@dataclass(frozen=True)
class Result:
    """A finished cell, read once."""

    cell: Cell
    figures: dict[str, Any]
    pictures: list[dict[str, Any]]

    @classmethod
    def read(cls, cell: Cell) -> Result:
        return cls(cell, cell.figures, cell.pictures)

    def figure(self, *path: str) -> float | None:
        """The figure under a path of keys; None where it is undefined or was not measured."""
        node: Any = self.figures
        for key in path:
            node = node.get(key) if isinstance(node, Mapping) else None
        return None if node is None else float(node)

    def reason(self, *path: str) -> str:
        """Why the figure under a path is undefined."""
        parent: Any = self.figures
        for key in path[:-1]:
            parent = parent.get(key, {}) if isinstance(parent, Mapping) else {}
        undefined = self.figures.get("undefined", {})
        beside = parent.get("reason") if isinstance(parent, Mapping) else None
        return str(undefined.get(".".join(path)) or undefined.get(path[-1]) or beside or UNKNOWN)

    def judged(self, kind: str, name: str) -> Array:
        """Scores (n,) of a part: ``kind`` is heads, members or branches."""
        return np.array([picture[kind][name] for picture in self.pictures], dtype=np.float64)

    @cached_property
    def scores(self) -> Array:
        return np.array([picture["score"] for picture in self.pictures], dtype=np.float64)

    @cached_property
    def labels(self) -> NDArray[np.int64]:
        return np.array([picture["label"] for picture in self.pictures], dtype=np.int64)

    @cached_property
    def pro_curve(self) -> tuple[Array, Array] | None:
        """False-positive rates and mean overlaps, (m,) each; None without masks or maps."""
        found = self.cell.pro_curve
        return None if found is None else (np.array(found[0]), np.array(found[1]))

    @property
    def draws(self) -> bool:
        """Whether the ensemble has picturable heads, so that its maps mean something."""
        return "picturable" in (self.pictures[0]["branches"] if self.pictures else {})


@dataclass(frozen=True)
class Contest:
    """All results on one set, by ensemble and then by seed, in the study's order."""

    data: str
    results: dict[str, list[Result]]

    @classmethod
    def read(cls, study: Study, data: str) -> Contest:
        found = {name: [Result.read(cell) for cell in study.of(name, data)] for name in study.ensembles}
        return cls(data, {name: results for name, results in found.items() if results})

    @property
    def ensembles(self) -> list[str]:
        return list(self.results)

    @property
    def seeds(self) -> list[int]:
        return list(dict.fromkeys(result.cell.seed for results in self.results.values() for result in results))

    @property
    def runs(self) -> int:
        """How many times each ensemble was fitted: with every seed, on every fold."""
        return max(len(results) for results in self.results.values())

    @property
    def run_word(self) -> str:
        """What its runs differ by: ``seed``, ``fold`` or ``run``, where both do."""
        folds = {result.cell.fold for results in self.results.values() for result in results} - {None}
        return "seed" if not folds else "fold" if len(self.seeds) == 1 else "run"

    @property
    def first_only(self) -> str:
        """A sentence for what shows one run of several."""
        return f" With the first {self.run_word}." if self.runs > 1 else ""

    def first(self, ensemble: str) -> Result:
        """The result with the first seed and fold: galleries, curves and histograms show this one."""
        return self.results[ensemble][0]

    @property
    def any(self) -> Result:
        return self.first(self.ensembles[0])

    def values(self, ensemble: str, *path: str) -> list[float]:
        """The figure with each seed, without the undefined ones."""
        found = (result.figure(*path) for result in self.results[ensemble])
        return [value for value in found if value is not None]

    def mean(self, ensemble: str, *path: str) -> float | None:
        known = self.values(ensemble, *path)
        return statistics.fmean(known) if known else None

    def reason(self, ensemble: str, *path: str) -> str:
        return self.first(ensemble).reason(*path)

    @cached_property
    def ranking(self) -> list[str]:
        """Ensembles by falling mean image AUROC; those without one last, in the study's order."""
        known = {name: self.mean(name, "image", "auroc") for name in self.ensembles}
        return sorted(self.ensembles, key=lambda name: (known[name] is None, -(known[name] or 0.0)))

    @cached_property
    def reduced(self) -> dict[str, tuple[str, str]]:
        """Ensembles that are another one without a member: which one, and without which."""
        return reduced(self.ensembles)

    @property
    def whole(self) -> list[str]:
        """The ranking without reduced ensembles: those to draw and to show pictures of."""
        return [name for name in self.ranking if name not in self.reduced]

    @property
    def best(self) -> str:
        return self.ranking[0]

    @cached_property
    def common(self) -> set[str]:
        """Paths of the pictures that every ensemble has judged with every seed."""
        judged = [{picture["path"] for picture in r.pictures} for results in self.results.values() for r in results]
        return set.intersection(*judged)

    @cached_property
    def placements(self) -> dict[str, Placements]:
        """Placements on the common pictures, means over seeds; empty unless both good and defective ones are there."""
        found = {}
        for name, results in self.results.items():
            parts = [self._placements(result) for result in results]
            if any(part is None for part in parts):
                return {}
            known = [part for part in parts if part is not None]
            found[name] = Placements(
                np.mean([part.defective for part in known], axis=0), np.mean([part.good for part in known], axis=0)
            )
        return found

    def _placements(self, result: Result) -> Placements | None:
        rows = sorted((p["path"], p["label"], p["score"]) for p in result.pictures if p["path"] in self.common)
        good, defective = (np.array([score for _, label, score in rows if label == kind]) for kind in (0, 1))
        return delong.placements(good, defective) if len(good) and len(defective) else None

    def interval(self, ensemble: str) -> Interval | None:
        """95 % interval of the mean image AUROC; pictures and seeds are samples of all that might have been."""
        parts = self.placements.get(ensemble)
        if parts is None:
            return None
        values = self.values(ensemble, "image", "auroc")
        return delong.interval_of(parts, extra=variance_of_mean(values), runs=len(values))

    def difference(self, ensemble: str, other: str) -> Difference | None:
        """AUROC less that of another, paired by picture and by seed; None where there are no placements."""
        if not self.placements:
            return None
        gaps, mine, yours = self.gaps(ensemble, other), self.placements[ensemble], self.placements[other]
        return delong.difference_of(mine, yours, extra=variance_of_mean(gaps), runs=len(gaps))

    def variance(self, ensemble: str, other: str) -> float | None:
        """Of the difference of the mean image AUROCs; None or NaN where it cannot be estimated."""
        if not self.placements:
            return None
        mine, yours = self.placements[ensemble], self.placements[other]
        of_pictures = (
            delong.covariance(mine, mine) + delong.covariance(yours, yours) - 2 * delong.covariance(mine, yours)
        )
        return of_pictures + variance_of_mean(self.gaps(ensemble, other))

    def freedom(self, ensemble: str, other: str) -> float:
        """Degrees of freedom of `variance`, which is one of many pictures and of few seeds."""
        gaps, variance = self.gaps(ensemble, other), self.variance(ensemble, other)
        return delong.freedom(variance, variance_of_mean(gaps), len(gaps)) if variance else math.inf

    def gaps(self, ensemble: str, other: str) -> list[float]:
        """Differences of AUROC, one per seed and fold."""
        mine, yours = (
            {(r.cell.seed, r.cell.fold): r.figure("image", "auroc") for r in self.results[name]}
            for name in (ensemble, other)
        )
        paired = [(value, yours.get(key)) for key, value in mine.items()]
        return [a - b for a, b in paired if a is not None and b is not None]

    def against(self, other: str) -> dict[str, Difference]:
        """Every ensemble's AUROC less that of one of them, with p corrected by Holm for the number of tests."""
        found = {
            name: d for name in self.ensembles if name != other and (d := self.difference(name, other)) is not None
        }
        corrected = holm({name: found[name].p for name in found})
        return {name: Difference(d.value, d.interval, corrected[name]) for name, d in found.items()}

    @cached_property
    def behind(self) -> dict[str, Difference]:
        """Every other ensemble against the best one."""
        return self.against(self.best)

    @property
    def beaten(self) -> list[str]:
        """Ensembles that are significantly behind the best."""
        return [name for name, d in self.behind.items() if d.p is not None and d.p < SIGNIFICANT]


def variance_of_mean(values: Sequence[float]) -> float:
    """Squared standard error of the mean of one value per seed; 0 with a single seed, which says nothing of others."""
    return statistics.variance(values) / len(values) if len(values) > 1 else 0.0


def holm(p: Mapping[str, float | None]) -> dict[str, float | None]:
    """p-values corrected for their number, step-down after Holm 1979; None stays None and does not count.

    >>> holm({"a": 0.01, "b": 0.04, "c": 0.03, "d": None})
    {'a': 0.03, 'b': 0.06, 'c': 0.06, 'd': None}
    """
    known = sorted((value, name) for name, value in p.items() if value is not None)
    corrected: dict[str, float | None] = dict.fromkeys(p)
    highest = 0.0
    for rank, (value, name) in enumerate(known):
        highest = max(highest, min(1.0, value * (len(known) - rank)))
        corrected[name] = highest
    return corrected


def overall(contests: Sequence[Contest]) -> list[tuple[str, float | None]]:
    """Ensembles with their image AUROC averaged over the sets where it is defined, best first."""
    names = list(dict.fromkeys(name for contest in contests for name in contest.ensembles))
    means: list[tuple[str, float | None]] = []
    for name in names:
        found = [contest.mean(name, "image", "auroc") for contest in contests if name in contest.results]
        known = [value for value in found if value is not None]
        means.append((name, statistics.fmean(known) if known else None))
    return sorted(means, key=lambda item: (item[1] is None, -(item[1] or 0.0)))
