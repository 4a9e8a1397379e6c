"""Where ensembles stand over all sets, and the files that say so."""

from __future__ import annotations

import csv
import json
import statistics
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import rankdata, wilcoxon
from studies import finished_study

from manyeyes.experiments.report.contest import Contest, holm
from manyeyes.experiments.report.results import Results
from manyeyes.experiments.report.standings import mean_interval, standings
from manyeyes.experiments.study import Study

STRENGTHS = {"base": 0.3, "better": 1.0, "best": 1.8}
SETS = tuple("abcdef")


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    """Six sets that differ by their seeds, as one study's cells with other names for seeds."""
    folder = tmp_path_factory.mktemp("study")
    cells = []
    for seed, name in enumerate(SETS):
        cells += finished_study(folder / name, STRENGTHS, sets=(name,), seeds=(seed,), good=12, defective=10).cells
    return Study(folder, tuple(sorted(cells, key=lambda cell: list(STRENGTHS).index(cell.ensemble))))


@pytest.fixture(scope="module")
def contests(study: Study) -> list[Contest]:
    return [Contest.read(study, name) for name in study.sets]


def aurocs(study: Study) -> np.ndarray:
    """(sets, ensembles)."""
    return np.array([[study.of(e, s)[0].figures["image"]["auroc"] for e in study.ensembles] for s in study.sets])


def test_means_and_ranks_are_those_of_the_cells(study: Study, contests: list[Contest]) -> None:
    found = standings(contests, "base")
    table = aurocs(study)
    assert [one.auroc for one in found] == pytest.approx(table.mean(axis=0))
    assert [one.rank for one in found] == pytest.approx(rankdata(-table, axis=1).mean(axis=0))


def test_the_test_over_sets_is_wilcoxons_corrected(study: Study, contests: list[Contest]) -> None:
    found = {one.ensemble: one.p_over_sets for one in standings(contests, "base")}
    table = aurocs(study)
    names = ("better", "best")
    raw = {n: float(wilcoxon(table[:, i] - table[:, 0], zero_method="pratt").pvalue) for i, n in enumerate(names, 1)}
    assert {name: found[name] for name in names} == pytest.approx(holm(raw))
    assert found["base"] is None
    assert all(one.p_over_sets is None for one in standings(contests[:5], "base")), "five sets cannot reach 5 %"


def test_differences_over_sets_are_means_and_corrected(contests: list[Contest]) -> None:
    found = {one.ensemble: one.difference for one in standings(contests, "base")}
    assert found["base"] is None
    best = found["best"]
    assert best is not None
    assert best.interval is not None
    gaps = [contest.difference("best", "base").value for contest in contests]  # type: ignore[union-attr]
    assert best.value == pytest.approx(statistics.fmean(gaps))
    assert best.interval[0] < best.value < best.interval[1]
    apart = {
        name: one.difference.p
        for name in ("better", "best")
        for one in standings([_only(contest, "base", name) for contest in contests], "base")
        if one.difference is not None
    }
    corrected = holm(apart)
    assert (found["better"].p, best.p) == pytest.approx((corrected["better"], corrected["best"]))  # type: ignore[union-attr]


def _only(contest: Contest, *names: str) -> Contest:
    return Contest(contest.data, {name: contest.results[name] for name in names})


def test_one_set_has_the_sets_own_interval_and_difference(contests: list[Contest]) -> None:
    (contest,) = contests[:1]
    for one in standings([contest], "base"):
        assert one.interval == pytest.approx(contest.interval(one.ensemble))
        if one.ensemble != "base":
            assert one.difference is not None
            assert one.difference.value == contest.difference(one.ensemble, "base").value  # type: ignore[union-attr]


@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1), st.floats(0, 1)).map(sorted), min_size=1, max_size=6))
def test_the_interval_of_a_mean_lies_inside_that_of_the_extremes(triples: list[list[float]]) -> None:
    lows, values, highs = (list(part) for part in zip(*triples, strict=True))
    low, high = mean_interval(values, list(zip(lows, highs, strict=True)))  # type: ignore[misc]
    mean = statistics.fmean(values)
    assert statistics.fmean(lows) - 1e-9 <= low <= mean + 1e-9
    assert mean - 1e-9 <= high <= statistics.fmean(highs) + 1e-9


def test_perfect_sets_leave_doubt() -> None:
    """Their variance estimate is 0, which once made the interval of the mean 100 to 100."""
    low, high = mean_interval([1.0, 1.0], [(0.7, 1.0), (0.7, 1.0)])  # type: ignore[misc]
    assert (low, high) == pytest.approx((1 - 0.3 / 2**0.5, 1.0))
    assert mean_interval([1.0, 0.9], [(0.7, 1.0), None]) is None


def test_equal_symmetric_intervals_shrink_as_standard_errors_do() -> None:
    low, high = mean_interval([0.5] * 4, [(0.3, 0.7)] * 4)  # type: ignore[misc]
    assert (low, high) == pytest.approx((0.4, 0.6))


def test_the_front_has_whom_nobody_dominates(study: Study, contests: list[Contest]) -> None:
    found = standings(contests, "base")
    for one in found:
        mine = one.auroc, -one.costs["ms_per_image"]  # type: ignore[operator]
        others = [(o.auroc, -o.costs["ms_per_image"]) for o in found if o is not one]  # type: ignore[operator]
        dominated = any(a >= mine[0] and b >= mine[1] and (a, b) != mine for a, b in others)
        assert one.on_front != dominated


def test_files_agree_with_each_other_and_with_the_cells(study: Study) -> None:
    results = Results(study)
    results.write()
    plain = json.loads((study.folder / "results.json").read_text())
    assert plain["baseline"] == "base"
    for name in ("cells", "ensembles"):
        with open(study.folder / f"{name}.csv", newline="") as file:
            rows = list(csv.DictReader(file))
        assert [{key: "" if value is None else str(value) for key, value in row.items()} for row in plain[name]] == rows
    by_cell = {(row["ensemble"], row["set"]): row["image_auroc"] for row in plain["cells"]}
    assert by_cell == {(cell.ensemble, cell.data): cell.figures["image"]["auroc"] for cell in study.cells}
    markdown = (study.folder / "results.md").read_text()
    for row in (*results.accuracy(), *results.comparison()):
        assert "| " + " | ".join(row.values()) + " |" in markdown


def test_the_baseline_is_the_studys(study: Study) -> None:
    other = Results(Study(study.folder, study.cells, "best"))
    row = next(row for row in other.comparison() if row["ensemble"] == "base")
    assert row["against best"].startswith("−")
    assert [r["against best"] for r in other.comparison() if r["ensemble"] == "best"] == ["baseline"]


def test_sets_that_lack_an_ensemble_do_not_enter_the_mean(study: Study, tmp_path: Path) -> None:
    """A mean over other sets than the rival's would compare parts, not ensembles."""
    fewer = Study(tmp_path, tuple(cell for cell in study.cells if (cell.ensemble, cell.data) != ("best", "a")))
    found = standings([Contest.read(fewer, name) for name in fewer.sets], "base")
    table = aurocs(study)
    assert [one.auroc for one in found] == pytest.approx(table[1:].mean(axis=0))
