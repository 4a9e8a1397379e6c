"""Pixel-level figures against slow references and scikit-learn; streaming, compression and undefined cases."""

import numpy as np
import pytest
import slow_reference
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, f1_score, roc_auc_score

from manyeyes.errors import DataError
from manyeyes.experiments.metrics import ImageStatistics, PixelStatistics, summarise
from manyeyes.experiments.metrics.pixel import LIMITS
from manyeyes.experiments.metrics.sketch import ERROR, sketch
from manyeyes.experiments.metrics.thinning import thin

SIDE = 12


def random_set(seed, levels, images=3, good=2, dtype=np.float32):
    """Maps with ``levels`` distinct scores (0: no ties), each defective one with one to three overlapping regions."""
    rng = np.random.default_rng(seed)

    def scores():
        values = rng.normal(size=(SIDE, SIDE))
        return (np.round(values * levels) if levels else values).astype(dtype)

    maps, regions = [], []
    for _ in range(images):
        held = []
        for _ in range(rng.integers(1, 4)):
            y, x, h, w = *rng.integers(0, SIDE - 2, 2), *rng.integers(1, 5, 2)
            mask = np.zeros((SIDE, SIDE), bool)
            mask[y : y + h, x : x + w] = True
            held.append((mask, float(rng.uniform(0.3, 1) * mask.sum())))
        maps.append(scores() + np.logical_or.reduce([m for m, _ in held]).astype(dtype))
        regions.append(held)
    return maps, regions, [scores() for _ in range(good)]


def finished(maps, regions, good, groups=("bad",), defect="bad", **options):
    statistics = PixelStatistics(groups)
    for i, scores in enumerate(good):
        statistics.update(scores, [], name=f"good/{i}")
    for i, (scores, held) in enumerate(zip(maps, regions, strict=True)):
        statistics.update(scores, held, name=f"{defect}/{i}", defect=defect)
    return statistics.finish(**options)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([0, 1, 2, 8]), st.sampled_from([np.float32, np.float64]))
def test_overlap_areas_equal_the_slow_reference(seed, levels, dtype):
    maps, regions, good = random_set(seed, levels, dtype=dtype)
    found = finished(maps, regions, good)
    xs, ys = slow_reference.overlap_curve(maps, regions, good)
    for limit in LIMITS:
        expected = slow_reference.area(xs, ys, limit)
        assert found["groups"]["bad"]["au_spro"][str(limit)].value == pytest.approx(expected, abs=1e-9)
    parts = [slow_reference.components(np.logical_or.reduce([m for m, _ in held])) for held in regions]
    expected = slow_reference.area(*slow_reference.overlap_curve(maps, parts, good), 0.3)
    assert found["all"]["au_pro"].value == pytest.approx(expected, abs=1e-9)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([0, 1, 8]))
def test_pixel_figures_equal_scikit_learn(seed, levels):
    maps, regions, good = random_set(seed, levels)
    found = finished(maps, regions, good, threshold=0.5)["all"]
    unions = [np.logical_or.reduce([m for m, _ in held]) for held in regions]
    labels = np.concatenate([*(u.ravel() for u in unions), *(np.zeros(SIDE * SIDE, bool) for _ in good)])
    scores = np.concatenate([m.ravel() for m in (*maps, *good)]).astype(np.float64)
    assert found["auroc"].value == pytest.approx(roc_auc_score(labels, scores), abs=1e-9)
    assert found["aupr"].value == pytest.approx(average_precision_score(labels, scores), abs=1e-9)
    threshold = found["f1_threshold"].value
    assert found["f1_max"].value == pytest.approx(f1_score(labels, scores >= threshold), abs=1e-9)
    assert found["f1_max"].value >= max(f1_score(labels, scores >= t) for t in np.quantile(scores, [0.3, 0.6, 0.9]))
    for name, at in (("iou", 0.5), ("iou_max", threshold)):
        called = scores >= at
        assert found[name].value == pytest.approx((called & labels).sum() / (called | labels).sum(), abs=1e-12)


def test_full_saturation_of_components_is_au_pro():
    maps, regions, good = random_set(5, 2)
    parts = [slow_reference.components(np.logical_or.reduce([m for m, _ in held])) for held in regions]
    found = finished(maps, parts, good)
    assert found["groups"]["bad"]["au_spro"]["0.3"].value == pytest.approx(found["all"]["au_pro"].value, abs=1e-12)


