"""What a comparison leaves on disk: cells, each with figures, scores, maps and its run; and the study of all cells."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from manyeyes.errors import RunError
from manyeyes.experiments.evaluation import Evaluation
from manyeyes.files import read_json, write_json, writing

FIGURES, PICTURES, MAPS, CURVES = "figures.json", "pictures.json", "maps.npy", "curves.json"


@dataclass(frozen=True)
class Cell:
    """One finished cell. ``folder`` holds its figures, its pictures' scores, small maps, and its run."""

    ensemble: str
    data: str
    seed: int
    folder: Path
    fold: int | None = None

    @property
    def advice(self) -> str:
        """The way out where a part of it is missing or broken."""
        return f"delete {self.folder} and compare again"

    @property
    def finished(self) -> bool:
        return (self.folder / FIGURES).exists()

    @property
    def figures(self) -> dict[str, Any]:
        return dict(read_json(self.folder / FIGURES, self.advice))

    @property
    def pictures(self) -> list[dict[str, Any]]:
        return list(read_json(self.folder / PICTURES, self.advice))

    @property
    def pro_curve(self) -> list[list[float]] | None:
        """False-positive rates and mean overlaps of the PRO curve; None where there is none."""
        found: list[list[float]] | None = read_json(self.folder / CURVES, self.advice)["pro"]
        return found

    @property
    def maps(self) -> np.ndarray:
        """(n, 64, 64) float16, aligned with ``pictures``."""
        try:
            maps: np.ndarray = np.load(self.folder / MAPS, allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            reason = " ".join(str(error).split())
            raise RunError(f"{self.folder / MAPS}: is not whole ({reason}); {self.advice}") from None
        return maps

    @property
    def run(self) -> Path:
        return self.folder / "run"


@dataclass(frozen=True)
class Study:
    """Finished cells in the order ensembles x sets x seeds."""

    folder: Path
    cells: tuple[Cell, ...]
    baseline: str | None = None
    """The ensemble that the others are compared with; None for the first."""

    @property
    def report(self) -> Path:
        return self.folder / "report.html"

    @property
    def ensembles(self) -> list[str]:
        return list(dict.fromkeys(cell.ensemble for cell in self.cells))

    @property
    def sets(self) -> list[str]:
        return list(dict.fromkeys(cell.data for cell in self.cells))

    def of(self, ensemble: str, data: str) -> list[Cell]:
        return [cell for cell in self.cells if (cell.ensemble, cell.data) == (ensemble, data)]

    def tables(self) -> list[list[dict[str, str]]]:
        """What the terminal shows: accuracy, differences and costs, choices if any; rows whose keys are the columns."""
        from manyeyes.experiments.report.results import Results

        results = Results(self)
        return [rows for rows in (results.accuracy(), results.comparison(), results.choices()) if rows]


def write_cell(cell: Cell, result: Evaluation) -> None:
    """Write a finished cell; its figures last, because they say that it is finished."""
    with writing(cell.folder / MAPS) as temporary, open(temporary, "wb") as file:
        np.save(file, result.maps, allow_pickle=False)
    write_json(cell.folder / PICTURES, result.pictures)
    write_json(cell.folder / CURVES, {"pro": result.pro_curve})
    identity = {"ensemble": cell.ensemble, "data": cell.data, "seed": cell.seed, "fold": cell.fold}
    write_json(cell.folder / FIGURES, {**identity, **result.figures})
