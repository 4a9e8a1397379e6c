"""The choice without labels: its arithmetic by itself, then carried out on drawn parts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import draw_parts, placed, small_config, small_member
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm
from sklearn.metrics import roc_auc_score

from manyeyes.backbones import EfficientAdConfig
from manyeyes.data import ImageBatches, ImageSet, read_image_set
from manyeyes.ensemble import Ensemble, EnsembleConfig, choosing, load_run, train_run, with_choice
from manyeyes.ensemble.choice import (
    Evidence,
    auroc,
    choose,
    combination,
    left_out_scores,
    proxies,
    resolved,
    verified,
    weak_members,
    weigh,
)
from manyeyes.ensemble.run import read_header
from manyeyes.ensemble.threshold import conformal_threshold
from manyeyes.errors import ConfigError, DataError, RunError
from manyeyes.fusion import (
    AutoConfig,
    ConcatenateConfig,
    GlobalPcaConfig,
    IndependentPcaConfig,
    PositiveSquareConfig,
    ScoreLevelConfig,
    SumConfig,
)
from manyeyes.heads import GaussianConfig, MemoryBankConfig

CANDIDATES = (ScoreLevelConfig(), GlobalPcaConfig(components=8), IndependentPcaConfig(components=8))
HEADS = ["global_pca/discriminator", "global_pca/memory_bank", "independent_pca/discriminator"]
HEADS += ["independent_pca/memory_bank", "one/memory_bank", "one/gaussian", "two/memory_bank"]


def auto(**fields: Any) -> EnsembleConfig:
    return small_config(**({"fusion": AutoConfig(candidates=CANDIDATES, defects=10)} | fields))


def evidence(sees: Mapping[str, float], normals: int = 40, defects: int = 60, seed: int = 0) -> Evidence:
    """Scores of heads that lift defects by so many deviations, structural and logical ones alike."""
    rng = np.random.default_rng(seed)
    normal = {name: rng.normal(size=normals) for name in HEADS}
    made = {name: rng.normal(size=defects) + sees.get(name, 0.0) for name in HEADS}
    return Evidence(normal, made, ["structural", "logical"] * (defects // 2))


@settings(max_examples=50, deadline=None)
@given(
    normal=st.lists(st.integers(-3, 3), min_size=1, max_size=20),
    made=st.lists(st.integers(-3, 3), min_size=1, max_size=20),
)
def test_auroc_equals_scikit_learn_ties_included(normal: Sequence[int], made: Sequence[int]) -> None:
    labels = [0] * len(normal) + [1] * len(made)
    found = auroc(np.array(normal, float), np.array(made, float))
    assert found == pytest.approx(roc_auc_score(labels, [*normal, *made]))


def test_a_proxy_is_the_mean_over_the_groups_that_are_there() -> None:
    normal, made = np.array([0.0, 1.0]), np.array([2.0, -1.0, 2.0])
    assert proxies(normal, made, ["structural", "logical", "logical"]) == {
        "structural": 1,
        "logical": 0.5,
        "mean": 0.75,
    }
    assert proxies(normal, made, ["logical"] * 3) == {"logical": pytest.approx(2 / 3), "mean": pytest.approx(2 / 3)}


def test_weights_rise_with_the_proxy_and_shrink_towards_equal_on_few_normals() -> None:
    by_head = [{"structural": value, "mean": value} for value in (1.0, 0.8, 0.5, 0.2)]
    many, few = weigh(by_head, 1000), weigh(by_head, 1)
    assert many[0] == 1
    assert (np.diff(many) <= 0).all()
    assert many[2] == many[3] < 0.05, "chance and worse weigh next to nothing"
    assert (few[1:] > many[1:]).all()
    assert (weigh([{"structural": 0.5, "mean": 0.5}] * 3, 50) == 1).all(), (
        "if nothing sees anything, all weigh the same"
    )


def test_a_head_that_sees_one_group_alone_keeps_half_its_weight() -> None:
    one = {"structural": 1.0, "logical": 0.5, "mean": 0.75}
    both = {"structural": 1.0, "logical": 1.0, "mean": 1.0}
    assert weigh([one, both], 10**9)[0] == pytest.approx(0.5)


def test_all_heads_that_see_weigh_the_same_and_the_others_less_the_less_they_see() -> None:
    """Made defects tell blind from seeing, and hardly good from better."""
    proxies = [{"structural": value, "mean": value} for value in (0.95, 0.85, 0.75, 0.65, 0.55, 0.5)]
    found = weigh(proxies, 10**9)
    worths = [((2 * value - 1) / 0.9) ** 4 for value in (0.95, 0.85, 0.75, 0.65, 0.55, 0.5)]
    np.testing.assert_allclose(found, [min(1, worth / 0.2) for worth in worths], atol=1e-6)
    assert found[1] == 1 > found[2] > found[3] > found[4] > found[5] == pytest.approx(0, abs=1e-6)


def test_branches_are_compared_by_their_best_heads() -> None:
    """Pooled heads see a small made defect less than it says of them; a blind branch has no weight all the same."""

    def apart(pooled: float, other: float) -> Any:
        values = [{"structural": value, "mean": value} for value in (0.9, 0.9, pooled, other)]
        return weigh(values, 10**9, [True, True, False, False])

    assert apart(0.8, 0.7).tolist()[:3] == [1, 1, 1]
    together = weigh([{"structural": value, "mean": value} for value in (0.9, 0.9, 0.8, 0.65)], 10**9)
    assert apart(0.8, 0.65)[3] > together[3], "compared with its own branch"
    assert apart(0.5, 0.5)[2:] == pytest.approx([0, 0], abs=1e-6)
    faint = (0.2 / 0.8) ** 4 / 0.2
    assert apart(0.6, 0.6)[2:] == pytest.approx([faint, faint]), "the best of a branch answers to the other"


def test_the_block_whose_map_sees_is_chosen_and_blind_heads_are_dropped() -> None:
    choice = choose(auto(), evidence({"global_pca/memory_bank": 6, "one/gaussian": 1.5}, normals=4000))
    assert choice.record["strategy"] == "global_pca"
    assert choice.config.fusion == CANDIDATES[1]
    assert choice.record["weights"]["fused/memory_bank"] == 1
    assert "two/memory_bank" in choice.record["dropped"]
    assert not isinstance(choice.config.fusion, AutoConfig)
    assert choice.config.combiner == PositiveSquareConfig(weights=choice.record["weights"])
    assert "chosen without a real defect" in choice.notes[0]


def test_scores_alone_are_enough_where_no_block_adds_anything() -> None:
    choice = choose(
        auto(), evidence({"one/memory_bank": 6, "global_pca/memory_bank": 6, "independent_pca/memory_bank": 6})
    )
    assert choice.record["strategy"] == "score_level"
    assert not choice.config.heads, "no map is fused that nobody judges"


def test_something_that_draws_a_map_is_kept_for_people_to_see() -> None:
    choice = choose(auto(), evidence({"one/gaussian": 6}, normals=4000))
    assert set(choice.record["weights"]) & {"one/memory_bank", "two/memory_bank", "fused/memory_bank"}


def test_left_out_scores_are_those_of_a_choice_that_never_saw_the_picture() -> None:
    found = evidence({name: 0.5 * place for place, name in enumerate(HEADS)}, normals=9)
    members = np.arange(9) % 4
    scores = left_out_scores(auto(), found, members)
    for group in range(4):
        kept = members != group
        others = replace(found, normal={name: values[kept] for name, values in found.normal.items()})
        others = replace(others, weak=weak_members(auto(), others))
        choice = choose(auto(), others)
        weights = {choice.origin[name]: weight for name, weight in choice.record["weights"].items()}
        apart = combination(auto(), others.normal, weights)
        expected = apart({name: values[~kept] for name, values in found.normal.items()})
        np.testing.assert_allclose(scores[~kept], expected)


def test_left_out_scores_take_what_depends_on_who_is_left_out() -> None:
    found = evidence({"one/memory_bank": 3.0}, normals=6)
    members = np.arange(6) % 3
    apart = {"one/memory_bank": np.tile(found.normal["one/memory_bank"], (3, 1))}
    plain = left_out_scores(auto(), found, members)
    np.testing.assert_array_equal(left_out_scores(auto(), found, members, apart), plain)
    apart["one/memory_bank"][1] += np.linspace(0, 5, 6)
    changed = left_out_scores(auto(), found, members, apart) != plain
    assert set(members[changed]) == {1}


def test_a_threshold_on_what_was_chosen_keeps_its_promise() -> None:
    """Heads that happen to put these normals low are preferred; on new ones they are no better."""
    known, held_out = [], []
    config, rng = auto(), np.random.default_rng(1)
    for seed in range(120):
        found = evidence({}, normals=9, seed=seed)
        found = replace(found, weak=weak_members(config, found))
        choice = choose(config, found)
        weights = {choice.origin[name]: weight for name, weight in choice.record["weights"].items()}
        fresh = combination(config, found.normal, weights)({name: rng.normal(size=200) for name in HEADS})
        for alarms, calibration in (
            (known, _of_the_same_choice(config, found, weights)),
            (held_out, left_out_scores(config, replace(found, weak=frozenset()), np.arange(9))),
        ):
            alarms.append((fresh >= conformal_threshold(torch.from_numpy(calibration), 0.1)[0]).mean())
    assert np.mean(held_out) <= 0.1 < np.mean(known)


def _of_the_same_choice(config: EnsembleConfig, found: Evidence, weights: Mapping[str, float]) -> np.ndarray:
    """Left out of the normalisers alone."""
    scores = []
    for index in range(found.normals):
        others = {name: np.delete(values, index) for name, values in found.normal.items()}
        judged = combination(config, others, weights)
        scores += judged({name: values[index : index + 1] for name, values in found.normal.items()}).tolist()
    return np.array(scores)


def test_without_made_defects_there_is_nothing_to_choose_by() -> None:
    with pytest.raises(DataError, match="at least one made defect"):
        Evidence({"a": np.zeros(3)}, {"a": np.zeros(0)}, [])


def test_a_member_that_nothing_looks_at_is_left_out() -> None:
    plain, origin = resolved(auto(), CANDIDATES[0], {"one/gaussian": 1.0, "one/memory_bank": 0.5})
    assert [member.name for member in plain.members] == ["one"]
    assert origin == {"one/memory_bank": "one/memory_bank", "one/gaussian": "one/gaussian"}
    plain, origin = resolved(auto(), CANDIDATES[2], {"independent_pca/memory_bank": 1.0})
    assert [member.name for member in plain.members] == ["one", "two"], "both are in the fused map"
    assert origin == {"fused/memory_bank": "independent_pca/memory_bank"}


def test_a_member_without_a_map_is_left_out_with_its_heads() -> None:
    """It may enter the fused map as far as its declaration goes, and has nothing to enter with."""
    weights = {"independent_pca/memory_bank": 1.0}
    plain, _ = resolved(auto(), CANDIDATES[2], weights, frozenset({"one"}))
    assert [member.name for member in plain.members] == ["one"]


def test_candidates_that_nothing_can_be_fused_for_are_passed_over() -> None:
    found = evidence({"one/gaussian": 3})
    own = {name for name in found.normal if name.split("/")[0] in ("one", "two")}
    normal, made = ({name: scores[name] for name in own} for scores in (found.normal, found.made))
    less = Evidence(normal, made, found.groups)
    assert choose(auto(), less).record["strategy"] == "score_level"
    with pytest.raises(ConfigError, match="no member has a feature map to fuse"):
        choose(auto(fusion=AutoConfig(candidates=CANDIDATES[1:], defects=10)), less)


def test_what_is_verified_is_the_auroc_of_the_same_combination() -> None:
    config, found = auto(), evidence({"one/memory_bank": 2})
    choice, rng = choose(config, found), np.random.default_rng(1)
    good, bad = ({name: rng.normal(size=n) + lift for name in HEADS} for n, lift in ((20, 0.0), (15, 1.0)))
    truth = verified(config, choice, found.normal, good, bad)
    assert truth["heads"]["two/memory_bank"] == auroc(good["two/memory_bank"], bad["two/memory_bank"])
    assert set(truth["strategies"]) == set(choice.record["proxies"]["strategies"])
    combined = combination(config, found.normal, dict.fromkeys(["one/memory_bank", "one/gaussian"], 1.0))
    assert truth["members"]["one"] == auroc(combined(good), combined(bad))


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"combiner": SumConfig()}, "leave combiner out"),
        ({"combiner": PositiveSquareConfig(weights={"one/gaussian": 2.0})}, "leave combiner out"),
        ({"fusion": AutoConfig(candidates=(ScoreLevelConfig(),))}, "besides score_level"),
        ({"heads": ()}, "at least one entry in heads is needed"),
        ({"members": (small_member("global_pca"),)}, "cannot be called 'global_pca'"),
        ({"members": (small_member("one", heads=()),)}, "at least one member needs heads"),
    ],
)
def test_a_config_that_leaves_nothing_to_choose_is_refused(change: dict[str, Any], why: str) -> None:
    values = {**auto().model_dump(mode="json"), **{k: _plain(v) for k, v in change.items()}}
    with pytest.raises(ConfigError, match=why):
        EnsembleConfig.parse(values, "test")


def _plain(value: Any) -> Any:
    return (
        [item.model_dump(mode="json") for item in value] if isinstance(value, tuple) else value.model_dump(mode="json")
    )


@pytest.mark.parametrize("fusion", [*CANDIDATES, ConcatenateConfig()], ids=lambda fusion: fusion.kind)
def test_any_ensemble_can_be_chosen_for(fusion: Any) -> None:
    heads = () if fusion.kind == "score_level" else (MemoryBankConfig(ratio=0.05),)
    chosen = with_choice(small_config(fusion=fusion, heads=heads), "free")
    assert isinstance(chosen.fusion, AutoConfig)
    assert fusion in chosen.fusion.candidates
    assert chosen.name == "free"
    assert chosen.heads, "candidates need heads to judge their maps"
    assert with_choice(chosen) == chosen


@pytest.fixture(scope="module")
def chosen(parts: ImageSet, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("chosen") / "run"
    train_run(auto(), parts, out, device="cpu", batch_size=4)
    return out


def test_a_run_of_a_choice_is_a_plain_run(chosen: Path, parts: ImageSet) -> None:
    config, details = read_header(chosen)
    assert not isinstance(config.fusion, AutoConfig)
    record = details["metrics"]["choice"]
    assert record["made_defects"] == {"structural": 5, "logical": 5}
    assert set(record["weights"]) == set(load_run(chosen).names)
    assert any("chosen without a real defect" in note for note in details["notes"])
    assert not (chosen / "features").exists()


def test_the_chosen_ensemble_scores_as_one_declared_and_trained_so(
    chosen: Path, parts: ImageSet, tmp_path: Path
) -> None:
    plain = train_run(read_header(chosen)[0], parts, tmp_path / "plain", device="cpu", batch_size=4)
    images = next(iter(ImageBatches(parts.test, plain.config.frame, 9))).images
    one, other = load_run(chosen).predict(images), plain.predict(images)
    torch.testing.assert_close(one.score, other.score, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(one.map, other.map, rtol=1e-4, atol=1e-4)
    assert torch.equal(one.alarm, other.alarm)


def test_every_head_judges_validation_normals_and_made_defects_once_members_first(
    parts: ImageSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, seen = Ensemble.read, []

    def counted(self: Ensemble, taps: Any, advance: Any, branches: Any = None) -> Any:
        seen.append((len(taps), [branch.name for branch in branches]))
        return read(self, taps, advance, branches)

    monkeypatch.setattr(Ensemble, "read", counted)
    train_run(auto(), parts, tmp_path / "run", device="cpu", batch_size=4)
    own, fused = ["one", "two"], ["global_pca", "independent_pca"]
    assert seen == [(4, own), (10, own), (4, fused), (10, fused)], "four normals are held out, ten defects made"


def weak_evidence(sees: Mapping[str, float], **fields: Any) -> Evidence:
    return replace(evidence(sees, normals=100, defects=200), **fields)


def test_a_member_is_weak_if_none_of_its_heads_sees_a_fifth_of_the_best() -> None:
    strong = {"one/memory_bank": 3.0, "one/gaussian": 3.0}
    assert weak_members(auto(), weak_evidence(strong)) == {"two"}
    assert weak_members(auto(), weak_evidence({**strong, "two/memory_bank": 2.0})) == frozenset()
    assert weak_members(auto(), weak_evidence({"two/memory_bank": 3.0})) == frozenset(), (
        "the only head of its branch is the best of it, and branches are not compared"
    )


def test_the_fewer_normals_there_are_the_blinder_a_weak_member_must_be() -> None:
    def regular(normals: int) -> Evidence:
        """Quantiles instead of draws, so that proxies hardly depend on how many there are."""
        sees = {"one/memory_bank": 3.0, "one/gaussian": 3.0, "two/memory_bank": 1.0}
        deviations = {n: norm.ppf((np.arange(n) + 0.5) / n) for n in (normals, 200)}
        made = {name: deviations[200] + sees.get(name, 0.0) for name in HEADS}
        return Evidence(dict.fromkeys(HEADS, deviations[normals]), made, ["structural", "logical"] * 100)

    assert weak_members(auto(), regular(400)) == {"two"}
    assert weak_members(auto(), regular(4)) == frozenset()


def test_the_fused_map_never_loses_all_its_members() -> None:
    sees = {"one/memory_bank": 3.0, "one/gaussian": 3.0}
    assert weak_members(auto(), weak_evidence(sees, entering=frozenset({"two"}))) == frozenset()


def test_a_weak_member_neither_enters_the_fused_map_nor_is_looked_at() -> None:
    sees = {"one/memory_bank": 1.0, "one/gaussian": 1.0, "global_pca/memory_bank": 6.0}
    choice = choose(auto(), weak_evidence(sees, weak=frozenset({"two"})))
    assert choice.record["strategy"] == "global_pca"
    assert [member.name for member in choice.config.members] == ["one"]
    assert choice.record["weak_members"] == ["two"]
    assert "two/memory_bank" in choice.record["dropped"]
    assert choice.notes[0] == "too weak on this part to be worth their trunks, left out: two"


def test_a_choice_that_leaves_a_member_out_is_the_ensemble_without_it(
    parts: ImageSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The fused maps are fitted without it, so that training the chosen config by itself gives the same verdicts."""
    monkeypatch.setattr(choosing, "weak_members", lambda config, evidence: frozenset({"two"}))
    chosen = train_run(auto(), parts, tmp_path / "chosen", device="cpu", batch_size=4)
    assert [member.name for member in chosen.config.members] == ["one"]
    plain = train_run(chosen.config, parts, tmp_path / "plain", device="cpu", batch_size=4)
    images = next(iter(ImageBatches(parts.test, plain.config.frame, 9))).images
    torch.testing.assert_close(chosen.predict(images).score, plain.predict(images).score, rtol=1e-4, atol=1e-4)


