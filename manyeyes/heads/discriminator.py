"""Discriminator: a small network that says which noise is on a feature; an anomaly is what it takes for noise.

SimpleNet (Liu et al., CVPR 2023, arXiv 2303.15140) asks its discriminator *whether* a feature of a good part has noise
on it, one bit per feature (`manyeyes.heads.simplenet`). Here it is asked *which* noise, a number for every component:
denoising score matching (Vincent 2011, Neural Computation 23:7). The best answer to a feature x with noise of variance
s^2 is -s^2 times the gradient of log p(x), p being the density of noisy features: how far and which way x is from what
good features look like. Its length, at many strengths of noise, tells features of another kind (Mahmood et al., ICLR
2021, arXiv 2010.13132). What was measured to matter: docs/discriminator.md.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import ClassVar, Literal, Self

import torch
import torch.nn.functional as F
from einops import rearrange, reduce
from pydantic import Field
from torch import Tensor, nn

from manyeyes.config import Config
from manyeyes.device import training_precision
from manyeyes.heads.contract import MapHead
from manyeyes.heads.noise import NoiseRange, folded, learn, root_mean_square, strengths
from manyeyes.heads.positions import rows_of, sample_positions

ON_CPU = 1024
"""Features judged at once on a CPU: so few that the hidden layer stays in the cache, in memory that is used again."""


class DiscriminatorConfig(Config):
    """``noise`` is the range of the noise's standard deviation, in root-mean-squares of the centred features."""

    reads: ClassVar[Literal["map"]] = "map"
    kind: Literal["discriminator"] = "discriminator"
    hidden: int = Field(1024, ge=1, description="width of the hidden layer")
    steps: int = Field(3000, ge=1, description="optimiser steps; the schedule is fixed")
    batch: int = Field(768, ge=2, description="features per step")
    clean: float = Field(1 / 6, ge=0, lt=1, description="share of a step's features that get no noise")
    learning_rate: float = Field(5e-3, gt=0, description="peak of a one-cycle schedule")
    weight_decay: float = Field(1e-5, ge=0)
    noise: NoiseRange = Field((0.3, 1.0), description="weakest and strongest noise, relative to the features")
    positions: int = Field(262_144, ge=2, description="features kept in memory for the fit, drawn from all positions")

    def build(self, channels: int) -> Discriminator:
        return Discriminator(self, channels)


class Denoiser(nn.Module):
    """What noise is on a feature: a hidden layer, and beside it the part that is linear in the feature.

    Shapes: (n, d) -> (n, d). Units: of the features that it is given.
    """

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.hidden = nn.Linear(channels, hidden)
        self.norm = nn.BatchNorm1d(hidden)
        self.output = nn.Linear(hidden, channels)
        self.skip = nn.Linear(channels, channels, bias=False)
        nn.init.zeros_(self.skip.weight)

    def forward(self, features: Tensor) -> Tensor:
        seen: Tensor = self.output(F.silu(self.norm(self.hidden(features)))) + self.skip(features)
        return seen


class Discriminator(MapHead):
    """Score of a position = mean square of the noise that the network sees there.

    Shapes: (b, d, h, w) -> (b, h, w). Units: mean squares of the features: noise as strong as they are has
    1 if all of it is seen.
    Where the hardware multiplies bfloat16 faster the network does, in training and in judging.
    Raises: DataError if the features are all equal or not finite; NotFittedError before ``fit``.
    """

    mean_: Tensor
    weights_: Tensor
    biases_: Tensor
    output_: Tensor
    offset_: Tensor
    skip_: Tensor

    def __init__(self, config: DiscriminatorConfig, channels: int) -> None:
        super().__init__()
        self.config, self.channels = config, channels
        self.declare("mean_", "weights_", "biases_", "output_", "offset_", "skip_")

    def fit(self, embeddings: Iterable[Tensor], seed: int) -> Self:
        """Train on stored features; the fitted network keeps its batch norm folded into the first layer."""
        features = sample_positions(embeddings, self.config.positions, seed, self.channels)
        scale = root_mean_square(features, self.config.kind)
        self.mean_ = features.mean(dim=0)
        with torch.inference_mode(False), torch.enable_grad():
            network = self._train(features, self.mean_, scale, seed)
        weights, self.biases_ = folded(network.hidden, network.norm)
        self.weights_, self.skip_ = weights / scale, network.skip.weight.detach() / scale
        self.output_, self.offset_ = network.output.weight.detach(), network.output.bias.detach()
        return self

    def _train(self, features: Tensor, mean: Tensor, scale: float, seed: int) -> Denoiser:
        """The network for features less their ``mean``, in units of ``scale``. Shapes: (n, d), (d,)."""
        config, device = self.config, features.device
        generator = torch.Generator(device=device).manual_seed(seed)
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            torch.manual_seed(seed)
            network = Denoiser(self.channels, config.hidden).to(device).train()
        low, high = (math.log(limit) for limit in config.noise)
        clean = min(round(config.clean * config.batch), config.batch - 1)

        def loss() -> Tensor:
            rows = torch.randint(len(features), (config.batch,), generator=generator, device=device)
            noise = torch.randn((config.batch, self.channels), generator=generator, device=device)
            noise *= strengths(config.batch, low, high, generator)
            noise[:clean] = 0
            with training_precision(device):
                seen = network((features[rows] - mean).div_(scale).add_(noise))
            return relative_error(seen.float(), noise, config.noise[0])

        learn(network, loss, config.steps, config.learning_rate, config.weight_decay)
        return network

    @torch.no_grad()
    def anomaly_map(self, embedding: Tensor) -> Tensor:
        self.require_fit()
        rows = rows_of(embedding, self.channels, self.config.kind)
        some = ON_CPU if rows.device.type == "cpu" else len(rows)
        found = torch.cat([self._judged(part) for part in torch.split(rows, some)])
        return rearrange(found, "(b h w) -> b h w", b=len(embedding), h=embedding.shape[2])

    def _judged(self, rows: Tensor) -> Tensor:
        """Shapes: (n, d) -> (n,)."""
        centred = rows - self.mean_  # in float32: in bfloat16 a large constant would drown what differs
        with training_precision(rows.device):
            hidden = F.silu(F.linear(centred, self.weights_, self.biases_), inplace=True)
            seen = F.linear(hidden, self.output_, self.offset_) + F.linear(centred, self.skip_)
        return reduce(seen.float().square(), "n d -> n", "mean")


def relative_error(seen: Tensor, noise: Tensor, weakest: float) -> Tensor:
    """Mean over features of the squared error, relative to the noise's own square and the weakest noise's.

    Without it the strongest noise makes nearly all of the loss, and the weakest tells most of what good features are.
    Shapes: (n, d), (n, d) -> ().
    """
    error, strength = (reduce(value.square(), "n d -> n", "mean") for value in (seen - noise, noise))
    return (error / (strength + weakest**2)).mean()
