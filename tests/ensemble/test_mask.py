"""The mask of an ensemble, from the config to what is predicted, saved and loaded; U-Flow and its pair of CaiTs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import draw_parts, placed, small_config, small_member
from torch import Tensor

from manyeyes.backbones import TimmTrunkConfig, UFlowConfig
from manyeyes.backbones.uflow import ScalesConfig
from manyeyes.data import ImageSet, ground_truth_mask, read_image_set
from manyeyes.ensemble import EnsembleConfig, MemberConfig, load_run, train_run
from manyeyes.fusion import ScoreLevelConfig
from manyeyes.heads import AContrarioConfig, GaussianConfig, HeadConfig, MemoryBankConfig, UFlowHeadConfig
from manyeyes.heads.flow_training import Schedule

A_CONTRARIO = AContrarioConfig(false_alarms=0.1)
FLOW = UFlowHeadConfig(steps=2, training=Schedule(steps=60, batch=4, learning_rate=1e-2))


def resnet(*stages: int) -> UFlowConfig:
    trunk = TimmTrunkConfig(architecture="test_resnet", weights="random", size=64)
    return UFlowConfig(sources=(ScalesConfig(trunk=trunk, stages=stages),))


def cait_pair() -> UFlowConfig:
    """As the paper's pair: the finer grid is twice the coarser one, no layer norm of ours."""
    sources = [
        ScalesConfig(
            trunk=TimmTrunkConfig(architecture="cait_xxs24_224", weights="random", size=size),
            stages=(stage,),
            layer_norm=False,
        )
        for size, stage in ((64, 2), (32, 1))
    ]
    return UFlowConfig(sources=tuple(sources))


def alone(extractor: UFlowConfig, *heads: HeadConfig, **fields: Any) -> EnsembleConfig:
    member = MemberConfig(name="flow", extractor=extractor, heads=heads, fuse=False)
    options: dict[str, Any] = {"members": (member,), "fusion": ScoreLevelConfig(), "heads": (), "mask": A_CONTRARIO}
    return small_config(**(options | fields))


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> ImageSet:
    return read_image_set(draw_parts(tmp_path_factory.mktemp("parts") / "striped", train=40))


@pytest.fixture(scope="module")
def flow_run(parts: ImageSet, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("flow") / "run"
    train_run(alone(resnet(1, 2), FLOW), parts, out, device="cpu", batch_size=4)
    return out


def truth(parts: ImageSet) -> Tensor:
    """On the canvas of 64 x 64; the parts are 56 x 64."""
    masks = [torch.from_numpy(np.asarray(ground_truth_mask(sample), dtype=np.float32)) for sample in parts.test]
    return torch.nn.functional.interpolate(torch.stack(masks)[:, None], (64, 64))[:, 0] > 0.5


def test_a_flow_marks_the_hole_and_leaves_good_parts_alone(flow_run: Path, parts: ImageSet) -> None:
    ensemble = load_run(flow_run)
    prediction = ensemble.predict(placed(ensemble, parts.test))
    labels = torch.tensor([sample.label for sample in parts.test])
    assert prediction.mask.dtype == torch.bool
    assert prediction.mask.shape == prediction.map.shape
    # Forty pictures do not show all ways in which these parts vary: one may look strange as a whole.
    shares = prediction.mask[labels == 0].float().mean(dim=(1, 2)).sort().values
    assert float(shares[3]) < 0.05
    holes = truth(parts)[labels == 1]
    covered = (prediction.mask[labels == 1] & holes).sum() / holes.sum()
    assert float(covered) > 0.5


def test_the_mask_is_that_of_the_latents_and_survives_saving(flow_run: Path, parts: ImageSet) -> None:
    ensemble, again = load_run(flow_run), load_run(flow_run)
    images = placed(ensemble, parts.test)
    prediction = ensemble.predict(images)
    assert torch.equal(prediction.mask, again.predict(images).mask)
    assert ensemble.a_contrario is not None
    branch = ensemble.branches[0]
    head, pyramid = branch.heads["flow/u_flow"], branch.pyramid(branch.raw_maps(ensemble.eyes(images)))
    squares = [latent.square() for latent in head.latents(pyramid)]
    assert [value.shape[1] for value in squares] == list(head.flow.leaving)
    assert torch.equal(prediction.mask, ensemble.a_contrario.mask(squares, ensemble.canvas))
    assert not torch.equal(prediction.mask, prediction.map >= ensemble.map_threshold_), "the conformal mask is another"


@pytest.mark.parametrize("fused", [False, True], ids=["members", "with a fused map"])
def test_any_head_that_draws_a_map_may_have_it(fused: bool, parts: ImageSet, tmp_path: Path) -> None:
    members = (small_member("one", heads=(MemoryBankConfig(ratio=0.05), GaussianConfig())), small_member("two", 1))
    options: dict[str, Any] = {} if fused else {"fusion": ScoreLevelConfig(), "heads": ()}
    config = small_config(members=members, mask=AContrarioConfig(windows=(3, 5)), **options)
    ensemble = train_run(config, parts, tmp_path / "run", device="cpu", batch_size=4)
    images = placed(ensemble, parts.test)
    found = load_run(tmp_path / "run").predict(images).mask
    assert torch.equal(found, ensemble.predict(images).mask)
    labels, holes = torch.tensor([sample.label for sample in parts.test]), truth(parts)
    assert float((found & holes).sum() / holes.sum()) > 0.5
    assert float(found[labels == 0].float().mean()) < 0.1


def test_an_ensemble_without_maps_marks_nothing(parts: ImageSet, tmp_path: Path) -> None:
    members = (small_member("one", heads=(GaussianConfig(),)),)
    config = small_config(members=members, fusion=ScoreLevelConfig(), heads=(), mask=A_CONTRARIO)
    ensemble = train_run(config, parts, tmp_path / "run", device="cpu")
    assert ensemble.a_contrario is None
    assert not load_run(tmp_path / "run").predict(placed(ensemble, parts.test)).mask.any()


@pytest.mark.parametrize("extractor", [resnet(1, 2, 3), cait_pair()], ids=["resnet pyramid", "cait pair"])
def test_both_extractors_feed_a_flow(extractor: UFlowConfig, parts: ImageSet, tmp_path: Path) -> None:
    quick = FLOW.model_copy(update={"training": Schedule(steps=20, batch=4)})
    ensemble = train_run(alone(extractor, quick), parts, tmp_path / "run", device="cpu")
    images = placed(ensemble, parts.test)
    prediction = ensemble.predict(images)
    loaded = load_run(tmp_path / "run").predict(images)
    assert torch.equal(prediction.map, loaded.map)
    assert prediction.map.isfinite().all()
    good = [index for index, sample in enumerate(parts.test) if not sample.label]
    worst = prediction.score[good].max()
    assert (prediction.score > worst).sum() >= 2, "holes are seen, even through random weights"