def test_diagonal_neighbours_are_one_component():
    mask = np.zeros((8, 8), bool)
    mask[1, 1] = mask[2, 2] = True
    scores = np.zeros((8, 8), np.float32)
    scores[1, 1] = 1.0
    statistics = PixelStatistics()
    statistics.update(scores, [(mask, 2.0)], name="a", defect="bad")
    assert len(statistics.images[0].components) == 1


def test_float64_scores_that_float32_cannot_tell_apart_stay_apart():
    scores = np.full((8, 8), 1.0)
    mask = np.zeros((8, 8), bool)
    mask[0] = True
    scores[0] += 1e-12
    found = finished([scores], [[(mask, 8.0)]], [np.full((8, 8), 1.0)])
    assert found["all"]["auroc"].value == 1.0


def test_order_of_images_does_not_matter():
    maps, regions, good = random_set(7, 2)
    a = finished(maps, regions, good)
    b = finished(maps[::-1], regions[::-1], good[::-1])
    assert {k: v.value for k, v in a["all"].items()} == pytest.approx({k: v.value for k, v in b["all"].items()})


def test_each_defect_stands_against_all_good_images_only():
    maps, regions, good = random_set(9, 0, images=4)
    statistics = PixelStatistics()
    for i, scores in enumerate(good):
        statistics.update(scores, [], name=f"good/{i}")
    for i, (scores, held) in enumerate(zip(maps, regions, strict=True)):
        statistics.update(scores, held, name=str(i), defect="cut" if i < 2 else "scratch")
    found = statistics.finish()["defects"]
    alone = finished(maps[:2], regions[:2], good)["all"]
    assert found["cut"]["auroc"].value == pytest.approx(alone["auroc"].value, abs=1e-12)
    assert found["cut"]["au_pro"].value == pytest.approx(alone["au_pro"].value, abs=1e-12)
    assert set(found) == {"cut", "scratch"}


@pytest.mark.parametrize("levels", [0, 3])
@pytest.mark.parametrize("shift", [0.0, 1e6])
def test_thinned_scores_count_exactly_at_the_thresholds(levels, shift):
    rng = np.random.default_rng(levels)
    parts = [
        (np.round(v, levels) if levels else v).astype(np.float32) + np.float32(shift)
        for v in rng.normal(size=(9, 4000))
    ]
    thresholds = np.unique(rng.choice(np.concatenate([*parts[:2], rng.normal(size=99).astype(np.float32)]), 300))
    found = thin(parts, thresholds, cells=2**12)
    assert len(found) == 2
    assert len(found[0].values) < 36_000 or shift
    whole = np.sort(np.concatenate(parts))
    at_least, above = (sum(scores.counts(thresholds)[i] for scores in found) for i in (0, 1))
    np.testing.assert_array_equal(at_least, len(whole) - np.searchsorted(whole, thresholds))
    np.testing.assert_array_equal(above, len(whole) - np.searchsorted(whole, thresholds, side="right"))
    assert sum(scores.total for scores in found) == len(whole)


def test_thinning_constant_scores():
    found = thin([np.ones(9000, np.float32)], np.ones(1, np.float32), cells=2**10)
    assert sum(scores.counts(np.ones(1))[0][0] for scores in found) == 9000
    assert sum(scores.counts(np.ones(1))[1][0] for scores in found) == 0


def test_sketch_keeps_its_bound_at_every_threshold():
    rng = np.random.default_rng(0)
    scores = np.round(rng.normal(size=60_000), 4).astype(np.float32)
    values, lengths = sketch(scores)
    assert lengths.sum() == len(scores)
    assert len(values) < len(scores) / 3
    thresholds = np.unique(scores)
    exact = len(scores) - np.searchsorted(np.sort(scores), thresholds)
    kept = len(scores) - np.concatenate([[0], np.cumsum(lengths)])[np.searchsorted(values, thresholds)]
    assert np.max(np.abs(kept - exact) / exact) <= ERROR


