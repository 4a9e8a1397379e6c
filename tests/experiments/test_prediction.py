"""``predict``: pictures of any kind and size get maps, masks and boxes of their own size, under names of their own."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import HEIGHT, WIDTH, picture, save, small_config, small_member
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from manyeyes.backbones import Eyes
from manyeyes.data import Frame, ImageBatches, ImageSet, Sample
from manyeyes.ensemble import load_run, train_run
from manyeyes.errors import DataError, RunError
from manyeyes.experiments import evaluation
from manyeyes.experiments.pictures import OUTLINE, boxes, outlined
from manyeyes.experiments.prediction import _names, predict_paths
from manyeyes.fusion import ScoreLevelConfig
from manyeyes.heads import AContrarioConfig, GaussianConfig, MemoryBankConfig
from manyeyes.progress import Silent

RNG = np.random.default_rng(4)
HOLE = picture(RNG, defective=True)[0]


def resized(shape: tuple[int, int]) -> np.ndarray:
    return np.asarray(Image.fromarray(HOLE).resize((shape[1], shape[0])))


def judged(run: Path, paths: list[Path], out: Path, **options: Any) -> dict[str, Any]:
    return predict_paths(run, paths, out, device="cpu", batch_size=3, **options)


@pytest.fixture(scope="module")
def framed(parts: ImageSet, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that keeps the aspect and looks at the middle only."""
    out = tmp_path_factory.mktemp("framed") / "run"
    frame = Frame(size=64, aspect="keep", region=(0.25, 0.0, 0.75, 1.0))
    config = small_config(frame=frame, members=(small_member("one"),), heads=(MemoryBankConfig(ratio=0.05),))
    train_run(config, parts, out, device="cpu")
    return out


def test_everything_is_written_at_the_pictures_own_size(trained: Path, tmp_path: Path) -> None:
    shapes = [(HEIGHT, WIDTH), (57, 63), (33, 150), (201, 40), (8, 9)]
    paths = [save(tmp_path / f"in/{h}x{w}.png", resized((h, w))) for h, w in shapes]
    verdicts = judged(trained, paths, tmp_path / "out")
    assert [item["path"] for item in verdicts["pictures"]] == [str(path) for path in paths]
    for item, shape in zip(verdicts["pictures"], shapes, strict=True):
        anomaly_map = np.load(item["map"], allow_pickle=False)
        mask = np.asarray(Image.open(item["mask"]))
        assert anomaly_map.shape == mask.shape == shape
        assert anomaly_map.dtype == np.float32
        assert np.asarray(Image.open(item["heatmap"])).shape == (*shape, 3)
        np.testing.assert_array_equal(mask, np.where(anomaly_map >= verdicts["map_threshold"], 255, 0))


