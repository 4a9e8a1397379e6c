"""EfficientAD and PUAD inside an ensemble: maps lie where the defect is, runs read back equal, features are shared."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import draw_parts, placed, save, small_efficientad, small_member
from torch import Tensor

from manyeyes.backbones import EfficientAdConfig, EfficientAdTrunkConfig, PdnTrunkConfig
from manyeyes.backbones.efficientad_trunk import EfficientAdTrunk
from manyeyes.backbones.student_schedule import Schedule, TrainingConfig
from manyeyes.data import Frame, ImageBatches, ImageSet, paths_to_samples, read_image_set
from manyeyes.ensemble import Ensemble, EnsembleConfig, Extraction, FeatureStore, fit_ensemble, load_run, train_run
from manyeyes.ensemble.trunks import train_trunks
from manyeyes.errors import DataError, RunError
from manyeyes.experiments.bench import Bench, Settings
from manyeyes.experiments.compare import run_study
from manyeyes.experiments.plan import plan_study
from manyeyes.progress import Silent

CPU = torch.device("cpu")
QUICK = TrainingConfig(schedule=Schedule(steps=2, crop=40, learning_rate=1e-3))


def small_trunk(size: Any = 64, training: TrainingConfig = QUICK) -> EfficientAdTrunkConfig:
    return EfficientAdTrunkConfig(teacher=PdnTrunkConfig(weights="random", image_size=size), training=training)


def test_puad_of_a_run_that_was_saved_and_loaded_says_the_same(parts: ImageSet, tmp_path: Path) -> None:
    config = small_efficientad("puad", small_trunk())
    made = train_run(config, parts, tmp_path / "run", device="cpu", batch_size=4)
    loaded = load_run(tmp_path / "run")
    images = placed(made, parts.test)
    expected, found = made.predict(images), loaded.predict(images)
    for one, other in ((expected.score, found.score), (expected.map, found.map), (expected.mask, found.mask)):
        assert torch.equal(one, other)
    assert set(found.heads) == {"efficientad/efficientad", "pooled/gaussian"}
    squares = [torch.where(z > 0, z.square(), 1e-3 * z) for z in found.heads.values()]
    torch.testing.assert_close(found.score, sum(squares))
    assert list(found.branches) == ["picturable", "unpicturable"]
    assert len(made.trainable) == 1, "both members look through one student"


def stays_with_good(trunk: EfficientAdTrunk, picture: Tensor) -> None:
    """Give a trunk a student that says of every picture what the teacher says of ``picture``, and a blank autoencoder.

    What is left of its local map is how far the teacher's words are from those, position by position.
    """
    learned = {f"student.{key}": torch.zeros_like(value) for key, value in trunk.student.state_dict().items()}
    learned |= {f"autoencoder.{key}": torch.zeros_like(value) for key, value in trunk.autoencoder.state_dict().items()}
    learned |= {f"scale.{key}": value for key, value in trunk.scale.state_dict().items()}
    said = trunk.teacher(picture, ["teacher"])["teacher"].mean((0, 2, 3))
    learned["student.8.bias"] = torch.cat([said, torch.zeros_like(said)])
    trunk.restore(learned, "0" * 16)


@pytest.mark.parametrize("size", [(256, 256), (96, 168)])
def test_the_map_is_highest_where_a_dot_is(size: tuple[int, int], tmp_path: Path) -> None:
    H, W = size
    rng = np.random.default_rng(0)
    for index in range(4):
        grain = rng.integers(126, 131, (H, W, 3)).astype(np.uint8)
        save(tmp_path / f"parts/train/good/{index}.png", grain)
    config = small_efficientad("efficientad", small_trunk(size), frame=Frame(size=size), blur=0.01)
    ensemble = Ensemble(config)
    stays_with_good(ensemble.trainable[0], torch.full((1, 3, H, W), 0.5))  # type: ignore[arg-type]
    ensemble.look_again()
    extraction = Extraction(FeatureStore(tmp_path / "features"), CPU, 2)
    fit_ensemble(config, read_image_set(tmp_path / "parts"), extraction, ensemble=ensemble)
    corners, borders = ((2, 2), (H - 2, W - 2), (2, W - 2)), ((H // 2 + 1, 2), (H - 2, W // 2 + 3))
    for y, x in (*corners, *borders, (H // 2, W // 2)):
        image = torch.full((1, 3, H, W), 0.5)
        image[:, :, y - 2 : y + 2, x - 2 : x + 2] = 1
        drawn = ensemble.predict(image).map[0]
        row, column = divmod(int(drawn.argmax()), W)
        # From the dot's middle, a corner between pixels, to the middle of the highest pixel.
        assert abs(row + 0.5 - y) <= 2, (y, x, row, column)
        assert abs(column + 0.5 - x) <= 2, (y, x, row, column)


def test_members_that_share_a_training_are_trained_once_in_a_study(
    parts: ImageSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained = []
    fit = EfficientAdTrunk.fit

    def counted(self: EfficientAdTrunk, *arguments: Any) -> EfficientAdTrunk:
        trained.append(arguments[1])
        return fit(self, *arguments)

    monkeypatch.setattr(EfficientAdTrunk, "fit", counted)
    configs = [small_efficientad("efficientad", small_trunk()), small_efficientad("puad", small_trunk())]
    study = run_study(configs, [parts], tmp_path / "study", device="cpu", batch_size=4)
    assert len(trained) == 1
    alone, both = (cell.figures["heads"]["efficientad/efficientad"]["image_auroc"] for cell in study.cells)
    assert alone == both
    assert study.cells[1].figures["cost"]["fit_seconds"] > 0


def test_features_of_two_seeds_never_meet(parts: ImageSet, tmp_path: Path) -> None:
    """Another seed holds out other pictures and trains another student; the store keeps both apart."""
    store = FeatureStore(tmp_path / "features")
    keys = set()
    for seed in (0, 1):
        config = small_efficientad("efficientad", small_trunk(), seed=seed)
        ensemble, _ = fit_ensemble(config, parts, Extraction(store, CPU, 4))
        keys |= set(ensemble.tap_keys())
        for key in ensemble.tap_keys():
            trunk, _, stage = key.partition(".")
            assert list((tmp_path / "features" / trunk).glob(f"*/{stage}.npy"))
    assert len(keys) == 4


def test_maps_of_the_student_and_of_the_teacher_enter_a_fused_map(parts: ImageSet, tmp_path: Path) -> None:
    config = small_efficientad("efficientad", small_trunk())
    eye = config.members[0]
    extractor = EfficientAdConfig(trunk=small_trunk(), maps=("student_teacher", "teacher"))
    eyes = eye.model_copy(update={"name": "both", "extractor": extractor, "heads": (), "fuse": True})
    config = EnsembleConfig.parse(
        {
            "name": "fused",
            "members": [m.model_dump(mode="json") for m in (eye, eyes, small_member("resnet"))],
            "fusion": {"kind": "independent_pca", "components": 12},
            "heads": [{"kind": "memory_bank", "ratio": 0.1}],
            "validation": 0.4,
        }
    )
    ensemble, _ = fit_ensemble(config, parts, Extraction(FeatureStore(tmp_path), CPU, 4))
    found = ensemble.predict(placed(ensemble, parts.test))
    assert {"fused/memory_bank", "efficientad/efficientad"} <= set(found.heads)
    assert found.score.isfinite().all()


@pytest.fixture
def untrained() -> tuple[Ensemble, Frame]:
    ensemble = Ensemble(small_efficientad("efficientad", small_trunk()))
    return ensemble, ensemble.config.frame.sized(ensemble.canvas)


def test_penalty_pictures_are_part_of_what_names_a_training(parts: ImageSet, tmp_path: Path) -> None:
    photographs = draw_parts(tmp_path / "photographs", train=2, good=0, defective=0)
    training = QUICK.model_copy(update={"penalty": str(photographs)})
    for _ in range(2):
        ensemble = Ensemble(small_efficientad("efficientad", small_trunk(training=training)))
        frame = ensemble.config.frame.sized(ensemble.canvas)
        train_trunks(ensemble, parts.train, frame, tmp_path / "trained", False, Silent())
        save(photographs / "another.png", np.full((40, 40, 3), 7, np.uint8))
    assert len(list((tmp_path / "trained").glob("*.safetensors"))) == 2


def test_penalty_pictures_are_part_of_what_names_a_cell(parts: ImageSet, tmp_path: Path) -> None:
    photographs = draw_parts(tmp_path / "photographs", train=2, good=0, defective=0)
    training = QUICK.model_copy(update={"penalty": str(photographs)})
    config = small_efficientad("efficientad", small_trunk(training=training))
    folders = []
    for _ in range(2):
        plan = plan_study([config], [parts], [0], 0, Bench(Settings(tmp_path / "study")))
        folders.append(plan.cells[0].folder)
        save(photographs / "another.png", np.full((40, 40, 3), 7, np.uint8))
    assert folders[0] != folders[1]


def test_equal_training_pictures_are_refused_before_anything_is_trained(tmp_path: Path) -> None:
    config = small_efficientad("efficientad", small_trunk())
    for index in range(6):
        save(tmp_path / "equal" / "train" / "good" / f"{index}.png", np.full((40, 40, 3), 120, np.uint8))
    with pytest.raises(DataError, match="training pictures are equal"):
        train_run(config, read_image_set(tmp_path / "equal"), tmp_path / "run", device="cpu")
    assert not list(tmp_path.rglob("*.checkpoint"))


@pytest.mark.parametrize("folder", ["missing", "empty"])
def test_a_penalty_folder_without_pictures_is_refused_before_anything_is_trained(
    folder: str, parts: ImageSet, tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    training = QUICK.model_copy(update={"penalty": str(tmp_path / folder)})
    with pytest.raises(DataError, match=f"{folder}: (does not exist|holds no picture)"):
        train_run(
            small_efficientad("efficientad", small_trunk(training=training)), parts, tmp_path / "run", device="cpu"
        )


def test_a_kept_training_that_is_broken_is_named(
    untrained: tuple[Ensemble, Frame], parts: ImageSet, tmp_path: Path
) -> None:
    ensemble, frame = untrained
    train_trunks(ensemble, parts.train, frame, tmp_path, False, Silent())
    (kept,) = tmp_path.glob("*.safetensors")
    kept.write_bytes(kept.read_bytes()[:1000])
    again = Ensemble(ensemble.config)
    with pytest.raises(RunError, match="is no whole training"):
        train_trunks(again, parts.train, frame, tmp_path, False, Silent())


def test_a_training_that_is_found_costs_what_it_cost(
    untrained: tuple[Ensemble, Frame], parts: ImageSet, tmp_path: Path
) -> None:
    """So that an ensemble of a study does not look cheap because another one came first."""
    ensemble, frame = untrained
    again, seconds = Ensemble(ensemble.config), []
    for each in (ensemble, again):
        seconds.append(train_trunks(each, parts.train, frame, tmp_path, False, Silent()))
    assert seconds[0] > 0
    assert seconds[1] == pytest.approx(seconds[0], abs=1e-3)
    assert train_trunks(again, parts.train, frame, tmp_path, False, Silent()) == 0, "nothing was left to train"


def test_one_training_picture_beside_one_for_the_threshold(tmp_path: Path) -> None:
    root = draw_parts(tmp_path / "parts", train=2, good=1, defective=1)
    config = small_efficientad("efficientad", small_trunk())
    ensemble = train_run(config, read_image_set(root), tmp_path / "run", device="cpu")
    frame = config.frame.sized(ensemble.canvas)
    for batch in ImageBatches(paths_to_samples([root / "test"]), frame, 2):
        assert ensemble.predict(batch.images).score.isfinite().all()