def test_beyond_the_budget_figures_move_less_than_the_bound_and_say_so():
    rng = np.random.default_rng(3)
    exact, small = PixelStatistics(("bad",)), PixelStatistics(("bad",), budget=200_000)
    for i in range(6):
        scores = rng.normal(size=(160, 160)).astype(np.float32)
        mask = np.zeros((160, 160), bool)
        if i % 2:
            mask[20:60, 30:50] = True
            scores[mask] += 1
        for statistics in (exact, small):
            statistics.update(scores, [(mask, 300.0)] if i % 2 else [], name=str(i), defect="bad" if i % 2 else "good")
    assert small.compressed
    assert not exact.compressed
    assert "compressed" in small.notes[0]
    a, b = exact.finish(), small.finish()
    assert a["all"]["auroc"].value != b["all"]["auroc"].value
    for name in ("auroc", "aupr", "f1_max", "au_pro"):
        assert a["all"][name].value == pytest.approx(b["all"][name].value, abs=2 * ERROR)
    for limit in LIMITS:
        exactly, nearly = (found["groups"]["bad"]["au_spro"][str(limit)].value for found in (a, b))
        assert exactly == pytest.approx(nearly, abs=2 * ERROR)


def test_a_nan_names_the_image():
    scores = np.zeros((8, 8), np.float32)
    scores[3, 3] = np.nan
    with pytest.raises(DataError, match=r"part-17.*NaN"):
        PixelStatistics().update(scores, [], name="part-17")
    with pytest.raises(DataError, match=r"part-18.*finite image score"):
        ImageStatistics().update([float("nan")], ["part-18"], ["good"])


def test_wrong_shapes_and_good_images_with_masks_are_refused():
    mask = np.ones((8, 8), bool)
    with pytest.raises(DataError, match=r"a: .*\(8, 8, 1\)"):
        PixelStatistics().update(np.zeros((8, 8, 1)), [], name="a")
    with pytest.raises(DataError, match="b: the mask is 8 x 8 and the map 4 x 4"):
        PixelStatistics().update(np.zeros((4, 4)), [(mask, 1.0)], name="b", defect="bad")
    with pytest.raises(DataError, match="c: is called good"):
        PixelStatistics().update(np.zeros((8, 8)), [(mask, 1.0)], name="c")


def test_undefined_cases_have_reasons():
    good = [np.zeros((8, 8), np.float32)]
    nothing = finished([], [], good, threshold=0.5)
    for figure in nothing["all"].values():
        assert figure.value is None
        assert figure.reason == "no defective image has a mask with defect pixels"
    assert nothing["groups"]["bad"]["au_spro"]["0.05"].value is None
    assert nothing["groups"]["mean"]["au_spro"]["0.05"].reason.startswith("bad: no defective image")
    full = np.ones((8, 8), bool)
    only = finished([np.eye(8)], [[(full, 64.0)]], [])
    assert only["all"]["auroc"].reason == "there is no pixel outside the regions"
    assert PixelStatistics().finish()["all"]["au_pro"].value is None


def test_empty_mask_leaves_the_image_out_and_names_it():
    maps, regions, good = random_set(2, 0)
    statistics = PixelStatistics()
    statistics.update(good[0], [], name="g")
    statistics.update(maps[0], regions[0], name="known", defect="bad")
    before = statistics.finish()["all"]["auroc"].value
    statistics.update(maps[1], [(np.zeros((SIDE, SIDE), bool), 1.0)], name="part-3", defect="bad")
    assert statistics.finish()["all"]["auroc"].value == before
    assert "part-3" in statistics.notes[0]


def test_constant_maps_are_one_half_and_say_so():
    mask = np.zeros((8, 8), bool)
    mask[:2] = True
    found = finished([np.ones((8, 8))], [[(mask, 16.0)]], [np.ones((8, 8))])["all"]
    assert found["auroc"].value == 0.5
    assert "all scores are equal" in found["auroc"].note


def test_summary_is_json_with_reasons_for_every_null():
    image, pixel = ImageStatistics(), PixelStatistics()
    image.update([0.1, 0.2, 0.9], ["a", "b", "c"], ["good", "good", "cut"])
    for name, defect in (("a", "good"), ("b", "good"), ("c", "cut")):
        pixel.update(np.eye(8), [], name=name, defect=defect)
    summary = summarise(image, pixel, threshold=0.5)
    assert summary["image"]["auroc"] == 1
    assert summary["pixel"]["auroc"] is None
    assert summary["au_pro"] is None
    assert summary["undefined"]["au_pro"] == "no defective image has a mask with defect pixels"
    assert summary["by_defect"]["cut"]["image"]["accuracy_defective"] == 1
    assert summary["counts"] == {"good": 2, "defective": 1, "by_defect": {"cut": 1}}
    assert any("c" in note for note in summary["notes"])
