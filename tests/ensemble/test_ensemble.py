"""The ensemble as an object: every fusion, unlike members, scores that depend on nothing but the picture."""

from __future__ import annotations

import weakref
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import draw_parts, placed, save, small_config, small_member, small_trunk
from torch import Tensor

from manyeyes.backbones import PatchCoreConfig, TimmConfig, TrunkPool
from manyeyes.backbones.trunk import TimmTrunk
from manyeyes.data import ImageBatches, ImageSet, read_image_set
from manyeyes.ensemble import Ensemble, EnsembleConfig, Extraction, FeatureStore, Prediction, fit_ensemble
from manyeyes.ensemble.reading import require_difference
from manyeyes.ensemble.store import StoredTaps
from manyeyes.ensemble.training import split
from manyeyes.errors import DataError, NotFittedError, ShapeError
from manyeyes.experiments.engines import Notes
from manyeyes.fusion import (
    ConcatenateConfig,
    GlobalPcaConfig,
    IndependentPcaConfig,
    ScoreLevelConfig,
    StackingLogisticConfig,
)
from manyeyes.fusion.moments import Moments
from manyeyes.heads import GaussianConfig, MemoryBankConfig

CPU = torch.device("cpu")
BANK = MemoryBankConfig(ratio=0.05)
FUSIONS: dict[str, Any] = {
    "score_level": small_config(fusion=ScoreLevelConfig(), heads=()),
    "global_pca": small_config(fusion=GlobalPcaConfig(components=16)),
    "independent_pca": small_config(fusion=IndependentPcaConfig(components=0.9)),
    "concatenate": small_config(fusion=ConcatenateConfig()),
}
every_fusion = pytest.mark.parametrize("config", FUSIONS.values(), ids=FUSIONS.keys())


def extraction(folder: Path, **options: Any) -> Extraction:
    return Extraction(FeatureStore(folder, "float16"), CPU, 4, **options)


def fitted(config: EnsembleConfig, image_set: ImageSet, folder: Path, **options: Any) -> Ensemble:
    return fit_ensemble(config, image_set, extraction(folder), **options)[0]


def scored(config: EnsembleConfig, image_set: ImageSet, folder: Path) -> Prediction:
    ensemble = fitted(config, image_set, folder)
    return ensemble.predict(placed(ensemble, image_set.test))


