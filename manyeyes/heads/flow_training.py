"""Training a flow on stored pyramids: likelihood of normal images, a fixed schedule, resumable after a kill.

Source: U-Flow (arXiv 2211.12353, section 3.3): Adam on 0.5 |z|^2 - log |det J|.
We differ: a number of steps instead of epochs, a cosine instead of a constant rate, the loss per value instead of per
image, so that one rate and one clipping serve every pyramid.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path

import torch
from pydantic import Field
from torch import Tensor

from manyeyes.checkpoint import drawn_at, load_checkpoint, save_checkpoint
from manyeyes.config import Config
from manyeyes.errors import DataError
from manyeyes.heads.contract import Pyramid
from manyeyes.heads.flow import UShape
from manyeyes.progress import Advance

BETWEEN = 50
"""Steps between two checkpoints, and between two copies of the last good state."""
WARM_UP = 0.1
"""Share of the steps in which the rate rises."""


class Schedule(Config):
    """How a flow is trained: always this many steps, whatever the loss."""

    steps: int = Field(400, ge=1, description="optimiser steps; the schedule is fixed")
    batch: int = Field(4, ge=1, description="images per step, drawn anew for every step")
    learning_rate: float = Field(2e-3, gt=0, description="peak rate of Adam; rises straight, falls as a cosine")
    weight_decay: float = Field(1e-5, ge=0)
    clip: float = Field(1.0, gt=0, description="largest norm of the gradient of the loss per value")
    memory: float = Field(
        2.0, gt=0, description="gigabytes of features kept in memory; more are read from the store in turn"
    )

    def rate(self, step: int) -> float:
        """Share of the peak rate: a straight rise, then half a cosine down to zero."""
        begun = WARM_UP * self.steps
        if step < begun:
            return (step + 1) / (begun + 1)
        return 0.5 * (1 + math.cos(math.pi * (step - begun) / (self.steps - begun)))


def negative_log_likelihood(latents: Pyramid, log_determinant: Tensor) -> Tensor:
    """In nats per value, without the Gaussian's constant. Shapes: k x (b, d_i, h_i, w_i), (b,) -> (b,)."""
    values = sum(latent[0].numel() for latent in latents)
    energy = torch.stack([latent.square().flatten(1).sum(dim=1) for latent in latents]).sum(dim=0)
    return (0.5 * energy - log_determinant) / values


def train(
    flow: UShape,
    pyramids: Iterable[Pyramid],
    schedule: Schedule,
    seed: int,
    advance: Advance,
    checkpoint: Path | None,
    identity: str,
) -> None:
    """Fit what requires a gradient in ``flow``, in place; ``identity`` names this training in its ``checkpoint``.

    Raises: DataError naming the step at which the loss was not finite; flow and checkpoint keep the last good state.
    """
    learned = [parameter for parameter in flow.parameters() if parameter.requires_grad]
    optimiser = torch.optim.Adam(learned, schedule.learning_rate, weight_decay=schedule.weight_decay)
    resumed = load_checkpoint(checkpoint, identity, {"flow": flow}, optimiser) if checkpoint else None
    start = resumed[0] if resumed else 0
    good, good_step = copy.deepcopy(flow.state_dict()), start
    draws = islice(batches(pyramids, schedule, seed), start, schedule.steps)
    for step, (chunk, rows) in enumerate(draws, start=start):
        loss = negative_log_likelihood(*flow([values[rows].float() for values in chunk])).mean()
        optimiser.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        norm = torch.nn.utils.clip_grad_norm_(learned, schedule.clip)
        if not bool(loss.isfinite() & norm.isfinite()):
            flow.load_state_dict(good)
            raise DataError(
                f"u_flow: the loss or its gradient was not finite at step {step} of {schedule.steps}; the state of "
                f"step {good_step} is kept; lower learning_rate (now {schedule.learning_rate:g}) and train again"
            )
        if step > start and step % BETWEEN == 0:  # here, where the state has just given a finite loss
            good, good_step = copy.deepcopy(flow.state_dict()), step
            if checkpoint:
                save_checkpoint(checkpoint, step, identity, {"flow": flow}, optimiser)
        for group in optimiser.param_groups:
            group["lr"] = schedule.learning_rate * schedule.rate(step)
        optimiser.step()
        advance(step + 1, schedule.steps)
    if checkpoint:
        save_checkpoint(checkpoint, schedule.steps, identity, {"flow": flow}, optimiser)


def batches(pyramids: Iterable[Pyramid], schedule: Schedule, seed: int) -> Iterator[tuple[Pyramid, Tensor]]:
    """Chunks of images in memory, each with the rows of one batch; every image once per round, without end."""
    whole: list[Pyramid] = []
    visit = 0
    while True:
        found = 0
        for chunk in whole or chunks(pyramids, schedule.memory * 1e9):
            found += 1
            if found == 1:
                first = chunk
            order = torch.randperm(len(chunk[0]), generator=drawn_at(seed, visit))
            visit += 1
            rounds = max(1, len(order) // schedule.batch)  # the last, smaller batch waits for another round
            for rows in torch.split(order, schedule.batch)[:rounds]:
                yield chunk, rows.to(chunk[0].device)
        if found == 1:
            whole = [first]  # everything fits, so it is read no more


def chunks(pyramids: Iterable[Pyramid], size: float) -> Iterator[Pyramid]:
    """Consecutive images in half precision, as many as fit into ``size`` bytes. Shapes: k x (n, c_i, h_i, w_i).

    They do not depend on how the images fall into batches.
    """
    parts: list[Pyramid] = []
    room = 0
    for pyramid in pyramids:
        part = tuple(values.half() for values in pyramid)
        each = 2 * sum(values[0].numel() for values in part)
        while len(part[0]):
            if not parts:
                room = max(1, int(size // each))
            taken = tuple(values[:room] for values in part)
            part = tuple(values[room:] for values in part)
            parts.append(taken)
            room -= len(taken[0])
            if not room:
                yield _joined(parts)
                parts = []
    if parts:
        yield _joined(parts)


def _joined(parts: list[Pyramid]) -> Pyramid:
    return tuple(torch.cat(values) for values in zip(*parts, strict=True))
