"""Intervals: DeLong against brute force, bootstrap against a plain loop, pairing, and what is undefined."""

import math
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import logit
from scipy.stats import ttest_1samp
from sklearn.metrics import average_precision_score, roc_auc_score

from manyeyes.experiments.metrics import (
    PixelStatistics,
    image_figures,
    paired_difference,
    paired_differences,
    paired_test,
)
from manyeyes.experiments.metrics.bootstrap import IMAGE_FIGURES, draw, replicates, weighted_counts
from manyeyes.experiments.metrics.bootstrap import interval as bootstrap_interval
from manyeyes.experiments.metrics.delong import Placements, covariance, difference_of, freedom, interval, placements
from manyeyes.experiments.metrics.ranks import auroc
from manyeyes.experiments.metrics.resampling import tabulate


def two_runs(n=40, seed=0):
    rng = np.random.default_rng(seed)
    good, defective = rng.normal(0, 1, n), rng.normal(1.5, 1, n)
    return good, defective, np.round(good + rng.normal(0, 0.7, n), 1), np.round(defective + rng.normal(0, 0.7, n), 1)


def brute_covariance(good_a, defective_a, good_b, defective_b):
    """DeLong's equations word for word, over all pairs."""

    def kernel(good, defective):
        return np.array([[(d > g) + 0.5 * (d == g) for g in good] for d in defective])

    a, b = kernel(good_a, defective_a), kernel(good_b, defective_b)
    s10 = np.cov(a.mean(axis=1), b.mean(axis=1))[0, 1]
    s01 = np.cov(a.mean(axis=0), b.mean(axis=0))[0, 1]
    return s10 / len(defective_a) + s01 / len(good_a)


def test_delong_equals_its_definition():
    good_a, defective_a, good_b, defective_b = two_runs()
    a, b = placements(good_a, defective_a), placements(good_b, defective_b)
    labels = np.r_[np.zeros(len(good_b)), np.ones(len(defective_b))]
    assert b.auroc == pytest.approx(roc_auc_score(labels, np.r_[good_b, defective_b]), abs=1e-12)
    assert covariance(a, b) == pytest.approx(brute_covariance(good_a, defective_a, good_b, defective_b), abs=1e-12)
    assert covariance(b, b) == pytest.approx(brute_covariance(good_b, defective_b, good_b, defective_b), abs=1e-12)


def test_delong_interval_stays_inside_and_holds_the_value():
    good, defective = np.arange(20.0), np.r_[np.arange(20.0) + 25, 18.5]
    low, high = interval(good, defective)
    assert 0 < low < placements(good, defective).auroc < high < 1


def test_a_perfect_auroc_has_a_bound_from_disjoint_pairs():
    assert interval(np.zeros(10), np.ones(30)) == (pytest.approx(0.025**0.1), 1.0)
    assert interval(np.ones(30), np.zeros(10)) == (0.0, pytest.approx(1 - 0.025**0.1))


def test_one_image_of_a_class_has_no_delong_interval():
    assert interval(np.array([0.0]), np.array([1.0, -1.0])) is None


def test_one_image_of_a_class_has_no_bootstrap_interval():
    good, defective = two_runs(n=12)[:2]
    figures = image_figures(good, defective[:1], threshold=0.5, repetitions=200)
    assert figures["accuracy_good"].interval is not None
    assert all(figure.interval is None for name, figure in figures.items() if name != "accuracy_good")
    assert image_figures(good, defective[:2], repetitions=200)["aupr"].interval is not None
    assert paired_difference("aupr", good, defective[:1], good, defective[1:2] - 1).interval is None
    rng = np.random.default_rng(0)
    mask = np.zeros((16, 16), bool)
    mask[4:9, 5:10] = True
    for defects in (1, 2):
        statistics = PixelStatistics()
        for index in range(6 + defects):
            bad = index >= 6
            scores = (rng.normal(size=(16, 16)) + bad * mask).astype(np.float32)
            regions = [(mask, 25.0)] if bad else []
            statistics.update(scores, regions, name=str(index), defect="bad" if bad else "good")
        assert (statistics.finish(repetitions=200)["all"]["au_pro"].interval is None) == (defects == 1)


def test_a_few_images_give_wide_intervals():
    values = np.random.default_rng(0).uniform(0.6, 0.8, 500)
    widths = [np.diff(logit(bootstrap_interval(values, 0.7, images)))[0] for images in (2, 5, 10**9)]
    assert widths[0] / widths[2] == pytest.approx(12.706 / 1.96, rel=1e-3)
    assert widths[1] / widths[2] == pytest.approx(2.776 / 1.96, rel=1e-3)


def test_replicates_equal_a_plain_loop_over_drawn_images():
    good, defective = (np.round(scores, 0) for scores in two_runs(n=12)[:2])
    of_good, of_defective = draw(12, 12, 30, seed=3)
    assert (of_good.sum(axis=1) == 12).all()
    counts = weighted_counts(good, defective, of_good, of_defective)
    labels = np.r_[np.zeros(12), np.ones(12)]
    for row in range(30):
        scores = np.r_[np.repeat(good, of_good[row]), np.repeat(defective, of_defective[row])]
        assert auroc(counts)[row] == pytest.approx(roc_auc_score(labels, scores), abs=1e-12)
        assert IMAGE_FIGURES["aupr"](counts)[row] == pytest.approx(average_precision_score(labels, scores), abs=1e-12)


