"""What a member is worth: the names of reduced ensembles, scores combined again, and what the page says of both."""

from __future__ import annotations

import pytest
import torch
from conftest import small_config
from sklearn.metrics import roc_auc_score
from studies import finished_study

from manyeyes.ensemble import EnsembleConfig
from manyeyes.experiments.leaving_out import recombined, reduced, without, without_each_member
from manyeyes.experiments.report.contest import Contest
from manyeyes.experiments.report.contribution import losses
from manyeyes.fusion import FisherConfig, PositiveSquareConfig, StackingLogisticConfig

PICTURES = [
    {"heads": {"one/memory_bank": 1.0, "one/gaussian": -1.0, "two/memory_bank": 2.0, "fused/memory_bank": 3.0}},
    {"heads": {"one/memory_bank": 4.0, "one/gaussian": 0.5, "two/memory_bank": -2.0, "fused/memory_bank": 0.0}},
]


def test_reduced_ensembles_are_known_by_the_names_that_they_are_given() -> None:
    config = small_config()
    names = [config.name, *(one.name for one in without_each_member([config])), "other"]
    assert reduced(names) == {without("small", member): ("small", member) for member in ("one", "two")}
    assert reduced(["a-without-b"]) == {}, "there is no a"
    assert reduced(["a", "a-without-b", "a-without-b-without-c"])["a-without-b-without-c"] == ("a-without-b", "c")


@pytest.mark.parametrize("combiner", [PositiveSquareConfig(weights={"one/gaussian": 0.5, "two/memory_bank": 0.2})])
def test_the_rest_is_combined_as_if_the_member_had_never_been(combiner: PositiveSquareConfig) -> None:
    scores, reason = recombined(small_config(combiner=combiner), PICTURES, "one")
    assert reason == ""
    rest = torch.tensor([[p["heads"]["two/memory_bank"], p["heads"]["fused/memory_bank"]] for p in PICTURES])
    expected = PositiveSquareConfig(weights={"two/memory_bank": 0.2}).build(["two/memory_bank", "fused/memory_bank"])
    assert scores == pytest.approx(expected.combine(rest).numpy())


def test_what_cannot_be_combined_again_says_why() -> None:
    config = small_config()
    assert "no head of its own" in recombined(config, PICTURES, "three")[1]
    alone = [{"heads": {"one/memory_bank": 1.0}}]
    assert recombined(config, alone, "one") == (None, "nothing else judges")
    stacking = small_config(combiner=StackingLogisticConfig())
    assert "--leave-one-out" in recombined(stacking, PICTURES, "one")[1]
    assert recombined(small_config(combiner=FisherConfig()), PICTURES, "one")[0] is not None


def test_the_page_has_both_ways_of_leaving_out_the_most_needed_member_first(tmp_path) -> None:
    strengths = {"all": 1.2, "all-without-one": 0.1, "all-without-gone": 1.2}
    study = finished_study(tmp_path, strengths, seeds=(0, 1), good=12, defective=10)
    contest = Contest.read(study, "parts")
    found = {(loss.member, loss.refitted): loss for loss in losses(contest, "all")}
    assert set(found) == {("one", False), ("one", True), ("two", False), ("gone", True)}
    assert found["one", True].value == pytest.approx(contest.difference("all-without-one", "all").value)
    assert found["one", True].value < 0
    assert found["one", True].left + found["one", True].width == pytest.approx(50), "worse without it is to the left"
    changes = []
    for result in contest.results["all"]:
        config = EnsembleConfig.from_yaml(result.cell.run / "config.yaml")
        scores, _ = recombined(config, result.pictures, "two")
        changes.append(roc_auc_score(result.labels, scores) - result.figure("image", "auroc"))
    assert found["two", False].value == pytest.approx(sum(changes) / 2)
    values = [loss.value for loss in losses(contest, "all")]
    assert min(values) in values[:2]
    assert contest.whole == ["all"]


def test_a_member_alone_has_nothing_to_be_left_out_of(tmp_path, monkeypatch) -> None:
    contest = Contest.read(finished_study(tmp_path, {"all": 1.0}), "parts")
    monkeypatch.setitem(contest.first("all").figures, "members", {"one": {"image_auroc": 0.9}})
    assert losses(contest, "all") == []
