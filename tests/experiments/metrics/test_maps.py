"""``evaluate_maps`` on vectors made here as the official LOCO evaluation wants them, and on the official answers."""

import json
import os
import re
import shutil
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import slow_reference
from PIL import Image
from sklearn.metrics import roc_auc_score

from manyeyes.data import ImageSet, Sample
from manyeyes.errors import ConfigError, DataError
from manyeyes.experiments.metrics.ground_truth import find_samples
from manyeyes.experiments.metrics.maps import evaluate_maps, read_map

CONFIG = [
    {"defect_name": "missing", "pixel_value": 255, "saturation_threshold": 30, "relative_saturation": False},
    {"defect_name": "extra", "pixel_value": 254, "saturation_threshold": 0.6, "relative_saturation": True},
    {"defect_name": "scratch", "pixel_value": 253, "saturation_threshold": 1.0, "relative_saturation": True},
]
LIMITS = ("0.01", "0.05", "0.1", "0.3", "1.0")
SIZE = (24, 32)


def write_tiff(path, scores):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(scores, np.float32)).save(path)


def write_mask(path, mask, value=255):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(mask.astype(np.uint8) * np.uint8(value)).save(path)


def block(y, x, h, w):
    mask = np.zeros(SIZE, bool)
    mask[y : y + h, x : x + w] = True
    return mask


@pytest.fixture
def loco(tmp_path):
    """Ground truth and maps of 3 logical, 2 structural and 2 good images; also the arrays, by group."""
    rng = np.random.default_rng(0)
    data, maps = tmp_path / "data", tmp_path / "maps"
    data.mkdir()
    (data / "defects_config.json").write_text(json.dumps(CONFIG))
    held = {"good": [], "logical_anomalies": [], "structural_anomalies": []}
    # The first region of image 0 lies in two pieces and stays one region; 000 and 001 of image 1 overlap.
    regions = {
        ("logical_anomalies", 0): [(block(2, 2, 4, 5) | block(15, 20, 5, 5), 255), (block(10, 3, 3, 7), 254)],
        ("logical_anomalies", 1): [(block(5, 5, 9, 9), 255), (block(8, 8, 7, 7), 254)],
        ("logical_anomalies", 2): [(block(0, 0, 3, 4), 255)],
        ("structural_anomalies", 0): [(block(12, 4, 2, 9), 253)],
        ("structural_anomalies", 1): [(block(4, 18, 6, 3), 253), (block(16, 2, 3, 3), 253)],
    }
    for i in range(2):
        held["good"].append(np.round(rng.normal(size=SIZE), 1).astype(np.float32))
        write_tiff(maps / "test" / "good" / f"{i:03d}.tiff", held["good"][-1])
    for (group, i), masks in regions.items():
        scores = np.round(rng.normal(size=SIZE), 1).astype(np.float32)
        areas = []
        for j, (mask, value) in enumerate(masks):
            write_mask(data / "ground_truth" / group / f"{i:03d}" / f"{j:03d}.png", mask, value)
            scores[mask] += np.float32(1.0)
            entry = next(entry for entry in CONFIG if entry["pixel_value"] == value)
            threshold = entry["saturation_threshold"]
            area = int(threshold * mask.sum()) if entry["relative_saturation"] else min(threshold, mask.sum())
            areas.append((mask, float(area)))
        held[group].append((scores, areas))
        write_tiff(maps / "test" / group / f"{i:03d}.tiff", scores)
    return data, maps, held


def test_loco_equals_the_definition_for_each_group(loco):
    data, maps, held = loco
    found = evaluate_maps(maps, data)
    expected = {}
    for group in ("logical_anomalies", "structural_anomalies"):
        curve = slow_reference.overlap_curve([m for m, _ in held[group]], [r for _, r in held[group]], held["good"])
        expected[group] = [slow_reference.area(*curve, float(limit)) for limit in LIMITS]
        assert [found["au_spro"][group][limit] for limit in LIMITS] == pytest.approx(expected[group], abs=1e-9)
        scores = [m.max() for m in held["good"]] + [m.max() for m, _ in held[group]]
        auroc = roc_auc_score([0, 0] + [1] * len(held[group]), scores)
        assert found["image"][group]["auroc"] == pytest.approx(auroc, abs=1e-12)
    mean = np.mean(list(expected.values()), axis=0)
    assert [found["au_spro"]["mean"][limit] for limit in LIMITS] == pytest.approx(mean, abs=1e-9)
    assert found["undefined"] == {}
    assert set(found["by_defect"]) == {"logical_anomalies", "structural_anomalies"}
    json.dumps(found, allow_nan=False)


