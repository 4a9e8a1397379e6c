"""EfficientAD's training: what it learns, that a kill changes nothing, and every bad input in words."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Interrupting, Stopped
from torch import Tensor

from manyeyes.backbones import EfficientAdTrunkConfig, PdnTrunkConfig, student_training
from manyeyes.backbones.efficientad_trunk import EfficientAdTrunk
from manyeyes.backbones.student_fit import StudentFit
from manyeyes.backbones.student_pictures import KeptPictures, photograph_views
from manyeyes.backbones.student_schedule import Schedule, TrainingConfig
from manyeyes.backbones.student_training import StudentTraining
from manyeyes.errors import DataError, RunError, WeightsError
from manyeyes.progress import Silent

SIZE = (64, 48)
QUICK = Schedule(steps=4, crop=40, learning_rate=1e-3)
LONGER_FIT = StudentFit(positions=500, natural=10, rounds=2)
QUICK_FIT = StudentFit(positions=500, natural=10, rounds=1)
FITTED = Schedule(steps=4, crop=40, learning_rate=1e-3, fit=StudentFit(positions=2000, natural=20))
IDENTITY = "0123456789abcdef"


def good(count: int = 4, seed: int = 0) -> Tensor:
    """Smooth pictures. Shapes: (n, 3, 64, 48)."""
    coarse = torch.rand(count, 3, 4, 3, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.interpolate(coarse, SIZE, mode="bilinear").clamp(0, 1)


def natural(count: int = 3) -> Tensor:
    return torch.rand(count, 3, *SIZE, generator=torch.Generator().manual_seed(8))


def declared(schedule: Schedule = QUICK, size: Any = "small", **training: Any) -> EfficientAdTrunkConfig:
    teacher = PdnTrunkConfig(weights="random", size=size, image_size=SIZE)
    return EfficientAdTrunkConfig(teacher=teacher, training=TrainingConfig(schedule=schedule, **training))


def fit(
    config: EfficientAdTrunkConfig,
    pictures: Iterable[Tensor] | None = None,
    seed: int = 0,
    checkpoint: Path | None = None,
    progress: Any = None,
) -> EfficientAdTrunk:
    given = [good()] if pictures is None else pictures
    return config.build().fit(given, IDENTITY, seed, lambda folder, most: [natural()], checkpoint, progress or Silent())


def same(one: EfficientAdTrunk, other: EfficientAdTrunk) -> bool:
    mine, its = one.learned(), other.learned()
    return mine.keys() == its.keys() and all(torch.equal(mine[key], its[key]) for key in mine)


PICTURES = {"good": good(), "natural": natural()}


def test_same_seed_same_student_another_seed_another() -> None:
    first = fit(declared())
    assert same(first, fit(declared()))
    assert not same(first, fit(declared(), seed=1))


def test_a_training_draws_nothing_from_the_callers_random_numbers() -> None:
    torch.manual_seed(3)
    state = torch.random.get_rng_state()
    fit(declared())
    assert torch.equal(state, torch.random.get_rng_state())


@pytest.mark.parametrize(
    ("size", "schedule"),
    [
        ("small", Schedule(steps=4, crop=None, learning_rate=1e-3)),
        ("medium", Schedule(steps=4, crop=40, images=2, learning_rate=1e-3, fit=LONGER_FIT, statistics=2)),
    ],
    ids=["trained", "fitted"],
)
def test_an_interrupted_training_ends_with_the_same_tensors(
    size: str, schedule: Schedule, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(student_training, "CHECKPOINT_SECONDS", -1.0)
    config = declared(schedule, size, penalty="natural")
    expected = fit(config)
    checkpoint = tmp_path / "student.checkpoint"
    # Killed twice in the step after a checkpoint, and in the fit that comes after the last step, if there is one.
    for at in (3, 4, *([9] if schedule.fit else [])):
        with pytest.raises(Stopped):
            fit(config, checkpoint=checkpoint, progress=Interrupting(at))
        assert checkpoint.exists()
    assert same(fit(config, checkpoint=checkpoint), expected)


def test_checkpoints_of_other_pictures_and_broken_ones_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(student_training, "CHECKPOINT_SECONDS", -1.0)
    checkpoint = tmp_path / "student.checkpoint"
    fit(declared(), checkpoint=checkpoint)
    with pytest.raises(RunError, match="belongs to another training"):
        declared().build().fit([good()], "other", 0, lambda folder, most: [], checkpoint, Silent())
    checkpoint.write_bytes(checkpoint.read_bytes()[:1000])
    with pytest.raises(RunError, match="is no whole checkpoint"):
        fit(declared(), checkpoint=checkpoint)


def test_the_teacher_is_standardised_on_the_training_pictures() -> None:
    trunk = fit(declared(Schedule(steps=1)))
    value = trunk(torch.cat([good()]).mul(255).round().div(255), ["teacher"])["teacher"]
    flat = value.double().transpose(0, 1).flatten(1)
    torch.testing.assert_close(flat.mean(1), torch.zeros(384, dtype=torch.float64), atol=1e-3, rtol=0)
    torch.testing.assert_close(flat.std(1), torch.ones(384, dtype=torch.float64), atol=1e-2, rtol=0)


def test_maps_are_squared_disagreements() -> None:
    trunk = fit(declared())
    names = ["local", "global", "teacher", "student", "student_teacher", "student_autoencoder", "autoencoder"]
    found = trunk(good(2, seed=1), [*names, "student_teacher_pooled", "teacher_pooled"])
    first, last = found["student"][:, :384], found["student"][:, 384:]
    assert torch.equal(first, found["student_teacher"])
    assert torch.equal(last, found["student_autoencoder"])
    for name, one, other in (("local", found["teacher"], first), ("global", found["autoencoder"], last)):
        torch.testing.assert_close(found[name], (one - other).square().mean(1, keepdim=True))
    for name, value in (("student_teacher_pooled", first), ("teacher_pooled", found["teacher"])):
        torch.testing.assert_close(found[name], value.mean((2, 3), keepdim=True))


def test_the_student_learns_what_the_teacher_says_of_good_pictures() -> None:
    before = fit(declared(Schedule(steps=1, crop=40, learning_rate=1e-9)))
    after = fit(declared(Schedule(steps=20, learning_rate=5e-4), hard=0.0))
    assert after(good(), ["local"])["local"].mean() < 0.7 * before(good(), ["local"])["local"].mean()


def test_every_part_learns() -> None:
    before, after = (fit(declared(Schedule(steps=steps, crop=40))).learned() for steps in (1, 2))
    for name in ("student.0.weight", "student.8.bias", "autoencoder.0.weight", "autoencoder.38.bias"):
        assert not torch.equal(before[name], after[name]), name


@pytest.mark.parametrize("size", ["small", "medium"])
def test_layers_that_teacher_and_student_share_run_once_and_say_the_same(size: str) -> None:
    trunk = fit(declared(QUICK.model_copy(update={"steps": 1, "fit": QUICK_FIT}), size))
    names = ["teacher", "student", "local", "global", "student_teacher_pooled", "teacher_pooled"]
    ran: list[str] = []
    for name, network in (("teacher", trunk.teacher.network), ("student", trunk.student)):
        network[0].register_forward_hook(lambda *_, name=name: ran.append(name))
    assert trunk.shared
    found = trunk(good(2, seed=1), names)
    assert ran == ["student"]
    trunk.shared = False
    for name, value in trunk(good(2, seed=1), names).items():
        torch.testing.assert_close(found[name], value, rtol=1e-5, atol=1e-5)
    assert ran == ["student", "teacher", "student"]
    assert not fit(declared()).shared, "a student that learns has layers of its own"


@pytest.mark.parametrize("size", ["small", "medium"])
def test_a_fitted_student_agrees_on_good_pictures_and_is_quiet_on_others(size: str) -> None:
    trunk = fit(declared(FITTED, size, penalty="natural"))
    found = {name: trunk(images, ["local", "global", "student_teacher"]) for name, images in PICTURES.items()}
    known, unknown = (float(found[name]["local"].mean()) for name in ("good", "natural"))
    assert unknown > 20 * known
    assert float(found["natural"]["student_teacher"].square().mean()) < 0.5
    assert float(found["natural"]["global"].mean()) > 5 * float(found["good"]["global"].mean())


def test_a_fitted_student_follows_the_autoencoder_without_what_it_drops() -> None:
    trunk = fit(declared(FITTED, "medium"))
    seen = trunk(good().mul(255).round().div(255), ["global", "autoencoder"])
    assert float(seen["global"].mean()) < 0.05 * float(seen["autoencoder"].var())


def test_the_penalty_quiets_a_loud_student_on_penalty_pictures() -> None:
    """From the teacher's own words on, a few steps with and without the right penalty pictures."""
    strength = []
    for shown in (good(), natural()):
        training = StudentTraining(TrainingConfig(schedule=QUICK), declared().teacher.build(), (16, 12), 0)
        training.student[:-1].load_state_dict(training.teacher.network[:-1].state_dict())
        pictures, penalty = (KeptPictures([given], SIZE, None) for given in (good(), shown))
        training._standardise(pictures)
        pixels = training._cut(natural(), (0, 0, 16, 12))
        target = training._teacher(pixels)
        with torch.no_grad():
            last, its = training.student[-1], training.teacher.network[-1]
            for mine, value in ((last.weight, its.weight), (last.bias, its.bias)):
                mine[:384] = value / training.scale.std.view(-1, *[1] * (value.dim() - 1))
            last.bias[:384] -= (training.scale.mean / training.scale.std).flatten()
            torch.testing.assert_close(training.student(pixels)[:, :384], target, rtol=1e-3, atol=1e-3)
        optimiser = torch.optim.Adam(training.student.parameters())
        for step in range(6):
            training._step(step, optimiser, pictures, penalty)
        with torch.no_grad():
            strength.append(float(training.student(pixels)[:, :384].square().mean()))
    assert strength[1] < 0.7 * strength[0]


