"""SimpleNet's discriminator: a small network that tells features of good parts from the same features with noise added.

Source: SimpleNet (Liu et al., CVPR 2023, arXiv 2303.15140): truncated L1 loss, anomaly score = minus the output. We
differ where it was measured to matter (docs/discriminator.md): no trainable adapter, which learns to enlarge the
features until the noise is nothing; noise of many strengths, log-uniform per feature and relative to the
root-mean-square of the features, so that one default serves every ensemble; noise on a random share of the components
only, because noise on all of them is told by its length alone and a defect touches few; noisy features that take one
step to where the network mistakes them for good, at the same distance from their good one, after GLASS (Chen et al.,
ECCV 2024, arXiv 2407.09359), which has several steps within two radii; many small steps on stored features, on a fixed
schedule, instead of epochs of images, and never an epoch picked on the test set.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import ClassVar, Literal, Self

import torch
import torch.nn.functional as F
from einops import rearrange
from pydantic import Field
from torch import Tensor, nn

from manyeyes.config import Config
from manyeyes.heads.contract import MapHead
from manyeyes.heads.noise import NoiseRange, folded, learn, root_mean_square, strengths
from manyeyes.heads.positions import rows_of, sample_positions

MARGIN, SLOPE = 0.5, 0.2


class SimpleNetConfig(Config):
    """``noise`` is the range of the noise's standard deviation, in root-mean-squares of the centred features."""

    reads: ClassVar[Literal["map"]] = "map"
    kind: Literal["simplenet"] = "simplenet"
    hidden: int = Field(512, ge=1, description="width of the hidden layer")
    steps: int = Field(3000, ge=1, description="optimiser steps; the schedule is fixed")
    batch: int = Field(512, ge=2, description="features per step, as many noisy ones beside them")
    learning_rate: float = Field(3e-3, gt=0, description="peak of a one-cycle schedule")
    weight_decay: float = Field(1e-5, ge=0)
    noise: NoiseRange = Field((0.3, 1.0), description="weakest and strongest noise, relative to the features")
    share: float = Field(0.05, gt=0, le=1, description="smallest share of the components that get noise; 1: all do")
    ascent: float = Field(
        0.2,
        ge=0,
        description="step of noisy features to where they pass for good, in lengths of their noise; 0: none; "
        "from 0.4 on nothing was learnt",
    )
    positions: int = Field(262_144, ge=2, description="features kept in memory for the fit, drawn from all positions")

    def build(self, channels: int) -> SimpleNet:
        return SimpleNet(self, channels)


class SimpleNet(MapHead):
    """Score of a position = minus the discriminator's output there.

    Shapes: (b, d, h, w) -> (b, h, w). Units: of the margin, near -0.5 on normal features and 0.5 on noisy ones.
    Raises: DataError if the features are all equal or not finite; NotFittedError before ``fit``.
    """

    weights_: Tensor
    biases_: Tensor
    output_: Tensor

    def __init__(self, config: SimpleNetConfig, channels: int) -> None:
        super().__init__()
        self.config, self.channels = config, channels
        self.declare("weights_", "biases_", "output_")

    def fit(self, embeddings: Iterable[Tensor], seed: int) -> Self:
        """Train on stored features; the fitted network keeps its batch norm folded into the first layer."""
        features = sample_positions(embeddings, self.config.positions, seed, self.channels)
        scale = root_mean_square(features, self.config.kind)
        with torch.inference_mode(False), torch.enable_grad():
            hidden, norm, output = self._train(features, scale, seed)
        self.weights_, self.biases_ = folded(hidden, norm)
        self.output_ = output.weight[0].detach()
        return self

    def _train(self, features: Tensor, scale: float, seed: int) -> tuple[nn.Linear, nn.BatchNorm1d, nn.Linear]:
        config, device = self.config, features.device
        generator = torch.Generator(device=device).manual_seed(seed)
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            torch.manual_seed(seed)
            hidden = nn.Linear(self.channels, config.hidden)
            output = nn.Linear(config.hidden, 1, bias=False)
        norm = nn.BatchNorm1d(config.hidden)
        network = nn.Sequential(hidden, norm, nn.LeakyReLU(SLOPE), output).to(device).train()
        low, high = (math.log(limit * scale) for limit in config.noise)

        def loss() -> Tensor:
            rows = torch.randint(len(features), (config.batch,), generator=generator, device=device)
            normal = features[rows]
            noise = self._noise(normal.shape, low, high, generator)
            if config.ascent:
                noise = ascended(normal, noise, config.ascent, folded(hidden, norm), output.weight)
            judged = network(torch.cat([normal, normal + noise]))[:, 0]
            good, fake = judged.split(config.batch)
            return F.relu(MARGIN - good).mean() + F.relu(MARGIN + fake).mean()

        learn(network, loss, config.steps, config.learning_rate, config.weight_decay)
        return hidden, norm, output

    def _noise(self, shape: torch.Size, low: float, high: float, generator: torch.Generator) -> Tensor:
        """Gaussian noise on a random share of each feature's components, as strong in total as if it were on all.

        ``low`` and ``high`` are logarithms of the strength. Shapes: (n, d).
        """
        device, column = generator.device, (shape[0], 1)
        strength = strengths(shape[0], low, high, generator)
        share = torch.rand(column, generator=generator, device=device).mul_(1 - self.config.share)
        share = share.add_(self.config.share)
        touched = torch.rand(shape, generator=generator, device=device) < share
        noise = torch.randn(shape, generator=generator, device=device)
        return noise.mul_(touched).mul_(strength / share.sqrt())

    @torch.no_grad()
    def anomaly_map(self, embedding: Tensor) -> Tensor:
        self.require_fit()
        rows = rows_of(embedding, self.channels, self.config.kind)
        judged = F.leaky_relu_(torch.addmm(self.biases_, rows, self.weights_.T), SLOPE) @ self.output_
        return rearrange(-judged, "(b h w) -> b h w", b=len(embedding), h=embedding.shape[2])


@torch.no_grad()
def ascended(normal: Tensor, noise: Tensor, step: float, hidden: tuple[Tensor, Tensor], output: Tensor) -> Tensor:
    """The noise after a step along the gradient of the network's output, ``step`` times its length, at that length.

    With the running statistics of the batch norm: gradients through those of the batch itself make a worse network
    (docs/discriminator.md). Shapes: (n, d), (n, d); hidden (h, d) and (h,), output (1, h) -> (n, d).
    """
    weights, biases = hidden
    sums = torch.addmm(biases, normal + noise, weights.T)
    gradient = torch.where(sums > 0, output, SLOPE * output) @ weights
    length = torch.linalg.vector_norm(noise, dim=1, keepdim=True)
    moved = F.normalize(gradient, dim=1).mul_(step * length).add_(noise)
    return F.normalize(moved, dim=1).mul_(length)
