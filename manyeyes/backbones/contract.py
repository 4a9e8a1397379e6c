"""The contract of every backbone: trunks are frozen networks, extractors name which of their stages a member looks at.

A trunk runs once per image however many extractors tap it: inside an ensemble `Eyes` runs each distinct trunk once and
hands every extractor its taps.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, cast

import torch
from torch import Tensor, nn

from manyeyes.errors import DataError, ShapeError
from manyeyes.maps import Grid, MapSpec, check_maps, neighbourhood_mean
from manyeyes.progress import Progress

Taps = Mapping[str, Tensor]


@dataclass(frozen=True)
class Stage:
    """One place in a trunk where features can be taken: its (c, h, w) is known before any image is seen."""

    name: str
    channels: int
    stride: int
    grid: Grid
    spatial: bool = True


class Trunk(nn.Module, ABC):
    """A frozen network that owns its input size and its normalisation.

    ``key`` is the fingerprint of its config and the head of ``weights_digest``: equal keys share one module and its
    stored features, and other weights under an old name never meet the old features.
    ``weights_source`` says in words where the weights came from; ``weights_digest`` is 16 hexadecimal digits of the
    SHA-256 of the tensors themselves, whatever file or download they came from. A run records both and checks the
    digest.
    """

    key: str
    input_size: Grid
    weights_source: str
    weights_digest: str

    @abstractmethod
    def stage(self, name: str) -> Stage:
        """Declaration of a stage; equals what comes out. Raises: ConfigError with the stages that exist."""

    @abstractmethod
    def forward(self, images: Tensor, stages: Sequence[str]) -> dict[str, Tensor]:
        """Features at ``stages``; layers past the deepest one are not run.

        Shapes: (b, 3, H, W) RGB in [0, 1], any H and W -> {stage: (b, c, h, w)}.
        """

    def train(self, mode: bool = True) -> Trunk:
        """A trunk stays in evaluation mode, whatever is asked."""
        return super().train(False)


PicturesIn = Callable[[str, int], Iterable[Tensor]]
"""Gives pictures of a folder, evenly spread over it and at most so many, in batches of (b, 3, H, W) in [0, 1]."""


class TrainableTrunk(Trunk):
    """A trunk that learns from good pictures before it is frozen, and must not look before.

    Until then ``key`` is ``declared_key``; afterwards it ends in ``identity`` of what was learned from, so that
    features of other trainings never meet. The learned tensors are part of a run.
    """

    declared_key: str

    @property
    def reads(self) -> tuple[str, ...]:
        """Folders of further pictures that ``fit`` asks for."""
        return ()

    @property
    @abstractmethod
    def is_fitted(self) -> bool:
        """Whether ``fit`` or ``restore`` has been called."""

    @abstractmethod
    def identity(self, seed: int, pictures: str) -> str:
        """16 hexadecimal digits of all that a training depends on; ``pictures`` names the pictures."""

    @abstractmethod
    def fit(
        self,
        images: Iterable[Tensor],
        identity: str,
        seed: int,
        pictures_in: PicturesIn,
        checkpoint: Path | None,
        progress: Progress,
    ) -> Self:
        """Learn from a re-iterable of (b, 3, H, W) batches in [0, 1] of good pictures, on this trunk's device.

        ``checkpoint`` is a file that the training writes now and then; a killed one of the same ``identity`` goes on
        from it and ends with the same tensors, on a GPU to rounding.
        Raises: DataError without pictures or if the loss is not finite.
        """

    @abstractmethod
    def learned(self) -> dict[str, Tensor]:
        """What ``fit`` has set. Raises: NotFittedError before."""

    @abstractmethod
    def restore(self, learned: Mapping[str, Tensor], identity: str) -> Self:
        """Take what another trunk of the same config has learned. Raises: WeightsError if it does not fit."""


@dataclass(frozen=True)
class Tap:
    """One stage of one trunk, as stored and shared: ``key`` names it in the feature store."""

    trunk: Trunk
    stage: Stage

    @property
    def key(self) -> str:
        return f"{self.trunk.key}.{self.stage.name}"


class FeatureExtractor(nn.Module, ABC):
    """What one member sees: a tuple of feature maps, aligned with ``specs``. Always eval, never a gradient."""

    def __init__(self, taps: Sequence[Tap], specs: Sequence[MapSpec]) -> None:
        super().__init__()
        self.taps = tuple(taps)
        self.specs = tuple(specs)
        self.trunks = nn.ModuleList({id(tap.trunk): tap.trunk for tap in taps}.values())

    @abstractmethod
    def shape(self, raw: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Turn tapped features into member maps, before the neighbourhood mean. Shapes as ``specs``."""

    def raw_maps(self, taps: Taps) -> tuple[Tensor, ...]:
        """Member maps without the neighbourhood mean, which is linear and is folded into later projections."""
        missing = [tap.key for tap in self.taps if tap.key not in taps]
        if missing:
            raise ShapeError(f"expected taps {missing}, got {sorted(taps)}")
        maps = self.shape(tuple(taps[tap.key].float() for tap in self.taps))
        check_maps(maps, self.specs)
        return maps

    def maps(self, taps: Taps) -> tuple[Tensor, ...]:
        """Member maps. Shapes: k x (b, c_i, h_i, w_i), as ``specs`` declare."""
        raw = self.raw_maps(taps)
        return tuple(neighbourhood_mean(value, spec.neighbourhood) for value, spec in zip(raw, self.specs, strict=True))

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Run the trunks alone, for one member. Shapes: (b, 3, H, W) in [0, 1] -> k x (b, c_i, h_i, w_i)."""
        return self.maps(Eyes([self])(images))

    def train(self, mode: bool = True) -> FeatureExtractor:
        return super().train(False)


def check_images(images: Tensor) -> None:
    """Raises: ShapeError or DataError unless ``images`` is a finite floating (b, 3, H, W) in [0, 1]."""
    if images.ndim != 4 or images.shape[1] != 3:
        raise ShapeError(f"images: expected (b, 3, H, W) RGB, got {tuple(images.shape)}")
    if not images.is_floating_point():
        raise ShapeError(f"images: expected floating point in [0, 1], got {images.dtype}; divide 8-bit images by 255")
    if not images.numel():
        raise ShapeError(f"images: expected at least one image of one pixel, got {tuple(images.shape)}")
    low, high = torch.stack(torch.aminmax(images)).tolist()
    if not (low >= -1e-4 and high <= 1 + 1e-4):  # also catches NaN
        raise DataError(f"images: expected finite values in [0, 1], got {low:.3g} to {high:.3g}")


class Eyes(nn.Module):
    """The trunks of all members, each run once.

    Shapes: (b, 3, H, W) RGB in [0, 1] -> {tap key: (b, c, h, w)}.
    """

    def __init__(self, extractors: Sequence[FeatureExtractor]) -> None:
        super().__init__()
        self.stages: dict[str, list[str]] = {}
        trunks: dict[str, Trunk] = {}
        for tap in (tap for extractor in extractors for tap in extractor.taps):
            trunks.setdefault(tap.trunk.key, tap.trunk)
            names = self.stages.setdefault(tap.trunk.key, [])
            if tap.stage.name not in names:
                names.append(tap.stage.name)
        self.trunks = nn.ModuleDict(trunks)
        self.eval()

    def each(self) -> tuple[Trunk, ...]:
        """The distinct trunks."""
        return tuple(cast(Trunk, trunk) for trunk in self.trunks.values())

    def restricted(self, keys: Sequence[str]) -> Eyes:
        """The same trunk modules and stages, only some of the trunks."""
        part = Eyes([])
        part.stages = {key: self.stages[key] for key in keys}
        part.trunks = nn.ModuleDict({key: self.trunks[key] for key in keys})
        return part

    def without(self, stages: Mapping[str, Sequence[str]]) -> Eyes:
        """The same trunk modules without some of their stages, by key; a trunk that has no other is left out."""
        left = {key: [stage for stage in own if stage not in stages[key]] for key, own in self.stages.items()}
        part = self.restricted([key for key, own in left.items() if own])
        part.stages = {key: left[key] for key in part.stages}
        return part

    def compile_trunks(self, backend: str | Callable[..., Any] = "inductor") -> None:
        """Let every trunk be compiled at its first pass, in place: minutes that pay on a GPU and with many pictures."""
        for trunk in self.each():
            trunk.compile(backend=backend)

    # Not inference mode: its tensors could not be saved for a backward pass when heads train on these features.
    @torch.no_grad()
    def forward(self, images: Tensor) -> dict[str, Tensor]:
        check_images(images)
        taps: dict[str, Tensor] = {}
        for key, trunk in self.trunks.items():
            for stage, value in trunk(images, self.stages[key]).items():
                taps[f"{key}.{stage}"] = value
        return taps
