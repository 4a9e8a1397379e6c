"""Verdicts on pictures of any kind and size, and thresholds that move after the fit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import HEIGHT, WIDTH
from PIL import Image

from manyeyes.data import ImageSet, read_image
from manyeyes.ensemble import Ensemble, load_run, save_run
from manyeyes.ensemble.threshold import conformal_threshold, guaranteed_rate
from manyeyes.errors import ConfigError, DataError, NotFittedError, ShapeError
from manyeyes.experiments.prediction import predict_paths


@pytest.fixture(scope="module")
def ensemble(trained: Path) -> Ensemble:
    """Read only."""
    return load_run(trained)


def test_verdicts_are_those_of_predict_on_files_arrays_and_pillows_pictures(
    ensemble: Ensemble, trained: Path, parts: ImageSet, tmp_path: Path
) -> None:
    paths = [sample.path for sample in parts.test]
    expected = predict_paths(trained, paths, tmp_path / "out", device="cpu", batch_size=4)["pictures"]
    arrays = [read_image(path) for path in paths]
    for pictures in (paths, map(str, paths), arrays, [Image.open(path) for path in paths]):
        found = list(ensemble.verdicts(pictures, batch_size=4))
        assert [one.alarm for one in found] == [one["alarm"] for one in expected]
        np.testing.assert_allclose([one.score for one in found], [one["score"] for one in expected], rtol=1e-4)
        for one, written in zip(found, expected, strict=True):
            np.testing.assert_allclose(one.map, np.load(written["map"]), rtol=1e-3, atol=1e-3)
            assert one.map.shape == one.mask.shape == (HEIGHT, WIDTH)
            assert one.heads.keys() == written["heads"].keys()
            assert one.members.keys() == written["members"].keys()


def test_sizes_may_differ_and_one_is_judged_as_among_others(ensemble: Ensemble, parts: ImageSet) -> None:
    small = read_image(parts.test[0].path)
    large = np.repeat(np.repeat(small, 2, axis=0), 2, axis=1)
    grey = small[..., 0]
    several = list(ensemble.verdicts([small, large, grey]))
    assert [one.map.shape for one in several] == [small.shape[:2], large.shape[:2], grey.shape]
    (alone,) = ensemble.verdicts([large])
    assert alone.score == pytest.approx(several[1].score, rel=1e-4)


def test_pictures_are_taken_as_they_come(ensemble: Ensemble, parts: ImageSet) -> None:
    """A camera has no end: nothing is judged that has not been asked for."""
    taken: list[int] = []

    def camera() -> object:
        for number in range(100):
            taken.append(number)
            yield read_image(parts.test[0].path)

    stream = ensemble.verdicts(camera(), batch_size=2)
    next(stream)
    assert taken == [0, 1]


def test_bad_pictures_and_tensors_off_the_canvas_are_refused(ensemble: Ensemble, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="picture in memory: has the shape"):
        next(ensemble.verdicts([np.zeros((3, 64, 64), np.uint8)]))
    with pytest.raises(DataError, match=r"none\.png: does not exist"):
        next(ensemble.verdicts([tmp_path / "none.png"]))
    with pytest.raises(ShapeError, match=r"expected pictures on the canvas, .*`verdicts` takes pictures of any size"):
        ensemble.predict(torch.zeros(1, 3, 40, 40))
    with pytest.raises(ConfigError, match="batch_size: expected at least 1, got 0"):
        ensemble.verdicts([], batch_size=0)
    with pytest.raises(NotFittedError):
        next(Ensemble(ensemble.config).verdicts([np.zeros((64, 64), np.uint8)]))


def test_another_false_alarm_rate_moves_both_thresholds_as_a_fit_would(trained: Path) -> None:
    ensemble = load_run(trained)
    scores, peaks = ensemble.validation_scores_, ensemble.validation_peaks_
    assert len(peaks) == len(scores)
    assert float(ensemble.map_threshold_) == conformal_threshold(peaks, 0.05)[0]
    ensemble.alarm_at(rate=0.5)
    assert (float(ensemble.score_threshold_), float(ensemble.guaranteed_rate_)) == conformal_threshold(scores, 0.5)
    assert float(ensemble.map_threshold_) == conformal_threshold(peaks, 0.5)[0]
    assert ensemble.config.threshold.false_alarm_rate == 0.5
    assert not any("can promise" in note for note in ensemble.notes)
    ensemble.alarm_at(rate=0.01)
    assert sum("can promise" in note for note in ensemble.notes) == 1


def test_a_threshold_by_hand_says_what_the_validation_normals_say_of_it(trained: Path) -> None:
    ensemble = load_run(trained)
    before = float(ensemble.map_threshold_)
    middle = float(ensemble.validation_scores_.sort().values[1])
    ensemble.alarm_at(threshold=middle)
    n = len(ensemble.validation_scores_)
    assert float(ensemble.score_threshold_) == pytest.approx(middle)
    assert float(ensemble.guaranteed_rate_) == pytest.approx((1 + n - 1) / (n + 1))
    assert float(ensemble.map_threshold_) == before


@pytest.mark.parametrize("rate", [0.05, 0.2, 0.5, 0.9])
def test_a_thresholds_own_rate_is_what_it_promises_at_most(rate: float) -> None:
    scores = torch.randn(30, generator=torch.Generator().manual_seed(0))
    threshold, promised = conformal_threshold(scores, rate)
    assert guaranteed_rate(scores, threshold) <= promised + 1e-9


def test_moved_thresholds_are_saved_with_the_run(trained: Path, tmp_path: Path) -> None:
    ensemble = load_run(trained).alarm_at(rate=0.3)
    save_run(tmp_path / "moved", ensemble, torch.device("cpu"), {})
    again = load_run(tmp_path / "moved")
    assert float(again.score_threshold_) == float(ensemble.score_threshold_)
    assert again.config.threshold.false_alarm_rate == 0.3


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({}, "one of them"),
        ({"rate": 0.1, "threshold": 1.0}, "one of them"),
        ({"rate": 1.5}, "false_alarm_rate"),
        ({"threshold": float("nan")}, "expected a number, got nan"),
        ({"threshold": 1e39}, "expected a number, got 1e"),
    ],
)
def test_thresholds_that_make_no_sense_are_refused(ensemble: Ensemble, change: dict[str, float], why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        ensemble.alarm_at(**change)
