"""Bootstrap of pixel-level figures: whole images are drawn, because pixels of one image are not independent.

Each image is reduced to its counts at some 2,000 thresholds, dense where few normal pixels lie; a replicate is then a
weighted sum of rows. Between these thresholds curves are taken as straight, which moves a replicate a little: all are
shifted by what the same shortcut does to the figure itself.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from manyeyes.experiments.metrics import bootstrap, ranks
from manyeyes.experiments.metrics.delong import Difference
from manyeyes.experiments.metrics.figure import Figure
from manyeyes.experiments.metrics.overlap import summed_overlap
from manyeyes.experiments.metrics.ranks import Array, RankCounts, SortedScores

if TYPE_CHECKING:
    from manyeyes.experiments.metrics.pixel import PixelImage

POINTS = 1000
PER_IMAGE = 64


@dataclass(frozen=True)
class Table:
    """Counts of k images at g descending thresholds: (k, g) each; ``n_*`` are each image's totals, (k,)."""

    good: Array
    thresholds: Array
    positives: Array
    negatives: Array
    components: Array
    regions: Array
    n_positives: Array
    n_negatives: Array
    n_components: Array
    n_regions: Array

    def drawn(self, weights: Array) -> tuple[RankCounts, Array, Array]:
        """Counts and both mean overlaps of weighted images. Shapes: (r, k) -> counts (r, g), (r, g), (r, g)."""
        negatives = weights @ self.negatives
        counts = RankCounts(
            thresholds=self.thresholds,
            positives=weights @ self.positives,
            negatives=negatives,
            # Straight between thresholds: no flat part, each step goes from one point to the next.
            negatives_above=np.pad(negatives, ((0, 0), (1, 0)))[:, :-1],
            n_positives=weights @ self.n_positives,
            n_negatives=weights @ self.n_negatives,
        )
        pro = ranks.ratio(weights @ self.components, (weights @ self.n_components)[:, None])
        spro = ranks.ratio(weights @ self.regions, (weights @ self.n_regions)[:, None])
        return counts, pro, spro

    def weights(self, repetitions: int, seed: int) -> Array:
        """Good and defective images drawn apart, (repetitions, k); the same for every run on the same images."""
        weights = np.zeros((repetitions, len(self.good)))
        parts = bootstrap.draw(int(self.good.sum()), int((~self.good).sum()), repetitions, seed)
        weights[:, self.good], weights[:, ~self.good] = parts
        return weights


def tabulate(images: Sequence[PixelImage]) -> Table:
    """Rows in the order of the images' names, so that runs on the same images pair up."""
    images = sorted(images, key=lambda image: (image.defect, image.name))
    held = [_sorted(image) for image in images]
    thresholds = _thresholds(images, held)
    return Table(
        good=np.array([image.defect == "good" for image in images]),
        thresholds=thresholds,
        positives=_rows([SortedScores(np.sort(image.positives)).counts(thresholds)[0] for image in images]),
        negatives=_rows([scores.counts(thresholds)[0] for scores in held]),
        components=_rows([summed_overlap(thresholds, image.components) for image in images]),
        regions=_rows([summed_overlap(thresholds, image.regions) for image in images]),
        n_positives=np.array([len(image.positives) for image in images], dtype=float),
        n_negatives=np.array([scores.total for scores in held], dtype=float),
        n_components=np.array([len(image.components) for image in images], dtype=float),
        n_regions=np.array([len(image.regions) for image in images], dtype=float),
    )


def _rows(rows: Sequence[Array]) -> Array:
    return np.stack(rows).astype(float)


def _sorted(image: PixelImage) -> SortedScores:
    if image.lengths is None:
        return SortedScores(np.sort(image.negatives))
    return SortedScores(image.negatives, np.concatenate([[0], np.cumsum(image.lengths)]))


def _thresholds(images: Sequence[PixelImage], held: Sequence[SortedScores]) -> Array:
    """Quantiles of the region pixels, and of each image's others at ranks that double towards its highest score."""
    of_regions = np.sort(np.concatenate([image.positives for image in images]))
    tops = []
    for scores in held:
        n = len(scores.values)
        if n:
            steps = np.unique(np.geomspace(1, n, PER_IMAGE).astype(np.int64))
            tops.append(scores.values[n - steps])
    of_others = np.sort(np.concatenate(tops))
    chosen = [values[np.linspace(0, len(values) - 1, POINTS).astype(np.int64)] for values in (of_regions, of_others)]
    # The lowest score of all closes every curve.
    return np.unique(np.concatenate(chosen))[::-1]