def test_regions_of_the_vectors_matter(loco):
    """The oracle would notice split regions: image 0's first region is in two pieces."""
    data, maps, held = loco
    split = [slow_reference.components(np.logical_or.reduce([m for m, _ in r])) for _, r in held["logical_anomalies"]]
    curve = slow_reference.overlap_curve([m for m, _ in held["logical_anomalies"]], split, held["good"])
    found = evaluate_maps(maps, data)["au_spro"]["logical_anomalies"]["0.05"]
    assert abs(slow_reference.area(*curve, 0.05) - found) > 1e-3


def test_a_loco_set_with_one_group_has_no_mean(loco):
    data, maps, _ = loco
    for folder in (data / "ground_truth", maps / "test"):
        (folder / "structural_anomalies").rename(folder.parent / "hidden")
    found = evaluate_maps(maps, data)
    assert found["au_spro"]["logical_anomalies"]["0.05"] > 0
    assert found["au_spro"]["structural_anomalies"]["0.05"] is None
    assert found["au_spro"]["mean"]["0.05"] is None
    assert found["image"]["mean"]["auroc"] is None
    assert "structural_anomalies" in found["undefined"]["au_spro.mean.0.05"]
    assert found["undefined"]["image.structural_anomalies.auroc"] == "there is no defective image"


@pytest.mark.parametrize("size", [(12, 16), (7, 9), (48, 64)])
def test_maps_of_any_size_are_resized_to_the_ground_truth(loco, size):
    data, maps, _ = loco
    for path in sorted(maps.rglob("*.tiff")):
        small = cv2.resize(read_map(path), (size[1], size[0]), interpolation=cv2.INTER_AREA)
        write_tiff(path, small)
        resized = cv2.resize(small, (SIZE[1], SIZE[0]), interpolation=cv2.INTER_LINEAR)
        write_tiff(maps.parent / "resized" / path.relative_to(maps), resized)
    assert evaluate_maps(maps, data) == evaluate_maps(maps.parent / "resized", data)


def test_an_image_set_gives_the_same_as_its_ground_truth_folder(loco):
    data, maps, _ = loco
    samples = find_samples(data) + tuple(Sample(data / "test" / "good" / f"{i:03d}.png") for i in range(2))
    image_set = ImageSet("parts", data, "mvtec-loco", train=(), validation=(), test=samples)
    assert evaluate_maps(maps, image_set) == evaluate_maps(maps, data)


def test_pictures_say_which_images_need_a_map(loco):
    data, maps, _ = loco
    before = evaluate_maps(maps, data)
    for name in ("good/000", "good/001", "logical_anomalies/000"):
        write_mask(data / "test" / f"{name}.png", np.ones(SIZE, bool))
    assert evaluate_maps(maps, data) == before
    write_mask(data / "test" / "good" / "002.png", np.ones(SIZE, bool))
    with pytest.raises(DataError, match=r"good.002\.tiff: does not exist; every test image needs a map"):
        evaluate_maps(maps, data)


def test_npy_and_tif_give_the_same_as_tiff(loco):
    data, maps, _ = loco
    before = evaluate_maps(maps, data)
    for i, path in enumerate(sorted(maps.rglob("*.tiff"))):
        scores = read_map(path)
        path.unlink()
        if i % 2:
            np.save(path.with_suffix(".npy"), scores.astype(np.float64))
        else:
            write_tiff(path.with_suffix(".tif"), scores)
    assert evaluate_maps(maps, data) == before


