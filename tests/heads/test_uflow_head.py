"""U-Flow as a head: a case whose likelihood is known, training that survives kills and breaks with words."""

from __future__ import annotations

import gc
import math
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from manyeyes.errors import ConfigError, DataError, RunError
from manyeyes.heads import UFlowHead, UFlowHeadConfig, flow_training
from manyeyes.heads.flow_training import Schedule, batches, chunks, negative_log_likelihood
from manyeyes.heads.uflow import likelihood_map, paper_schedule
from manyeyes.maps import MapSpec

SPECS = (MapSpec("fine", 4, 4, (8, 8)), MapSpec("coarse", 8, 8, (4, 4)))
QUICK = UFlowHeadConfig(steps=2, training=Schedule(steps=9, batch=3))


def pyramid(count: int, seed: int = 0) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(count, spec.channels, *spec.grid, generator=generator) for spec in SPECS)


class Stored:
    """A re-iterable of one pyramid in batches, that counts its passes."""

    def __init__(self, maps: tuple[Tensor, ...], size: int = 4) -> None:
        self.maps, self.size, self.passes = maps, size, 0

    def __iter__(self) -> Iterator[tuple[Tensor, ...]]:
        self.passes += 1
        return zip(*(value.split(self.size) for value in self.maps), strict=True)


def tensors(head: UFlowHead) -> dict[str, Tensor]:
    return head.state_dict()


def same(one: UFlowHead, other: UFlowHead) -> bool:
    mine, yours = tensors(one), tensors(other)
    return mine.keys() == yours.keys() and all(torch.equal(mine[key], yours[key]) for key in mine)


def test_the_likelihood_of_correlated_gaussians_is_learned() -> None:
    """Two channels with correlation 0.95 at every position: what a perfect model gains is known."""
    rho = 0.95

    def draw(count: int, seed: int) -> tuple[Tensor]:
        values = torch.randn(count, 2, 8, 8, generator=torch.Generator().manual_seed(seed))
        values[:, 1] = rho * values[:, 0] + math.sqrt(1 - rho**2) * values[:, 1]
        return (3 * values + 7,)

    spec = (MapSpec("only", 2, 4, (8, 8)),)
    schedule = Schedule(steps=250, batch=8, learning_rate=2e-2)
    head = UFlowHeadConfig(steps=4, width=16, training=schedule).build(spec)
    head.fit(Stored(draw(512, 0)), 0)
    fresh = draw(256, 1)
    with torch.no_grad():
        found = float(negative_log_likelihood(*head.flow(head.standardised(fresh))).mean())
    known = 0.5 + 0.25 * math.log(1 - rho**2)
    assert abs(known - 0.5) > 0.5, "the flow has something to gain"
    assert abs(found - known) < 0.03
    squares = torch.cat([z.square().flatten() for z in head.latents(fresh)])
    assert float(squares.mean()) == pytest.approx(1, abs=0.1)


def test_the_map_is_the_papers_formula() -> None:
    coarse, fine = torch.full((1, 3, 2, 2), 2.0), torch.zeros(1, 5, 4, 4)
    fine[0, :, 0, 0] = torch.tensor([3.0, 0, 0, 0, -1])
    found = likelihood_map((coarse, fine))[0]
    assert found.shape == (4, 4)
    assert float(found[3, 3]) == pytest.approx(1 - (math.exp(-2) + 1) / 2)
    assert float(found[0, 0]) == pytest.approx(1 - (math.exp(-2) + math.exp(-1)) / 2)


def test_maps_may_come_fine_or_coarse_first() -> None:
    maps = pyramid(6)
    fine_first = QUICK.build(SPECS).fit(Stored(maps), 0)
    coarse_first = QUICK.build(SPECS[::-1]).fit(Stored(maps[::-1]), 0)
    assert torch.equal(fine_first.judge(maps)[0], coarse_first.judge(maps[::-1])[0])
    assert fine_first.judge(maps)[0].shape == (6, 8, 8)
    anomaly_map, score, squares = fine_first.examine(maps)
    assert torch.equal(score, anomaly_map.amax(dim=(1, 2)))
    assert [value.shape[1:] for value in squares] == [(8 - 4, 4, 4), (4 + 1, 8, 8)], "four of eight rise as one"
    torch.testing.assert_close(squares[0], fine_first.latents(maps)[0].square())


