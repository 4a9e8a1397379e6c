"""Every kind of every union of this room, crossed with every check of its contract; a new kind needs an example."""

from __future__ import annotations

from typing import Any, get_args

import pytest
import torch
from pydantic import ValidationError

from manyeyes.config import Config
from manyeyes.errors import ConfigError, DataError, NotFittedError, ShapeError
from manyeyes.fitted import Fitted
from manyeyes.fusion import CombinerConfig, FusionConfig, NormaliserConfig, ScoreLevelConfig
from manyeyes.maps import MapSpec

SPECS = (MapSpec("a/fine", 5, 4, (6, 7)), MapSpec("a/coarse", 7, 8, (3, 4)), MapSpec("b/only", 4, 8, (4, 4)))
GRID = (6, 7)
NAMES = ("first", "second", "third")

FUSIONS: dict[str, list[dict[str, Any]]] = {
    "global_pca": [{"components": 6}, {"components": 0.9, "balance": False, "whiten": 1}],
    "independent_pca": [{"components": 6}, {"components": 7, "per_member": {"a": 0.8}, "balance": False, "whiten": 0}],
    "concatenate": [{}, {"balance": False}],
    "score_level": [{}],
}
NORMALISERS: dict[str, list[dict[str, Any]]] = {
    "zscore": [{}],
    "robust": [{}],
    "minmax": [{}],
    "quantile": [{}],
    "tail": [{}],
}
COMBINERS: dict[str, list[dict[str, Any]]] = {
    "sum": [{}],
    "mean": [{}],
    "max": [{}],
    "weighted": [{"weights": {"first": 1.0, "third": 0.5}}],
    "positive_square": [{}],
    "vote": [{}],
    "fisher": [{"scale": "z"}, {"scale": "tail"}],
    "stacking_logistic": [{}],
    "stacking_forest": [{"trees": 7}],
}


def kinds(union: Any) -> list[type[Config]]:
    return list(get_args(get_args(union)[0]))


def examples(union: Any, fields: dict[str, list[dict[str, Any]]]) -> list[Config]:
    found = []
    for config in kinds(union):
        kind = config.model_fields["kind"].default
        assert kind in fields, f"no example of kind {kind}: add one to this test"
        found += [config(**values) for values in fields[kind]]
    return found


ALL_FUSIONS = examples(FusionConfig, FUSIONS)
MAP_FUSIONS = [config for config in ALL_FUSIONS if not isinstance(config, ScoreLevelConfig)]
ALL_NORMALISERS = examples(NormaliserConfig, NORMALISERS)
ALL_COMBINERS = examples(CombinerConfig, COMBINERS)


def name(config: Config) -> str:
    return "-".join(str(value) for value in config.model_dump().values())


each_fusion = pytest.mark.parametrize("config", MAP_FUSIONS, ids=name)
each_normaliser = pytest.mark.parametrize("config", ALL_NORMALISERS, ids=name)
each_combiner = pytest.mark.parametrize("config", ALL_COMBINERS, ids=name)


def batches(seed: int, sizes: tuple[int, ...] = (3, 1, 4), offset: float = 0.0) -> list[tuple[torch.Tensor, ...]]:
    random = torch.Generator().manual_seed(seed)
    mix = [torch.randn(spec.channels, spec.channels, generator=random) for spec in SPECS]
    return [
        tuple(
            torch.einsum("dc,bchw->bdhw", matrix, torch.randn(b, spec.channels, *spec.grid, generator=random)) + offset
            for matrix, spec in zip(mix, SPECS, strict=True)
        )
        for b in sizes
    ]


def scores(seed: int, n: int = 40, k: int = 3) -> torch.Tensor:
    return torch.randn(n, k, generator=torch.Generator().manual_seed(seed))


def labels(n: int = 40) -> torch.Tensor:
    return (torch.arange(n) % 3 == 0).long()


def reload(fitted: Fitted, fresh: Fitted) -> Fitted:
    fresh.load_state_dict(fitted.state_dict())
    return fresh


@pytest.mark.parametrize("config", ALL_FUSIONS + ALL_NORMALISERS + ALL_COMBINERS, ids=name)
class TestConfig:
    def test_survives_a_round_trip(self, config: Config) -> None:
        assert type(config).parse(config.model_dump(mode="json")) == config

    def test_refuses_unknown_fields(self, config: Config) -> None:
        with pytest.raises(ConfigError, match="colour: unknown field"):
            type(config).parse({**config.model_dump(mode="json"), "colour": "red"})

    def test_cannot_be_changed(self, config: Config) -> None:
        with pytest.raises(ValidationError, match="frozen"):
            config.kind = "other"  # type: ignore[attr-defined]

    def test_describes_every_field(self, config: Config) -> None:
        fields = [field for key, field in type(config).model_fields.items() if key != "kind"]
        assert all(field.description for field in fields)


