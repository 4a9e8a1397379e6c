"""What EfficientAD's student learns from: losses and colours against slow references, schedules, kept pictures."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision.transforms.functional as reference
from torch import Tensor

from manyeyes.backbones.student_losses import change_colours, hard_feature_loss
from manyeyes.backbones.student_pictures import KeptPictures
from manyeyes.backbones.student_schedule import PAPER, SHORT, Schedule, TrainingConfig
from manyeyes.errors import RunError


@pytest.mark.parametrize("quantile", [0.0, 0.5, 0.9, 0.999])
@pytest.mark.parametrize("shape", [(1,), (7,), (2, 3, 5, 8), (1, 10, 10, 11)])
def test_hard_feature_loss_is_the_mean_above_the_quantile(quantile: float, shape: tuple[int, ...]) -> None:
    difference = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    squares = difference.double().square().flatten()
    expected = squares[squares >= torch.quantile(squares, quantile)].mean()
    assert float(hard_feature_loss(difference, quantile)) == pytest.approx(float(expected), rel=1e-5)


def test_hard_feature_loss_of_more_elements_than_some_releases_take_quantiles_of() -> None:
    n = 2**24 + 1001
    squares = torch.arange(n, dtype=torch.float64)[torch.randperm(n, generator=torch.Generator().manual_seed(0))]
    first = int(np.ceil(0.999 * (n - 1)))  # the squares are 0, 1 ... n - 1
    found = float(hard_feature_loss(squares.sqrt().float(), 0.999))
    assert found == pytest.approx((first + n - 1) / 2, rel=1e-6)


def test_only_hard_features_get_a_gradient() -> None:
    difference = torch.arange(1.0, 11).requires_grad_()
    hard_feature_loss(difference, 0.8).backward()
    assert difference.grad is not None
    assert difference.grad.tolist() == pytest.approx([0] * 8 + [9, 10])


def test_colours_change_as_torchvision_changes_them() -> None:
    images = torch.rand(12, 3, 6, 7, generator=torch.Generator().manual_seed(2))
    before = images.clone()
    found = change_colours(images, torch.Generator().manual_seed(3))
    assert torch.equal(images, before)
    generator, kinds = torch.Generator().manual_seed(3), set()
    for image, changed in zip(images, found, strict=True):
        which = int(torch.randint(3, (), generator=generator))
        factor = 0.8 + 0.4 * float(torch.rand((), generator=generator))
        names = ("adjust_brightness", "adjust_contrast", "adjust_saturation")
        expected = getattr(reference, names[which])(image, factor)
        torch.testing.assert_close(changed, expected, atol=1e-3, rtol=0)
        kinds.add(which)
    assert kinds == {0, 1, 2}


def test_colours_of_an_image_do_not_depend_on_those_before_it() -> None:
    first, second = torch.rand(2, 1, 3, 5, 5)
    alone = change_colours(torch.cat([first, second]), torch.Generator().manual_seed(4))
    other = change_colours(torch.cat([first.flip(2), second]), torch.Generator().manual_seed(4))
    assert torch.equal(alone[1], other[1])


def test_the_rate_falls_to_a_tenth_for_the_last_twentieth() -> None:
    found = [Schedule(steps=40).rate(step) for step in (0, 37, 38, 39)]
    assert found == pytest.approx([1e-4, 1e-4, 1e-5, 1e-5])


def test_the_defaults_are_the_papers() -> None:
    assert (PAPER.steps, PAPER.images, PAPER.crop, PAPER.fit) == (70_000, 1, None, None)
    assert (PAPER.learning_rate, PAPER.weight_decay) == (1e-4, 1e-5)
    assert TrainingConfig().hard == 0.999


def test_a_cpu_gets_the_short_schedule_unless_one_is_given() -> None:
    given = Schedule(steps=5)
    assert TrainingConfig().schedule_for(torch.device("cpu")) == SHORT
    assert TrainingConfig().schedule_for(torch.device("cuda")) == PAPER
    assert TrainingConfig(schedule=given).schedule_for(torch.device("cpu")) == given
    longer = TrainingConfig(steps=9).schedule_for(torch.device("cpu"))
    assert longer == SHORT.model_copy(update={"steps": 9})
    assert TrainingConfig(steps=9, schedule=given).schedule_for(torch.device("cuda")).steps == 9


def batches(*counts: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(5)
    return [torch.rand(count, 3, 20, 30, generator=generator) for count in counts]


def test_kept_pictures_are_those_that_came(tmp_path: Path) -> None:
    given = batches(3, 0, 2)
    kept = KeptPictures(given, (20, 30), tmp_path)
    assert len(kept) == 5
    found = kept[torch.tensor([4, 0, 0])]
    assert not list(tmp_path.iterdir()), "the file has no name"
    torch.testing.assert_close(found, torch.cat(given)[[4, 0, 0]], atol=0.5 / 255 + 1e-6, rtol=0)
    assert len(KeptPictures([], (20, 30), None)) == 0


def test_kept_pictures_are_resized_as_the_trunk_resizes() -> None:
    (given,) = batches(2)
    kept = KeptPictures([given], (10, 12), None)
    expected = torch.nn.functional.interpolate(given, (10, 12), mode="bilinear", antialias=True)
    torch.testing.assert_close(kept[torch.arange(2)], expected, atol=0.5 / 255 + 1e-6, rtol=0)


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"missing: pictures cannot be kept there .*choose another folder"):
        KeptPictures(batches(1), (8, 8), tmp_path / "missing")


def test_a_full_disk_is_named(small_disk: Path) -> None:
    with pytest.raises(RunError, match=r"disk: pictures cannot be kept there \(No space"):
        KeptPictures(batches(40), (100, 100), small_disk)