def test_mvtec_layout_takes_components_and_has_no_spro(tmp_path):
    rng = np.random.default_rng(1)
    maps, regions, good = [], [], []
    for i in range(3):
        mask = block(2 + i, 3, 5, 6) | block(14, 20, 4, 4)
        write_mask(tmp_path / "data" / "ground_truth" / "cut" / f"{i:03d}_{'Mask' if i == 2 else 'mask'}.png", mask)
        maps.append((rng.normal(size=SIZE) + mask).astype(np.float32))
        regions.append(slow_reference.components(mask))
        write_tiff(tmp_path / "maps" / "test" / "cut" / f"{i:03d}.tiff", maps[-1])
        good.append(rng.normal(size=SIZE).astype(np.float32))
        write_tiff(tmp_path / "maps" / "test" / "good" / f"{i:03d}.tiff", good[-1])
    found = evaluate_maps(tmp_path / "maps", tmp_path / "data")
    expected = slow_reference.area(*slow_reference.overlap_curve(maps, regions, good), 0.3)
    assert found["au_pro"] == pytest.approx(expected, abs=1e-9)
    assert found["pixel"]["au_pro"] == found["au_pro"]
    assert "au_spro" not in found


def test_intervals_hold_their_figures(loco):
    data, maps, _ = loco
    found = evaluate_maps(maps, data, repetitions=200)
    for path in (
        "image.auroc",
        "pixel.auroc",
        "au_pro",
        "au_spro.logical_anomalies.0.05",
        "by_defect.structural_anomalies.pixel.au_pro",
    ):
        low, high = found["intervals"][path]
        value = found
        for key in path.replace("0.05", "0#05").split("."):
            value = value[key.replace("#", ".")]
        assert 0 <= low <= value <= high <= 1
        assert low < high


def broken(scores):
    """Ways to spoil the map logical_anomalies/001, and what the error says besides the file's name."""
    three = np.stack([scores] * 3)
    return {
        "missing": (lambda path: path.unlink(), "needs a map"),
        "nan": (lambda path: write_tiff(path, np.where(scores > 1, np.nan, scores)), "NaN"),
        "garbage": (lambda path: path.write_bytes(b"II*\x00nothing"), "cannot be read"),
        "empty": (lambda path: path.write_bytes(b""), "cannot be read"),
        "colour": (lambda path: Image.fromarray(np.zeros((*SIZE, 3), np.uint8)).save(path), "shape"),
        "pages": (
            lambda path: Image.fromarray(three[0]).save(path, save_all=True, append_images=[Image.fromarray(three[1])]),
            "2 pages",
        ),
    }


@pytest.mark.parametrize("kind", ["missing", "nan", "garbage", "empty", "colour", "pages"])
def test_a_bad_map_is_named(loco, kind):
    data, maps, held = loco
    spoil, words = broken(held["logical_anomalies"][1][0])[kind]
    spoil(maps / "test" / "logical_anomalies" / "001.tiff")
    with pytest.raises(DataError, match=rf"logical_anomalies.001\.tiff: .*{words}"):
        evaluate_maps(maps, data)


@pytest.mark.parametrize("scores", [np.zeros((2, *SIZE)), np.zeros(SIZE, complex), np.zeros((0, 4))])
def test_a_bad_npy_is_named(tmp_path, scores):
    np.save(tmp_path / "000.npy", scores)
    with pytest.raises(DataError, match=r"000\.npy: expected an anomaly map"):
        read_map(tmp_path / "000.npy")