def test_resumed_when_finished_it_is_found_and_another_declaration_is_refused(
    chosen: Path, parts: ImageSet, tmp_path: Path
) -> None:
    said: list[str] = []

    class Heard:
        def step(self, what: str) -> Any:
            return lambda done, total: None

        def say(self, text: str) -> None:
            said.append(text)

    train_run(auto(), parts, chosen, device="cpu", resume=True, progress=Heard())
    assert "already finished" in said[0]
    with pytest.raises(RunError, match="another config"):
        train_run(auto(seed=1), parts, chosen, device="cpu", resume=True)


def test_the_choice_knows_nothing_of_the_test_pictures(parts: ImageSet, tmp_path: Path) -> None:
    fewer = replace(parts, test=parts.test[:1])
    found = [
        train_run(auto(), image_set, tmp_path / name, device="cpu", batch_size=4)
        for name, image_set in (("all", parts), ("fewer", fewer))
    ]
    assert found[0].config == found[1].config


def test_a_choice_with_a_member_whose_trunk_was_trained(tmp_path: Path) -> None:
    root = read_image_set(draw_parts(tmp_path / "parts", train=8))
    trunk = {"teacher": {"weights": "random", "image_size": 64}, "training": {"schedule": {"steps": 1, "crop": 48}}}
    extractor = EfficientAdConfig.parse({"trunk": trunk, "maps": ["student_teacher_pooled"]})
    members = (small_member("one"), small_member("pooled", extractor=extractor, heads=(GaussianConfig(),), fuse=False))
    ensemble = train_run(auto(members=members), root, tmp_path / "run", device="cpu", batch_size=4)
    images = placed(ensemble, root.test)
    assert torch.equal(load_run(tmp_path / "run").predict(images).score, ensemble.predict(images).score)
