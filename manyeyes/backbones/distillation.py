"""Distil a patch description network: teach it to say at every 33 px what a large trunk says there.

Source: EfficientAD (arXiv 2303.14535), section 3.1 and appendix: targets standardised per channel, the trunk at twice
the network's resolution, one picture in ten grey.
Where we differ: batch norm while training (folded afterwards), a one-cycle rate, small crops of many views, mirrored,
turned and zoomed views, targets read where each position looks, the last layer fitted in closed form.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import torch
import torch.nn.functional as F
from einops import rearrange, reduce
from pydantic import Field, model_validator
from torch import Tensor, nn

from manyeyes.backbones.distillation_network import folded, improve_last, with_norms
from manyeyes.backbones.distillation_targets import Targets
from manyeyes.backbones.distillation_views import Augmentation, Read, Views
from manyeyes.backbones.pdn import CHANNELS, RECEPTIVE_FIELD, STRIDE, PdnSize, patch_description_network, positions
from manyeyes.backbones.pixels import Pixels, Size, as_grid
from manyeyes.backbones.trunk import TimmTrunkConfig
from manyeyes.checkpoint import drawn_at, load_checkpoint, save_checkpoint
from manyeyes.config import Config, Seed
from manyeyes.device import training_precision
from manyeyes.errors import DataError
from manyeyes.maps import Grid
from manyeyes.progress import Progress

HELD, CROP, REFIT = 11, 12, 13
CHECKPOINT_SECONDS = 60.0
CURVE_POINTS = 10
CURVE_PICTURES = 8
LAST = 0.1
"""Rate of the last layer, relative to those with a norm: thousands of inputs of one sign move its output together."""


class DistillationConfig(Config):
    """The defaults were chosen on a thousand pictures and one CPU core.

    More steps explain more of the pictures, which is not better on every part; docs/pdn_small.md has values for a GPU.
    """

    trunk: TimmTrunkConfig = Field(description="the trunk to learn from; its size is that of the large image")
    stages: tuple[int, ...] = Field((2, 3), min_length=1, description="stages of the trunk, 384 channels or more")
    size: PdnSize = Field("small", description="PDN-S or PDN-M")
    image_size: Size = Field(256, description="the network's own input size in px")
    seed: Seed = 0
    steps: int = Field(4000, ge=1)
    crop: int = Field(128, ge=RECEPTIVE_FIELD + STRIDE, description="side in px of the crops that a step learns from")
    batch: int = Field(4, ge=1, description="crops per step, of different views")
    reuse: int = Field(8, ge=1, description="crops taken of each view; a new view costs a forward pass of the trunk")
    views: int = Field(64, ge=2, description="latest views that crops are drawn from, held in memory")
    learning_rate: float = Field(2e-3, gt=0, description="peak of a one-cycle schedule")
    weight_decay: float = Field(1e-5, ge=0)
    norms: bool = Field(True, description="batch norm before every ReLU while training, folded afterwards")
    zoom: float = Field(0.4, gt=0, le=1, description="smallest share of a picture's area that a view shows; 1: all")
    turn: bool = Field(True, description="mirror views and turn them by quarters")
    colour: float = Field(0.3, ge=0, lt=1, description="largest change of contrast, brightness and saturation")
    grey: float = Field(0.1, ge=0, le=1, description="share of grey views")
    held_out: float = Field(0.1, gt=0, lt=1, description="share of the pictures that only measure")
    refit: int = Field(128, ge=0, description="fresh views that the last layer is fitted to at the end; 0: not fitted")

    @model_validator(mode="after")
    def _crop_fits(self) -> Self:
        if self.crop > min(as_grid(self.image_size)):
            raise ValueError(f"crop: expected at most the image size {self.image_size}, got {self.crop}")
        return self


@dataclass(frozen=True)
class Distilled:
    """``network`` has the published keys; ``explained`` is the share of variance per channel on held-out pictures.

    ``trunk_digest`` says which weights it has learned from, whatever name they were found under.
    """

    network: nn.Sequential
    explained: Tensor
    overall: float
    pictures: int
    steps: int
    trunk_digest: str


def one_cycle(step: int, steps: int, peak: float, rise: float = 0.15) -> float:
    """The rate at ``step``: up from a twenty-fifth of ``peak`` over the share ``rise``, then down to zero (cosine)."""
    at = step / max(1, steps)
    low, share = (peak / 25, at / rise) if at < rise else (0.0, 1 - (at - rise) / (1 - rise))
    return low + (peak - low) * (1 - float(torch.cos(torch.tensor(share * torch.pi)))) / 2


def distil(
    config: DistillationConfig,
    read: Read,
    count: int,
    fingerprint: str,
    checkpoint: Path,
    device: torch.device,
    progress: Progress,
) -> Distilled:
    """Train a teacher on ``count`` pictures that ``read`` gives by number; goes on where ``checkpoint`` stopped.

    ``fingerprint`` names the pictures: a checkpoint of others is refused.
    Raises: DataError with fewer than two pictures or if the loss is not finite; ConfigError, WeightsError; RunError.
    """
    return Distillation(config, read, count, fingerprint, checkpoint, device, progress).run()


class Distillation:
    """One training; `run` does it."""

    def __init__(
        self,
        config: DistillationConfig,
        read: Read,
        count: int,
        fingerprint: str,
        checkpoint: Path,
        device: torch.device,
        progress: Progress,
    ) -> None:
        self.config, self.device, self.progress, self.checkpoint = config, device, progress, checkpoint
        self.image_size: Grid = as_grid(config.image_size)
        if count < 2:
            raise DataError(f"expected at least 2 pictures to learn from and to measure on, got {count}")
        order = torch.randperm(count, generator=drawn_at(config.seed, HELD)).tolist()
        held = min(max(1, round(config.held_out * count)), count - 1)
        self.held, self.read = sorted(order[:held]), read
        trunk = config.trunk.build().to(device)
        text = f"{config.fingerprint()}|{trunk.key}|{fingerprint}"
        self.identity = hashlib.sha256(text.encode()).hexdigest()[:16]
        self.targets = Targets(trunk, config.stages, self.image_size)
        augmentation = Augmentation(config.zoom, config.turn, config.colour, config.grey)
        self.views = Views(
            read,
            sorted(order[held:]),
            self.targets,
            augmentation,
            self.image_size,
            config.views,
            config.seed,
            together=max(1, config.batch // config.reuse),
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            build = with_norms if config.norms else patch_description_network
            self.network = build(config.size, CHANNELS).to(device).to(memory_format=torch.channels_last)
        *body, last = self.network
        groups = [
            {"params": [weight for layer in body for weight in layer.parameters()], "share": 1.0},
            {"params": list(last.parameters()), "share": LAST if config.norms else 1.0},
        ]
        self.optimiser = torch.optim.AdamW(groups, weight_decay=config.weight_decay)
        self.mean = torch.zeros(CHANNELS, 1, 1, device=device)
        self.std = torch.ones(CHANNELS, 1, 1, device=device)
        self.pixels = Pixels(self.image_size).to(device)

    def run(self) -> Distilled:
        begun = load_checkpoint(self.checkpoint, self.identity, {"network": self.network}, self.optimiser)
        if begun is None:
            step = 0
            self.views.advance_to(self.config.views)
            self._standardise([target for _, target in self.views.latest])
        else:
            step, extra = begun
            self.mean, self.std = (extra[name].to(self.device) for name in ("mean", "std"))
        self._train(step)
        plain = folded(self.network, self.config.size, CHANNELS) if self.config.norms else self.network.eval()
        plain = plain.to(self.device)
        if self.config.refit:
            some = self.explained(plain, CURVE_PICTURES)[1]
            self.progress.say(f"held out {some:.4f} before the last layer is fitted")
            gone = improve_last(plain, self._fresh(), share=0.25, seed=self.config.seed)
            self.progress.say(f"fitting the last layer took away {gone:.1%} of the error that was left")
        explained, overall = self.explained(plain)
        digest = self.targets.trunk.weights_digest
        return Distilled(plain.cpu(), explained, overall, len(self.held), self.config.steps, digest)

    def _standardise(self, targets: Sequence[Tensor]) -> None:
        values = torch.stack([target.float() for target in targets])
        self.mean = reduce(values, "b c h w -> c 1 1", "mean")
        self.std = reduce((values - self.mean).square(), "b c h w -> c 1 1", "mean").sqrt().clamp(min=1e-6)

    def _train(self, begun: int) -> None:
        config = self.config
        advance = self.progress.step("distilling")
        saved = started = time.monotonic()
        curve = max(1, config.steps // CURVE_POINTS)
        before: Tensor | None = None
        for step in range(begun, config.steps):
            self.views.advance_to(config.views + step * config.batch // config.reuse)
            for group in self.optimiser.param_groups:
                group["lr"] = group["share"] * one_cycle(step, config.steps, config.learning_rate)
            images, targets = self._crops(step)
            self.network.train()
            with training_precision(self.device):
                told = self.network(images)
            loss = F.mse_loss(told.float(), targets)
            self.optimiser.zero_grad(set_to_none=True)
            torch.autograd.backward(loss)
            self.optimiser.step()
            if before is not None:  # this step's own loss would keep a GPU waiting while the next one is prepared
                self._require_finite(before, step - 1)
            before = loss.detach()
            advance(step + 1, config.steps)
            if step == begun + 9:
                minutes = (time.monotonic() - started) / 10 * (config.steps - begun) / 60
                self.progress.say(f"{config.steps - begun} steps to go, about {minutes:.0f} minutes")
            if (step + 1) % curve == 0:
                some = self.explained(self.network.eval(), CURVE_PICTURES)[1]
                self.progress.say(f"step {step + 1}: loss {float(before):.4f}, held out {some:.4f}")
            if time.monotonic() - saved > CHECKPOINT_SECONDS or step + 1 == config.steps:
                self._require_finite(before, step)
                with torch.no_grad():  # no later step would notice that this one has spoilt the network
                    self._require_finite(F.mse_loss(self.network.eval()(images).float(), targets), step + 1)
                extra = {"mean": self.mean, "std": self.std}
                networks = {"network": self.network}
                save_checkpoint(self.checkpoint, step + 1, self.identity, networks, self.optimiser, extra)
                saved = time.monotonic()

    def _require_finite(self, loss: Tensor, step: int) -> None:
        if not bool(torch.isfinite(loss)):
            raise DataError(f"distillation: the loss is not finite at step {step}; lower learning_rate")

    def _crops(self, step: int) -> tuple[Tensor, Tensor]:
        """The crops of a step. Shapes: (b, 3, crop, crop) normalised, (b, 384, h, w) standardised."""
        generator = drawn_at(self.config.seed, CROP, step)
        crop, side = self.config.crop, positions(self.config.crop)
        images, targets = [], []
        for number in torch.randint(len(self.views.latest), (self.config.batch,), generator=generator).tolist():
            image, target = self.views.latest[number]
            y, x = (
                int(torch.randint(positions(whole) - side + 1, (), generator=generator)) for whole in self.image_size
            )
            images.append(image[:, STRIDE * y : STRIDE * y + crop, STRIDE * x : STRIDE * x + crop])
            targets.append(target[:, y : y + side, x : x + side])
        return self._ready(torch.stack(images), torch.stack(targets))

    def _ready(self, images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        return self.pixels.normalise(images.float()), (targets.float() - self.mean) / self.std

    def _fresh(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Views that no step has seen, one by one."""
        advance = self.progress.step("fitting the last layer")
        first = self.config.views + self.config.steps * self.config.batch // self.config.reuse
        for number in range(self.config.refit):
            image, target = self.views.view(first + number)
            yield self._ready(image[None], target[None])
            advance(number + 1, self.config.refit)

    @torch.no_grad()
    def explained(self, network: nn.Module, most: int | None = None) -> tuple[Tensor, float]:
        """Share of the targets' variance explained on held-out pictures, whole and unchanged: per channel, over all.

        Shapes: (384,) and a number; 1 is perfect, 0 no better than the mean, or a channel that never changes.
        """
        wrong, sums, squares = (torch.zeros(CHANNELS, dtype=torch.float64) for _ in range(3))
        count = 0
        for number in self.held[:most]:
            size = self.targets.trunk.input_size
            large = F.interpolate(self.read(number)[None], size=size, mode="bilinear", antialias=True)
            pixels, wanted = self._ready(*self.views.pairs(large.clamp(0, 1)))
            told = network(pixels)
            values, errors = (rearrange(v, "1 c h w -> (h w) c").double().cpu() for v in (wanted, told - wanted))
            wrong += errors.square().sum(dim=0)
            sums += values.sum(dim=0)
            squares += values.square().sum(dim=0)
            count += len(values)
        spread = squares - sums.square() / count
        constant = spread <= 1e-9 * squares
        share = torch.where(constant, torch.zeros_like(wrong), 1 - wrong / spread.where(~constant, torch.ones(())))
        return share, float(1 - wrong.sum() / spread.sum())