def statistics(limit: float, limits: Sequence[float]) -> dict[str, Callable[[RankCounts, Array, Array], Array]]:
    """The figures that can be resampled, by dotted name, each from counts, PRO and sPRO."""
    named: dict[str, Callable[[RankCounts, Array, Array], Array]] = {
        "auroc": lambda counts, pro, spro: ranks.auroc(counts),
        "aupr": lambda counts, pro, spro: ranks.average_precision(counts),
        "f1_max": lambda counts, pro, spro: ranks.f1_curve(counts).max(axis=-1),
        "au_pro": lambda counts, pro, spro: ranks.area_under_overlap(counts, pro, limit),
    }
    for at in limits:
        # The default binds the limit of this turn; a Callable's type cannot say that there is one.
        named[f"au_spro.{at}"] = lambda counts, pro, spro, at=at: ranks.area_under_overlap(counts, spro, at)  # type: ignore[misc]
    return named


def replicates(table: Table, limit: float, limits: Sequence[float], repetitions: int, seed: int) -> dict[str, Array]:
    """Each figure's deviation in every replicate from its value on all images, (repetitions,)."""
    named = statistics(limit, limits)
    whole = table.drawn(np.ones((1, len(table.good))))
    deviations: dict[str, list[Array]] = {name: [] for name in named}
    weights = table.weights(repetitions, seed)
    for part in np.array_split(weights, max(1, repetitions // 200)):
        drawn = table.drawn(part)
        for name, value in named.items():
            deviations[name].append(value(*drawn) - value(*whole))
    return {name: np.concatenate(values) for name, values in deviations.items()}


def with_intervals(
    figures: dict[str, Any],
    images: Sequence[PixelImage],
    limit: float,
    limits: Sequence[float],
    repetitions: int,
    seed: int,
) -> dict[str, Any]:
    """The same figures, each that can be resampled with its interval."""
    found: dict[str, Any] = dict(figures)
    fewest = smallest_class(images)
    for name, deviations in replicates(tabulate(images), limit, limits, repetitions, seed).items():
        key, dot, at = name.partition(".")
        figure = found[key][at] if dot else found[key]
        if dot:
            found[key] = {**found[key], at: figure.within(_around(figure.value, deviations, fewest))}
        else:
            found[key] = figure.within(_around(figure.value, deviations, fewest))
    return found


def smallest_class(images: Sequence[PixelImage]) -> int:
    """Number of good or of defective images, whichever are fewer, those that are absent left out."""
    good = sum(image.defect == "good" for image in images)
    return min(count for count in (good, len(images) - good) if count)


def _around(value: float, deviations: Array, images: int) -> tuple[float, float] | None:
    return bootstrap.interval(np.clip(value + deviations, 0, 1), value, images)


def paired_differences(
    images_a: Sequence[PixelImage],
    images_b: Sequence[PixelImage],
    figures_a: dict[str, Figure],
    figures_b: dict[str, Figure],
    limit: float = 0.3,
    repetitions: int = bootstrap.REPETITIONS,
    seed: int = 0,
) -> dict[str, Difference]:
    """Figures of run a minus those of run b with paired intervals, for two runs over the same images.

    Figures that are undefined in a run are left out. Raises: ValueError if the runs saw different images.
    """
    if sorted((i.defect, i.name) for i in images_a) != sorted((i.defect, i.name) for i in images_b):
        raise ValueError("paired intervals need two runs over the same images")
    a, b = (replicates(tabulate(images), limit, (), repetitions, seed) for images in (images_a, images_b))
    differences, fewest = {}, smallest_class(images_a)
    for name in a:
        left, right = figures_a[name].value, figures_b[name].value
        if left is not None and right is not None:
            differences[name] = Difference(
                left - right, bootstrap.percentiles(left - right + a[name] - b[name], fewest)
            )
    return differences