def test_same_seed_same_replicates_and_another_seed_others():
    good, defective, *_ = two_runs()
    a, b, c = (replicates("auroc", good, defective, 50, seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(a, b)
    assert not np.array_equal(a, c)


def test_paired_interval_is_narrower_than_unpaired_and_agrees_with_delong():
    runs = two_runs(n=60)
    paired, tested = paired_difference("auroc", *runs), paired_test(*runs)
    assert paired.value == pytest.approx(tested.value, abs=1e-12)
    assert paired.interval == pytest.approx(tested.interval, abs=0.02)
    a, b = replicates("auroc", *runs[:2], 2000, 1), replicates("auroc", *runs[2:], 2000, 2)
    unpaired = np.quantile(a - b, [0.025, 0.975])
    assert np.diff(paired.interval)[0] < 0.8 * np.diff(unpaired)[0]


def test_runs_that_rank_alike_do_not_differ():
    good, defective, *_ = two_runs()
    same = paired_test(good, defective, 3 * good, 3 * defective)
    assert (same.value, same.interval, same.p) == (0.0, (0.0, 0.0), 1.0)
    assert paired_difference("aupr", good, defective, good, defective).interval == (0.0, 0.0)


def test_a_perfect_run_against_another_without_variance_has_no_test():
    good, defective = np.zeros(5), np.ones(5)
    against = paired_test(good, defective, good, -defective)
    assert against.value == 1
    assert against.p is None


def test_image_figures_carry_intervals_only_when_asked():
    good, defective, *_ = two_runs()
    assert all(figure.interval is None for figure in image_figures(good, defective, threshold=1.0).values())
    figures = image_figures(good, defective, threshold=1.0, repetitions=300)
    for name in ("auroc", "aupr", "f1_max", "precision", "recall", "f1", "accuracy_good", "accuracy_defective"):
        low, high = figures[name].interval
        assert low < figures[name].value < high
    assert figures["f1_threshold"].interval is None


def filled(shift, order=1):
    """12 images, 6 with a region; ``shift`` is how far defects stand out."""
    statistics = PixelStatistics(("bad",))
    for i in range(12)[::order]:
        rng = np.random.default_rng(i)
        scores = rng.normal(size=(32, 32))
        mask = np.zeros((32, 32), bool)
        if i % 2:
            mask[4 : 8 + i, 5:12] = True
            scores[mask] += shift + rng.normal()
        statistics.update(scores, [(mask, 20.0)] if i % 2 else [], name=str(i), defect="bad" if i % 2 else "good")
    return statistics


def test_pixel_replicates_equal_figures_of_drawn_images():
    statistics = filled(1.0)
    table = tabulate(statistics.images)
    weights = np.ones((1, 12))
    weights[0, [0, 1, 6]] = [3, 0, 2]
    drawn = PixelStatistics(("bad",))
    names = sorted((image.defect, image.name) for image in statistics.images)
    for (_, name), weight in zip(names, weights[0], strict=True):
        image = next(image for image in statistics.images if image.name == name)
        drawn.images += [image] * int(weight)
    counts, pro, _ = table.drawn(weights)
    exact = drawn.finish()["all"]
    assert auroc(counts)[0] == pytest.approx(exact["auroc"].value, abs=1e-3)
    assert IMAGE_FIGURES["aupr"](counts)[0] == pytest.approx(exact["aupr"].value, abs=5e-3)
    assert pro.shape == (1, len(table.thresholds))


def test_pixel_intervals_hold_their_figures():
    found = filled(1.0).finish(repetitions=300)
    for figure in (
        *(found["all"][name] for name in ("auroc", "aupr", "f1_max", "au_pro")),
        *found["groups"]["bad"]["au_spro"].values(),
    ):
        low, high = figure.interval
        assert 0 <= low < figure.value < high <= 1


def test_paired_pixel_differences_pair_by_name_not_by_order():
    a, b = filled(1.5), filled(1.0, order=-1)
    figures = a.finish()["all"], b.finish()["all"]
    found = paired_differences(a.images, b.images, *figures, repetitions=300)
    assert found["au_pro"].value == pytest.approx(figures[0]["au_pro"].value - figures[1]["au_pro"].value)
    low, high = found["auroc"].interval
    assert low > 0, "the same noise with stronger defects is better on every draw"
    alone = a.finish(repetitions=300)["all"]["auroc"].interval
    assert high - low < alone[1] - alone[0]
    with pytest.raises(ValueError, match="same images"):
        paired_differences(a.images[1:], b.images, *figures)


def test_metrics_do_not_load_torch():
    code = "import sys, manyeyes.experiments.metrics; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_variance_of_few_seeds_is_read_with_students_law():
    """Where all pictures agree, the seeds are all there is: the t-test of their differences."""
    gaps = [0.01, 0.035, 0.015]
    mine, yours = (Placements(np.full(20, value), np.full(30, value)) for value in (0.9 + np.mean(gaps), 0.9))
    extra = np.var(gaps, ddof=1) / 3
    found = difference_of(mine, yours, extra=extra, runs=3)
    expected = ttest_1samp(gaps, 0.0)
    assert found.p == pytest.approx(expected.pvalue)
    assert found.interval == pytest.approx(tuple(expected.confidence_interval(0.95)))
    assert difference_of(mine, yours, extra=extra, runs=10**6).p < found.p / 10


@settings(deadline=None, max_examples=25)
@given(st.floats(1e-6, 1e-3), st.floats(1e-6, 1e-3), st.integers(2, 6))
def test_degrees_of_freedom_lie_between_those_of_the_seeds_and_infinity(pictures, seeds, runs):
    assert freedom(pictures + seeds, seeds, runs) > runs - 1
    assert freedom(1e-12 + seeds, seeds, runs) == pytest.approx(runs - 1, rel=1e-4)
    assert freedom(pictures, 0.0, runs) == math.inf