@pytest.fixture
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One for all tests of this file: what is fitted here looks through the same two trunks."""
    return tmp_path_factory.getbasetemp() / "ensemble-features"


@every_fusion
def test_every_fusion_sees_the_holes(config: EnsembleConfig, parts: ImageSet, store: Path) -> None:
    ensemble = fitted(config, parts, store)
    prediction = ensemble.predict(placed(ensemble, parts.test))
    assert len(prediction) == 9
    assert prediction.map.shape == prediction.mask.shape == (9, 64, 64)
    assert list(prediction.heads) == ensemble.names
    assert set(prediction.members) == {"one", "two"}
    assert set(prediction.branches) == {"picturable", "unpicturable"}
    for value in (prediction.score, prediction.map, *prediction.heads.values(), *prediction.branches.values()):
        assert torch.isfinite(value).all()
    good, holes = prediction.score[:5], prediction.score[5:]
    assert good.max() < holes.min()
    assert torch.equal(prediction.alarm, prediction.score >= ensemble.score_threshold_)
    assert torch.equal(prediction.mask, prediction.map >= ensemble.map_threshold_)


@every_fusion
def test_a_batch_scores_as_its_images_one_by_one(config: EnsembleConfig, parts: ImageSet, store: Path) -> None:
    ensemble = fitted(config, parts, store)
    batch = placed(ensemble, parts.test)
    together = ensemble.predict(batch)
    alone = Prediction.cat([ensemble.predict(image[None]) for image in batch.flip(0)])
    torch.testing.assert_close(alone.score.flip(0), together.score, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(alone.map.flip(0), together.map, rtol=1e-4, atol=1e-3)
    assert torch.equal(alone.alarm.flip(0), together.alarm)


def test_same_seed_same_scores_and_another_seed_others(parts: ImageSet, store: Path) -> None:
    # The head that learns by steps, on a split that the set itself gives: nothing but the seed differs.
    own_split = ImageSet(parts.name, parts.root, parts.layout, parts.train[:7], parts.train[7:], parts.test)
    first, again, other = (scored(small_config(seed=seed), own_split, store) for seed in (0, 0, 1))
    assert torch.equal(first.score, again.score)
    assert torch.equal(first.map, again.map)
    name = "fused/discriminator"
    assert not torch.equal(first.heads[name], other.heads[name])


def test_another_seed_holds_out_other_pictures(parts: ImageSet, store: Path) -> None:
    first, other = (fitted(small_config(seed=seed), parts, store) for seed in (0, 1))
    assert not torch.equal(first.validation_scores_, other.validation_scores_)


def test_each_trunk_runs_once_per_batch_whatever_is_fitted(
    parts: ImageSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: Counter[str] = Counter()
    forward = TimmTrunk.forward

    def counted(self: TimmTrunk, pictures: Tensor, stages: Any) -> dict[str, Tensor]:
        seen[self.key] += 1
        return forward(self, pictures, stages)

    monkeypatch.setattr(TimmTrunk, "forward", counted)
    # Two members on one trunk, at unlike stages, and a third on its own.
    other_stage = PatchCoreConfig(trunk=small_trunk(), stages=(3,))
    members = (
        small_member("one", heads=(BANK, GaussianConfig())),
        small_member("deep", extractor=other_stage, fusion=GlobalPcaConfig(components=8)),
        small_member("two", 1),
    )
    config = small_config(members=members)
    ensemble = fitted(config, parts, tmp_path)
    assert list(seen.values()) == [3, 3], "10 normals in batches of 4, two trunks"
    fitted(small_config(members=members, seed=1, fusion=GlobalPcaConfig(components=8)), parts, tmp_path)
    assert sum(seen.values()) == 6, "another seed and another fusion read the store"
    seen.clear()
    ensemble.predict(placed(ensemble, parts.test))
    assert list(seen.values()) == [1, 1]


def test_a_members_own_block_and_the_fused_one_take_its_moments_once(
    parts: ImageSet, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: Counter[Moments] = Counter()
    update = Moments.update

    def counted(self: Moments, chunk: Tensor, **options: bool) -> Moments:
        seen[self] += len(chunk)
        return update(self, chunk, **options)

    monkeypatch.setattr(Moments, "update", counted)
    members = (small_member("one", heads=(BANK,)), small_member("two", 1, heads=(BANK,)))
    fitted(small_config(members=members, fusion=IndependentPcaConfig(components=8)), parts, store)
    assert len(seen) == 2, "two members, two blocks each"


def test_reading_scores_keeps_no_batch(parts: ImageSet, store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Small tensors that stay between large ones that go cost gigabytes on many pictures: the heap falls in pieces."""
    ensemble = fitted(small_config(), parts, store)
    config = ensemble.config
    taps, _, _ = FeatureStore(store).extract(
        ensemble.eyes, parts.train, config.frame.sized(ensemble.canvas), batch_size=4, device=CPU
    )
    judged: list[weakref.ref[Tensor]] = []
    alive: list[int] = []
    judge = Ensemble.judge

    def watched(self: Ensemble, batch: Any, branches: Any = None) -> Any:
        alive.append(sum(reference() is not None for reference in judged[:-1]))
        judgement = judge(self, batch, branches)
        judged.extend(weakref.ref(value) for value in (*judgement.scores.values(), *judgement.maps.values()))
        return judgement

    expected = ensemble.read(taps, lambda *_: None)
    monkeypatch.setattr(Ensemble, "judge", watched)
    scores, maps = ensemble.read(taps, lambda *_: None)
    kept = len(ensemble.names) + len(ensemble.map_normalisers)
    assert len(alive) == 3
    assert max(alive) < kept, "at most the batch before this one"
    for found, wanted in zip((scores, maps), expected, strict=True):
        assert all(len(value) == 10 and torch.equal(value, wanted[name]) for name, value in found.items())


class InMemory:
    """Taps that no store has seen: the same tensors in every pass, so that a change would stay."""

    def __init__(self, batches: list[dict[str, Tensor]], half: bool = True) -> None:
        self.batches, self.scratch, self.half, self.fingerprint = batches, None, half, "memory"

    def __iter__(self) -> Any:
        return iter(self.batches)

    def __len__(self) -> int:
        return sum(len(next(iter(batch.values()))) for batch in self.batches)

    def only(self, keys: Any) -> InMemory:
        return self


