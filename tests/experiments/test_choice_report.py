"""The choice without labels on the page and in the tables: what was chosen, why, and whether it could be trusted."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import spearmanr
from studies import finished_study

from manyeyes.experiments.report.choice import all_judged, choices, correlations, scatter, spearman
from manyeyes.experiments.report.contest import Contest
from manyeyes.experiments.report.results import Results
from manyeyes.experiments.study import Study
from manyeyes.files import read_json, write_json


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    strengths = {"plain": 0.5, "auto": 2.0}
    folder = tmp_path_factory.mktemp("study")
    return finished_study(folder, strengths, seeds=(0, 1), chosen=("auto",), good=12, defective=10)


@pytest.fixture(scope="module")
def record(study: Study) -> dict:
    return study.of("auto", "parts")[0].figures["choice"]


def test_only_what_was_chosen_has_a_choice(study: Study, record: dict) -> None:
    (choice,) = choices(Contest.read(study, "parts"))
    assert (choice.ensemble, choice.strategy, choice.made) == ("auto", "independent_pca", record["made_defects"])
    assert [one.name for one in choice.judged if one.chosen] == ["independent_pca"]
    assert len(choice.others) == 1
    assert choice.others[0].startswith("seed 1: independent PCA; fused/discriminator 1.00, ")


def test_weights_fall_and_carry_the_proxy_of_their_head(study: Study, record: dict) -> None:
    (choice,) = choices(Contest.read(study, "parts"))
    heads = record["proxies"]["heads"]
    assert {weight.name: float(weight.text) for weight in choice.weights} == record["weights"]
    assert [weight.width for weight in choice.weights] == pytest.approx([100, 75, 40, 31])
    assert choice.weights[0].name == "fused/discriminator"
    assert choice.weights[0].proxy == heads["independent_pca/discriminator"]["mean"]
    assert [one.name for one in choice.dropped] == ["two/gaussian"]
    assert choice.elsewhere == ["global_pca/discriminator"], "was never among those to be weighed in the end"
    assert choice.weak == ["three"]


def test_rank_correlations_are_scipys(record: dict) -> None:
    heads = record["proxies"]["heads"]
    found = {row.part: row for row in correlations([record])}
    for kind in ("structural", "logical", "mean"):
        expected = spearmanr([heads[n][kind] for n in heads], [record["truth"]["heads"][n] for n in heads]).statistic
        assert found["heads"].of[kind] == pytest.approx(expected)
    assert found["members"].of["mean"] is None, "two points order themselves"
    assert found["all"].points == sum(found[part].points for part in ("strategies", "members", "heads"))


def test_over_seeds_rank_correlations_are_averaged(record: dict) -> None:
    other = copy.deepcopy(record)
    truth = other["truth"]["strategies"]
    other["truth"]["strategies"] = dict(zip(truth, reversed(truth.values()), strict=True))
    apart = [correlations([one])[0].of["mean"] for one in (record, other)]
    assert apart[0] != apart[1]
    assert correlations([record, other])[0].of["mean"] == pytest.approx(np.mean(apart))


def test_a_constant_truth_has_no_rank_correlation(record: dict) -> None:
    flat = copy.deepcopy(record)
    flat["truth"]["strategies"] = dict.fromkeys(flat["truth"]["strategies"], 1.0)
    assert spearman([one for one in all_judged(flat) if one.part == "strategies"]) is None


@pytest.mark.parametrize("truth", [None, {}])
def test_without_a_truth_there_is_no_correlation_and_no_scatter(study: Study, truth: object, tmp_path: Path) -> None:
    lone = finished_study(tmp_path, {"auto": 1.0}, chosen=("auto",))
    path = lone.cells[0].folder / "figures.json"
    figures = read_json(path)
    figures["choice"] |= {"truth": truth}
    if truth is None:
        del figures["choice"]["truth"]
    write_json(path, figures)
    (choice,) = choices(Contest.read(lone, "parts"))
    assert choice.correlations == []
    assert scatter(choice) is None
    assert Results(lone).choices()[0]["rank correlation"] == "–"


def test_the_scatter_has_a_point_for_all_with_a_truth_and_numbers_of_the_table(study: Study) -> None:
    (choice,) = choices(Contest.read(study, "parts"))
    plot = scatter(choice)
    assert plot is not None
    assert len(plot.points) == len(choice.judged) == 12
    for point, one in zip(plot.points, choice.judged, strict=True):
        assert point.x == pytest.approx(plot.x.at(one.proxies["mean"]))
        assert point.y == pytest.approx(100 - plot.y.at(one.true))
        assert point.marked == one.chosen
    assert [point.label for point in plot.points] == ["1, 2", "", "3", "4"] + [""] * 8


def test_a_group_of_defects_that_was_not_made_is_a_dash(record: dict) -> None:
    structural = copy.deepcopy(record)
    for part in structural["proxies"].values():
        for proxy in part.values():
            proxy["mean"] = proxy["structural"]
            del proxy["logical"]
    assert correlations([structural])[0].of["logical"] is None
    assert correlations([structural])[0].of["mean"] == correlations([structural])[0].of["structural"]


def test_made_defects_show_kinds_in_turn_and_each_once(tmp_path: Path) -> None:
    both = finished_study(tmp_path, {"auto": 2.0, "autos": 1.0}, chosen=("auto", "autos"), good=12, defective=10)
    first, second = choices(Contest.read(both, "parts"))
    assert [card.kind for card in first.cards] == ["cut_paste", "scar", "doubled", "removed", "cut_paste", "scar"]
    assert all(card.picture.startswith("data:image/jpeg;base64,") for card in first.cards)
    assert second.cards == [], "both were chosen by the same pictures"


def test_the_outline_of_a_made_defect_is_drawn(tmp_path: Path) -> None:
    lone = finished_study(tmp_path, {"auto": 2.0}, chosen=("auto",))
    for mask in (tmp_path / "made").glob("mask-*.png"):
        mask.unlink()
    bare = choices(Contest.read(lone, "parts"))[0].cards
    outlined = choices(Contest.read(finished_study(tmp_path / "again", {"auto": 2.0}, chosen=("auto",)), "parts"))[
        0
    ].cards
    assert [card.kind for card in bare] == [card.kind for card in outlined]
    assert all(a.picture != b.picture and a.picture for a, b in zip(bare, outlined, strict=True))


def test_files_say_what_was_chosen(study: Study, record: dict) -> None:
    results = Results(study)
    results.write()
    rows = results.choices()
    assert [row["strategy"] for row in rows] == ["independent PCA (2 of 2)"]
    assert rows[0]["weights"].startswith("fused/discriminator 1.00, one/memory_bank 0.75")
    assert study.tables()[2] == rows
    stored = json.loads((study.folder / "results.json").read_text())["choices"]
    assert [(one["ensemble"], one["seed"]) for one in stored] == [("auto", 0), ("auto", 1)]
    assert stored[0]["proxies"] == record["proxies"]
    assert stored[0]["rank_correlation"]["all"]["mean"] == pytest.approx(correlations([record])[-1].of["mean"])
    assert "## Choices" in (study.folder / "results.md").read_text()


def test_a_study_without_a_choice_says_nothing_of_it(tmp_path: Path) -> None:
    plain = finished_study(tmp_path, {"a": 1.0, "b": 2.0})
    Results(plain).write()
    assert len(plain.tables()) == 2
    assert json.loads((tmp_path / "results.json").read_text())["choices"] == []
    assert "Choices" not in (tmp_path / "results.md").read_text()
