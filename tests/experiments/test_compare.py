"""Studies: extraction once, cells kept, kills survived, and figures that equal training and evaluating one by one."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import draw_parts, small_config, small_member

from manyeyes.data import ImageSet, folds, read_image_set
from manyeyes.ensemble import EnsembleConfig, load_run
from manyeyes.errors import ConfigError, DataError, RunError
from manyeyes.experiments import demo
from manyeyes.experiments.compare import run_study
from manyeyes.experiments.evaluation import evaluate_run
from manyeyes.experiments.study import FIGURES, Cell, Study
from manyeyes.fusion import GlobalPcaConfig, ScoreLevelConfig, StackingLogisticConfig

SCORES = small_config(name="scores", fusion=ScoreLevelConfig(), heads=())
GLOBAL = small_config(name="global", fusion=GlobalPcaConfig(components=8))


def study(out: Path | str, *sets: ImageSet, configs: Sequence[EnsembleConfig] = (SCORES, GLOBAL), **more: Any) -> Study:
    return run_study(configs, sets, out, device="cpu", batch_size=4, **more)


def compare_and_die(out: str, root: str, cells: int) -> None:
    """Killed when the given number of cells is finished and the next is being measured."""

    class Deadly:
        begun = 0

        def step(self, what: str) -> Callable[[int, int], None]:
            self.begun += "seed" in what
            return lambda done, total: os.kill(os.getpid(), signal.SIGKILL) if self.begun > cells else None

        def say(self, text: str) -> None:
            pass

    study(out, read_image_set(root), progress=Deadly())


@pytest.fixture
def reports(monkeypatch: pytest.MonkeyPatch) -> list[Study]:
    """Studies that were reported; the page itself is tested elsewhere."""
    written: list[Study] = []
    monkeypatch.setattr("manyeyes.experiments.report.write_report", written.append)
    return written


def written_at(found: Study) -> list[int]:
    return [(cell.folder / FIGURES).stat().st_mtime_ns for cell in found.cells]


def test_a_study_extracts_once_and_a_second_call_fits_nothing(
    parts: ImageSet, tmp_path: Path, forwards: list[int], reports: list[Study]
) -> None:
    found = study(tmp_path, parts, seeds=(0, 1))
    timing = 2 * 4  # each trunk by itself, four times
    assert len(forwards) - timing == 2 * (3 + 3), "two trunks, 10 normals and 9 test pictures in batches of 4"
    assert [(cell.ensemble, cell.data, cell.seed) for cell in found.cells] == [
        *[("scores", "striped", 0), ("scores", "striped", 1), ("global", "striped", 0), ("global", "striped", 1)]
    ]
    before = written_at(found)
    forwards.clear()
    again = study(tmp_path, parts, seeds=(0, 1))
    assert again == found
    assert written_at(again) == before
    assert forwards == []
    assert len(reports) == 2
    # One more seed fits its own cells and reads the store.
    more = study(tmp_path, parts, seeds=(0, 1, 2))
    assert len(more.cells) == 6
    assert set(before) < set(written_at(more))
    assert forwards == [], "the trunks were timed before"


def test_another_border_between_training_and_validation_is_another_cell(
    parts: ImageSet, tmp_path: Path, reports: list[Study]
) -> None:
    """The same pictures in the same order, one of them on the other side."""
    everything = (*parts.train, *parts.validation)
    first, second = (replace(parts, train=everything[:at], validation=everything[at:]) for at in (6, 5))
    cells = [study(tmp_path, each, configs=[SCORES]).cells[0] for each in (first, second)]
    assert [cell.figures["train_images"] for cell in cells] == [6, 5]
    assert cells[0].folder != cells[1].folder


def test_cells_equal_a_training_and_an_evaluation_of_their_own(
    parts: ImageSet, tmp_path: Path, reports: list[Study]
) -> None:
    cell = study(tmp_path / "study", parts).of("global", "striped")[0]
    figures = cell.figures
    alone = evaluate_run(cell.run, parts, device="cpu", repetitions=0)
    for kind in ("auroc", "aupr", "f1_max"):
        assert figures["image"][kind] == pytest.approx(alone["image"][kind])
    assert figures["pixel"]["auroc"] == pytest.approx(alone["pixel"]["auroc"], rel=1e-3)
    assert figures["threshold"] == alone["threshold"]
    assert figures["train_images"] == 6
    assert [picture["path"] for picture in cell.pictures] == [str(sample.path) for sample in parts.test]
    assert cell.maps.shape == (9, 64, 64)
    assert cell.maps.dtype == np.float16
    assert load_run(cell.run).config == GLOBAL
    assert {"ms_per_image", "ms_trunks", "ms_heads", "fit_seconds"} <= set(figures["cost"])


def test_a_killed_study_goes_on_with_the_next_cell(
    parts: ImageSet, tmp_path: Path, forwards: list[int], reports: list[Study], in_process: Callable[..., int]
) -> None:
    whole = study(tmp_path / "whole", parts)
    assert in_process(compare_and_die, str(tmp_path / "killed"), str(parts.root), 1) == -signal.SIGKILL
    finished = list((tmp_path / "killed/cells").glob(f"*/{FIGURES}"))
    assert len(finished) == 1
    before = finished[0].stat().st_mtime_ns
    forwards.clear()
    resumed = study(tmp_path / "killed", parts)
    assert forwards == []
    assert finished[0].stat().st_mtime_ns == before
    for mine, yours in zip(resumed.cells, whole.cells, strict=True):
        assert [p["score"] for p in mine.pictures] == [p["score"] for p in yours.pictures]
        assert torch.equal(torch.from_numpy(mine.maps), torch.from_numpy(yours.maps))


@pytest.mark.parametrize("change", ["mask", "picture", "label", "config"])
def test_what_a_figure_depends_on_makes_a_new_cell(change: str, tmp_path: Path, reports: list[Study]) -> None:
    root = draw_parts(tmp_path / "parts", train=5, good=2, defective=2)
    config = small_config(name="one", members=(small_member("one"),), fusion=ScoreLevelConfig(), heads=())
    first = study(tmp_path / "study", read_image_set(root), configs=[config])
    if change == "mask":
        shutil.copy(root / "ground_truth/hole/001_mask.png", root / "ground_truth/hole/000_mask.png")
    elif change == "picture":
        shutil.copy(root / "train/good/001.png", root / "train/good/000.png")
    elif change == "config":
        config = config.model_copy(update={"blur": 0.03})
    image_set = read_image_set(root)
    if change == "label":
        called = tuple(replace(sample, defect="dent") if sample.label else sample for sample in image_set.test)
        image_set = replace(image_set, test=called)
    second = study(tmp_path / "study", image_set, configs=[config])
    assert second.cells[0].folder != first.cells[0].folder


def test_the_table_has_a_row_per_ensemble_and_the_mean_over_sets(
    parts: ImageSet, tmp_path: Path, reports: list[Study]
) -> None:
    other = read_image_set(draw_parts(tmp_path / "other", train=6, good=2, defective=2, seed=5))
    found = study(tmp_path / "study", parts, other, seeds=(0, 1))
    rows, costs = found.tables()
    assert [row["ensemble"] for row in rows] == ["scores", "global"]
    values = [cell.figures["image"]["auroc"] for cell in found.of("scores", "other")]
    assert float(rows[0]["other: image AUROC"].split()[0]) == pytest.approx(100 * np.mean(values), abs=0.1)
    assert float(rows[0]["mean"].split()[0]) == pytest.approx(
        np.mean([100 * cell.figures["image"]["auroc"] for cell in found.cells if cell.ensemble == "scores"]), abs=0.1
    )
    assert next(row["against scores"] for row in costs) == "baseline"
    assert all(float(row["artefact MB"]) > 0 and float(row["peak MB"]) > 0 for row in costs)
    assert found.sets == ["striped", "other"]


def test_folds_hold_out_every_good_picture_once(parts: ImageSet, tmp_path: Path, reports: list[Study]) -> None:
    found = study(tmp_path, parts, configs=[SCORES], folds=2)
    assert [cell.fold for cell in found.cells] == [0, 1]
    held = [cell.figures["held_out"] for cell in found.cells]
    assert sum(item["images"] for item in held) == len(parts.train)
    assert all(0 <= item["image_auroc"] <= 1 for item in held)
    assert all(cell.figures["train_images"] + cell.figures["validation_images"] == 5 for cell in found.cells)


def test_a_fold_whose_pictures_are_all_bad(tmp_path: Path, reports: list[Study]) -> None:
    image_set = read_image_set(draw_parts(tmp_path / "parts", train=8, good=2, defective=2))
    for sample in folds(image_set.train, 2, 0)[0][1]:
        sample.path.write_bytes(b"")
    with pytest.raises(DataError, match=r"no readable picture is left in a fold of 4"):
        study(tmp_path / "study", image_set, configs=[SCORES], folds=2, skip_bad=True)


def test_names_that_clash(parts: ImageSet, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"ensembles to compare need different names; scores stands more than once"):
        study(tmp_path, parts, configs=[SCORES, GLOBAL, SCORES])
    with pytest.raises(ConfigError, match=r"sets to compare need different names; striped stands more than once"):
        study(tmp_path, parts, parts)
    assert not list(tmp_path.iterdir())


def test_wrong_seeds_sets_and_combiners(parts: ImageSet, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"seeds: expected numbers from 0 on, got -1"):
        study(tmp_path, parts, seeds=(0, -1))
    with pytest.raises(DataError, match=r"has no test pictures to compare on"):
        study(tmp_path, replace(parts, test=()))
    with pytest.raises(DataError, match=r"stacking_logistic learns from labelled pictures"):
        study(tmp_path, parts, configs=[small_config(combiner=StackingLogisticConfig())])
    assert not (tmp_path / "features").exists(), "said before any work"


def test_a_study_of_nothing_and_a_damaged_cell_have_a_way_out(parts: ImageSet, tmp_path: Path) -> None:
    for configs, sets in (([], [parts]), ([small_config()], [])):
        with pytest.raises(ConfigError, match="at least one ensemble and one image set"):
            run_study(configs, sets, tmp_path)
    cell = Cell("small", "parts", 0, tmp_path / "cell")
    (cell.folder / "run").mkdir(parents=True)
    (cell.folder / "maps.npy").write_bytes(b"\x93NUMPY")
    for read, why in ((lambda: cell.maps, "maps.npy: is not whole"), (lambda: cell.pictures, "cannot be read")):
        with pytest.raises(RunError, match=rf"{why}.*; delete .*cell and compare again"):
            read()


def test_a_seed_that_stands_twice_counts_once(parts: ImageSet, tmp_path: Path, reports: list[Study]) -> None:
    assert len(study(tmp_path, parts, configs=[SCORES], seeds=(0, 0)).cells) == 1


def test_the_demo_draws_once_and_compares_four(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reports: list[Study]
) -> None:
    drawn: list[Path] = []

    def draw(out: Path, **options: Any) -> None:
        drawn.append(out)
        draw_parts(out, train=6, good=2, defective=2)

    monkeypatch.setattr(demo, "synthesize_flat_connector", draw)
    monkeypatch.setattr(demo, "load_config", lambda name: SCORES.model_copy(update={"name": name}))
    for _ in range(2):
        found = demo.run_demo(tmp_path / "demo", seed=3)
    assert drawn == [tmp_path / "demo/flat-connector-3"]
    assert found.ensembles == list(demo.ENSEMBLES)
    assert {cell.seed for cell in found.cells} == {3}
    assert found.report == tmp_path / "demo/study/report.html"