def test_training_raises_the_likelihood_of_images_not_seen() -> None:
    images = torch.linspace(-1, 1, 32)[:, None, None, None]
    maps = tuple(value * 0.3 + images for value in pyramid(32))
    head = UFlowHeadConfig(training=Schedule(steps=60, batch=4, learning_rate=1e-2)).build(SPECS)
    unseen = tuple(value[1::2] for value in maps)
    losses = []
    for config in (head.config.model_copy(update={"training": Schedule(steps=1)}), head.config):
        head = config.build(SPECS).fit(Stored(tuple(value[::2] for value in maps)), 0)
        with torch.no_grad():
            losses.append(float(negative_log_likelihood(*head.flow(head.standardised(unseen))).mean()))
    assert losses[1] < losses[0] - 0.2


def test_progress_reaches_the_end_step_by_step() -> None:
    told: list[tuple[int, int]] = []
    QUICK.build(SPECS).fit(Stored(pyramid(6)), 0, lambda done, total: told.append((done, total)))
    assert told == [(done, 9) for done in range(1, 10)]


def fit_and_die(checkpoint: str, at: int) -> None:
    torch.set_num_threads(1)  # as in the process that resumes: other threads, other bits
    flow_training.BETWEEN = 2

    def advance(done: int, total: int) -> None:
        if done == at:
            os.kill(os.getpid(), signal.SIGKILL)

    QUICK.build(SPECS).fit(Stored(pyramid(8)), 0, advance, Path(checkpoint))


@pytest.mark.parametrize("at", [1, 6, 9])
def test_a_killed_training_resumes_on_the_same_path(at: int, tmp_path: Path, in_process: Callable[..., int]) -> None:
    checkpoint = tmp_path / "head.checkpoint"
    assert in_process(fit_and_die, str(checkpoint), at) == -signal.SIGKILL
    assert checkpoint.exists() == (at > 2)
    told: list[int] = []
    resumed = QUICK.build(SPECS).fit(Stored(pyramid(8)), 0, lambda done, _: told.append(done), checkpoint)
    assert told[0] == {1: 1, 6: 5, 9: 9}[at], "what was done is not done again"
    assert same(resumed, QUICK.build(SPECS).fit(Stored(pyramid(8)), 0))


def test_a_finished_checkpoint_is_not_trained_again_and_another_training_refuses_it(tmp_path: Path) -> None:
    checkpoint = tmp_path / "head.checkpoint"
    first = QUICK.build(SPECS).fit(Stored(pyramid(8)), 0, checkpoint=checkpoint)
    told: list[int] = []
    again = QUICK.build(SPECS).fit(Stored(pyramid(8)), 0, lambda done, _: told.append(done), checkpoint)
    assert told == []
    assert same(first, again)
    with pytest.raises(RunError, match="belongs to another training"):
        QUICK.build(SPECS).fit(Stored(pyramid(8)), 1, checkpoint=checkpoint)


def test_a_loss_that_is_not_finite_names_its_step_and_leaves_the_last_good_state(tmp_path: Path) -> None:
    flow_at_start = QUICK.build(SPECS)
    wild = QUICK.model_copy(update={"training": Schedule(steps=9, learning_rate=1e30)})
    head, checkpoint = wild.build(SPECS), tmp_path / "head.checkpoint"
    with pytest.raises(
        DataError, match=r"not finite at step \d of 9; the state of step 0 is kept; lower learning_rate"
    ):
        head.fit(Stored(pyramid(8)), 0, checkpoint=checkpoint)
    assert all(value.isfinite().all() for value in tensors(head).values())
    assert all(
        torch.equal(mine, yours)
        for mine, yours in zip(head.flow.state_dict().values(), flow_at_start.flow.state_dict().values(), strict=True)
    )
    assert not checkpoint.exists(), "no bad state is kept"
    assert not any(parameter.requires_grad for parameter in head.parameters())


