"""A branch: some members' maps, the block that makes them one embedding, and the heads that judge it.

The fused map is one branch; every member with heads of its own is another. They are the same thing. Heads that read
the pyramid of maps take it as it is: a branch that has none that read the embedding has no block.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Self, cast

import torch
from torch import Tensor, nn

from manyeyes.backbones import FeatureExtractor
from manyeyes.ensemble.config import head_names
from manyeyes.ensemble.memory import Memory, fit_anew
from manyeyes.ensemble.reading import Embeddings, Reading, Taps, TapSource
from manyeyes.errors import DataError, NotFittedError, ShapeError
from manyeyes.files import source_digest
from manyeyes.fusion import Folded, Fusion, FusionConfig, KnownMoments
from manyeyes.heads import HeadConfig
from manyeyes.heads.contract import MapHead, Pyramid, PyramidHead, VectorHead
from manyeyes.maps import Grid, MapSpec, finest_grid, neighbourhood_mean, pooled
from manyeyes.progress import Advance

PARTS = 100
"""Steps of progress per head, where one of them takes long enough to tell its own."""


@dataclass(frozen=True)
class Judgement:
    """What one branch says of a batch: a score per head, and a map per picturable head, by name.

    ``evidence`` is what an a-contrario mask counts in: the map itself, or what a head knows better.
    """

    scores: dict[str, Tensor]
    """(b,) each."""
    maps: dict[str, Tensor]
    """(b, h, w) each, on the branch's grid."""
    evidence: dict[str, Pyramid]
    """m x (b, c_j, h_j, w_j) each"""