def test_compiling_is_left_out_without_a_cuda_device_and_said(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr(Silent, "say", lambda _, text: said.append(text))
    monkeypatch.setattr(Eyes, "compile_trunks", lambda _: pytest.fail("compiled for the CPU"))
    judged(trained, [save(tmp_path / "in/a.png", HOLE)], tmp_path / "out", compiled=True)
    assert said == ["--compile is for CUDA devices; on cpu the trunks run as they are"]
    monkeypatch.setattr(Eyes, "compile_trunks", lambda _: said.append("compiled"))
    monkeypatch.setattr(evaluation, "load_run", lambda run, device: load_run(run, "cpu"))
    evaluation.loaded(trained, torch.device("cuda"), True, Silent())
    assert said[-1] == "compiled"


def test_the_json_is_whole_and_says_what_the_ensemble_says(trained: Path, parts: ImageSet, tmp_path: Path) -> None:
    verdicts = judged(trained, [parts.root / "test"], tmp_path / "out")
    assert json.loads(json.dumps(verdicts, allow_nan=False)) == verdicts
    ensemble = load_run(trained)
    samples = [Sample(Path(item["path"])) for item in verdicts["pictures"]]
    prediction = ensemble.predict(next(iter(ImageBatches(samples, ensemble.config.frame, 9))).images)
    assert verdicts["threshold"] == float(ensemble.score_threshold_)
    for index, item in enumerate(verdicts["pictures"]):
        assert set(item) == {"path", "score", "alarm", "heads", "members", "boxes", "heatmap", "mask", "map"}
        assert item["score"] == pytest.approx(float(prediction.score[index]), rel=1e-4)
        assert item["alarm"] == bool(prediction.alarm[index]) == (item["score"] >= verdicts["threshold"])
        assert set(item["heads"]) == set(ensemble.names)
        assert item["members"].keys() == {"one", "two"}
    assert [item["alarm"] for item in verdicts["pictures"]][5:] == [True] * 4
    assert verdicts["left_out"] == []
    assert verdicts["cost"]["ms_per_image"] > 0


def test_the_worst_box_lies_on_the_hole(trained: Path, parts: ImageSet, tmp_path: Path) -> None:
    verdicts = judged(trained, [sample.path for sample in parts.test if sample.label], tmp_path / "out")
    for item, sample in zip(verdicts["pictures"], [s for s in parts.test if s.label], strict=True):
        truth = np.argwhere(np.asarray(Image.open(sample.regions[0].path)))
        (y, x), box = truth.mean(axis=0), item["boxes"][0]
        assert box["x"] <= x <= box["x"] + box["width"]
        assert box["y"] <= y <= box["y"] + box["height"]


def test_the_a_contrario_mask_is_what_is_written_outlined_and_boxed(
    parts: ImageSet, tmp_path: Path, manyeyes: Callable[..., tuple[int, str, str]]
) -> None:
    run = tmp_path / "run"
    options: dict[str, Any] = {"members": (small_member("one"),), "heads": (MemoryBankConfig(ratio=0.05),)}
    ensemble = train_run(small_config(mask=AContrarioConfig(windows=(3, 5)), **options), parts, run, device="cpu")
    code, _, err = manyeyes("predict", run, parts.root / "test", "--out", tmp_path / "out", "--json", tmp_path / "v")
    assert code == 0, err
    verdicts = json.loads((tmp_path / "v").read_text())
    frame, marked = ensemble.config.frame.sized(ensemble.canvas), 0
    for item in verdicts["pictures"]:
        prediction = ensemble.predict(next(iter(ImageBatches([Sample(Path(item["path"]))], frame, 1))).images)
        mask = np.asarray(Image.open(item["mask"])) > 0
        np.testing.assert_array_equal(mask, frame.to_image(prediction.mask[0].float(), (HEIGHT, WIDTH)) >= 0.5)
        assert item["boxes"] == boxes(mask, np.load(item["map"]))
        marked += bool(item["boxes"])
        assert bool(item["boxes"]) == mask.any()
        assert (np.asarray(Image.open(item["heatmap"])) == OUTLINE).all(axis=2).any() == mask.any()
    assert marked >= 4


def test_outside_the_region_of_interest_nothing_is_marked(framed: Path, tmp_path: Path) -> None:
    image = resized((60, 120)).copy()
    image[:, :20] = 0
    verdicts = judged(framed, [save(tmp_path / "in/a.png", image)], tmp_path / "out")
    item = verdicts["pictures"][0]
    anomaly_map = np.load(item["map"])
    assert anomaly_map.shape == (60, 120)
    assert (anomaly_map[:, :30] == anomaly_map.min()).all()
    assert (anomaly_map[:, 90:] == anomaly_map.min()).all()
    assert anomaly_map[:, 30:90].std() > 0
    mask = np.asarray(Image.open(item["mask"]))
    assert not mask[:, :30].any()


def test_an_ensemble_without_maps_writes_pictures_without_marks(parts: ImageSet, tmp_path: Path) -> None:
    members = (small_member("one", heads=(GaussianConfig(),)),)
    train_run(small_config(members=members, fusion=ScoreLevelConfig(), heads=()), parts, tmp_path / "run")
    path = save(tmp_path / "in/a.png", HOLE)
    item = judged(tmp_path / "run", [path], tmp_path / "out")["pictures"][0]
    assert item["alarm"]
    assert item["boxes"] == []
    assert not np.asarray(Image.open(item["mask"])).any()
    np.testing.assert_array_equal(np.asarray(Image.open(item["heatmap"])), HOLE)


def test_pictures_with_equal_names_get_files_of_their_own(trained: Path, tmp_path: Path) -> None:
    good = picture(RNG)[0]
    paths = [save(tmp_path / f"in/{name}", image) for name, image in [("a/x.png", HOLE), ("b/x.png", good)]]
    paths += [save(tmp_path / "in/a/x.bmp", good), save(tmp_path / "in/a_x.png", good)]
    verdicts = judged(trained, paths, tmp_path / "out")
    for kind in ("heatmap", "mask", "map"):
        files = [item[kind] for item in verdicts["pictures"]]
        assert len(set(files)) == 4
        assert all(Path(file).is_file() for file in files)
    assert len(list((tmp_path / "out/maps").iterdir())) == 4


@settings(max_examples=80, deadline=None)
@given(
    st.lists(
        st.lists(st.sampled_from(["a", "b", "a_b", "b_a"]), min_size=1, max_size=3).flatmap(
            lambda parts: st.sampled_from([".png", ".jpg", ".tar.png"]).map(lambda end: "/".join(parts) + end)
        ),
        min_size=1,
        max_size=7,
        unique=True,
    )
)
def test_names_never_collide(paths: list[str]) -> None:
    samples = [Sample(Path("/data") / path) for path in paths]
    names = _names(samples)
    assert len({names[sample.path] for sample in samples}) == len(samples)
    assert not any("/" in name for name in names.values())


def test_one_picture_keeps_its_name(tmp_path: Path) -> None:
    assert _names([Sample(tmp_path / "part.7.png")]) == {tmp_path / "part.7.png": "part.7"}


def test_bad_input(trained: Path, tmp_path: Path) -> None:
    good = save(tmp_path / "in/a.png", HOLE)
    bad = tmp_path / "in/b.png"
    bad.write_bytes(good.read_bytes()[:300])
    with pytest.raises(DataError, match=r"b.png: is damaged or truncated"):
        judged(trained, [good, bad], tmp_path / "out")
    verdicts = judged(trained, [good, bad], tmp_path / "out", skip_bad=True)
    assert [Path(item["path"]).name for item in verdicts["pictures"]] == ["a.png"]
    assert [Path(item["path"]).name for item in verdicts["left_out"]] == ["b.png"]
    verdicts = judged(trained, [bad], tmp_path / "out", skip_bad=True)
    assert verdicts["pictures"] == []
    with pytest.raises(DataError, match=r"none.png: does not exist"):
        judged(trained, [tmp_path / "none.png"], tmp_path / "out")
    with pytest.raises(RunError, match=r"part of the path is a file"):
        judged(trained, [good], good / "out")
    with pytest.raises(RunError, match=r"holds no finished run"):
        judged(tmp_path, [good], tmp_path / "elsewhere")
    assert not (tmp_path / "elsewhere").exists()


def test_boxes_are_the_connected_parts_worst_first() -> None:
    mask, values = np.zeros((20, 30), dtype=bool), np.zeros((20, 30), dtype=np.float32)
    mask[2:5, 3:10] = True
    mask[5, 10] = True  # touches the first by a corner
    mask[15:20, 25:30] = True
    values[mask] = 1
    values[16, 26] = 7
    assert boxes(mask, values) == [
        {"x": 25, "y": 15, "width": 5, "height": 5, "area": 25, "peak": 7.0},
        {"x": 3, "y": 2, "width": 8, "height": 4, "area": 22, "peak": 1.0},
    ]
    assert boxes(~mask & mask, values) == []
    assert boxes(mask | True, values)[0]["area"] == 600


def test_the_outline_follows_the_mask_and_leaves_the_picture_alone() -> None:
    image, mask = np.full((40, 40, 3), 90, dtype=np.uint8), np.zeros((40, 40), dtype=bool)
    mask[10:20, 10:30] = True
    before = image.copy()
    drawn = outlined(image, mask, (0, 230, 255))
    np.testing.assert_array_equal(image, before)
    changed = (drawn != image).any(axis=2)
    assert changed[10, 10:30].all()
    assert not changed[12:18, 12:28].any()
    assert not changed[:8].any()
    np.testing.assert_array_equal(outlined(image, mask & False), image)


def test_verdicts_are_there_without_asking_and_what_was_judged_stays(trained: Path, tmp_path: Path) -> None:
    paths = [save(tmp_path / f"in/{name}.png", HOLE) for name in "abcdefg"]
    verdicts = judged(trained, paths, tmp_path / "out")
    assert json.loads((tmp_path / "out/verdicts.json").read_text())["pictures"] == verdicts["pictures"]
    paths[5].write_bytes(paths[0].read_bytes()[:300])
    with pytest.raises(DataError, match=r"f\.png"):
        judged(trained, paths, tmp_path / "stopped")
    kept = json.loads((tmp_path / "stopped/verdicts.json").read_text())["pictures"]
    assert [Path(item["path"]).stem for item in kept] == list("abc")


def test_what_an_earlier_run_wrote_is_not_judged(trained: Path, tmp_path: Path) -> None:
    save(tmp_path / "in/a.png", HOLE)
    for _ in range(2):
        verdicts = judged(trained, [tmp_path / "in"], tmp_path / "in/verdicts")
        assert [Path(item["path"]).name for item in verdicts["pictures"]] == ["a.png"]
    with pytest.raises(DataError, match="besides those that an earlier run wrote"):
        judged(trained, [tmp_path / "in/verdicts"], tmp_path / "in/verdicts")