@each_fusion
class TestFusion:
    def test_refuses_use_before_fit(self, config: Any) -> None:
        fusion = config.build(SPECS, GRID)
        for use in (lambda: fusion.transform(batches(0)[0]), fusion.projections, fusion.shares):
            with pytest.raises(NotFittedError):
                use()

    def test_fit_returns_self_and_declares_channels(self, config: Any) -> None:
        fusion = config.build(SPECS, GRID)
        assert fusion.fit(batches(0)) is fusion
        assert fusion.transform(batches(0)[0]).shape == (3, fusion.channels, *GRID)

    def test_a_second_fit_forgets_the_first(self, config: Any) -> None:
        twice = config.build(SPECS, GRID).fit(batches(0, offset=9.0)).fit(batches(1))
        once = config.build(SPECS, GRID).fit(batches(1))
        maps = batches(2)[0]
        assert torch.equal(twice.transform(maps), once.transform(maps))

    def test_batch_sizes_do_not_matter(self, config: Any) -> None:
        together = tuple(torch.cat(parts) for parts in zip(*batches(0, (2, 3, 3)), strict=True))
        alone = [tuple(value[i : i + 1] for value in together) for i in range(8)]
        first, second = (config.build(SPECS, GRID).fit(data) for data in ([together], alone))
        torch.testing.assert_close(first.transform(together), second.transform(together), atol=1e-4, rtol=1e-4)

    def test_loads_what_it_saved(self, config: Any) -> None:
        fusion = config.build(SPECS, GRID).fit(batches(0))
        again = reload(fusion, config.build(SPECS, GRID))
        maps = batches(2)[0]
        assert torch.equal(fusion.transform(maps), again.transform(maps))
        assert fusion.shares() == again.shares()
        assert fusion.channels == again.channels

    def test_a_batch_equals_its_images_one_by_one(self, config: Any) -> None:
        fusion = config.build(SPECS, GRID).fit(batches(0))
        maps = batches(2)[0]
        alone = torch.cat([fusion.transform(tuple(value[i : i + 1] for value in maps)) for i in range(3)])
        torch.testing.assert_close(fusion.transform(maps), alone, atol=1e-5, rtol=1e-5)

    def test_leaves_its_input_alone(self, config: Any) -> None:
        data = batches(0)
        fusion = config.build(SPECS, GRID).fit(data)
        fusion.transform(data[0])
        for maps, original in zip(data, batches(0), strict=True):
            assert all(torch.equal(*pair) for pair in zip(maps, original, strict=True))

    def test_keeps_no_gradient(self, config: Any) -> None:
        maps = tuple(value.requires_grad_() for value in batches(0)[0])
        fusion = config.build(SPECS, GRID).fit([maps])
        assert not fusion.transform(maps).requires_grad
        assert not any(value.requires_grad for value in fusion.state_dict().values())

    @pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
    def test_refuses_what_is_not_finite(self, config: Any, bad: float) -> None:
        data = batches(0)
        data[1][2][0, 1, 2, 3] = bad
        with pytest.raises(DataError, match="finite"):
            config.build(SPECS, GRID).fit(data)

    def test_refuses_no_image(self, config: Any) -> None:
        with pytest.raises(DataError, match="got none"):
            config.build(SPECS, GRID).fit([])

    def test_refuses_maps_that_were_not_declared(self, config: Any) -> None:
        fusion = config.build(SPECS, GRID)
        with pytest.raises(ShapeError, match="expected 3 maps"):
            fusion.fit([batches(0)[0][:2]])
        with pytest.raises(ShapeError, match="a/coarse"):
            fusion.fit([(batches(0)[0][0],) * 3])

    def test_refuses_maps_that_cannot_be_fused(self, config: Any) -> None:
        with pytest.raises(ShapeError, match="c/flow"):
            config.build((*SPECS, MapSpec("c/flow", 3, 8, (1, 1), spatial=False)), GRID)

    def test_constant_features_stay_finite(self, config: Any) -> None:
        maps = tuple(torch.full((2, spec.channels, *spec.grid), 3.7) for spec in SPECS)
        fusion = config.build(SPECS, GRID).fit([maps])
        assert torch.isfinite(fusion.transform(maps)).all()
        assert torch.isfinite(fusion.transform(batches(0)[0])).all()
        assert sum(fusion.shares().values()) == pytest.approx(0)

    def test_shares_sum_to_one(self, config: Any) -> None:
        shares = config.build(SPECS, GRID).fit(batches(0)).shares()
        assert list(shares) == ["a", "b"]
        assert sum(shares.values()) == pytest.approx(1, abs=1e-5)


