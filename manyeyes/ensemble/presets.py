"""Ensembles to start from: functions that return configs. ``recipes/`` holds the same as YAML; a test compares them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from manyeyes.backbones import EfficientAdConfig, ExtractorConfig, PatchCoreConfig, TimmTrunkConfig, uflow_pyramid
from manyeyes.config import merged, override, read_yaml
from manyeyes.ensemble.config import EnsembleConfig, MemberConfig
from manyeyes.errors import ConfigError
from manyeyes.fusion import AutoConfig, FusionConfig, GlobalPcaConfig, IndependentPcaConfig, ScoreLevelConfig, SumConfig
from manyeyes.heads import (
    AContrarioConfig,
    DiscriminatorConfig,
    EfficientAdHeadConfig,
    GaussianConfig,
    HeadConfig,
    MemoryBankConfig,
    SimpleNetConfig,
    UFlowHeadConfig,
)

LITE0 = TimmTrunkConfig(architecture="tf_efficientnet_lite0", weights="bundled", size=256)
WIDE_RESNET = TimmTrunkConfig(architecture="wide_resnet50_2", weights="tv_in1k", size=256)
OWN_HEADS: tuple[HeadConfig, ...] = (MemoryBankConfig(), GaussianConfig())
FUSED_HEADS: tuple[HeadConfig, ...] = (DiscriminatorConfig(), MemoryBankConfig())
INDEPENDENT = IndependentPcaConfig(components=256, whiten=0.5)
GLOBAL = GlobalPcaConfig(components=256, whiten=0.5)


@dataclass(frozen=True)
class Preset:
    """``build`` gives the config; ``summary`` is its line in the list."""

    name: str
    build: Callable[[], EnsembleConfig]
    summary: str


def with_choice(config: EnsembleConfig, name: str | None = None) -> EnsembleConfig:
    """The same eyes with the choice among ways of fusing them left to defects made from good pictures.

    The declared way is a candidate as it is; the others take its components and whitening where it has any. Heads on
    the fused map are the declared ones or, where there are none, the default's.
    Raises: ConfigError if the declared combiner leaves nothing to choose.
    """
    declared = config.fusion
    if isinstance(declared, AutoConfig):
        return config
    shared = declared.model_dump(include={"components", "whiten", "balance"})
    candidates: dict[str, FusionConfig] = {"global_pca": GlobalPcaConfig(**shared)}
    candidates["independent_pca"] = IndependentPcaConfig(**shared)
    if any(member.heads for member in config.members):
        candidates = {"score_level": ScoreLevelConfig(), **candidates}
    candidates[declared.kind] = declared
    fields = {"fusion": AutoConfig(candidates=tuple(candidates.values())), "heads": config.heads or FUSED_HEADS}
    values = config.model_copy(update={**fields, "name": name or config.name}).model_dump(mode="json")
    return EnsembleConfig.parse(values, f"{config.name} with a choice")


def eye(name: str, extractor: ExtractorConfig) -> MemberConfig:
    """A member with a memory bank on its plain map and a Gaussian on its pooled features."""
    return MemberConfig(name=name, extractor=extractor, heads=OWN_HEADS)


def fused(
    name: str, members: tuple[MemberConfig, ...], fusion: FusionConfig = INDEPENDENT, grid: int | None = 32
) -> EnsembleConfig:
    """All members' own heads beside the heads on the fused map: the default recipe."""
    return EnsembleConfig(name=name, members=members, fusion=fusion, heads=FUSED_HEADS, grid=grid)


def score_level(name: str, members: tuple[MemberConfig, ...]) -> EnsembleConfig:
    """The members' own heads alone."""
    return EnsembleConfig(name=name, members=members, fusion=ScoreLevelConfig(), grid=32)


def bundled_members() -> tuple[MemberConfig, ...]:
    """Two eyes through the trunk that comes with the installation: one sees the whole, one the details."""
    fine = LITE0.model_copy(update={"size": 384})
    return (
        eye("lite0", PatchCoreConfig(trunk=LITE0, stages=(2, 3, 4))),
        eye("lite0-fine", PatchCoreConfig(trunk=fine, stages=(2, 3))),
    )


def standard_members() -> tuple[MemberConfig, ...]:
    """The eyes of the literature: PatchCore's, EfficientAD's and U-Flow's."""
    return (
        eye("patchcore", PatchCoreConfig(trunk=WIDE_RESNET, stages=(2, 3))),
        teacher_member(),
        eye("uflow", uflow_pyramid("wide_resnet50_2", "tv_in1k")),
    )


def single(name: str, trunk: TimmTrunkConfig, stages: tuple[int, ...], heads: tuple[HeadConfig, ...]) -> EnsembleConfig:
    """One member with heads of its own and nothing fused."""
    extractor = PatchCoreConfig(trunk=trunk, stages=stages)
    return plain_sum(name, (MemberConfig(name="member", extractor=extractor, heads=heads),))


def teacher_member() -> MemberConfig:
    """EfficientAD's frozen teacher as one more eye; nothing is trained."""
    return eye("efficientad", EfficientAdConfig(maps=("teacher",)))


def efficientad_member() -> MemberConfig:
    """EfficientAD with its own maps and its own head; student and autoencoder are trained first."""
    return MemberConfig(name="efficientad", extractor=EfficientAdConfig(), heads=(EfficientAdHeadConfig(),), fuse=False)