def test_fit_leaves_the_taps_as_they_were(parts: ImageSet, store: Path) -> None:
    config = small_config()
    ensemble = Ensemble(config)
    frame = config.frame.sized(ensemble.canvas)
    taps, _, _ = FeatureStore(store).extract(ensemble.eyes, parts.train, frame, batch_size=4, device=CPU)
    batches = list(taps)
    before = [{key: value.clone() for key, value in batch.items()} for batch in batches]
    ensemble.fit(InMemory(batches[:2]), InMemory(batches[2:]))
    ensemble.predict_taps(batches[0])
    for old, new in zip(before, batches, strict=True):
        assert all(torch.equal(old[key], new[key]) for key in old)


@pytest.mark.parametrize("fusion", ["score_level", "independent_pca"])
def test_fit_on_stored_taps_equals_fit_without_a_store(fusion: str, parts: ImageSet, tmp_path: Path) -> None:
    config = FUSIONS[fusion].model_copy(update={"store": "float32"})
    precise = Extraction(FeatureStore(tmp_path, "float32"), CPU, 4, precision="float32")
    stored = fit_ensemble(config, parts, precise)[0]
    without = Ensemble(config)
    frame = config.frame.sized(without.canvas)
    train, validation = (
        InMemory([dict(without.eyes(batch.images)) for batch in ImageBatches(samples, frame, 4)], half=False)
        for samples in split(parts, config)
    )
    without.fit(train, validation)
    batch = placed(stored, parts.test)
    torch.testing.assert_close(stored.predict(batch).score, without.predict(batch).score, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(stored.score_threshold_, without.score_threshold_, rtol=1e-3, atol=1e-3)


def test_half_precision_in_the_store_costs_digits_and_no_verdict(parts: ImageSet, store: Path, tmp_path: Path) -> None:
    config = FUSIONS["score_level"].model_copy(update={"store": "float32"})
    precise = fit_ensemble(config, parts, Extraction(FeatureStore(tmp_path, "float32"), CPU, 4))[0]
    half = fitted(FUSIONS["score_level"], parts, store)
    batch = placed(precise, parts.test)
    found, expected = half.predict(batch), precise.predict(batch)
    torch.testing.assert_close(found.score, expected.score, rtol=0.1, atol=0.5)
    assert torch.equal(found.alarm, expected.alarm)


def test_what_is_fitted_judges_in_full_precision_within_autocast(parts: ImageSet, store: Path) -> None:
    ensemble = fitted(small_config(), parts, store)
    taps = dict(ensemble.eyes(placed(ensemble, parts.test)))
    expected = ensemble.predict_taps(taps)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = ensemble.predict_taps(taps)
        assert ensemble.predict(placed(ensemble, parts.test)).score.dtype == torch.float32
    assert torch.equal(found.score, expected.score)
    assert torch.equal(found.map, expected.map)


def test_a_second_fit_forgets_the_first(parts: ImageSet, store: Path, tmp_path: Path) -> None:
    others = read_image_set(draw_parts(tmp_path / "others", train=8, seed=3))
    once = fitted(small_config(), parts, store)
    twice = fitted(small_config(), others, tmp_path / "features")
    fit_ensemble(small_config(), parts, extraction(store), ensemble=twice)
    for (name, mine), yours in zip(once.state_dict().items(), twice.state_dict().values(), strict=True):
        assert torch.equal(mine, yours), name
    assert once.notes == twice.notes


def test_features_that_are_not_finite_are_no_verdict(parts: ImageSet, store: Path) -> None:
    ensemble = fitted(small_config(), parts, store)
    taps = dict(ensemble.eyes(placed(ensemble, parts.test)))
    key = next(iter(taps))
    taps[key] = taps[key].clone()
    taps[key][3, 0, 0, 0] = float("nan")
    with pytest.raises(DataError, match=rf"features {key}: not finite; .*--precision float32"):
        ensemble.predict_taps(taps)


def test_pictures_are_told_apart_by_those_that_can_be_read() -> None:
    values = torch.full((1, 3, 4, 4), 0.5), torch.ones(1, 3, 4, 4), torch.zeros(0, 3, 4, 4)
    grey, white, none = ({"picture": value} for value in values)
    require_difference([none, white, none, grey])
    require_difference([none, white])
    with pytest.raises(DataError, match="all 2 training pictures are equal"):
        require_difference([none, white, white])


def test_use_before_fit_is_refused(parts: ImageSet) -> None:
    ensemble = Ensemble(small_config())
    with pytest.raises(NotFittedError, match=r"call fit, or load a run"):
        ensemble.predict(torch.rand(1, 3, 64, 64))


def test_members_with_unpicturable_heads_only(parts: ImageSet, store: Path) -> None:
    members = (small_member("one", heads=(GaussianConfig(),)), small_member("two", 1, heads=(GaussianConfig(),)))
    config = small_config(members=members, fusion=ScoreLevelConfig(), heads=())
    ensemble = fitted(config, parts, store)
    prediction = ensemble.predict(placed(ensemble, parts.test))
    assert not ensemble.picturable
    assert set(prediction.branches) == {"unpicturable"}
    assert not prediction.map.any()
    assert not prediction.mask.any()
    assert prediction.score[:5].max() < prediction.score[5:].min()


def test_a_member_without_a_map_joins_at_score_level_and_the_run_says_so(parts: ImageSet, store: Path) -> None:
    pooled = TimmConfig(trunk=small_trunk(1), stages=("pooled",))
    members = (small_member("one", heads=()), small_member("whole", extractor=pooled, heads=(GaussianConfig(),)))
    ensemble = fitted(small_config(members=members), parts, store)
    assert "member 'whole' has no feature map to fuse; it joins the score at score level instead" in ensemble.notes
    prediction = ensemble.predict(placed(ensemble, parts.test))
    assert list(prediction.heads) == ["fused/discriminator", "fused/memory_bank", "whole/gaussian"]
    assert set(prediction.members) == {"whole"}

    ensemble = Ensemble(small_config(members=members[1:]))
    assert "no member has a feature map to fuse; scores are fused instead" in ensemble.notes
    assert ensemble.names == ["whole/gaussian"]

    with pytest.raises(DataError, match=r"'whole' has no feature map to fuse and no head: give it heads"):
        Ensemble(small_config(members=(members[0], small_member("whole", extractor=pooled, heads=()))))
    with pytest.raises(ShapeError, match=r"none of the members gives a spatial map"):
        Ensemble(small_config(members=(members[0], small_member("whole", extractor=pooled, heads=(BANK,)))))


def test_a_member_kept_out_of_the_fused_map(parts: ImageSet, store: Path) -> None:
    members = (small_member("one"), small_member("two", 1, fuse=False))
    ensemble = Ensemble(small_config(members=members))
    assert [spec.name for spec in ensemble.branches[0].specs] == ["one/1", "one/2"]  # type: ignore[union-attr]
    assert "two/memory_bank" in ensemble.names


def test_pictures_of_unlike_sizes(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    for index, (h, w) in enumerate([(40, 90), (64, 64), (33, 47), (128, 20), (9, 8), (50, 51)]):
        values = torch.randint(0, 255, (h, w, 3), generator=generator, dtype=torch.uint8)
        save(tmp_path / f"parts/{index}.png", values.numpy())
    image_set = read_image_set(tmp_path / "parts")
    ensemble = fitted(small_config(), image_set, tmp_path / "features")
    prediction = ensemble.predict(placed(ensemble, image_set.train))
    assert torch.isfinite(prediction.score).all()
    assert prediction.map.shape == (6, 64, 64)


@pytest.mark.parametrize("value", [0, 128])
def test_all_pictures_equal(value: int, tmp_path: Path) -> None:
    flat = torch.full((48, 48, 3), value, dtype=torch.uint8).numpy()
    for index in range(6):
        save(tmp_path / f"parts/{index}.png", flat)
    image_set = read_image_set(tmp_path / "parts")
    with pytest.raises(DataError, match=r"all 4 training pictures are equal.*give different ones"):
        fitted(small_config(), image_set, tmp_path / "features")
    # One picture that differs among equal ones is enough.
    save(tmp_path / "parts/7.png", flat // 2 + 40)
    own_split = ImageSet("x", tmp_path, "folder", read_image_set(tmp_path / "parts").train, image_set.train[:3], ())
    ensemble = fitted(small_config(), own_split, tmp_path / "features")
    assert torch.isfinite(ensemble.predict(torch.rand(2, 3, 64, 64)).score).all()


def test_one_and_two_training_pictures(tmp_path: Path) -> None:
    banks = small_config(members=(small_member("one"),), heads=(BANK,))
    alone = read_image_set(draw_parts(tmp_path / "alone", train=1))
    with pytest.raises(DataError, match=r"only one training picture; at least 2 are needed"):
        fitted(banks, alone, tmp_path / "features")
    pair = read_image_set(draw_parts(tmp_path / "pair", train=2))
    ensemble = fitted(banks, pair, tmp_path / "features")
    # Nothing can be left out of its own normaliser, so nothing is promised, by hand or by rate.
    assert any("rate of 1.000 at best, not 0.050 (the threshold is a guess)" in note for note in ensemble.notes)
    assert float(ensemble.guaranteed_rate_) == 1
    assert float(ensemble.alarm_at(threshold=99.0).guaranteed_rate_) == 1
    assert torch.isfinite(ensemble.predict(placed(ensemble, pair.test)).score).all()
    with pytest.raises(DataError, match=r"gaussian: expected at least 2 normal images"):
        fitted(small_config(), pair, tmp_path / "features")


def test_a_set_with_its_own_validation_split_and_one_training_picture(parts: ImageSet, tmp_path: Path) -> None:
    own = ImageSet(parts.name, parts.root, parts.layout, parts.train[:1], parts.train[1:5], parts.test)
    ensemble = fitted(small_config(members=(small_member("one"),), heads=(BANK,)), own, tmp_path)
    assert len(ensemble.validation_scores_) == 4


def test_combiners_that_learn_from_labels(parts: ImageSet, store: Path) -> None:
    config = small_config(combiner=StackingLogisticConfig())
    assert Ensemble(config).needs_labels
    for labelled in (None, ImageSet("x", parts.root, "folder", parts.train, (), ())):
        with pytest.raises(DataError, match=r"stacking_logistic learns from labelled pictures: .*--labelled"):
            fitted(config, parts, store, labelled=labelled)
    ensemble = fitted(config, parts, store, labelled=parts)
    told = Notes()
    fitted(small_config(), parts, store, labelled=parts, progress=told)
    assert told.said[-1] == "combiner positive_square learns from good pictures alone: labelled ones not used"
    prediction = ensemble.predict(placed(ensemble, parts.test))
    assert prediction.score[:5].max() < prediction.score[5:].min()
    with pytest.raises(DataError, match=r"good and defective images to fit a combiner on, got only good ones"):
        fitted(config, parts, store, labelled=ImageSet("x", parts.root, "folder", parts.train, (), parts.test[:5]))


def test_the_pool_shares_trunks_between_ensembles() -> None:
    pool = TrunkPool()
    one, two = Ensemble(small_config(), pool), Ensemble(small_config(seed=1), pool)
    assert {id(trunk) for trunk in one.eyes.each()} == {id(trunk) for trunk in two.eyes.each()}
    assert not any(parameter.requires_grad for parameter in one.parameters())


def test_the_canvas_is_the_largest_input_unless_the_frame_says_otherwise() -> None:
    large = PatchCoreConfig(trunk=small_trunk().model_copy(update={"size": (96, 64)}), stages=(2,))
    members = (small_member("one"), small_member("large", extractor=large))
    config = small_config(members=members)
    assert Ensemble(config).canvas == (64, 64)
    assert Ensemble(config.model_copy(update={"frame": config.frame.model_copy(update={"size": None})})).canvas == (
        96,
        64,
    )


def test_taps_of_a_subset_are_those_of_its_pictures(parts: ImageSet, store: Path) -> None:
    ensemble = Ensemble(small_config())
    frame = small_config().frame
    taps, kept, _ = FeatureStore(store).extract(ensemble.eyes, parts.train, frame, batch_size=4, device=CPU)
    assert isinstance(taps, StoredTaps)
    assert kept == parts.train
    key = taps.arrays.keys().__iter__().__next__()
    whole = torch.cat([batch[key] for batch in taps])
    some = torch.cat([batch[key] for batch in taps.subset([7, 0, 3]).only([key])])
    assert torch.equal(some, whole[[7, 0, 3]])
    expected = ensemble.eyes(placed(ensemble, parts.train))[key]
    torch.testing.assert_close(whole, expected, rtol=2e-3, atol=1e-3)
