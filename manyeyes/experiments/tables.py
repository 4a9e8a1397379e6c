"""Tables for a spreadsheet: CSV with a head, one row per picture, ensemble or cell."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from manyeyes.files import write_text


def write_csv(path: str | Path, rows: Sequence[Mapping[str, Any]], head: Sequence[str] = ()) -> None:
    """Write rows whole or not at all; columns are the keys of the first, ``head`` without any. Raises: RunError."""
    file = io.StringIO()
    writer = csv.DictWriter(file, fieldnames=list(rows[0] if rows else head), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, file.getvalue())


def picture_row(picture: Mapping[str, Any], *fields: str) -> dict[str, Any]:
    """``fields`` of a judged picture, then the score of every head under its name; yes and no are 1 and 0."""
    values = {field: picture[field] for field in fields}
    flat = {field: int(value) if isinstance(value, bool) else value for field, value in values.items()}
    return {**flat, **picture["heads"]}