def test_a_last_step_that_spoils_the_flow_is_noticed(tmp_path: Path) -> None:
    wild = QUICK.model_copy(update={"training": Schedule(steps=1, learning_rate=1e30)})
    checkpoint = tmp_path / "head.checkpoint"
    with pytest.raises(DataError, match=r"not finite at step 1 of 1; the state of step 0 is kept"):
        wild.build(SPECS).fit(Stored(pyramid(8)), 0, checkpoint=checkpoint)
    assert not checkpoint.exists()


def test_features_that_fit_into_memory_are_read_twice_and_others_in_turn() -> None:
    stored = Stored(pyramid(8))
    QUICK.build(SPECS).fit(stored, 0)
    assert stored.passes == 2
    small = QUICK.model_copy(update={"training": Schedule(steps=9, batch=3, memory=4 * 768e-9)})
    stored = Stored(pyramid(8))
    small.build(SPECS).fit(stored, 0)
    assert stored.passes == 6, "two batches per pass, since three of four images make one"


def test_chunks_do_not_depend_on_batches_and_hold_every_image() -> None:
    maps = pyramid(10)
    each = 2 * sum(value[0].numel() for value in maps)

    def held(size: int, room: float) -> list[tuple[Tensor, bool]]:
        return [
            (torch.stack([image[0] for image in images]), last) for images, last in chunks(Stored(maps, size), room)
        ]

    whole = held(10, 4.5 * each)
    assert [(len(images), last) for images, last in whole] == [(4, False), (4, False), (2, True)]
    assert torch.equal(torch.cat([images for images, _ in whole]), maps[0].half())
    for size in (1, 3, 7):
        assert all(torch.equal(one[0], other[0]) for one, other in zip(whole, held(size, 4.5 * each), strict=True))
    assert [len(images) for images, _ in held(3, 0.1 * each)] == [1] * 10, "one image is always held"
    assert [len(images) for images, _ in held(3, 10 * each)] == [10]


def test_a_chunk_is_let_go_before_the_next_is_gathered() -> None:
    """Else twice the memory that was asked for is taken."""
    alive: list[int] = []

    def images() -> Iterator[tuple[Tensor]]:
        for _ in range(5):
            alive.append(sum(type(thing) is Tensor and thing.shape == (3, 5, 7) for thing in gc.get_objects()))
            yield (torch.zeros(1, 3, 5, 7),)

    draws = batches(images(), Schedule(batch=1, memory=2.5 * 2 * 105e-9), seed=0)
    for _ in range(5):
        next(draws)
    assert alive == [0, 1, 2, 1, 2]


def test_every_image_comes_once_per_round() -> None:
    numbered = (torch.arange(9.0)[:, None, None, None].expand(9, 2, 2, 2),)
    draws = batches(Stored(numbered), Schedule(batch=3), seed=0)
    rounds = [torch.cat([next(draws)[0][:, 0, 0, 0] for _ in range(3)]).tolist() for _ in range(2)]
    assert [sorted(found) for found in rounds] == [list(range(9))] * 2
    assert rounds[0] != rounds[1]
    later = batches(Stored(numbered), Schedule(batch=3), seed=0, start=4)
    assert next(later)[0][:, 0, 0, 0].tolist() == rounds[1][3:6]


def test_the_rate_rises_and_falls() -> None:
    rates = [Schedule(steps=100).rate(step) for step in range(100)]
    assert 0 < rates[0] < rates[5] < rates[9] < 1
    assert rates[10] == 1
    assert rates[-1] < 0.01
    assert paper_schedule(1600).steps == 20_000


def test_constant_features_and_grids_that_do_not_nest_are_refused() -> None:
    constant = tuple(torch.full_like(value, 3.0) for value in pyramid(4))
    with pytest.raises(DataError, match="all features of a scale are equal"):
        QUICK.build(SPECS).fit(Stored(constant), 0)
    with pytest.raises(ConfigError, match="no whole multiple"):
        QUICK.build((SPECS[0], MapSpec("odd", 4, 8, (5, 5))))
