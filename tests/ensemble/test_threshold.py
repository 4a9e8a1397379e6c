"""The promise of the threshold: false alarms on new good parts stay within the rate, whatever the scores."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import small_config
from hypothesis import given, settings
from hypothesis import strategies as st

from manyeyes.ensemble import Ensemble
from manyeyes.ensemble.threshold import conformal_threshold
from manyeyes.errors import DataError

RUNS = 4000


@pytest.mark.parametrize("n", [1, 2, 5, 9, 19, 20, 39])
@pytest.mark.parametrize("rate", [0.05, 0.2])
@pytest.mark.parametrize("kind", ["normal", "heavy", "ties"])
def test_false_alarms_on_new_normals_stay_within_the_promise(n: int, rate: float, kind: str) -> None:
    rng = np.random.default_rng(n)
    draw = {
        "normal": lambda shape: rng.normal(size=shape),
        "heavy": lambda shape: rng.standard_cauchy(size=shape),
        "ties": lambda shape: rng.integers(0, 4, size=shape),
    }[kind]
    calibration, new = draw((RUNS, n)).astype(np.float32), draw(RUNS).astype(np.float32)
    found = [conformal_threshold(torch.from_numpy(scores), rate) for scores in calibration]
    alarms = np.mean([score >= threshold for score, (threshold, _) in zip(new, found, strict=True)])
    promised = found[0][1]
    assert promised == (rate if n + 1 >= 1 / rate - 1e-9 else 1 / (n + 1))
    noise = 4 * np.sqrt(promised * (1 - promised) / RUNS)
    assert alarms <= promised + noise
    if kind != "ties":  # and the promise is not bought with silence
        assert alarms >= promised - 1 / (n + 1) - noise


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=50),
    st.floats(0.01, 0.99),
)
def test_the_threshold_is_just_above_an_order_statistic(values: list[float], rate: float) -> None:
    scores = torch.tensor(values)
    threshold, promised = conformal_threshold(scores, rate)
    below = scores[scores < threshold]
    assert len(below), "the score that it was set by raises no alarm itself"
    assert torch.nextafter(below.max(), torch.tensor(torch.inf)) == torch.tensor(threshold)
    # At most the share of calibration scores that the promise allows reaches it.
    assert int((scores >= threshold).sum()) <= (len(values) + 1) * promised
    assert promised >= rate


def test_the_threshold_survives_float32() -> None:
    # Kept as a float32 tensor beside float32 scores: rounding it down would let its own sample raise an alarm.
    scores = torch.tensor([0.1, 0.2, 16777216.0])
    threshold, _ = conformal_threshold(scores, 0.05)
    assert float(torch.tensor(threshold)) == threshold > 16777216.0


@pytest.mark.parametrize("values", [[], [0.0, float("nan")], [float("inf")]])
def test_scores_that_cannot_calibrate(values: list[float]) -> None:
    with pytest.raises(DataError, match=r"at least one validation score, all finite"):
        conformal_threshold(torch.tensor(values), 0.05)


@pytest.mark.parametrize("rate", [0.05, 0.2, 0.3, 1 / 3])
def test_the_note_asks_for_enough_pictures(rate: float) -> None:
    """As many validation normals as it names keep the promise."""
    wanted = int(1 / rate)
    assert conformal_threshold(torch.arange(wanted).float(), rate)[1] == rate


def test_calibration_never_scores_a_picture_with_itself_in_the_statistics() -> None:
    # A score that took part in its own normaliser is drawn in; with five normals that breaks the promise.
    alarms, promised = [], []
    generator = torch.Generator().manual_seed(0)
    ensemble = Ensemble(small_config(threshold={"false_alarm_rate": 0.2}))
    for _ in range(150):
        drawn = torch.randn(5 + 40, len(ensemble.names), generator=generator)
        scores = {name: drawn[:5, column] for column, name in enumerate(ensemble.names)}
        for name, normaliser in ensemble.normalisers.items():
            normaliser.fit(scores[name])
        ensemble.validation_scores_ = ensemble.held_out(scores, torch.arange(5), {})
        ensemble.validation_peaks_ = torch.zeros(1)
        ensemble._promise(0.2)
        new = torch.stack(
            [ensemble.normalisers[name].transform(drawn[5:, c]) for c, name in enumerate(ensemble.names)], 1
        )
        alarms.append((ensemble.combine(new) >= ensemble.score_threshold_).float().mean())
        promised.append(float(ensemble.guaranteed_rate_))
    assert set(promised) == {0.2}
    assert float(torch.stack(alarms).mean()) <= 0.2 + 0.03
