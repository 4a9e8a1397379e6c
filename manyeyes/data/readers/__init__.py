"""Readers of image sets: the union of all kinds is the registry."""

from typing import Annotated

from pydantic import Field, TypeAdapter, ValidationError

from manyeyes.config import describe
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
    """The reader of a kind with its defaults. Raises: ConfigError naming the kinds."""
    try:
        found: Layout = TypeAdapter(DataConfig).validate_python({"kind": kind})
    except ValidationError as error:
        raise ConfigError(f"layout {kind!r}: {describe(error)}") from None
    return found


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
