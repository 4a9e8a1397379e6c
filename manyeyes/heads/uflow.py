"""U-Flow: a position is as anomalous as its features are unlikely under a flow that was fitted to normal images.

Source: Tailanian, Pardo, Muse, arXiv 2211.12353 (facts from the paper only). Map: per scale exp(-0.5 mean over
channels of z^2), resized, averaged over the scales; anomaly = 1 - that.
We differ (docs/uflow.md): every channel is standardised over the training set before the flow, which a flow would else
spend most of its steps on; a schedule of minutes on a CPU by default, `paper_schedule` for a GPU.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import ClassVar, Literal, Self, cast

import torch
from pydantic import Field
from torch import Tensor

from manyeyes.config import Config
from manyeyes.errors import DataError
from manyeyes.files import source_digest
from manyeyes.heads.contract import Pyramid, PyramidHead, unseen
from manyeyes.heads.flow import UShape
from manyeyes.heads.flow_training import Schedule, train
from manyeyes.maps import MapSpec, check_maps, to_grid
from manyeyes.progress import Advance

FLOOR = 1e-3
"""Smallest deviation that a channel is divided by, as a share of the root-mean-square deviation of its scale."""
LIMIT = 1e4
"""Standardised values are cut here: further out, their squares would say nothing and half precision would end."""


class UFlowHeadConfig(Config):
    reads: ClassVar[Literal["pyramid"]] = "pyramid"
    kind: Literal["u_flow"] = "u_flow"
    steps: int = Field(4, ge=1, description="coupling steps per scale, with kernels 3 and 1 in turn")
    width: float = Field(0.5, gt=0, description="hidden channels of a coupling step, as a share of its input")
    clamp: float = Field(2.0, gt=0, description="soft limit of the logarithm of a coupling step's scale")
    training: Schedule = Field(Schedule(), description="how long and how fast the flow is trained")

    def build(self, specs: tuple[MapSpec, ...]) -> UFlowHead:
        """Raises: ConfigError if a grid is no whole multiple of the next coarser one."""
        return UFlowHead(self, specs)


def paper_schedule(images: int) -> Schedule:
    """Adam at 1e-4 for 200 epochs of ``images`` pictures in batches of 16: hours without a GPU.

    The paper keeps this rate throughout; here it is the peak of `Schedule.rate`, and gradients are clipped.
    """
    return Schedule(steps=200 * max(1, images // 16), batch=16, learning_rate=1e-4, weight_decay=1e-5)


class UFlowHead(PyramidHead):
    """One minus the mean likelihood over the scales, each relative to that of its mode.

    Shapes: k x (b, c_i, h_i, w_i) -> map (b, h, w) on the finest grid, and its maximum (b,). Units: 0 (as likely as can
            be) to 1.
    Raises: ShapeError if maps are not those of the specs; DataError if there is no image, a value is not finite or all
            features are equal, or if training diverges, naming the step; NotFittedError before ``fit``.
    """

    mean_: Tensor
    deviation_: Tensor

    def __init__(self, config: UFlowHeadConfig, specs: tuple[MapSpec, ...]) -> None:
        super().__init__()
        self.config, self.specs = config, specs
        # A U begins at its coarsest scale, whatever the order of the maps.
        self.order = sorted(range(len(specs)), key=lambda index: specs[index].grid)
        self.flow = self._fresh(0).requires_grad_(False)
        self.declare("mean_", "deviation_")

    def _fresh(self, seed: int) -> UShape:
        config = self.config
        return UShape([self.specs[index] for index in self.order], config.steps, config.width, config.clamp, seed)

    def fit(
        self,
        pyramids: Iterable[Pyramid],
        seed: int,
        advance: Advance = unseen,
        checkpoint: Path | None = None,
    ) -> Self:
        """Two passes over the pyramids where they fit into memory, else one per round of training."""
        with torch.no_grad():
            self.mean_, self.deviation_ = channel_moments(pyramids, self.specs)
        self.flow = self._fresh(seed).to(self.mean_.device)
        identity = f"{self.config.fingerprint()}|{[(spec.channels, spec.grid) for spec in self.specs]}|{seed}"
        identity = f"{identity}|{source_digest('heads', 'checkpoint.py')}"  # newer code would go on another way
        try:
            with torch.inference_mode(False), torch.enable_grad():
                source = _Standardised(self, pyramids)
                train(self.flow, source, self.config.training, seed, advance, checkpoint, identity)
        finally:
            self.flow.requires_grad_(False)
        return self

    def standardised(self, maps: Pyramid) -> Pyramid:
        """Channels with mean 0 and deviation 1 on the training images, coarse to fine."""
        widths = [spec.channels for spec in self.specs]
        means, deviations = torch.split(self.mean_, widths), torch.split(self.deviation_, widths)
        scaled = [
            ((value - mean[:, None, None]) / deviation[:, None, None]).clamp(-LIMIT, LIMIT)
            for value, mean, deviation in zip(maps, means, deviations, strict=True)
        ]
        return tuple(scaled[index] for index in self.order)

    @torch.no_grad()
    def latents(self, maps: Pyramid) -> Pyramid:
        """What the flow makes of the maps: independent standard normal values where they are normal.

        Shapes: k x (b, c_i, h_i, w_i) -> k x (b, d_i, h_i, w_i), coarse to fine.
        """
        self.require_fit()
        check_maps(maps, self.specs)
        return cast(Pyramid, self.flow(self.standardised(maps))[0])

    def judge(self, maps: Pyramid) -> tuple[Tensor, Tensor]:
        return self.examine(maps)[:2]

    def examine(self, maps: Pyramid) -> tuple[Tensor, Tensor, Pyramid]:
        """The map, its maximum, and the squares of the latents, coarse to fine."""
        latents = self.latents(maps)
        anomaly_map = likelihood_map(latents)
        return anomaly_map, anomaly_map.amax(dim=(1, 2)), tuple(latent.square() for latent in latents)


def likelihood_map(latents: Pyramid) -> Tensor:
    """Shapes: k x (b, d_i, h_i, w_i), coarse to fine -> (b, h, w) in 0..1 on the last grid."""
    grid = (latents[-1].shape[2], latents[-1].shape[3])
    likelihoods = [torch.exp(-0.5 * latent.square().mean(dim=1, keepdim=True)) for latent in latents]
    return 1 - torch.stack([to_grid(likelihood, grid) for likelihood in likelihoods]).mean(dim=0)[:, 0]


class _Standardised:
    """A re-iterable of what the flow reads."""

    def __init__(self, head: UFlowHead, pyramids: Iterable[Pyramid]) -> None:
        self.head, self.pyramids = head, pyramids

    def __iter__(self) -> Iterator[Pyramid]:
        for pyramid in self.pyramids:
            with torch.no_grad():
                standardised = self.head.standardised(pyramid)
            yield standardised


def channel_moments(pyramids: Iterable[Pyramid], specs: tuple[MapSpec, ...]) -> tuple[Tensor, Tensor]:
    """Mean and deviation of every channel of every map over all images and positions, in one pass in float64.

    Shapes: -> 2 x (sum of c_i,) float32. Raises: as `UFlowHead.fit`.
    """
    count = 0
    sums = squares = torch.zeros(sum(spec.channels for spec in specs), dtype=torch.float64)
    for pyramid in pyramids:
        check_maps(pyramid, specs)
        finite = torch.stack([value.isfinite().flatten(1).all(dim=1) for value in pyramid]).all(dim=0)
        if not bool(finite.all()):
            image = count + int(finite.logical_not().nonzero()[0])
            raise DataError(
                f"u_flow: features of training image {image} (counted from 0): expected finite values, got NaN or "
                "infinity; look for a broken image or broken weights"
            )
        means = torch.cat([value.double().mean(dim=(2, 3)).sum(dim=0) for value in pyramid])
        sums = sums.to(means.device) + means
        squares = squares.to(means.device) + torch.cat(
            [value.double().square().mean(dim=(2, 3)).sum(dim=0) for value in pyramid]
        )
        count += len(pyramid[0])
    if not count:
        raise DataError("u_flow: expected features of at least one normal image, got none; look at the training folder")
    mean = sums / count
    variance = (squares / count - mean.square()).clamp(min=0)
    widths = [spec.channels for spec in specs]
    floored = []
    for part, level in zip(torch.split(variance, widths), torch.split(mean, widths), strict=True):
        rounding = (torch.finfo(torch.float32).eps * level.abs().max()) ** 2
        floor = FLOOR**2 * part.mean() + rounding
        if not bool(part.max() > floor):
            raise DataError("u_flow: all features of a scale are equal; the training pictures may be constant")
        floored.append(part.clamp(min=float(floor)).sqrt())
    return mean.float(), torch.cat(floored).float()
