"""Image-level and rank figures against scikit-learn, ties included."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, f1_score, precision_score, recall_score, roc_auc_score

from manyeyes.experiments.metrics import image_figures
from manyeyes.experiments.metrics.ranks import SortedScores, area_under_overlap, auroc, count_ranks

# Few distinct values, so that most examples have ties within and across classes.
SCORES = st.lists(st.integers(-4, 4).map(float) | st.floats(-5, 5, width=32), min_size=1, max_size=30)


def joined(good, defective):
    return np.r_[np.zeros(len(good)), np.ones(len(defective))], np.r_[good, defective]


@settings(max_examples=100, deadline=None)
@given(SCORES, SCORES)
def test_ranking_figures_equal_scikit_learn(good, defective):
    labels, scores = joined(good, defective)
    figures = image_figures(good, defective)
    assert figures["auroc"].value == pytest.approx(roc_auc_score(labels, scores), abs=1e-9)
    assert figures["aupr"].value == pytest.approx(average_precision_score(labels, scores), abs=1e-9)
    called = scores[None] >= scores[:, None]
    best = max(2 * called @ labels / (called.sum(axis=1) + labels.sum()))
    assert figures["f1_max"].value == pytest.approx(best, abs=1e-9)


@settings(max_examples=50, deadline=None)
@given(SCORES, SCORES)
def test_f1_threshold_reproduces_its_own_decision(good, defective):
    figures = image_figures(good, defective)
    decided = image_figures(good, defective, threshold=figures["f1_threshold"].value)
    assert decided["f1"].value == pytest.approx(figures["f1_max"].value, abs=1e-12)


@settings(max_examples=50, deadline=None)
@given(SCORES, SCORES)
def test_auroc_of_swapped_classes_is_the_complement(good, defective):
    assert image_figures(good, defective)["auroc"].value == pytest.approx(
        1 - image_figures(defective, good)["auroc"].value, abs=1e-12
    )


@settings(max_examples=50, deadline=None)
@given(SCORES, SCORES)
def test_area_of_the_true_positive_rate_is_the_auroc(good, defective):
    counts = count_ranks(np.array(defective), [SortedScores(np.sort(good))])
    overlap = counts.positives / counts.n_positives
    assert area_under_overlap(counts, overlap, 1.0) == pytest.approx(float(auroc(counts)), abs=1e-12)


def test_decision_figures_equal_scikit_learn():
    rng = np.random.default_rng(0)
    good, defective = rng.normal(0, 1, 40), rng.normal(1, 1, 30)
    labels, scores = joined(good, defective)
    figures = image_figures(good, defective, threshold=0.7)
    assert figures["precision"].value == pytest.approx(precision_score(labels, scores >= 0.7))
    assert figures["recall"].value == pytest.approx(recall_score(labels, scores >= 0.7))
    assert figures["f1"].value == pytest.approx(f1_score(labels, scores >= 0.7))
    assert figures["accuracy_good"].value == pytest.approx((good < 0.7).mean())
    assert figures["accuracy_defective"].value == pytest.approx((defective >= 0.7).mean())


def test_negatives_may_be_spread_over_arrays():
    rng = np.random.default_rng(1)
    positives, negatives = rng.integers(0, 9, 50).astype(float), np.sort(rng.integers(0, 9, 60).astype(float))
    whole = count_ranks(positives, [SortedScores(negatives)])
    parts = count_ranks(positives, [SortedScores(negatives[::2]), SortedScores(negatives[1::2])])
    np.testing.assert_array_equal(whole.negatives, parts.negatives)
    np.testing.assert_array_equal(whole.negatives_above, parts.negatives_above)


@pytest.mark.parametrize(("good", "defective", "reason"), [([], [1.0], "no good image"), ([1.0], [], "no defective")])
def test_one_class_is_undefined_with_its_reason(good, defective, reason):
    figures = image_figures(good, defective, threshold=0.5, repetitions=10)
    for name in ("auroc", "aupr", "f1_max", "f1_threshold", "precision", "f1"):
        assert figures[name].value is None
        assert reason in figures[name].reason
    known, unknown = ("accuracy_defective", "accuracy_good") if defective else ("accuracy_good", "accuracy_defective")
    assert figures[known].value in (0.0, 1.0)
    assert reason in figures[unknown].reason


def test_no_image_called_defective_leaves_precision_undefined():
    figures = image_figures([0.0, 1.0], [1.0, 2.0], threshold=3.0)
    assert figures["precision"].reason == "no image is called defective"
    assert figures["recall"].value == 0


def test_constant_scores_are_one_half_and_say_so():
    figures = image_figures([2.0, 2.0], [2.0, 2.0, 2.0], repetitions=20)
    assert figures["auroc"].value == 0.5
    assert "all scores are equal" in figures["auroc"].note
    assert figures["auroc"].interval is None
