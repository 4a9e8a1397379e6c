"""What an output folder of ``manyeyes predict`` holds: calls of one run add to it, none loses or mixes another's."""

from __future__ import annotations

import os
from collections.abc import Iterator
from itertools import count
from math import isclose
from pathlib import Path
from typing import Any

from manyeyes.errors import RunError
from manyeyes.experiments.tables import picture_row, write_csv
from manyeyes.files import read_json, write_json

VERDICTS = "verdicts.json"
TABLE = "verdicts.csv"
COLUMNS = ("path", "score", "alarm")
ENDINGS = {"heatmap": "png", "mask": "png", "map": "npy"}
AWAY = "choose another --out, or delete that folder"


def absolute(path: Path) -> str:
    """By what a picture is known in every call; links keep their names."""
    return os.path.abspath(path)  # noqa: PTH100 - resolving would follow links


class VerdictList:
    """Verdicts in ``folder`` by picture, with those of earlier calls; a picture judged again replaces its own.

    ``judge`` is what all of them must share: {"run", "threshold", "map_threshold"}.
    Raises: RunError if the verdicts there are another run's, at other thresholds or none that can be added to.
    """

    def __init__(self, folder: Path, judge: dict[str, Any]) -> None:
        self.folder, self.judge = folder, judge
        self.pictures: dict[str, dict[str, Any]] = {}
        self.left_out: dict[str, dict[str, Any]] = {}
        if (folder / VERDICTS).exists():
            self._read(folder / VERDICTS)
        self._owners = {Path(entry["map"]).stem.casefold(): file for file, entry in self.pictures.items()}
        self._names = {file: Path(entry["map"]).stem for file, entry in self.pictures.items()}

    def _read(self, path: Path) -> None:
        found = read_json(path)
        try:
            judge = {key: found[key] for key in self.judge}
            for entry in found["pictures"]:
                # The folder may have been moved, or another one have been the current.
                self.pictures[entry["file"]] = entry | {
                    kind: str(self.folder / f"{kind}s" / Path(entry[kind]).name) for kind in ENDINGS
                }
            self.left_out = {entry["file"]: entry for entry in found["left_out"]}
            same_run = judge["run"] == self.judge["run"]
            same = all(isclose(judge[key], value) for key, value in self.judge.items() if key != "run")
        except (KeyError, TypeError):
            raise RunError(f"{path}: is no list of verdicts that can be added to; {AWAY}") from None
        if not same_run:
            raise RunError(f"{path}: holds verdicts of another run; {AWAY}")
        if not same:
            raise RunError(f"{path}: holds verdicts at other thresholds ({judge['threshold']:.6g}); {AWAY}")

    def files(self, picture: Path) -> dict[str, Path]:
        """Where heatmap, mask and map of a picture go: PARENT_STEM, with more parents or a number if that is another's.

        A picture keeps the name that it has.
        """
        file = absolute(picture)
        if file not in self._names:
            name = next(name for name in _candidates(Path(file)) if name.casefold() not in self._owners)
            self._names[file], self._owners[name.casefold()] = name, file
        return {kind: self.folder / f"{kind}s" / f"{self._names[file]}.{end}" for kind, end in ENDINGS.items()}

    def write(self, found: dict[str, Any]) -> None:
        """Add what one call has found, as `predict_paths` returns it, and write the whole, as a table too."""
        judged = {entry["file"]: entry for entry in found["pictures"]}
        pictures = self.pictures | judged
        left_out = {file: entry for file, entry in self.left_out.items() if file not in judged}
        left_out |= {entry["file"]: entry for entry in found["left_out"]}
        whole = {**found, "pictures": list(pictures.values()), "left_out": list(left_out.values())}
        write_json(self.folder / VERDICTS, whole)
        rows = [picture_row(entry, *COLUMNS) | {"boxes": len(entry["boxes"])} for entry in whole["pictures"]]
        write_csv(self.folder / TABLE, rows, (*COLUMNS, "boxes"))


def _candidates(path: Path) -> Iterator[str]:
    """Names for a picture, best first, without end."""
    for plain in (path.with_suffix(""), path):  # with its ending where nothing else tells them apart
        parts = plain.parts[1:]
        for depth in range(2, max(len(parts), 2) + 1):
            yield "_".join(parts[-depth:])
    yield from ("_".join((*parts[-2:], str(number))) for number in count(2))