def test_without_a_folder_views_of_two_photographs_are_the_penalty_pictures() -> None:
    one, again = (list(photograph_views(6, (40, 56), 0)) for _ in range(2))
    assert {tuple(view.shape) for view in one} == {(1, 3, 40, 56)}
    assert all(torch.equal(a, b) for a, b in zip(one, again, strict=True))
    assert all(float(view.min()) >= 0 and float(view.max()) <= 1 for view in one)
    assert len({float(view.mean()) for view in one}) == 6
    assert not torch.equal(one[0], next(photograph_views(1, (40, 56), 1)))
    for fitted, count in ((None, 200), (StudentFit(natural=3), 3)):
        schedule = QUICK.model_copy(update={"fit": fitted})
        training = StudentTraining(TrainingConfig(schedule=schedule), declared().teacher.build(), (16, 12), 4)
        kept = training._natural(lambda folder, most: [], None, Silent())
        assert len(kept) == count
        torch.testing.assert_close(kept[torch.arange(1)], next(photograph_views(1, SIZE, 4)), atol=0.003, rtol=0)


def test_a_fit_asks_for_its_own_number_of_penalty_pictures() -> None:
    asked = []

    def pictures_in(folder: str, most: int) -> list[Tensor]:
        asked.append((folder, most))
        return [natural()]

    for fitted in (None, StudentFit(natural=7, positions=500)):
        config = declared(QUICK.model_copy(update={"steps": 1, "fit": fitted}), penalty="x", penalty_pictures=9)
        config.build().fit([good()], IDENTITY, 0, pictures_in, None, Silent())
    assert asked == [("x", 9), ("x", 7)]


