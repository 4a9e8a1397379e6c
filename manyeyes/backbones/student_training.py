"""Training of EfficientAD's student and autoencoder on good pictures.

Source: Batzner, Heckler, Koenig, WACV 2024, arXiv 2303.14535, section 3.2 and algorithm 1.
Where we differ: the student's borders are mirrored as everywhere here; and a CPU, for which the paper's schedule takes
weeks, gets a short one (`student_schedule.SHORT`): the autoencoder alone learns in the steps, at a larger rate and from
crops of what the teacher says; then the student is fitted in closed form (`student_fit`).
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from manyeyes.backbones.autoencoder import autoencoder, draw_as_he
from manyeyes.backbones.contract import PicturesIn
from manyeyes.backbones.pdn import (
    CHANNELS,
    RECEPTIVE_FIELD,
    STRIDE,
    PdnTrunk,
    Standardisation,
    mirrored,
    patch_description_network,
    positions,
)
from manyeyes.backbones.student_fit import StudentFit, fit_student
from manyeyes.backbones.student_losses import change_colours, hard_feature_loss
from manyeyes.backbones.student_pictures import KeptPictures, photograph_views
from manyeyes.backbones.student_schedule import PAPER, TrainingConfig
from manyeyes.checkpoint import drawn_at, load_checkpoint, save_checkpoint
from manyeyes.device import training_precision
from manyeyes.errors import DataError
from manyeyes.maps import Grid, spread_evenly
from manyeyes.progress import Progress

STEP = 21
CHECKPOINT_SECONDS = 60.0
TIMED_STEPS = 5
OF_PHOTOGRAPHS = 200
"""Views that stand for penalty pictures where no folder is named."""


class StudentTraining:
    """One training on the teacher's device; `run` gives the learned tensors."""

    def __init__(self, config: TrainingConfig, teacher: PdnTrunk, grid: Grid, seed: int) -> None:
        self.config, self.teacher, self.grid, self.seed = config, teacher, grid, seed
        self.device = next(teacher.parameters()).device
        self.schedule = config.schedule_for(self.device)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            student = patch_description_network(teacher.size, 2 * CHANNELS)
            coder = autoencoder(teacher.input_size, grid, CHANNELS)
            if self.schedule.he:
                draw_as_he(coder)
            if self.schedule.fit is not None:
                student[:-1].load_state_dict(teacher.network[:-1].state_dict())
        # PyTorch's stubs have no overload of `to` with a device and a memory format.
        self.student, self.autoencoder = (
            network.to(self.device, memory_format=torch.channels_last).train()  # type: ignore[call-overload]
            for network in (student, coder)
        )
        self.scale = Standardisation(CHANNELS).to(self.device)
        self.networks: dict[str, nn.Module] = {
            "student": self.student,
            "autoencoder": self.autoencoder,
            "scale": self.scale,
        }

    def run(
        self,
        images: Iterable[Tensor],
        identity: str,
        pictures_in: PicturesIn,
        checkpoint: Path | None,
        progress: Progress,
    ) -> dict[str, Tensor]:
        """Learned tensors by name, ``student.``, ``autoencoder.`` and ``scale.``. Raises: as `TrainableTrunk.fit`."""
        folder = checkpoint.parent if checkpoint is not None else None
        pictures = KeptPictures(images, self.teacher.input_size, folder)
        if not len(pictures):
            raise DataError("EfficientAD: there is no picture to train on")
        natural = self._natural(pictures_in, folder, progress)
        learning = (self.autoencoder,) if self.schedule.fit is not None else (self.student, self.autoencoder)
        weights = [weight for network in learning for weight in network.parameters()]
        optimiser = torch.optim.Adam(weights, weight_decay=self.schedule.weight_decay)
        found = load_checkpoint(checkpoint, identity, self.networks, optimiser) if checkpoint is not None else None
        if found is None:
            self._standardise(pictures)
        begun = found[0] if found else 0

        def save(step: int) -> None:
            if checkpoint is not None:
                save_checkpoint(checkpoint, step, identity, self.networks, optimiser)

        if begun < self.schedule.steps:
            self._learn(begun, optimiser, pictures, natural, save, progress)
        if self.schedule.fit is not None:
            self._fit(self.schedule.fit, pictures, natural, progress)
        return {
            f"{name}.{key}": value.detach().clone().contiguous()
            for name, network in self.networks.items()
            for key, value in network.state_dict().items()
        }

    def _learn(
        self,
        begun: int,
        optimiser: torch.optim.Optimizer,
        pictures: KeptPictures,
        natural: KeptPictures,
        save: Callable[[int], None],
        progress: Progress,
    ) -> None:
        """The steps that are left; ``save`` is called once a minute, and before a fit, with how many are done."""
        steps, advance, saved = self.schedule.steps, progress.step("training EfficientAD"), time.monotonic()
        with torch.random.fork_rng(devices=[self.device] if self.device.type == "cuda" else []), torch.enable_grad():
            for step in range(begun, steps):
                self._step(step, optimiser, pictures, natural)
                advance(step + 1, steps)
                if step == begun:  # the first step takes longer than any other
                    started = time.monotonic()
                if step == begun + TIMED_STEPS:
                    progress.say(self._expected(steps - begun, (time.monotonic() - started) / TIMED_STEPS))
                if time.monotonic() - saved > CHECKPOINT_SECONDS:
                    save(step + 1)
                    saved = time.monotonic()
        if self.schedule.fit is not None:
            save(steps)

    def _expected(self, left: int, seconds: float) -> str:
        """What a user is told at the start; ``seconds`` are those of one step."""
        short = "" if self.schedule.steps >= PAPER.steps else f" of a schedule shorter than the paper's {PAPER.steps:,}"
        minutes = max(1, round(left * seconds / 60))
        after = "" if self.schedule.fit is None else ", then the student is fitted"
        return f"EfficientAD on {self.device}: {left:,} steps to go{short}, about {minutes} min{after}"

    def _natural(self, pictures_in: PicturesIn, folder: Path | None, progress: Progress) -> KeptPictures:
        size, fit = self.teacher.input_size, self.schedule.fit
        most = self.config.penalty_pictures if fit is None else min(fit.natural, self.config.penalty_pictures)
        if self.config.penalty is None:
            progress.say(
                "EfficientAD's penalty pictures are views of two photographs, for want of a folder: its student may "
                "follow the teacher on defects that look like neither; name a folder of varied pictures in "
                "training.penalty"
            )
            return KeptPictures(
                photograph_views(OF_PHOTOGRAPHS if fit is None else most, size, self.seed), size, folder
            )
        found = KeptPictures(pictures_in(self.config.penalty, most), size, folder)
        if not len(found):
            raise DataError(f"{self.config.penalty}: there is no penalty picture")
        return found

    def _step(
        self,
        step: int,
        optimiser: torch.optim.Optimizer,
        pictures: KeptPictures,
        natural: KeptPictures,
    ) -> None:
        """One optimiser step; what it sees depends on the seed and the number of the step alone."""
        generator = drawn_at(self.seed, STEP, step)
        torch.manual_seed(int(torch.randint(1 << 40, (), generator=generator)))  # what the autoencoder drops
        for group in optimiser.param_groups:
            group["lr"] = self.schedule.rate(step)
        images = self._draw(pictures, generator)
        coloured = change_colours(images, generator).to(self.device)
        y, x, h, w = window = self._window(generator)
        imagined = self._told(self.autoencoder, self._normalised(coloured))[:, :, y : y + h, x : x + w]
        pixels = self._cut(coloured, window)
        loss = F.mse_loss(imagined, self._teacher(pixels))
        if self.schedule.fit is None:
            loss = loss + F.mse_loss(self._told(self.student, pixels)[:, CHANNELS:], imagined)
            target, told = self._both(images.to(self.device), window)
            loss = loss + hard_feature_loss(target - told[:, :CHANNELS], self.config.hard)
            pixels = self._cut(self._draw(natural, generator).to(self.device), window)
            loss = loss + self._told(self.student, pixels)[:, :CHANNELS].square().mean()
        if not bool(torch.isfinite(loss)):
            raise DataError(
                f"EfficientAD: the loss is not finite at step {step}; lower training.schedule.learning_rate"
            )
        optimiser.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        optimiser.step()

    def _draw(self, pictures: KeptPictures, generator: torch.Generator) -> Tensor:
        return pictures[torch.randint(len(pictures), (self.schedule.images,), generator=generator)]

    def _window(self, generator: torch.Generator) -> tuple[int, int, int, int]:
        """Row, column, height and width, in positions of the map, of what the student sees in this step."""
        sides, places = [], []
        for whole in self.grid:
            side = whole if self.schedule.crop is None else min(whole, positions(self.schedule.crop))
            sides.append(side)
            places.append(int(torch.randint(whole - side + 1, (), generator=generator)))
        return places[0], places[1], sides[0], sides[1]

    def _cut(self, images: Tensor, window: tuple[int, int, int, int]) -> Tensor:
        """Normalised pixels whose unpadded map is the window. Shapes: (b, 3, H, W) -> (b, 3, 4 h + 29, 4 w + 29)."""
        y, x, h, w = window
        margin = RECEPTIVE_FIELD - STRIDE
        rows, columns = slice(STRIDE * y, STRIDE * (y + h) + margin), slice(STRIDE * x, STRIDE * (x + w) + margin)
        return self._normalised(mirrored(images)[:, :, rows, columns])

    def _both(self, images: Tensor, window: tuple[int, int, int, int]) -> tuple[Tensor, Tensor]:
        """What the standardised teacher and the student say. Shapes: (b, 384, h, w), (b, 768, h, w)."""
        pixels = self._cut(images, window)
        return self._teacher(pixels), self._told(self.student, pixels)

    def _told(self, network: nn.Module, pixels: Tensor) -> Tensor:
        """What a learning network says, in float32 whatever it computes in; the teacher never computes in less."""
        with training_precision(self.device):
            value: Tensor = network(pixels)
        return value.float()

    @torch.no_grad()
    def _teacher(self, pixels: Tensor) -> Tensor:
        value: Tensor = self.scale(self.teacher.describe(pixels).float())
        return value

    def _normalised(self, images: Tensor) -> Tensor:
        return self.teacher.pixels.normalise(images).contiguous(memory_format=torch.channels_last)

    def _spread(self, pictures: KeptPictures, most: int | None) -> Iterator[Tensor]:
        """Pictures, evenly spread over all, one by one. Shapes: (1, 3, H, W) in [0, 1]."""
        for place in spread_evenly(len(pictures), most or len(pictures)):
            yield pictures[torch.tensor([place])].to(self.device)

    @torch.no_grad()
    def _standardise(self, pictures: KeptPictures) -> None:
        """Mean and deviation per channel of the teacher on the good pictures."""
        sums, squares, count = torch.zeros(CHANNELS).double(), torch.zeros(CHANNELS).double(), 0
        for image in self._spread(pictures, self.schedule.statistics):
            told = self.teacher.describe(self._normalised(mirrored(image))).double().cpu()
            sums += told.sum(dim=(0, 2, 3))
            squares += told.square().sum(dim=(0, 2, 3))
            count += told[:, 0].numel()
        mean = sums / count
        std = (squares / count - mean.square()).clamp(min=0).sqrt().clamp(min=1e-6)
        self.scale.load_state_dict({"mean": mean.float().view(-1, 1, 1), "std": std.float().view(-1, 1, 1)})

    @torch.no_grad()
    def _fit(self, fit: StudentFit, pictures: KeptPictures, natural: KeptPictures, progress: Progress) -> None:
        """The student in closed form, on pictures as they are; the autoencoder drops nothing meanwhile."""
        counts = min(fit.pictures, len(pictures)), min(fit.natural, len(natural))
        advance, done = progress.step("fitting EfficientAD's student"), itertools.count(1)
        total = sum(counts) + fit.rounds + 1
        self.autoencoder.eval()

        def good() -> Iterator[tuple[Tensor, Tensor]]:
            for image in self._spread(pictures, fit.pictures):
                pixels = self._normalised(mirrored(image))
                yield pixels, torch.cat([self._teacher(pixels), self.autoencoder(self._normalised(image))], dim=1)

        def other() -> Iterator[tuple[Tensor, Tensor]]:
            for image in self._spread(natural, fit.natural):
                yield self._normalised(mirrored(image)), image.new_zeros(1, CHANNELS, *self.grid)

        each = [min(1.0, fit.positions / (count * math.prod(self.grid))) for count in counts]
        shares, tick = (each[0], each[1]), lambda: advance(next(done), total)
        fit_student(self.student, good(), other(), shares, fit, self.seed, tick)
