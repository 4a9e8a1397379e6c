"""Training a flow on stored pyramids: likelihood of normal images, a fixed schedule, resumable after a kill.

Source: U-Flow (arXiv 2211.12353, section 3.3): Adam on 0.5 |z|^2 - log |det J|.
We differ: a number of steps instead of epochs, a cosine instead of a constant rate, the loss per value instead of per
image, so that one rate and one clipping serve every pyramid.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Iterator
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
    learning_rate: float = Field(2e-2, gt=0, description="peak rate of Adam; rises straight, falls as a cosine")
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
    if start == schedule.steps:
        return
    good, good_step = copy.deepcopy(flow.state_dict()), start

    def require_finite(step: int, *values: Tensor) -> None:
        if not all(bool(value.isfinite()) for value in values):
            flow.load_state_dict(good)
            raise DataError(
                f"u_flow: the loss or its gradient was not finite at step {step} of {schedule.steps}; the state of "
                f"step {good_step} is kept; lower learning_rate (now {schedule.learning_rate:g}) and train again"
            )

    def save(step: int) -> None:
        if checkpoint:
            save_checkpoint(checkpoint, step, identity, {"flow": flow}, optimiser)

    for step, batch in zip(range(start, schedule.steps), batches(pyramids, schedule, seed, start), strict=False):
        loss = negative_log_likelihood(*flow(batch)).mean()
        optimiser.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        norm = torch.nn.utils.clip_grad_norm_(learned, schedule.clip)
        require_finite(step, loss, norm)
        if step > start and step % BETWEEN == 0:  # here, where the state has just given a finite loss
            good, good_step = copy.deepcopy(flow.state_dict()), step
            save(step)
        for group in optimiser.param_groups:
            group["lr"] = schedule.learning_rate * schedule.rate(step)
        optimiser.step()
        advance(step + 1, schedule.steps)
    with torch.no_grad():  # no later step would notice that the last one has spoilt the flow
        require_finite(schedule.steps, negative_log_likelihood(*flow(batch)).mean())
    save(schedule.steps)


def batches(pyramids: Iterable[Pyramid], schedule: Schedule, seed: int, start: int = 0) -> Iterator[Pyramid]:
    """Batches without end, from number ``start`` on; every image once per round. Shapes: k x (b, c_i, h_i, w_i)."""
    everything: list[Pyramid] = []
    number = visit = 0
    while True:
        for images, last in [(everything, True)] if everything else chunks(pyramids, schedule.memory * 1e9):
            if last and visit == 0:
                everything = images  # they are read no more
            order = torch.randperm(len(images), generator=drawn_at(seed, visit)).tolist()
            visit += 1
            # The last, smaller batch of a round waits for another.
            for begin in range(0, max(1, len(order) - schedule.batch + 1), schedule.batch):
                if number >= start:
                    rows = order[begin : begin + schedule.batch]
                    yield tuple(torch.stack(maps).float() for maps in zip(*(images[row] for row in rows), strict=True))
                number += 1
            del images  # before the next are gathered


def chunks(pyramids: Iterable[Pyramid], size: float) -> Iterator[tuple[list[Pyramid], bool]]:
    """Consecutive images in half precision, as many as fit into ``size`` bytes, and whether no more follow.

    They do not depend on how the images fall into batches. Shapes: k x (c_i, h_i, w_i) per image.
    """
    images: list[Pyramid] = []
    for pyramid in pyramids:
        for row in range(len(pyramid[0])):
            image = tuple(values[row].half() for values in pyramid)
            if images and (len(images) + 1) * 2 * sum(values.numel() for values in image) > size:
                yield images, False
                images = []
            images.append(image)
    if images:
        yield images, True
