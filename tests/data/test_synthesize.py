"""The made parts: layout, exact masks, determinism, whole-or-absent writing, and that they are not trivial."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from manyeyes.data.synthesize import DEFECTS, Part, Scene, defects_config, flat_connector, synthesize_flat_connector
from manyeyes.errors import ConfigError, RunError

SIZE = (128, 160)
COUNTS: dict[str, Any] = {"train": 30, "validation": 2, "test_good": 30, "per_defect": 8}
FEW: dict[str, Any] = {"train": 2, "validation": 1, "test_good": 1, "per_defect": 1, "size": (48, 64)}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return synthesize_flat_connector(tmp_path_factory.mktemp("made") / "set", seed=3, size=SIZE, **COUNTS)


def read(path: Path) -> np.ndarray:
    image = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    assert image is not None, path
    return image


def content(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def test_layout_and_counts(made: Path) -> None:
    expected = {
        "train/good": 30,
        "validation/good": 2,
        "test/good": 30,
        "test/logical_anomalies": 24,
        "test/structural_anomalies": 24,
    }
    assert {split: len(list((made / split).glob("*.png"))) for split in expected} == expected
    assert sorted(path.name for path in made.iterdir()) == sorted(
        ["train", "validation", "test", "ground_truth", "defects_config.json", "parts.json", "README.txt"]
    )
    assert read(made / "train/good/000.png").shape == (*SIZE, 3)
    readme = (made / "README.txt").read_text()
    assert "seed=3" in readme
    assert "CC0" in readme
    assert "manyeyes synthesize flat-connector" in readme


def test_masks_tables_and_config_agree(made: Path) -> None:
    table = json.loads((made / "parts.json").read_text())
    names = {
        entry["pixel_value"]: entry["defect_name"] for entry in json.loads((made / "defects_config.json").read_text())
    }
    assert {row["image"] for row in table} == {str(path.relative_to(made)) for path in made.glob("test/*/*.png")}
    seen = []
    for row in table:
        folder = made / row["image"].replace("test/", "ground_truth/").removesuffix(".png")
        assert [region["mask"] for region in row["regions"]] == [
            str(path.relative_to(made)) for path in sorted(folder.glob("*.png"))
        ]
        for region in row["regions"]:
            mask = read(made / region["mask"])
            assert mask.shape == SIZE
            values = set(np.unique(mask)) - {0}
            assert len(values) == 1, f"{region['mask']}: one region has one pixel value, found {values}"
            assert names[values.pop()] == region["defect"]
            seen.append(region["defect"])
        assert row["defect"] == ("+".join(region["defect"] for region in row["regions"]) or "good")
    assert {name: seen.count(name) >= 8 for name in names.values()} == dict.fromkeys(names.values(), True)
    assert any(len(row["regions"]) == 2 for row in table)
    assert {len({defect.group for defect in DEFECTS if defect.name in row["defect"]}) for row in table} == {0, 1}


def test_saturation_areas_are_reachable() -> None:
    config = {entry["defect_name"]: entry for entry in defects_config((256, 320))}
    assert len({entry["pixel_value"] for entry in config.values()}) == 6
    for number in range(9):
        part = Part("test/logical_anomalies", number)
        scene = part.scene(0)
        for defect in part.defects(0, scene):
            entry = config[defect.name]
            assert not entry["relative_saturation"]
            area = int((scene.mask(defect) > 0).sum())
            # LOCO caps the threshold at the region; a smaller extra hole is the only one that needs it.
            assert area >= entry["saturation_threshold"] * (0.5 if defect.name == "extra_hole" else 0.95)


@pytest.mark.parametrize("folder", ["test/logical_anomalies", "test/structural_anomalies"])
@pytest.mark.parametrize("number", [0, 1, 2, 7, 8, 10])
def test_masks_are_where_the_picture_differs_from_its_good_twin(folder: str, number: int) -> None:
    part = Part(folder, number)
    scene = part.scene(11)
    defects = part.defects(11, scene)
    taken, twin = scene.photograph(defects), scene.photograph()
    changed = np.abs(taken.image.astype(float) - twin.image.astype(float)).max(axis=2)
    # The lens smears a defect over its border, and a changed outline moves the shadow on the black cloth beside it.
    masks = [cv2.dilate((mask > 0).astype(np.uint8), np.ones((5, 5), np.uint8)).astype(bool) for mask in taken.masks]
    outside = changed[~np.logical_or.reduce(masks)]
    assert outside.mean() < 0.02
    assert outside.max() < 16
    for mask, defect in zip(taken.masks, defects, strict=True):
        inside = changed[mask > 0]
        assert inside.size > 20
        assert (inside > 12).mean() > 0.3, f"{defect.name} of strength {defect.strength:.2f} is hardly visible"
        assert np.percentile(inside, 90) > 30, f"{defect.name} of strength {defect.strength:.2f} is faint"


def test_same_seed_same_bytes_whatever_the_counts_and_workers(tmp_path: Path) -> None:
    few = content(synthesize_flat_connector(tmp_path / "few", seed=5, **FEW))
    again = content(synthesize_flat_connector(tmp_path / "again", seed=5, workers=1, **FEW))
    more = content(synthesize_flat_connector(tmp_path / "more", seed=5, **{**FEW, "train": 4, "per_defect": 2}))
    other = content(synthesize_flat_connector(tmp_path / "other", seed=6, **FEW))
    assert few == again
    pictures = [name for name in few if name.endswith(".png")]
    assert {name: few[name] for name in pictures} == {name: more[name] for name in pictures}
    assert all(few[name] != other[name] for name in pictures if not name.startswith("ground_truth"))


def baselines(made: Path) -> dict[str, dict[str, float]]:
    """Image AUROC of plain pixel differences to the mean training picture, lightly blurred, per baseline and group."""

    def grey(path: Path) -> np.ndarray:
        return cv2.GaussianBlur(cv2.cvtColor(read(path), cv2.COLOR_BGR2GRAY).astype(np.float32), (0, 0), 1.0)

    mean = np.mean([grey(path) for path in sorted(made.glob("train/good/*.png"))], axis=0)
    difference = {
        group: [np.abs(grey(path) - mean) for path in sorted(made.glob(f"test/{group}/*.png"))]
        for group in ("good", "logical_anomalies", "structural_anomalies")
    }
    scorers: dict[str, Callable[[np.ndarray], float]] = {
        "max": lambda d: float(d.max()),
        "mean": lambda d: float(d.mean()),
    }
    result = {}
    for name, scorer in scorers.items():
        scores = {group: [scorer(d) for d in maps] for group, maps in difference.items()}
        bad = scores["logical_anomalies"] + scores["structural_anomalies"]
        groups = {"all": bad, **{group: values for group, values in scores.items() if group != "good"}}
        result[name] = {
            group: float(roc_auc_score([0] * len(scores["good"]) + [1] * len(values), scores["good"] + values))
            for group, values in groups.items()
        }
    return result


def test_plain_pixel_differences_stay_under_80_percent_auroc(made: Path) -> None:
    for name, figures in baselines(made).items():
        for group, auroc in figures.items():
            assert auroc < 0.8, f"{name} difference separates {group} with {auroc:.2f}: the set has become trivial"
            assert auroc > 0.2, f"{name} difference separates {group} with {auroc:.2f}: good parts look worse than bad"


def test_a_folder_in_use_is_refused_and_kept(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "mine.txt").write_text("keep")
    with pytest.raises(RunError, match="delete it or choose another"):
        synthesize_flat_connector(tmp_path / "set", **FEW)
    (tmp_path / "file").write_text("keep")
    with pytest.raises(RunError, match="found a file"):
        synthesize_flat_connector(tmp_path / "file", **FEW)
    with pytest.raises(RunError, match="cannot be used as an output folder"):
        synthesize_flat_connector(tmp_path / "file" / "set", **FEW)
    assert content(tmp_path) == {"set/mine.txt": b"keep", "file": b"keep"}


def test_an_empty_folder_is_taken(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    seen: list[tuple[int, int]] = []
    out = synthesize_flat_connector(tmp_path / "set", progress=lambda done, total: seen.append((done, total)), **FEW)
    assert out == tmp_path / "set"
    assert seen == [(done, 10) for done in range(1, 11)]
    assert [path.name for path in tmp_path.iterdir()] == ["set"]


@pytest.mark.parametrize("stop", [KeyboardInterrupt, MemoryError])
def test_an_interrupted_run_leaves_nothing(tmp_path: Path, stop: type[BaseException]) -> None:
    def interrupt(done: int, total: int) -> None:
        if done == 4:
            assert any(tmp_path.rglob("*.png"))
            raise stop

    with pytest.raises(stop):
        synthesize_flat_connector(tmp_path / "set", progress=interrupt, **FEW)
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_one_clear_error_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, image: np.ndarray) -> None:
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(flat_connector, "_write_image", full)
    with pytest.raises(RunError, match=r"set: cannot be written: the disk is full; free some space"):
        synthesize_flat_connector(tmp_path / "set", **FEW)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"train": -1}, "train/good"),
        ({"per_defect": -1}, "anomalies"),
        ({"size": (16, 64)}, "size"),
        ({"seed": -1}, "seed"),
    ],
)
def test_values_out_of_range_are_refused(tmp_path: Path, wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        synthesize_flat_connector(tmp_path / "set", **{**FEW, **wrong})
    assert list(tmp_path.iterdir()) == []


def test_good_pictures_vary_and_are_well_exposed() -> None:
    images = [Scene.draw((0, 0, number), SIZE).photograph().image for number in range(8)]
    for image in images:
        assert 60 < image.mean() < 150
        assert (image == 255).mean() < 0.02
    apart = [np.abs(one.astype(float) - two).mean() for one, two in pairwise(images)]
    assert min(apart) > 4