@each_normaliser
class TestNormaliser:
    def test_refuses_use_before_fit(self, config: Any) -> None:
        with pytest.raises(NotFittedError):
            config.build().transform(torch.zeros(3))

    def test_fit_returns_self_and_forgets(self, config: Any) -> None:
        normaliser = config.build()
        assert normaliser.fit(scores(0) + 9) is normaliser
        normaliser.fit(scores(1))
        assert torch.equal(normaliser.transform(scores(2)), config.build().fit(scores(1)).transform(scores(2)))

    def test_loads_what_it_saved(self, config: Any) -> None:
        normaliser = config.build().fit(scores(0))
        again = reload(normaliser, config.build())
        assert torch.equal(normaliser.transform(scores(2)), again.transform(scores(2)))

    def test_a_batch_equals_its_scores_one_by_one(self, config: Any) -> None:
        normaliser = config.build().fit(scores(0))
        alone = torch.stack([normaliser.transform(value) for value in scores(2).flatten()])
        assert torch.equal(normaliser.transform(scores(2)), alone.reshape(40, 3))

    def test_leaves_its_input_alone(self, config: Any) -> None:
        fit, new = scores(0), scores(2)
        config.build().fit(fit).transform(new)
        assert torch.equal(fit, scores(0))
        assert torch.equal(new, scores(2))

    @pytest.mark.parametrize("bad", [float("nan"), float("inf")])
    def test_refuses_what_is_not_finite(self, config: Any, bad: float) -> None:
        with pytest.raises(DataError, match="finite"):
            config.build().fit(torch.tensor([0.0, 1.0, bad]))

    def test_refuses_no_score(self, config: Any) -> None:
        with pytest.raises(DataError, match="got none"):
            config.build().fit(torch.zeros(0))

    def test_unknown_stays_unknown(self, config: Any) -> None:
        assert config.build().fit(scores(0)).transform(torch.tensor(float("nan"))).isnan()


@each_combiner
class TestCombiner:
    def test_refuses_use_before_fit(self, config: Any) -> None:
        combiner = config.build(NAMES)
        if combiner.is_fitted:
            assert not list(combiner.state_dict())  # nothing to learn, so ready at once
            assert torch.equal(combiner.combine(scores(2)), config.build(NAMES).fit(scores(0)).combine(scores(2)))
        else:
            with pytest.raises(NotFittedError):
                combiner.combine(scores(0))

    def test_fit_returns_self_and_forgets(self, config: Any) -> None:
        combiner = config.build(NAMES)
        assert combiner.fit(scores(0) * 5, labels()) is combiner
        combiner.fit(scores(1), labels())
        once = config.build(NAMES).fit(scores(1), labels())
        assert torch.equal(combiner.combine(scores(2)), once.combine(scores(2)))

    def test_loads_what_it_saved(self, config: Any) -> None:
        combiner = config.build(NAMES).fit(scores(0), labels())
        again = reload(combiner, config.build(NAMES))
        assert torch.equal(combiner.combine(scores(2)), again.combine(scores(2)))

    def test_a_batch_equals_its_images_one_by_one(self, config: Any) -> None:
        combiner = config.build(NAMES).fit(scores(0), labels())
        together = combiner.combine(scores(2))
        assert together.shape == (40,)
        alone = torch.cat([combiner.combine(row[None]) for row in scores(2)])
        torch.testing.assert_close(together, alone, atol=1e-6, rtol=1e-6)

    def test_leaves_its_input_alone(self, config: Any) -> None:
        fit, truth, new = scores(0), labels(), scores(2)
        config.build(NAMES).fit(fit, truth).combine(new)
        assert torch.equal(fit, scores(0))
        assert torch.equal(truth, labels())
        assert torch.equal(new, scores(2))

    def test_refuses_broken_scores(self, config: Any) -> None:
        combiner = config.build(NAMES)
        with pytest.raises(DataError, match="got none"):
            combiner.fit(torch.zeros(0, 3), torch.zeros(0))
        with pytest.raises(DataError, match="finite"):
            combiner.fit(torch.full((2, 3), float("nan")), torch.tensor([0, 1]))
        with pytest.raises(ShapeError, match="first"):
            combiner.fit(torch.zeros(4, 2), torch.zeros(4))
        with pytest.raises(ShapeError, match="one label"):
            combiner.fit(torch.zeros(4, 3), torch.zeros(3))
        with pytest.raises(DataError, match="labels 0"):
            combiner.fit(torch.zeros(4, 3), torch.arange(4))

    def test_needs_the_labels_that_it_declares(self, config: Any) -> None:
        combiner = config.build(NAMES)
        if combiner.needs_labels:
            with pytest.raises(DataError, match="labelled"):
                combiner.fit(scores(0))
            with pytest.raises(DataError, match="only good"):
                combiner.fit(scores(0), torch.zeros(40))
        else:
            # Defective images, where known, are no part of what is normal.
            mixed = config.build(NAMES).fit(scores(0), labels()).combine(scores(2))
            assert torch.equal(mixed, combiner.fit(scores(0)[labels() == 0]).combine(scores(2)))
        with pytest.raises(DataError, match="only defective"):
            combiner.fit(scores(0), torch.ones(40))

    def test_one_image_of_a_kind_will_do(self, config: Any) -> None:
        two, truth = torch.tensor([[0.1] * 3, [2.0] * 3]), torch.tensor([0, 1])
        combined = config.build(NAMES).fit(two, truth).combine(torch.tensor([[-9.0] * 3, [9.0] * 3]))
        assert torch.isfinite(combined).all()
        assert combined[0] <= combined[1]


def test_score_level_has_no_map() -> None:
    assert ScoreLevelConfig().build(SPECS, GRID) is None  # type: ignore[func-returns-value]