class Branch(nn.Module):
    """Members' taps -> embedding and pooled features -> heads' scores and maps."""

    def __init__(
        self,
        name: str,
        members: Sequence[tuple[str, FeatureExtractor]],
        fusion: FusionConfig,
        heads: Sequence[HeadConfig],
        grid: Grid | None = None,
    ) -> None:
        super().__init__()
        self.name, self.fusion_config, self.head_configs, self.grid = name, fusion, tuple(heads), grid
        self.members = tuple(member for member, _ in members)
        self.names = head_names(name, heads)
        self.extractors = [extractor for _, extractor in members]  # a plain list: trunks are not this module's state
        self.specs = tuple(_named(spec, member) for member, extractor in members for spec in extractor.specs)
        self.spatial = [index for index, spec in enumerate(self.specs) if spec.spatial]
        self.fusion: Fusion | None = None
        self.folded: Folded | None = None
        self.reads = {config.reads for config in self.head_configs}
        if "map" in self.reads:
            self.fusion = fusion.build(self.spatial_specs, grid or finest_grid(self.spatial_specs))
        if "pyramid" in self.reads and not self.spatial:
            raise ShapeError(f"{name}: gives no spatial map, so there is no pyramid to judge; use kind: gaussian")
        self.heads = nn.ModuleDict()
        self._build_heads()

    def _build_heads(self) -> None:
        """Heads whose width is known; map heads wait for the fusion's fit."""
        width = sum(spec.channels for spec in self.specs)
        for name, config in zip(self.names, self.head_configs, strict=True):
            if config.reads == "map":
                if self.fusion is not None and self.fusion.is_fitted:
                    self.heads[name] = config.build(self.fusion.channels)
            elif name in self.heads:
                continue
            elif config.reads == "vector":
                self.heads[name] = config.build(width)
            else:
                self.heads[name] = config.build(self.spatial_specs)

    def without(self, members: Collection[str]) -> Branch:
        """The same, unfitted, of the other members' maps."""
        pairs = zip(self.members, self.extractors, strict=True)
        others = [(name, extractor) for name, extractor in pairs if name not in members]
        return Branch(self.name, others, self.fusion_config, self.head_configs, self.grid)

    @property
    def map_names(self) -> list[str]:
        """Names of the picturable heads."""
        return [name for name, config in zip(self.names, self.head_configs, strict=True) if config.reads != "vector"]

    @property
    def spatial_specs(self) -> tuple[MapSpec, ...]:
        return tuple(self.specs[index] for index in self.spatial)

    @property
    def tap_keys(self) -> list[str]:
        return list(dict.fromkeys(tap.key for extractor in self.extractors for tap in extractor.taps))

    def raw_maps(self, taps: Taps) -> tuple[Tensor, ...]:
        """All members' maps before the neighbourhood mean. Shapes: k x (b, c_i, h_i, w_i)."""
        return tuple(value for extractor in self.extractors for value in extractor.raw_maps(taps))

    def pyramid(self, raw: Pyramid) -> Pyramid:
        """The spatial maps after the neighbourhood mean. Shapes: k x (b, c_i, h_i, w_i)."""
        return tuple(neighbourhood_mean(raw[index], self.specs[index].neighbourhood) for index in self.spatial)

    def embed(self, raw: tuple[Tensor, ...]) -> Tensor:
        """The fused map, the folded way. Shapes: k x (b, c_i, h_i, w_i) -> (b, d, h, w)."""
        if self.folded is None:
            raise NotFittedError(f"branch {self.name!r} was used before fit; call fit or load first")
        return cast(Tensor, self.folded(tuple(raw[index] for index in self.spatial)))

    def finish_fusion(self) -> None:
        """After the fusion's fit or load: fold it, and build the heads that waited for its width."""
        if self.fusion is not None:
            self.folded = Folded(self.fusion)
        self._build_heads()

    def judge(self, taps: Taps) -> Judgement:
        """Scores and maps of a batch."""
        raw = self.raw_maps(taps)
        embedding = self.embed(raw) if self.fusion is not None else None
        vectors = pooled(raw) if "vector" in self.reads else None
        pyramid = self.pyramid(raw) if "pyramid" in self.reads else None
        scores: dict[str, Tensor] = {}
        maps: dict[str, Tensor] = {}
        evidence: dict[str, Pyramid] = {}
        for name in self.names:
            head = self.heads[name]
            if isinstance(head, MapHead):
                assert embedding is not None
                maps[name], scores[name] = head.judge(embedding)
                evidence[name] = (maps[name][:, None],)
            elif isinstance(head, PyramidHead):
                assert pyramid is not None
                maps[name], scores[name], evidence[name] = head.examine(pyramid)
            else:
                assert isinstance(head, VectorHead)
                assert vectors is not None
                scores[name] = head.score(vectors)
        return Judgement(scores, maps, evidence)

    def fit(
        self,
        taps: TapSource,
        seed: int,
        advance: Advance,
        memory: Memory = fit_anew,
        known: KnownMoments | None = None,
    ) -> Self:
        """Fit the block, then every head. Reads the taps once for the block and once for all heads on the embedding;
        heads on the pyramid read them themselves. What ``memory`` knows is not fitted; ``known`` are moments that
        other branches took of the same taps."""
        parts = PARTS if "pyramid" in self.reads else 1
        steps = (1 + len(self.names)) * parts
        vectors: list[Tensor] = []
        if self.fusion is not None:
            memory(self, taps, self.fusion_config, self.fusion, lambda: vectors.extend(self._fit_fusion(taps, known)))
        self.finish_fusion()
        checkpoints = self.checkpoints(taps, seed)
        with (
            torch.inference_mode(False),
            Embeddings(taps, lambda batch: self.embed(self.raw_maps(batch))) as embeddings,
        ):
            for index, (name, config) in enumerate(zip(self.names, self.head_configs, strict=True), start=1):
                begun = index * parts
                advance(begun, steps)
                head = self.heads[name]
                fit: Callable[[], object]
                if isinstance(head, MapHead):
                    fit = partial(head.fit, embeddings, seed)
                elif isinstance(head, PyramidHead):
                    inside = _share(advance, begun, parts, steps)
                    fit = partial(head.fit, self.pyramids(taps), seed, inside, checkpoints.get(name))
                else:
                    fit = partial(self._fit_vector_head, cast(VectorHead, head), taps, vectors, seed)
                memory(self, taps, config, head, fit)
        advance(steps, steps)
        return self

    def pyramids(self, taps: TapSource) -> Reading[Pyramid]:
        """What heads on the pyramid read: a re-iterable of k x (b, c_i, h_i, w_i), without gradients."""
        return Reading(taps, lambda batch: self.pyramid(self.raw_maps(batch)))

    def calibrate(self, taps: TapSource) -> None:
        """Let the heads that wish look at normal images that nothing was fitted on."""
        with torch.inference_mode(False):
            for head in self.heads.values():
                if isinstance(head, PyramidHead):
                    head.calibrate(self.pyramids(taps))

    def left_out(self, taps: TapSource, members: Tensor) -> dict[str, Tensor]:
        """Scores of the normals of `calibrate` without each group of them, for the heads that it has adjusted.

        Shapes: number of each image's group (n,) -> {head: (groups, n)}.
        """
        found = {}
        for name, head in self.heads.items():
            if isinstance(head, PyramidHead) and (scores := head.left_out(self.pyramids(taps), members)) is not None:
                found[name] = scores
        return found

    def checkpoints(self, taps: TapSource, seed: int) -> dict[str, Path]:
        """Where the long fits of heads on the pyramid keep their state; one file for each list of pictures, seed,
        config and version of the code.

        Empty where the taps are kept nowhere.
        """
        files = {}
        for name, config in zip(self.names, self.head_configs, strict=True):
            if config.reads == "pyramid" and taps.scratch is not None:
                code = source_digest("heads", "checkpoint.py")
                text = f"{config.fingerprint()}|{self.spatial_specs}|{taps.fingerprint}|{seed}|{code}"
                key = hashlib.sha256(text.encode()).hexdigest()[:16]
                files[name] = taps.scratch / f"{name.replace('/', '-')}.{key}.checkpoint"
        return files

    def _fit_vector_head(self, head: VectorHead, taps: TapSource, vectors: list[Tensor], seed: int) -> None:
        """Fit on the pooled features, (b, c) per batch; read them first where ``vectors`` has none yet."""
        if not vectors:
            vectors.extend(Reading(taps, lambda batch: pooled(self.raw_maps(batch))))
        head.fit(vectors, seed)

    def _fit_fusion(self, taps: TapSource, known: KnownMoments | None) -> list[Tensor]:
        """Fit the block; give the pooled features, (b, c) per batch, seen on the way where a head wants them."""
        vectors: list[Tensor] = []
        wanted = len(taps) if "vector" in self.reads else 0

        def look(batch: Taps) -> tuple[Tensor, ...]:
            raw = self.raw_maps(batch)
            if sum(len(vector) for vector in vectors) < wanted:
                vectors.append(pooled(raw))
            return self.pyramid(raw)

        try:
            cast(Fusion, self.fusion).fit(Reading(taps, look), known)
        except DataError as error:
            raise DataError(f"{self.name}: {error}") from None
        return vectors

    def load_fitted(self, state: Mapping[str, Tensor], prefix: str) -> None:
        """Load the block before the rest, so that the heads behind it can be built with its width."""
        if self.fusion is not None:
            start = f"{prefix}fusion."
            self.fusion.load_state_dict({key[len(start) :]: v for key, v in state.items() if key.startswith(start)})
            self.finish_fusion()


def _share(advance: Advance, begun: int, parts: int, steps: int) -> Advance:
    """Progress of one head as ``parts`` steps of its branch's ``steps``, after the first ``begun``."""
    return lambda done, total: advance(begun + parts * done // max(1, total), steps)


def _named(spec: MapSpec, member: str) -> MapSpec:
    return replace(spec, name=f"{member}/{spec.name}")
