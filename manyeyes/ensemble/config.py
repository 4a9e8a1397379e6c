"""The declaration of an ensemble: which eyes look, how what they see is fused, which heads judge, when to raise alarm.

members:                              # frozen extractors, each with heads of its own (score level)
  - name: lite0
    extractor: {kind: patchcore, trunk: {kind: timm, architecture: tf_efficientnet_lite0}, stages: [2, 3]}
    heads: [{kind: gaussian}]
fusion: {kind: independent_pca, components: 256}
heads: [{kind: discriminator}]        # judge the fused map
combiner: {kind: sum}
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, field_validator, model_validator

from manyeyes.backbones import ExtractorConfig
from manyeyes.config import Config, Seed
from manyeyes.data import Frame
from manyeyes.errors import ConfigError
from manyeyes.fusion import (
    AutoConfig,
    CombinerConfig,
    EnsembleFusionConfig,
    FisherConfig,
    FusionConfig,
    IndependentPcaConfig,
    NormaliserConfig,
    PositiveSquareConfig,
    ScoreLevelConfig,
    WeightedConfig,
    ZScoreConfig,
    require_known,
)
from manyeyes.heads import AContrarioConfig, HeadConfig

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$")]
FUSED = "fused"


class MemberConfig(Config):
    """One eye: an extractor and, where its scores count by themselves, heads of its own."""

    name: Name = Field(description="unique within the ensemble; names its scores in every result")
    extractor: ExtractorConfig
    heads: tuple[HeadConfig, ...] = Field(
        (), description="heads on this member alone; their scores join the combination"
    )
    fusion: FusionConfig = Field(
        IndependentPcaConfig(whiten=0.0),
        description="how this member's own maps become the one map that its map heads judge; not whitened by default, "
        "as a memory bank likes it",
    )
    fuse: bool = Field(True, description="whether this member's maps enter the fused map")

    @field_validator("fusion", mode="before")
    @classmethod
    def _of_the_default_kind(cls, fusion: Any) -> Any:
        """Fields alone, such as ``--set members.lite0.fusion.components=16``, are those of the default."""
        if isinstance(fusion, dict) and "kind" not in fusion:
            return {**cls.model_fields["fusion"].default.model_dump(), **fusion}
        return fusion

    @model_validator(mode="after")
    def _check(self) -> Self:
        if isinstance(self.fusion, ScoreLevelConfig) and any(head.reads == "map" for head in self.heads):
            raise ValueError(
                f"member {self.name!r}: its fusion.kind is score_level, so its heads have no map to judge: leave its "
                "fusion out, or name a PCA or concatenate"
            )
        return self


class ThresholdConfig(Config):
    """Where alarm begins, from good parts alone."""

    false_alarm_rate: float = Field(0.05, gt=0, lt=1, description="share of good parts that may raise an alarm")


class ConformalMaskConfig(Config):
    """Where the drawn map reaches a height that no pixel of a good part reaches, but for the false-alarm rate."""

    kind: Literal["conformal"] = "conformal"


MaskConfig = Annotated[ConformalMaskConfig | AContrarioConfig, Field(discriminator="kind")]


class EnsembleConfig(Config):
    """Everything that a fit depends on besides the pictures. Equal fingerprints give equal ensembles."""

    listed: ClassVar[str] = "`manyeyes schema` lists all fields"

    name: Name = "ensemble"
    seed: Seed = Field(0, description="seeds the held-out split, the coresets and the discriminator")
    frame: Frame = Field(Frame(), description="how a picture is brought to the canvas that all trunks see")
    members: tuple[MemberConfig, ...] = Field(min_length=1)
    fusion: EnsembleFusionConfig = Field(IndependentPcaConfig(), description="how the members' maps become one map")
    heads: tuple[HeadConfig, ...] = Field((), description="heads on the fused map; none with kind: score_level")
    grid: Annotated[int, Field(ge=1, le=1024)] | None = Field(
        None, description="side of the square grid that maps are fused and judged on; by default that of the finest map"
    )
    normaliser: NormaliserConfig = Field(ZScoreConfig(), description="brings every head's scores to one scale")
    combiner: CombinerConfig = Field(PositiveSquareConfig(), description="makes one score of all heads' scores")
    threshold: ThresholdConfig = ThresholdConfig()
    mask: MaskConfig = Field(ConformalMaskConfig(), description="which pixels of a picture are marked as defective")
    validation: float = Field(
        0.15, gt=0, lt=1, description="share of the training pictures held out where a set has no validation split"
    )
    blur: float = Field(
        0.0156, ge=0, lt=0.2, description="Gaussian blur of anomaly maps, sigma as a share of the canvas"
    )
    store: Literal["float16", "float32"] = Field("float16", description="precision of stored features")

    @model_validator(mode="after")
    def _check(self) -> Self:
        names = [member.name for member in self.members]
        repeated = sorted({name for name in names if names.count(name) > 1})
        if repeated:
            raise ValueError(f"members must have different names, {', '.join(repeated)} stands more than once")
        for taken in (FUSED, *(name for name, _ in self.fusions)):
            if taken in names:
                raise ValueError(f"a member cannot be called {taken!r}: that names the fused map's scores")
        if isinstance(self.fusion, ScoreLevelConfig):
            if self.heads:
                raise ValueError("heads judge a fused map, but fusion.kind is score_level: give heads to the members")
            if not any(member.heads for member in self.members):
                raise ValueError("fusion.kind is score_level, so at least one member needs heads")
        elif not self.heads:
            raise ValueError(f"fusion.kind is {self.fusion.kind}, so at least one entry in heads is needed")
        if self.fusions and not any(member.fuse for member in self.members):
            raise ValueError("no member enters the fused map: set fuse: true for one, or use fusion.kind: score_level")
        if isinstance(self.fusion, AutoConfig):
            self._check_auto(self.fusion)
        known = [name for owner, heads in self._owners() for name in head_names(owner, heads)]
        if isinstance(self.combiner, WeightedConfig | PositiveSquareConfig):
            try:
                require_known(self.combiner.weights, known)
            except ConfigError as error:  # so that pydantic adds the field and the file
                raise ValueError(str(error)) from None
        tails = self.normaliser.kind == "tail"
        if isinstance(self.combiner, FisherConfig) and (self.combiner.scale == "tail") != tails:
            raise ValueError("combiner fisher: scale must be tail where the normaliser is tail, and z where it is not")
        for owner, heads in self._owners():
            names = head_names(owner, heads)
            if len(set(names)) < len(names):
                raise ValueError(f"{owner}: two heads with one name; give each a name of its own")
        return self

    def _check_auto(self, fusion: AutoConfig) -> None:
        if not isinstance(self.combiner, PositiveSquareConfig) or self.combiner.weights:
            raise ValueError("fusion.kind auto chooses the weights of combiner positive_square: leave combiner out")
        if len(fusion.fused) < len(fusion.candidates) and not any(member.heads for member in self.members):
            raise ValueError("score_level is among fusion.candidates, so at least one member needs heads")
        if not fusion.fused:
            raise ValueError("fusion.candidates needs a kind besides score_level")

    @property
    def fusions(self) -> tuple[tuple[str, FusionConfig], ...]:
        """Every fused map by the name of its branch: one, none for scores alone, or all candidates of a choice."""
        if isinstance(self.fusion, AutoConfig):
            return tuple((candidate.kind, candidate) for candidate in self.fusion.fused)
        return () if isinstance(self.fusion, ScoreLevelConfig) else ((FUSED, self.fusion),)

    def _owners(self) -> list[tuple[str, tuple[HeadConfig, ...]]]:
        fused = [(name, self.heads) for name, _ in self.fusions]
        return [*fused, *((member.name, member.heads) for member in self.members)]


def head_names(owner: str, heads: Sequence[HeadConfig]) -> list[str]:
    """``owner/kind`` for each head, numbered from the second of a kind on."""
    names: list[str] = []
    for head in heads:
        same = sum(name.split("/")[1].rstrip("0123456789-") == head.kind for name in names)
        names.append(f"{owner}/{head.kind}" + (f"-{same + 1}" if same else ""))
    return names
