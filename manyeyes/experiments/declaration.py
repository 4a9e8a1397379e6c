"""A study declared in YAML: which sets, which ensembles, which seeds.

sets: [parts/connector]               # folders; or {path: parts/connector, name: connector, layout: mvtec-ad}
ensembles:
  - bundled-single                    # a preset
  - mine.yaml                         # a file
  - base: bundled                     # either of them, changed: one ensemble for each variant
    variants: {narrow: [fusion.components=64], wide: [fusion.components=512]}
seeds: [0, 1, 2]
baseline: bundled-single

Paths are relative to the folder of the file.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Self

from pydantic import BeforeValidator, Field, model_validator

from manyeyes.config import Config, override, read_yaml
from manyeyes.data import Auto, DataConfig, ImageSet, layout_of, read_image_set
from manyeyes.ensemble import PRESETS, EnsembleConfig, load_config, with_choice
from manyeyes.ensemble.config import Name
from manyeyes.errors import ConfigError
from manyeyes.experiments.leaving_out import without_each_member


def _as(field: str) -> BeforeValidator:
    """A bare word stands for a mapping with this one field."""
    return BeforeValidator(lambda value: {field: value} if isinstance(value, str) else value)


class SetConfig(Config):
    """One image set."""

    path: str = Field(min_length=1, description="its folder, relative to the study's file")
    name: str | None = Field(
        None, pattern=r"^[^./\\][^/\\]*$", description="by default that of the folder; names folders of the study"
    )
    layout: Annotated[DataConfig, _as("kind")] = Field(Auto(), description="how it lies on disk")

    def read(self, folder: Path) -> ImageSet:
        """Raises: DataError as `read_image_set`."""
        found = read_image_set(folder / self.path, self.layout)
        return found if self.name is None else replace(found, name=self.name)


class EnsemblesConfig(Config):
    """A preset or a file by itself or, with ``variants``, one ensemble for each of them."""

    base: str = Field(min_length=1, description="a preset's name or a YAML file, relative to the study's file")
    variants: dict[Name, tuple[str, ...]] = Field({}, description="overrides, field=value, by the ensemble's name")

    def build(self, folder: Path) -> list[EnsembleConfig]:
        """Raises: ConfigError naming the variant."""
        source = self.base if self.base in PRESETS else str(folder / self.base)
        try:
            base = load_config(source)
        except ConfigError as error:
            raise ConfigError(f"base: {error}") from None
        if not self.variants:
            return [base]
        found = []
        for name, overrides in self.variants.items():
            try:
                found.append(load_config(source, (*overrides, f"name={name}")))
            except ConfigError as error:
                raise ConfigError(f"variants.{name}: {error}") from None
        return found


class StudyConfig(Config):
    """Image sets x ensembles x seeds (x folds)."""

    sets: tuple[Annotated[SetConfig, _as("path")], ...] = Field(min_length=1)
    ensembles: tuple[Annotated[EnsemblesConfig, _as("base")], ...] = Field(min_length=1)
    seeds: tuple[Annotated[int, Field(ge=0)], ...] = Field((0,), min_length=1)
    folds: int = Field(0, ge=0, description="cross-validate each training with this many folds; 0: none")
    baseline: str | None = Field(None, description="ensemble that the others are compared with; by default the first")
    leave_one_out: bool = Field(False, description="also fit each ensemble without each of its members")
    choose: bool = Field(False, description="also fit each ensemble with its fusion chosen, as NAME-auto")
    repetitions: int = Field(0, ge=0, description="bootstrap draws for intervals of all figures; 0: none")

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.folds == 1:
            raise ValueError("folds: expected 0 or a number from 2 on, got 1")
        return self


@dataclass(frozen=True)
class Declared:
    """A study with everything that it names read."""

    declared: list[EnsembleConfig]
    sets: list[ImageSet]
    seeds: tuple[int, ...] = (0,)
    folds: int = 0
    baseline: str | None = None
    repetitions: int = 0
    leave_one_out: bool = False
    """Each ensemble also without each of its members."""
    choose: bool = False
    """Each ensemble also with its fusion chosen, but for those whose fusion is a choice already."""

    @property
    def ensembles(self) -> list[EnsembleConfig]:
        """Those that are declared and what follows from them.

        Raises: ConfigError if one leaves nothing to choose, or none has a member that could be left out.
        """
        fixed = [config for config in self.declared if config.fusion.kind != "auto"]
        reduced = without_each_member(self.declared) if self.leave_one_out else []
        if self.leave_one_out and not reduced:
            raise ConfigError("leave_one_out: no ensemble can spare a member; name one that has several")
        return [
            *self.declared,
            *reduced,
            *(with_choice(config, f"{config.name}-auto") for config in fixed if self.choose),
        ]

    def but(
        self,
        seeds: tuple[int, ...] | None = None,
        folds: int | None = None,
        baseline: str | None = None,
        leave_one_out: bool = False,
        choose: bool = False,
    ) -> Declared:
        """With some fields given anew; the two flags add to what is declared."""
        return replace(
            self,
            leave_one_out=self.leave_one_out or leave_one_out,
            choose=self.choose or choose,
            seeds=self.seeds if seeds is None else seeds,
            folds=self.folds if folds is None else folds,
            baseline=self.baseline if baseline is None else baseline,
        )


def read_study(path: str | Path, overrides: Iterable[str] = ()) -> Declared:
    """The study that a YAML file declares, with ``field=value`` overrides.

    Raises: ConfigError naming the file, the field and what is allowed; DataError as `read_image_set`.
    """
    path = Path(path)
    values = read_yaml(path)
    if "members" in values or isinstance(values.get("base"), str):
        raise ConfigError(f"{path}: declares an ensemble, not a study; give the pictures to compare on with --data")
    config = StudyConfig.parse(override(values, overrides), str(path))
    ensembles: list[EnsembleConfig] = []
    for index, entry in enumerate(config.ensembles):
        try:
            ensembles += entry.build(path.parent)
        except ConfigError as error:
            raise ConfigError(f"{path}: ensembles.{index}.{error}") from None
    sets = [item.read(path.parent) for item in config.sets]
    found = Declared(ensembles, sets, config.seeds, config.folds, config.baseline, config.repetitions)
    return replace(found, leave_one_out=config.leave_one_out, choose=config.choose)


def named_study(
    names: Sequence[str], data: Sequence[Path] | None, overrides: Iterable[str] = (), layout: str = "auto"
) -> Declared:
    """The study of presets or files on ``data`` or, without data, the one that the only file declares.

    Raises: ConfigError, DataError.
    """
    if not data:
        if len(names) != 1 or names[0] in PRESETS:
            raise ConfigError(
                f"{' '.join(names)}: name the pictures to compare on with --data, or one YAML file that is a study"
            )
        return read_study(names[0], overrides)
    overrides = tuple(overrides)
    for name in names:
        if name not in PRESETS and Path(name).is_file() and {"sets", "ensembles"} & read_yaml(name).keys():
            raise ConfigError(f"{name}: is a study and names its own sets; leave out --data")
    return Declared(
        [load_config(name, overrides) for name in names],
        [read_image_set(folder, layout_of(layout)) for folder in data],
    )


def seeds_of(text: str) -> tuple[int, ...]:
    """``0,1,2`` as numbers. Raises: ConfigError."""
    try:
        return tuple(int(seed) for seed in text.split(","))
    except ValueError:
        raise ConfigError(f"--seeds {text!r}: expected whole numbers with commas between, such as 0,1,2") from None