def test_what_is_missing_and_how_long_it_takes_is_said() -> None:
    progress = Interrupting()
    fit(declared(Schedule(steps=8, crop=40)), progress=progress)
    assert progress.said[0].startswith("EfficientAD's penalty pictures are views of two photographs, for want of a")
    assert progress.said[1] == (
        "EfficientAD on cpu: 8 steps to go of a schedule shorter than the paper's 70,000, about 1 min"
    )
    progress = Interrupting()
    fit(declared(penalty="natural"), progress=progress)
    assert not any("two photographs" in line for line in progress.said)


def test_only_the_hard_features_of_the_student_teach_it(monkeypatch: pytest.MonkeyPatch) -> None:
    quantiles = []

    def spied(difference: Tensor, quantile: float) -> Tensor:
        quantiles.append((difference.shape[1], quantile))
        return difference.square().mean()

    monkeypatch.setattr(student_training, "hard_feature_loss", spied)
    fit(declared(Schedule(steps=2, crop=40), hard=0.9))
    assert quantiles == [(384, 0.9)] * 2


def test_the_teachers_words_are_never_rounded() -> None:
    training = StudentTraining(TrainingConfig(schedule=QUICK), declared().teacher.build(), (16, 12), 0)
    pixels = training._cut(good(1), (0, 0, 3, 3))
    target, told = training._both(good(1), (0, 0, 3, 3))
    assert target.dtype == told.dtype == torch.float32
    with torch.no_grad():
        torch.testing.assert_close(target, training.teacher.network(pixels), rtol=1e-5, atol=1e-6)