def test_pickled_npy_is_refused(tmp_path):
    np.save(tmp_path / "000.npy", np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(DataError, match=r"000\.npy: cannot be read"):
        read_map(tmp_path / "000.npy")


def test_broken_ground_truth_is_named(loco):
    data, maps, _ = loco
    (maps / "test" / "good" / "000.npy").write_bytes(b"")
    with pytest.raises(DataError, match="second map"):
        evaluate_maps(maps, data)
    (maps / "test" / "good" / "000.npy").unlink()
    write_tiff(maps / "test" / "logical_anomalies" / "077.tiff", np.zeros(SIZE))
    with pytest.raises(DataError, match=r"077\.tiff: has no ground truth"):
        evaluate_maps(maps, data)
    (maps / "test" / "logical_anomalies" / "077.tiff").unlink()
    (data / "defects_config.json").write_text(json.dumps(CONFIG[1:]))
    with pytest.raises(DataError, match=r"pixel value 255 is not in .*it knows \[253, 254\]"):
        evaluate_maps(maps, data)
    (data / "defects_config.json").write_text("[{}]")
    with pytest.raises(DataError, match=r"defects_config\.json: expected a list"):
        evaluate_maps(maps, data)


def test_missing_folders_and_unknown_layouts_are_named(loco, tmp_path):
    data, maps, _ = loco
    with pytest.raises(DataError, match=re.escape(str(tmp_path / "none" / "test"))):
        evaluate_maps(tmp_path / "none", data)
    with pytest.raises(ConfigError, match=r"layout 'loko': .*unknown kind"):
        evaluate_maps(maps, data, layout="loko")


@pytest.mark.realdata
def test_official_answers():
    root = os.environ.get("MANYEYES_REALDATA")
    if not root or not (Path(root) / "spro_vectors").is_dir():
        pytest.skip("MANYEYES_REALDATA names no folder with spro_vectors, the official evaluation's answers")
    vectors = Path(root) / "spro_vectors"
    expected = json.loads((vectors / "expected.json").read_text())
    found = evaluate_maps(vectors / "anomaly_maps", vectors)
    for group, values in expected["au_spro"].items():
        assert found["au_spro"][group] == pytest.approx(values, abs=2e-4)
    for group, value in expected["image_level"]["auc_roc"].items():
        assert found["image"][group]["auroc"] == pytest.approx(value, abs=1e-12)


def test_maps_that_nobody_asked_for_are_told_whatever_the_layout(parts, tmp_path):
    for sample in parts.test:
        path = tmp_path / "maps/test" / sample.defect / f"{sample.path.stem}.npy"
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, np.zeros((8, 8), np.float32))
    assert evaluate_maps(tmp_path / "maps", parts)["counts"]["good"] == 5
    np.save(tmp_path / "maps/test/good/99.npy", np.zeros((8, 8), np.float32))
    for layout in ("auto", "folder"):
        with pytest.raises(DataError, match=r"good/99.npy: has no ground truth in .*parts"):
            evaluate_maps(tmp_path / "maps", parts.root, layout)
    some = evaluate_maps(tmp_path / "maps", replace(parts, test=parts.test[1:]))
    assert some["counts"]["good"] == 4, "who gives a set has chosen its pictures"
    (tmp_path / "bare/train/good").mkdir(parents=True)
    shutil.copy(parts.train[0].path, tmp_path / "bare/train/good")
    with pytest.raises(DataError, match=r"has no test pictures to measure the maps of"):
        evaluate_maps(tmp_path / "maps", tmp_path / "bare", "folder")


def test_good_parts_are_good_whatever_their_folder_is_called(tmp_path):
    """BTAD's test/ok, with what an archive left behind."""
    for name, bright in (("ok/0", 0.1), ("ok/1", 0.2), ("ko/0", 0.9)):
        picture = tmp_path / "data/test" / f"{name}.png"
        picture.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", SIZE[::-1]).save(picture)
        write_tiff(tmp_path / "maps/test" / f"{name}.tiff", np.full(SIZE, bright))
    write_mask(tmp_path / "data/ground_truth/ko/0.png", block(2, 2, 5, 5))
    (tmp_path / "data/train/ok").mkdir(parents=True)
    Image.new("RGB", SIZE[::-1]).save(tmp_path / "data/train/ok/0.png")
    for rubbish in ("test/ok/._0.png", "ground_truth/ko/._0.png"):
        (tmp_path / "data" / rubbish).write_bytes(b"Mac OS X")
    found = find_samples(tmp_path / "data")
    assert sorted(sample.label for sample in found) == [0, 0, 1]
    for layout in ("auto", "btad"):
        figures = evaluate_maps(tmp_path / "maps", tmp_path / "data", layout=layout)
        assert figures["image"]["auroc"] == 1.0
