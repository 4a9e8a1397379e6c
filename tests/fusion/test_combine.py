"""Combiners: right to the number, monotone where they say so, and equal to scikit-learn and scipy where those exist."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression

from manyeyes.errors import ConfigError
from manyeyes.fusion import (
    FisherConfig,
    MaxConfig,
    MeanConfig,
    PositiveSquareConfig,
    StackingForestConfig,
    StackingLogisticConfig,
    SumConfig,
    VoteConfig,
    WeightedConfig,
    require_known,
)

NAMES = ("a", "b", "c")
LABEL_FREE = [
    SumConfig(),
    MeanConfig(),
    MaxConfig(),
    WeightedConfig(weights={"a": 2.0, "b": 0.0}),
    PositiveSquareConfig(),
    VoteConfig(),
    FisherConfig(),
    FisherConfig(scale="tail"),
]


def scores(n: int = 60, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, 3, generator=torch.Generator().manual_seed(seed))


def labelled(n: int = 80) -> tuple[torch.Tensor, torch.Tensor]:
    labels = (torch.arange(n) % 4 == 0).long()
    return scores(n) + labels[:, None] * torch.tensor([1.5, 0.3, 0.0]), labels


@pytest.mark.parametrize("config", LABEL_FREE, ids=str)
@settings(max_examples=60, deadline=None)
@given(
    row=st.lists(st.floats(-50, 50, width=32), min_size=3, max_size=3),
    head=st.integers(0, 2),
    rise=st.floats(0, 30, width=32),
)
def test_never_decreases_when_one_head_rises(config: Any, row: list[float], head: int, rise: float) -> None:
    combiner = config.build(NAMES).fit(scores())
    raised = [value + rise * (index == head) for index, value in enumerate(row)]
    before, after = combiner.combine(torch.tensor([row, raised], dtype=torch.float64)).tolist()
    assert after >= before - 1e-9 * max(1.0, abs(before))


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (SumConfig(), 1.5),
        (MeanConfig(), 0.5),
        (MaxConfig(), 3.0),
        (WeightedConfig(weights={"a": 2.0, "b": 0.0}), 5.5),
        (PositiveSquareConfig(), 9.0 - 0.0015),
        (PositiveSquareConfig(weights={"a": 2.0, "b": 0.0}), 18.0 - 0.0005),
    ],
)
def test_value(config: Any, expected: float) -> None:
    combined = config.build(NAMES).combine(torch.tensor([[3.0, -1.0, -0.5]]))
    assert combined.tolist() == pytest.approx([expected], rel=1e-6)


def test_positive_square_ranks_images_that_nothing_finds_unusual() -> None:
    quiet = PositiveSquareConfig().build(NAMES).combine(-torch.tensor([[3.0] * 3, [2.0] * 3, [0.1] * 3]))
    assert (quiet.diff() > 0).all()


@pytest.mark.parametrize("kind", [WeightedConfig, PositiveSquareConfig])
def test_weights_name_heads(kind: type[WeightedConfig | PositiveSquareConfig]) -> None:
    config = kind(weights={"a": 2.0, "d": 0.0})
    with pytest.raises(ConfigError, match=r"unknown heads \['d'\]; allowed: \['a', 'b', 'c'\]"):
        require_known(config.weights, NAMES)
    require_known(config.weights, [*NAMES, "d"])
    ones = torch.ones(1, 2)
    assert config.build(("a", "d")).combine(ones).tolist() == [2.0]
    assert config.build(("d",)).combine(ones[:, :1]).tolist() == [1.0]
    with pytest.raises(ConfigError, match=r"weights\.a"):
        kind.parse({"weights": {"a": -1.0}})


def test_vote_counts_heads_beyond_their_own_quantile() -> None:
    normal = torch.stack([torch.arange(100.0), torch.arange(100.0) * 10, torch.arange(100.0) - 500], dim=1)
    combiner = VoteConfig(quantile=0.95).build(NAMES).fit(normal)
    rows = torch.tensor([[0.0, 0.0, -500.0], [99.0, 0.0, -500.0], [99.0, 999.0, -500.0], [99.0, 999.0, 0.0]])
    assert (combiner.combine(rows) * 3).floor().tolist() == [0, 1, 2, 3]


def test_vote_breaks_ties_by_the_mean_but_never_a_vote() -> None:
    combiner = VoteConfig().build(NAMES).fit(torch.zeros(5, 3))
    none_high, none_low, one = combiner.combine(torch.tensor([[0.0, 0.0, 0.0], [-9.0, 0, 0], [1e-3, -1e6, -1e6]]))
    assert none_low < none_high < one


def test_fisher_equals_scipy() -> None:
    z = scores().double()
    expected = [stats.combine_pvalues(stats.norm.sf(row), method="fisher").statistic for row in z.numpy()]
    np.testing.assert_allclose(FisherConfig().build(NAMES).combine(z), expected, rtol=1e-9)
    tail = torch.tensor([[1.0, 2.0, 0.5]], dtype=torch.float64)
    expected_tail = stats.combine_pvalues(10 ** -tail[0].numpy(), method="fisher").statistic
    assert FisherConfig(scale="tail").build(NAMES).combine(tail).tolist() == pytest.approx([expected_tail])


def test_fisher_does_not_saturate_far_out() -> None:
    """A probability of 1e-300 and less is zero in float64; its logarithm is not."""
    far = FisherConfig().build(NAMES).combine(torch.tensor([[50.0] * 3, [100.0] * 3, [1000.0] * 3]))
    assert torch.isfinite(far).all()
    assert (far.diff() > 0).all()


def test_logistic_equals_scikit_learn() -> None:
    values, labels = labelled()
    centre, spread = values.double().numpy().mean(axis=0), values.double().numpy().std(axis=0)
    model = LogisticRegression(class_weight="balanced").fit((values.numpy() - centre) / spread, labels.numpy())
    expected = model.decision_function((scores(seed=5).numpy() - centre) / spread)
    combiner = StackingLogisticConfig().build(NAMES).fit(values, labels)
    np.testing.assert_allclose(combiner.combine(scores(seed=5)), expected, atol=1e-3)


def test_logistic_bears_a_head_that_never_moves() -> None:
    values, labels = labelled()
    values[:, 1] = 7.0
    combined = StackingLogisticConfig().build(NAMES).fit(values, labels).combine(values)
    assert torch.isfinite(combined).all()
    assert combined[labels == 1].mean() > combined[labels == 0].mean()


@pytest.mark.parametrize("depth", [1, 4, 12])
def test_forest_equals_scikit_learn(depth: int) -> None:
    values, labels = labelled()
    model = RandomForestClassifier(25, max_depth=depth, class_weight="balanced", random_state=3)
    model.fit(values.numpy(), labels.numpy())
    combiner = StackingForestConfig(trees=25, depth=depth, seed=3).build(NAMES).fit(values, labels)
    for new in (values, scores(500, seed=5)):
        np.testing.assert_allclose(combiner.combine(new), model.predict_proba(new.numpy())[:, 1], atol=1e-6)


def test_the_same_seed_grows_the_same_forest() -> None:
    values, labels = labelled()
    first, again, other = (
        StackingForestConfig(trees=5, seed=seed).build(NAMES).fit(values, labels).combine(values) for seed in (0, 0, 1)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
