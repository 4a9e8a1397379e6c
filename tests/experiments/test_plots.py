"""Axes and points of the page's plots: every value inside, ticks round, the front drawn through those on it."""

import doctest

import pytest
from hypothesis import given
from hypothesis import strategies as st

from manyeyes.experiments.report import plots
from manyeyes.experiments.report.plots import cost_axis, cost_plot, share_axis
from manyeyes.experiments.report.standings import COSTS, Standing

shares = st.floats(0, 1)
times = st.floats(1e-3, 1e6)


def standing(name, auroc, ms, on_front=False):
    return Standing(name, auroc, None, None, None, None, dict.fromkeys(COSTS) | {"ms_per_image": ms}, on_front)


@given(st.lists(shares, min_size=1, max_size=8))
def test_axes_of_shares_hold_all_values_with_few_round_ticks(values):
    axis = share_axis(values)
    assert all(-1e-6 <= axis.at(value) <= 100 + 1e-6 for value in values)
    assert -1e-9 <= axis.low < axis.high <= 1 + 1e-9
    assert 2 <= len(axis.ticks) <= 6
    assert all(axis.at(float(text) / 100) == pytest.approx(place, abs=1e-6) for place, text in axis.ticks)


@given(st.lists(times, min_size=1, max_size=8))
def test_axes_of_times_hold_all_values_and_are_logarithmic(values):
    axis = cost_axis(values)
    assert all(-1e-6 <= axis.at(value) <= 100 + 1e-6 for value in values)
    assert len(axis.ticks) >= 2
    assert all(axis.at(float(text)) == pytest.approx(place, abs=1e-6) for place, text in axis.ticks)
    assert axis.at((axis.low * axis.high) ** 0.5) == pytest.approx(50)


def test_docstrings_say_what_happens():
    assert doctest.testmod(plots).failed == 0


def test_the_front_is_a_staircase_through_its_points():
    found = cost_plot(
        [standing("slow", 0.9, 100.0, True), standing("bad", 0.7, 20.0), standing("quick", 0.8, 10, True)]
    )
    assert found is not None
    slow, bad, quick = found.points
    assert [(point.name, point.label, point.marked) for point in found.points] == [
        ("slow", "1", True),
        ("bad", "2", False),
        ("quick", "3", True),
    ]
    assert quick.x < bad.x < slow.x
    assert slow.y < quick.y < bad.y, "y points downwards"
    assert found.line == f"M{quick.x:.2f} 100V{quick.y:.2f}H{slow.x:.2f}V{slow.y:.2f}H100"


def test_labels_of_points_on_each_other_are_joined():
    found = cost_plot([standing("a", 0.9, 50.0), standing("b", 0.8, 50.0), standing("c", 0.9001, 50.5, True)])
    assert found is not None
    assert [point.label for point in found.points] == ["1, 3", "2", ""]


def test_nothing_is_drawn_where_nothing_can_be_compared():
    assert cost_plot([standing("one", 0.9, 10.0)]) is None
    assert cost_plot([standing("one", 0.9, 10.0), standing("two", None, 20.0), standing("three", 0.9, None)]) is None
