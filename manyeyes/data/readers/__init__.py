"""Readers of image sets: the union of all kinds is the registry."""

from typing import Annotated, get_args

from pydantic import Field, TypeAdapter, ValidationError

from manyeyes.config import describe, read_yaml
from manyeyes.data.readers.auto import Auto
from manyeyes.data.readers.folder import Folder
from manyeyes.data.readers.layout import Layout
from manyeyes.data.readers.loco import MvtecLoco
from manyeyes.data.readers.mtd import Mtd
from manyeyes.data.readers.read import read_image_set
from manyeyes.data.readers.split_folders import Btad, Mpdd, MvtecAd
from manyeyes.data.readers.visa import Visa
from manyeyes.errors import ConfigError

DataConfig = Annotated[Folder | MvtecAd | MvtecLoco | Visa | Mpdd | Btad | Mtd | Auto, Field(discriminator="kind")]


def layout_of(kind: str) -> Layout:
    """The reader of a kind with its defaults, or the one that a YAML file (``.yaml``, ``.yml``) declares.

    Raises: ConfigError naming the kinds, or the file, the field and what is allowed.
    """
    is_file = kind.lower().endswith((".yaml", ".yml"))
    values = read_yaml(kind) if is_file else {"kind": kind}
    try:
        found: Layout = TypeAdapter(DataConfig).validate_python(values)
    except ValidationError as error:
        source = kind if is_file else f"layout {kind!r}"
        advice = _fields(values.get("kind")) if is_file else "; or give a YAML file (.yaml) with a data config"
        raise ConfigError(f"{source}: {describe(error)}{advice}") from None
    return found


def _fields(kind: object) -> str:
    """What a data config of this kind may say; nothing where there is no such kind."""
    for config in get_args(get_args(DataConfig)[0]):
        if config.model_fields["kind"].default == kind:
            return f"; a data config of kind {kind} has the fields {', '.join(config.model_fields)}"
    return ""


__all__ = [
    "Auto",
    "Btad",
    "DataConfig",
    "Folder",
    "Layout",
    "Mpdd",
    "Mtd",
    "MvtecAd",
    "MvtecLoco",
    "Visa",
    "layout_of",
    "read_image_set",
]