def pooled_student_member() -> MemberConfig:
    """PUAD's unpicturable score: the pooled features with which the same EfficientAD's student follows its teacher."""
    extractor = EfficientAdConfig(maps=("student_teacher_pooled",))
    return MemberConfig(name="pooled", extractor=extractor, heads=(GaussianConfig(),), fuse=False)


def puad(name: str, picturable: MemberConfig, unpicturable: MemberConfig) -> EnsembleConfig:
    """PUAD: a picturable and an unpicturable score, combined as everything here; the paper has combiner ``sum``."""
    return EnsembleConfig(name=name, members=(picturable, unpicturable), fusion=ScoreLevelConfig())


def uflow_member() -> MemberConfig:
    """U-Flow with its own head. A size for the CPU; the paper's is 448 px, with `paper_schedule` on a GPU."""
    extractor = uflow_pyramid("resnet18", "tv_in1k", 256)
    return MemberConfig(name="uflow", extractor=extractor, heads=(UFlowHeadConfig(),), fuse=False)


def plain_sum(name: str, members: tuple[MemberConfig, ...]) -> EnsembleConfig:
    """The members' own z-normalised scores, summed."""
    return EnsembleConfig(name=name, members=members, fusion=ScoreLevelConfig(), combiner=SumConfig())


_ALL = (
    Preset("bundled", lambda: fused("bundled", bundled_members()), "two eyes through a trunk that needs no download"),
    Preset("bundled-single", lambda: single("bundled-single", LITE0, (2, 3, 4), OWN_HEADS), "its first eye alone"),
    Preset("bundled-score", lambda: score_level("bundled-score", bundled_members()), "bundled, scores fused only"),
    Preset("bundled-global", lambda: fused("bundled-global", bundled_members(), GLOBAL), "bundled, one global PCA"),
    Preset(
        "bundled-independent",
        lambda: fused("bundled-independent", bundled_members()),
        "bundled itself, named to be compared",
    ),
    Preset(
        "bundled-efficientad",
        lambda: with_choice(fused("bundled-efficientad", (*bundled_members(), teacher_member()))),
        "bundled and EfficientAD's teacher as a third eye where made defects say that it sees; slower on a CPU",
    ),
    Preset(
        "standard",
        lambda: fused("standard", standard_members()),
        "PatchCore's, EfficientAD's (its teacher) and U-Flow's eyes",
    ),
    Preset("standard-score", lambda: score_level("standard-score", standard_members()), "standard, scores fused only"),
    Preset("standard-global", lambda: fused("standard-global", standard_members(), GLOBAL), "standard, one global PCA"),
    Preset(
        "efficientad",
        lambda: plain_sum("efficientad", (efficientad_member(),)),
        "EfficientAD with the teacher of this package; trains a student first",
    ),
    Preset(
        "puad",
        lambda: puad("puad", efficientad_member(), pooled_student_member()),
        "EfficientAD's score and the Mahalanobis distance of its student's pooled features",
    ),
    Preset(
        "uflow",
        lambda: plain_sum("uflow", (uflow_member(),)).model_copy(update={"mask": AContrarioConfig(windows=(1,))}),
        "U-Flow on ResNet-18 with its a-contrario mask; trains a flow for minutes",
    ),
    Preset(
        "patchcore",
        lambda: single("patchcore", WIDE_RESNET, (2, 3), (MemoryBankConfig(),)),
        "PatchCore on WideResNet-50-2",
    ),
    Preset(
        "simplenet",
        lambda: single("simplenet", WIDE_RESNET, (2, 3), (SimpleNetConfig(),)),
        "SimpleNet's discriminator on WideResNet-50-2",
    ),
)
PRESETS: dict[str, Preset] = {preset.name: preset for preset in _ALL}


def load_config(name: str, overrides: Iterable[str] = ()) -> EnsembleConfig:
    """A preset by name or a YAML file by path, with ``field=value`` overrides.

    A file may name another one or a preset as its ``base`` and give only what differs; lists replace the base's.
    Raises: ConfigError naming the file, the field and what is allowed.
    """
    source = f"preset {name}" if name in PRESETS else name
    return EnsembleConfig.parse(override(_declared(name), overrides), source)


def _declared(name: str, above: tuple[str, ...] = ()) -> dict[str, Any]:
    """The plain values of a preset or a file, laid over those of its base."""
    if name in PRESETS:
        return PRESETS[name].build().model_dump(mode="json")
    if not Path(name).exists():
        wanted = f"{above[-1]}: base {name}" if above else name
        raise ConfigError(f"{wanted}: neither a file nor a preset; presets: {', '.join(PRESETS)}")
    values = read_yaml(name)
    base = values.pop("base", None)
    if base is None:
        return values
    if not isinstance(base, str):
        raise ConfigError(f"{name}: base: expected the name of a preset or of a file, got {base!r}")
    if str(Path(name).resolve()) in above:
        raise ConfigError(f"{name}: is its own base, by way of {', '.join(above)}")
    source = base if base in PRESETS else str(Path(name).parent / base)
    return merged(_declared(source, (*above, str(Path(name).resolve()))), values)


def preset_yaml(name: str) -> str:
    """The YAML of a preset as it lies in the package."""
    return (files("manyeyes.ensemble") / "recipes" / f"{name}.yaml").read_text(encoding="utf-8")
