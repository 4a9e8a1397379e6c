"""Members that look at chosen stages of one trunk as they are: plain timm features, and PatchCore's patches.

Source: PatchCore (Roth et al., CVPR 2022, arXiv 2106.08265), locally aware patch features.
Where we differ: a map keeps its own resolution and all its channels; resizing and reduction are fusion's part.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field
from torch import Tensor

from manyeyes.backbones.contract import FeatureExtractor, Stage, Tap, Trunk
from manyeyes.backbones.pool import TrunkPool
from manyeyes.backbones.trunk import POOLED, TimmTrunkConfig
from manyeyes.config import Config
from manyeyes.errors import ConfigError
from manyeyes.maps import MapSpec


def _odd(side: int) -> int:
    if side % 2 == 0:
        raise ValueError(f"expected an odd side, such as {side + 1}, got {side}")
    return side


def _index_or_pooled(value: Any) -> Any:
    if value != POOLED and type(value) is not int:
        raise ValueError(f"expected a stage's index or {POOLED}, got {value!r}")
    return value


Neighbourhood = Annotated[int, Field(ge=1, le=15), AfterValidator(_odd)]
StageName = Annotated[int | Literal["pooled"], BeforeValidator(_index_or_pooled)]


class TimmConfig(Config):
    """Stages of a timm trunk, ``pooled`` among them, taken as they are."""

    kind: Literal["timm"] = "timm"
    trunk: TimmTrunkConfig = Field(TimmTrunkConfig(), description="The network that this member looks through.")
    stages: tuple[StageName, ...] = Field(
        min_length=1,
        description="timm's feature indices (a transformer's blocks, from 0), negative from the end, or pooled.",
    )
    neighbourhood: Neighbourhood = Field(1, description="Side of the square mean around every position; 1 is none.")

    def build(self, pool: TrunkPool) -> StageExtractor:
        """Raises: ConfigError if a stage does not exist or is named twice; WeightsError."""
        return StageExtractor(pool.get(self.trunk), self.stages, self.neighbourhood)


class PatchCoreConfig(Config):
    """PatchCore's locally aware patches: the mean of the neighbourhood around every position of each stage."""

    kind: Literal["patchcore"] = "patchcore"
    trunk: TimmTrunkConfig = Field(TimmTrunkConfig(), description="The network that this member looks through.")
    stages: tuple[int, ...] = Field((2, 3), min_length=1, description="timm's feature indices of the stages.")
    neighbourhood: Neighbourhood = Field(3, description="Side of the square mean around every position.")

    def build(self, pool: TrunkPool) -> StageExtractor:
        """Raises: as `TimmConfig.build`."""
        return StageExtractor(pool.get(self.trunk), self.stages, self.neighbourhood)


class StageExtractor(FeatureExtractor):
    """Stages of one trunk, unchanged. Shapes: (b, 3, H, W) in [0, 1] -> k x (b, c_i, h_i, w_i)."""

    def __init__(self, trunk: Trunk, stages: Sequence[int | str], neighbourhood: int = 1) -> None:
        taps = [Tap(trunk, trunk.stage(str(name))) for name in stages]
        super().__init__(taps, distinct([spec_of(tap.stage, tap.stage.name, neighbourhood) for tap in taps]))

    def shape(self, raw: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return raw


def spec_of(stage: Stage, name: str, neighbourhood: int = 1) -> MapSpec:
    """The spec of an unchanged stage; a pooled one has no neighbours."""
    side = neighbourhood if stage.spatial else 1
    return MapSpec(name, stage.channels, stage.stride, stage.grid, side, stage.spatial)


def distinct(specs: list[MapSpec]) -> list[MapSpec]:
    """The same specs. Raises: ConfigError if a name comes twice."""
    names = [spec.name for spec in specs]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ConfigError(f"stages: {', '.join(twice)} named twice; name every stage once (-1 is the last)")
    return specs
