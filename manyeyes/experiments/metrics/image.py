"""Image-level figures: how well one score per image parts good from defective.

Undefined: everything that compares the classes, where one of them has no image; precision, where no image is called
defective. Constant scores give an AUROC of 0.5 by the definition of ties, and a note that says so.
Decisions use >=. The threshold of ``f1_max`` is picked on these very images: it describes, it does not calibrate.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from manyeyes.errors import DataError
from manyeyes.experiments.metrics import bootstrap, delong, ranks
from manyeyes.experiments.metrics.figure import Figure, undefined
from manyeyes.experiments.metrics.ranks import Array, SortedScores

NO_GOOD, NO_DEFECTIVE = "there is no good image", "there is no defective image"
CONSTANT = "all scores are equal, so every pair is a tie and the value says nothing about the detector"


def image_figures(
    good: Array, defective: Array, threshold: float | None = None, repetitions: int = 0, seed: int = 0
) -> dict[str, Figure]:
    """AUROC, AUPR, F1 max and its threshold; given a threshold also the decision's figures.

    With ``repetitions`` > 0 each carries a 95 % interval: DeLong's (logit) for the AUROC, stratified bootstrap else.

    Shapes: scores (g,) of good and (d,) of defective images; either may be empty.
    Equals scikit-learn's roc_auc_score, average_precision_score and f1_score (tests/experiments/metrics).
    """
    good, defective = np.asarray(good, dtype=float), np.asarray(defective, dtype=float)
    figures = ranking_figures(good, defective, repetitions, seed)
    if threshold is not None:
        figures |= decision_figures(good, defective, threshold, repetitions, seed)
    return figures


def ranking_figures(good: Array, defective: Array, repetitions: int = 0, seed: int = 0) -> dict[str, Figure]:
    """The figures that need no threshold: ``auroc``, ``aupr``, ``f1_max``, ``f1_threshold``."""
    if not len(good) or not len(defective):
        reason = NO_DEFECTIVE if len(good) else NO_GOOD
        return {name: undefined(reason) for name in (*bootstrap.IMAGE_FIGURES, "f1_threshold")}
    counts = ranks.count_ranks(defective, [SortedScores(np.sort(good))])
    figures = {name: Figure(float(value(counts))) for name, value in bootstrap.IMAGE_FIGURES.items()}
    if repetitions:
        drawn = bootstrap.weighted_counts(
            good, defective, *bootstrap.draw(len(good), len(defective), repetitions, seed)
        )
        fewest = min(len(good), len(defective))
        for name, value in bootstrap.IMAGE_FIGURES.items():
            figures[name] = figures[name].within(bootstrap.interval(value(drawn), float(value(counts)), fewest))
        figures["auroc"] = figures["auroc"].within(delong.interval(good, defective))
    if min(good.min(), defective.min()) == max(good.max(), defective.max()):
        figures["auroc"] = Figure(figures["auroc"].value, note=CONSTANT)
    figures["f1_threshold"] = Figure(float(counts.thresholds[ranks.f1_curve(counts).argmax()]))
    return figures


def decision_figures(
    good: Array, defective: Array, threshold: float, repetitions: int = 0, seed: int = 0
) -> dict[str, Figure]:
    """``precision``, ``recall``, ``f1``, ``accuracy_good``, ``accuracy_defective`` of the decision score >= threshold.

    ``recall`` and ``accuracy_defective`` are one number under its two names.
    """

    def finish(true: Array, false: Array, n_defective: Array, n_good: Array) -> dict[str, Array]:
        return {
            "precision": ranks.ratio(true, true + false),
            "recall": ranks.ratio(true, n_defective),
            "f1": ranks.ratio(2 * true, true + false + n_defective),
            "accuracy_good": 1 - ranks.ratio(false, n_good),
            "accuracy_defective": ranks.ratio(true, n_defective),
        }

    hits, alarms = defective >= threshold, good >= threshold
    values = finish(hits.sum(), alarms.sum(), np.array(len(defective)), np.array(len(good)))
    reasons = {name: NO_GOOD if name == "accuracy_good" else NO_DEFECTIVE for name in values}
    figures = {name: _figure(value, reasons[name]) for name, value in values.items()}
    if not len(good) or not len(defective):
        reason = NO_DEFECTIVE if len(good) else NO_GOOD
        figures |= {"precision": undefined(reason), "f1": undefined(reason)}
    elif figures["precision"].value is None:
        figures["precision"] = undefined("no image is called defective")
    if repetitions:
        of_good, of_defective = bootstrap.draw(len(good), len(defective), repetitions, seed)
        drawn = finish(of_defective @ hits, of_good @ alarms, of_defective.sum(axis=1), of_good.sum(axis=1))
        drawn_from = {
            "accuracy_good": len(good),
            "accuracy_defective": len(defective),
            "recall": len(defective),
        }
        for name, figure in figures.items():
            if figure.value is not None:
                images = drawn_from.get(name, min(len(good), len(defective)))
                figures[name] = figure.within(bootstrap.interval(drawn[name], figure.value, images))
    return figures


def _figure(value: Array, reason: str) -> Figure:
    return Figure(float(value)) if np.isfinite(value) else undefined(reason)


@dataclass
class ImageStatistics:
    """Collects scores batch by batch; ``groups`` names the coarser classes that are also reported, as LOCO does."""

    groups: tuple[str, ...] = ()
    names: list[str] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    defects: list[str] = field(default_factory=list)
    of_group: list[str] = field(default_factory=list)

    def update(
        self, scores: Sequence[float], names: Sequence[str], defects: Sequence[str], groups: Sequence[str] | None = None
    ) -> None:
        """Add a batch of b images; ``defects`` says ``"good"`` for good ones, ``groups`` defaults to ``defects``.

        Raises: DataError naming the image whose score is NaN or infinite.
        """
        for name, score in zip(names, scores, strict=True):
            if not np.isfinite(score):
                raise DataError(f"{name}: expected a finite image score, got {float(score)}; look at the maps or heads")
        groups = defects if groups is None else groups
        for held, new in (
            (self.names, names),
            (self.scores, (float(score) for score in scores)),
            (self.defects, defects),
            (self.of_group, groups),
        ):
            held.extend(new)  # type: ignore[arg-type]  # each list with its own kind, which a loop hides

    @property
    def good(self) -> Array:
        return self._scores(self.defects, "good")

    def of_defect(self, defect: str) -> Array:
        return self._scores(self.defects, defect)

    def of(self, group: str) -> Array:
        return self._scores(self.of_group, group)

    @property
    def defective(self) -> Array:
        return np.array([s for s, defect in zip(self.scores, self.defects, strict=True) if defect != "good"])

    def kinds(self) -> list[str]:
        """The defect types seen, in alphabetical order."""
        return sorted(set(self.defects) - {"good"})

    def _scores(self, words: Sequence[str], wanted: str) -> Array:
        return np.array([score for score, word in zip(self.scores, words, strict=True) if word == wanted])