def test_a_crop_and_its_window_show_the_same_place() -> None:
    """What a window of the whole map says is what the network says of the pixels that are cut for it."""
    training = StudentTraining(TrainingConfig(schedule=QUICK), declared().teacher.build(), (16, 12), 0)
    whole = training.teacher(good(1), ["teacher"])["teacher"]
    for y, x, h, w in ((0, 0, 3, 2), (5, 4, 3, 3), (13, 9, 3, 3), (0, 0, 16, 12)):
        part = training.teacher.describe(training._cut(good(1), (y, x, h, w)))
        torch.testing.assert_close(part, whole[:, :, y : y + h, x : x + w], rtol=1e-4, atol=1e-5)


def test_windows_reach_every_corner() -> None:
    training = StudentTraining(TrainingConfig(schedule=QUICK), declared().teacher.build(), (16, 12), 0)
    generator = torch.Generator().manual_seed(0)
    windows = {training._window(generator) for _ in range(3000)}
    assert {(y, x) for y, x, _, _ in windows} == {(y, x) for y in range(15) for x in range(11)}
    assert {(h, w) for _, _, h, w in windows} == {(2, 2)}  # a crop of 40 px


def test_one_picture_is_enough_to_learn_from() -> None:
    trunk = fit(declared(), [good(1)])
    assert trunk(good(1), ["local"])["local"].isfinite().all()


def test_no_picture_and_no_penalty_picture_are_refused() -> None:
    with pytest.raises(DataError, match="EfficientAD: there is no picture to train on"):
        fit(declared(), [])
    with pytest.raises(DataError, match="nothing_there: there is no penalty picture"):
        declared(penalty="nothing_there").build().fit([good()], IDENTITY, 0, lambda folder, most: [], None, Silent())


def test_a_loss_that_is_not_finite_names_its_step() -> None:
    with pytest.raises(DataError, match=r"not finite at step \d+; lower training.schedule.learning_rate"):
        fit(declared(Schedule(steps=30, crop=40, learning_rate=1e15)))


def test_a_ridge_below_rounding_is_refused_in_words() -> None:
    with pytest.raises(DataError, match="a ridge of 1e-16 is lost in the rounding"):
        fit(declared(Schedule(steps=1, crop=40, fit=StudentFit(ridge=1e-16, penalty=0, positions=300, natural=5))))


def test_pictures_without_any_contrast_train_or_are_refused_in_words() -> None:
    flat = torch.full((3, 3, *SIZE), 0.5)
    assert fit(declared(), [flat])(flat, ["local"])["local"].isfinite().all()
    with pytest.raises(DataError, match="pictures that all look the same"):
        fit(declared(Schedule(steps=2, crop=40, fit=QUICK_FIT), "medium"), [flat])


def test_what_was_learned_fits_its_own_config_alone() -> None:
    learned = fit(declared()).learned()
    assert declared().build().restore(learned, IDENTITY).is_fitted
    with pytest.raises(WeightsError, match="trained student: holds another network"):
        declared(size="medium").build().restore(learned, IDENTITY)
    del learned["scale.std"]
    with pytest.raises(WeightsError, match=r"trained scale: .*'std' is missing"):
        declared().build().restore(learned, IDENTITY)


def test_the_identity_names_all_that_a_training_depends_on() -> None:
    trunk = declared().build()
    names = {
        trunk.identity(0, "a"),
        trunk.identity(1, "a"),
        trunk.identity(0, "b"),
        declared(Schedule(steps=6)).build().identity(0, "a"),
        declared(hard=0.9).build().identity(0, "a"),
        declared(penalty="x").build().identity(0, "a"),
        declared(size="medium").build().identity(0, "a"),
    }
    assert len(names) == 7
    assert trunk.identity(0, "a") == declared().build().identity(0, "a")
    assert declared(penalty="x").build().reads == ("x",)
