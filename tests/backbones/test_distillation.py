"""Distillation: folded norms, targets where the network looks, views and resumption that repeat."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import NEEDS_CUDA, Interrupting, Stopped
from pydantic import ValidationError
from sklearn.metrics import r2_score
from torch import Tensor, nn

from manyeyes.backbones import TimmTrunkConfig, distillation
from manyeyes.backbones.contract import Stage, Trunk
from manyeyes.backbones.distillation import Distillation, DistillationConfig, Distilled, distil, one_cycle
from manyeyes.backbones.distillation_network import folded, improve_last, with_norms
from manyeyes.backbones.distillation_targets import Targets, first_centre
from manyeyes.backbones.distillation_views import Augmentation, Views
from manyeyes.backbones.pdn import CENTRE
from manyeyes.errors import ConfigError, DataError, RunError
from manyeyes.progress import Silent

CPU, GPU = torch.device("cpu"), torch.device("cuda")
GENTLE = Augmentation(zoom=0.5, turn=True, colour=0.3, grey=0.3)


def drawn(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("size", ["small", "medium"])
def test_folded_norms_are_the_same_function(size: Any) -> None:
    torch.manual_seed(0)
    network = with_norms(size, 7)
    images = torch.rand(2, 3, 45, 41)
    for layer in network:
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.uniform_(layer.weight, 0.5, 2)
            nn.init.uniform_(layer.bias, -1, 1)
    for _ in range(3):  # gives the norms running statistics
        network(images)
    with torch.no_grad():
        expected = network.eval()(images)
        plain = folded(network, size, 7)
        torch.testing.assert_close(plain(images), expected, rtol=1e-4, atol=1e-5)
    assert not any(isinstance(layer, nn.BatchNorm2d) for layer in plain)


def tiny(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(3, 5, 3), nn.ReLU(), nn.Conv2d(5, 4, 2))


def batches(network: nn.Module, noise: float, count: int = 8) -> list[tuple[Tensor, Tensor]]:
    """Pictures with what another network says of them."""
    found = []
    for seed in range(count):
        image = torch.randn(1, 3, 12, 12, generator=drawn(seed))
        with torch.no_grad():
            said = network(image)
        found.append((image, said + noise * torch.randn(said.shape, generator=drawn(100 + seed))))
    return found


def error(network: nn.Module, pairs: Sequence[tuple[Tensor, Tensor]]) -> float:
    with torch.no_grad():
        return sum(float((network(image) - wanted).square().sum()) for image, wanted in pairs)


def test_improving_takes_away_what_is_wrong() -> None:
    whole, spoilt = tiny(), tiny()
    with torch.no_grad():
        spoilt[-1].weight.add_(0.3)
    pairs = batches(whole, 0.0)
    before = error(spoilt, pairs)
    gone = improve_last(spoilt, pairs, share=1.0, seed=0)
    assert gone > 0.9
    assert error(spoilt, pairs) < 0.1 * before


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("noise", [0.0, 3.0])
def test_improving_never_makes_the_judges_pictures_worse(noise: float, seed: int) -> None:
    network, pairs = tiny(seed), batches(tiny(seed), noise, count=5)
    judges = pairs[::4]
    before = error(network, judges)
    gone = improve_last(network, pairs, share=1.0, seed=seed)
    assert 0 <= gone < 1
    assert error(network, judges) <= before * (1 - gone) + 1e-3


def test_nothing_is_improved_on_one_picture() -> None:
    network = tiny()
    before = network[-1].weight.clone()
    assert improve_last(network, batches(tiny(3), 0.0, count=1), share=1.0, seed=0) == 0
    assert torch.equal(network[-1].weight, before)


class Block(Trunk):
    """Means over squares of 8 px: position 0 looks at 4 px, and a channel that grows along an axis says where it is."""

    key = weights_source = weights_digest = "block"

    def __init__(self, side: int, channels: int = 384) -> None:
        super().__init__()
        self.input_size, self.channels = (side, side), channels
        self.register_parameter("unused", nn.Parameter(torch.zeros(1)))

    def stage(self, name: str) -> Stage:
        return Stage(name, self.channels, 8, (self.input_size[0] // 8, self.input_size[1] // 8))

    @torch.no_grad()
    def forward(self, images: Tensor, stages: Sequence[str]) -> dict[str, Tensor]:
        value = F.avg_pool2d(images, 8).repeat(1, self.channels // 3, 1, 1)
        return dict.fromkeys(stages, value)


def test_where_a_stage_looks_is_measured() -> None:
    trunk = Block(96)
    for centre in first_centre(trunk, trunk.stage("any")):
        assert centre == pytest.approx(4, abs=0.3)


class Attending(Block):
    """Answers a little everywhere, as a transformer does: the more, the farther it lets a change travel."""

    @torch.no_grad()
    def forward(self, images: Tensor, stages: Sequence[str]) -> dict[str, Tensor]:
        value = F.avg_pool2d(images, 8)
        spread = value + value.mean(dim=(2, 3), keepdim=True)
        return dict.fromkeys(stages, spread.repeat(1, self.channels // 3, 1, 1))


def test_an_answer_from_everywhere_does_not_displace_what_is_measured() -> None:
    trunk = Attending(96)
    for centre in first_centre(trunk, trunk.stage("any")):
        assert centre == pytest.approx(4, abs=0.5)


def test_targets_are_read_where_the_network_looks() -> None:
    trunk, scale = Block(192), 2
    targets = Targets(trunk, [2], (96, 96))
    ramp = (torch.arange(192) + 0.5) / 192
    image = torch.stack([ramp[:, None].expand(192, 192), ramp[None].expand(192, 192), torch.zeros(192, 192)])[None]
    found = targets(image)[0]
    assert tuple(found.shape) == (384, 16, 16)
    inner = slice(3, 13)  # where the mean of 3 x 3 does not see beyond the border
    places = scale * (CENTRE + 4 * torch.arange(16)[inner]) / 192
    torch.testing.assert_close(found[0, inner, 8], places, atol=4e-3, rtol=0)
    torch.testing.assert_close(found[1, 8, inner], places, atol=4e-3, rtol=0)


def test_more_channels_are_averaged_and_fewer_are_refused() -> None:
    assert Targets(Block(96), [2, 3], (64, 64))(torch.rand(1, 3, 96, 96)).shape[1] == 384
    with pytest.raises(ConfigError, match="at least 384 channels to learn from, got 192; add a stage"):
        Targets(Block(96, 192), [2], (64, 64))


def picture(number: int) -> Tensor:
    return torch.rand(3, 70, 90, generator=drawn(number))


def views(seed: int = 0, kept: int = 3, together: int = 1) -> Views:
    return Views(picture, (0, 1, 2, 3, 4), Targets(Block(96), [2], (48, 48)), GENTLE, (48, 48), kept, seed, together)


def same(one: Sequence[tuple[Tensor, Tensor]], other: Sequence[tuple[Tensor, Tensor]]) -> bool:
    return all(torch.equal(a, b) for first, second in zip(one, other, strict=True) for a, b in zip(first, second))  # noqa: B905


def test_a_view_depends_on_its_number_and_the_seed_alone() -> None:
    one, other = views(), views()
    other.view(3)
    assert same([one.view(7)], [other.view(7)])
    assert not same([one.view(7)], [one.view(8)])
    assert not same([one.view(7)], [views(seed=1).view(7)])
    image, target = one.view(7)
    assert (tuple(image.shape), tuple(target.shape)) == ((3, 48, 48), (384, 4, 4))
    assert 0 <= float(image.min()) < float(image.max()) <= 1


def test_views_that_jump_ahead_hold_the_same_window() -> None:
    walked, jumped = views(), views()
    for count in (2, 5, 6, 9):
        walked.advance_to(count)
    jumped.advance_to(9)
    assert len(walked.latest) == 3
    assert same(list(walked.latest), list(jumped.latest))


def test_every_picture_is_seen_once_a_round() -> None:
    read: list[int] = []

    def noted(number: int) -> Tensor:
        read.append(number)
        return picture(number)

    some = Views(noted, (4, 7, 9), Targets(Block(96), [2], (48, 48)), GENTLE, (48, 48), 2, 0)
    for first in (0, 3):  # the picture of the next view is being read while one is made
        for number in range(first, first + 2):
            some.view(number)
        for picture_ahead in some.ahead.values():
            picture_ahead.result()
        assert sorted(read) == [4, 7, 9]
        some.view(first + 2)
        next(iter(some.ahead.values())).result()
        read[:] = read[3:]


def test_views_made_together_are_the_same_views() -> None:
    one = views(kept=4)
    several, resumed = views(kept=4, together=3), views(kept=4, together=3)
    for count in (1, 4, 7):
        several.advance_to(count)
    resumed.advance_to(7)
    one.advance_to(9)
    assert several.next == 9, "whole groups"
    assert same(list(several.latest), list(one.latest))
    assert same(list(several.latest), list(resumed.latest))


@pytest.mark.parametrize("size", [(48, 48), (48, 64)])
@pytest.mark.parametrize("shape", [(8, 100), (100, 8), (300, 301)])
def test_augmented_views_have_the_size_and_stay_in_range(size: tuple[int, int], shape: tuple[int, int]) -> None:
    for seed in range(8):
        view = GENTLE(torch.rand(3, *shape, generator=drawn(seed)), size, drawn(seed))
        assert tuple(view.shape) == (1, 3, *size)
        assert 0 <= float(view.min()) <= float(view.max()) <= 1


def test_no_augmentation_only_resizes() -> None:
    plain = Augmentation(zoom=1.0, turn=False, colour=0.0, grey=0.0)
    expected = F.interpolate(picture(0)[None], (48, 48), mode="bilinear", antialias=True)
    torch.testing.assert_close(plain(picture(0), (48, 48), drawn(0)), expected.clamp(0, 1), atol=1e-5, rtol=1e-5)


def test_the_rate_rises_and_falls() -> None:
    rates = [one_cycle(step, 100, 1.0) for step in range(100)]
    assert rates[0] == pytest.approx(0.04)
    assert max(rates) == pytest.approx(1, abs=1e-3)
    assert rates.index(max(rates)) == 15
    assert rates[15:] == sorted(rates[15:], reverse=True)
    assert rates[-1] < 1e-3


def small(**fields: Any) -> DistillationConfig:
    trunk = TimmTrunkConfig(architecture="resnet10t", weights="random", size=96)
    values = {"image_size": 48, "steps": 4, "crop": 40, "batch": 2, "reuse": 2, "views": 3, "refit": 4, "held_out": 0.3}
    return DistillationConfig(**({"trunk": trunk, "size": "medium"} | values | fields))


def run(
    config: DistillationConfig, checkpoint: Path, progress: Any = None, count: int = 5, device: torch.device = CPU
) -> Distilled:
    return distil(config, picture, count, "some", checkpoint, device, progress or Silent())


def test_an_interrupted_distillation_ends_with_the_same_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(distillation, "CHECKPOINT_SECONDS", -1.0)
    config = small(size="small", refit=0)
    whole = run(config, tmp_path / "whole")
    with pytest.raises(Stopped):
        run(config, tmp_path / "part", Interrupting(3))
    resumed = run(config, tmp_path / "part")
    expected, found = whole.network.state_dict(), resumed.network.state_dict()
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[key], found[key]) for key in expected)
    assert resumed.overall == whole.overall
    assert torch.equal(resumed.explained, whole.explained)
    with pytest.raises(RunError, match="belongs to another training"):
        run(small(size="small", refit=1), tmp_path / "part")


def test_the_held_out_figure_is_scikit_learns_r2(tmp_path: Path) -> None:
    work = Distillation(small(), picture, 6, "six", tmp_path / "checkpoint", CPU, Silent())
    assert len(work.held) == 2
    assert not set(work.held) & set(work.views.chosen)
    told, wanted = [], []
    for number in work.held:
        large = F.interpolate(picture(number)[None], (96, 96), mode="bilinear", antialias=True).clamp(0, 1)
        image, target = work._ready(*work.views.pairs(large))
        with torch.no_grad():
            told.append(work.network.eval()(image)[0].flatten(1).T)
        wanted.append(target[0].flatten(1).T)
    expected = r2_score(torch.cat(wanted).double(), torch.cat(told).double(), multioutput="raw_values")
    assert (expected == 0).any(), "random trunks have channels that are always zero"
    explained, overall = work.explained(work.network.eval())
    np.testing.assert_allclose(explained, expected, rtol=1e-4, atol=1e-4)
    values, errors = torch.cat(wanted).double(), torch.cat(told).double() - torch.cat(wanted).double()
    spread = (values - values.mean(0)).square().sum()
    assert overall == pytest.approx(float(1 - errors.square().sum() / spread), rel=1e-4)


def test_too_few_pictures_and_too_large_crops_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="at least 2 pictures to learn from and to measure on, got 1"):
        run(small(), tmp_path / "checkpoint", count=1)
    with pytest.raises(ValidationError, match="crop: expected at most the image size 48, got 49"):
        small(crop=49)


def test_a_loss_that_is_not_finite_names_its_step(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"not finite at step \d; lower learning_rate"):
        run(small(learning_rate=1e30, norms=False, weight_decay=0.0), tmp_path / "checkpoint")


def test_a_last_step_that_spoils_the_network_leaves_nothing_behind(tmp_path: Path) -> None:
    """Its loss was finite; no later step would notice."""
    checkpoint = tmp_path / "checkpoint"
    with pytest.raises(DataError, match="the loss is not finite at step 1; lower learning_rate"):
        run(small(steps=1, refit=0, learning_rate=1e30, norms=False), checkpoint)
    assert not checkpoint.exists()


IN_PAIRS = {"steps": 6, "batch": 4, "views": 4}
"""Two views of each group are made in one pass of the trunk."""


@NEEDS_CUDA
def test_a_teacher_distilled_on_a_gpu_is_that_of_a_cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distillation, "CHECKPOINT_SECONDS", -1.0)
    here, there = (run(small(**IN_PAIRS), tmp_path / device.type, None, 8, device) for device in (CPU, GPU))
    assert there.overall == pytest.approx(here.overall, abs=0.05)
    assert next(there.network.parameters()).device == CPU


@NEEDS_CUDA
def test_a_killed_distillation_goes_on_on_a_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distillation, "CHECKPOINT_SECONDS", -1.0)
    whole = run(small(**IN_PAIRS), tmp_path / "whole", None, 8, GPU)
    with pytest.raises(Stopped):
        run(small(**IN_PAIRS), tmp_path / "part", Interrupting(3), 8, GPU)
    resumed = run(small(**IN_PAIRS), tmp_path / "part", None, 8, GPU)
    assert resumed.overall == pytest.approx(whole.overall, abs=0.02)
