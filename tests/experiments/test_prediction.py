"""``predict``: pictures of any kind and size get maps, masks and boxes of their own size, under names of their own."""

from __future__ import annotations

import csv
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
from manyeyes.ensemble.run import owned
from manyeyes.errors import DataError, RunError
from manyeyes.experiments import evaluation
from manyeyes.experiments.pictures import OUTLINE, boxes, outlined
from manyeyes.experiments.prediction import predict_paths
from manyeyes.experiments.verdict_list import VerdictList
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
        assert set(item) == {"path", "file", "score", "alarm", "heads", "members", "boxes", "heatmap", "mask", "map"}
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
    found = VerdictList(Path("/none"), {})
    names = [found.files(Path("/data") / path)["map"] for path in paths]
    assert len({str(name).casefold() for name in names}) == len(paths)
    assert all(name.parent == Path("/none/maps") for name in names)
    assert names == [found.files(Path("/data") / path)["map"] for path in paths], "a picture keeps its name"


def test_a_picture_is_called_after_itself_and_its_folder(tmp_path: Path) -> None:
    found = VerdictList(tmp_path, {})
    pictures = ["in/good/part.7.png", "in/hole/part.7.png", "else/GOOD/part.7.png", "in/good/part.7.jpg", "/top.png"]
    names = [found.files(Path("/data") / picture)["heatmap"].name for picture in pictures]
    assert names[:3] == ["good_part.7.png", "hole_part.7.png", "else_GOOD_part.7.png"]
    assert names[3:] == ["in_good_part.7.png", "top.png"]


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
    judged(trained, [bad], tmp_path / "nothing", skip_bad=True)
    assert (tmp_path / "nothing/verdicts.csv").read_text() == "path,score,alarm,boxes\n"
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


def test_the_table_says_what_the_json_says(trained: Path, parts: ImageSet, tmp_path: Path) -> None:
    strange = save(tmp_path / 'in/a, "b".png', HOLE)
    verdicts = judged(trained, [strange, parts.root / "test"], tmp_path / "out")
    with open(tmp_path / "out/verdicts.csv", newline="", encoding="utf-8") as table:
        rows = list(csv.DictReader(table))
    assert list(rows[0]) == ["path", "score", "alarm", *verdicts["pictures"][0]["heads"], "boxes"]
    assert {row["alarm"] for row in rows} == {"0", "1"}
    for row, item in zip(rows, verdicts["pictures"], strict=True):
        assert row["path"] == item["path"]
        assert float(row["score"]) == item["score"]
        assert int(row["alarm"]) == item["alarm"]
        assert int(row["boxes"]) == len(item["boxes"])
        assert {name: float(row[name]) for name in item["heads"]} == item["heads"]
    assert sum(int(row["boxes"]) for row in rows) >= 5


def written(out: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / "verdicts.json").read_text())
    for kind in ("heatmap", "mask", "map"):
        files = {Path(item[kind]) for item in found["pictures"]}
        assert files == set((out / f"{kind}s").iterdir()), "files and list say the same"
        assert len(files) == len(found["pictures"])
    with open(out / "verdicts.csv", newline="", encoding="utf-8") as table:
        rows = list(csv.DictReader(table))
    assert [row["path"] for row in rows] == [item["path"] for item in found["pictures"]]
    return found


def test_calls_into_one_folder_keep_each_others_verdicts(trained: Path, tmp_path: Path) -> None:
    out, paths = tmp_path / "out", [tmp_path / f"in/{word}/000.png" for word in ("good", "large", "small")]
    for index, path in enumerate(paths):
        save(path, np.roll(HOLE, 5 * index, axis=1))
        found = judged(trained, [path], out)
        assert [item["path"] for item in found["pictures"]] == [str(path)], "a call returns its own"
    found = written(out)
    assert [item["path"] for item in found["pictures"]] == [str(path) for path in paths]
    assert [Path(item["heatmap"]).stem for item in found["pictures"]] == ["good_000", "large_000", "small_000"]
    whole = judged(trained, paths, tmp_path / "whole")
    for one, other in zip(found["pictures"], whole["pictures"], strict=True):
        assert Path(one["map"]).name == Path(other["map"]).name, "names do not depend on the other pictures of a call"
        np.testing.assert_allclose(np.load(one["map"]), np.load(other["map"]), atol=1e-4)


def test_a_folder_and_then_a_part_of_it_leave_no_mixture(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr(Silent, "say", lambda _, text: said.append(text))
    out = tmp_path / "out"
    for path in ("in/a/x.png", "in/b/x.png", "in/b/y.png"):
        save(tmp_path / path, picture(RNG)[0])
    before = [item["score"] for item in judged(trained, [tmp_path / "in"], out)["pictures"]]
    save(tmp_path / "in/b/y.png", HOLE)
    assert not said
    judged(trained, [tmp_path / "in/b"], out)
    assert said == [f"{out}: keeps verdicts of earlier calls on 1 other picture"]
    found = written(out)["pictures"]
    assert [Path(item["heatmap"]).stem for item in found] == ["a_x", "b_x", "b_y"]
    assert [item["score"] for item in found[:2]] == pytest.approx(before[:2], rel=1e-4)
    assert found[2]["score"] > before[2] + 1
    assert np.load(found[2]["map"]).max() == pytest.approx(found[2]["boxes"][0]["peak"])


def test_a_picture_is_the_same_one_however_it_is_called(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path / "in/x.png", HOLE)
    monkeypatch.chdir(tmp_path / "in")
    found = judged(trained, [Path("x.png"), Path("../in/x.png"), tmp_path / "in/x.png"], Path("../out"))
    assert [item["path"] for item in found["pictures"]] == ["x.png"]
    monkeypatch.chdir(tmp_path)
    (tmp_path / "out").rename(tmp_path / "moved")
    save(tmp_path / "other/in/x.png", picture(RNG)[0])
    judged(trained, [Path("other/in")], tmp_path / "moved")
    assert [Path(item["map"]).stem for item in written(tmp_path / "moved")["pictures"]] == ["in_x", "other_in_x"]
    judged(trained, [Path("in/x.png")], tmp_path / "moved")
    assert [Path(item["map"]).stem for item in written(tmp_path / "moved")["pictures"]] == ["in_x", "other_in_x"]


def test_a_stopped_call_keeps_what_earlier_ones_found(trained: Path, tmp_path: Path) -> None:
    paths = [save(tmp_path / f"in/{name}.png", HOLE) for name in "abcdefg"]
    judged(trained, paths[5:], tmp_path / "out")
    paths[4].write_bytes(b"")
    with pytest.raises(DataError, match=r"e\.png"):
        judged(trained, paths[:5], tmp_path / "out")
    assert [Path(item["path"]).stem for item in written(tmp_path / "out")["pictures"]] == list("fgabc")
    judged(trained, [paths[4]], tmp_path / "out", skip_bad=True)
    found = written(tmp_path / "out")
    assert len(found["pictures"]) == 5
    assert [Path(item["path"]).stem for item in found["left_out"]] == ["e"]
    save(paths[4], HOLE)
    judged(trained, [paths[4]], tmp_path / "out")
    assert written(tmp_path / "out")["left_out"] == []


def test_verdicts_that_do_not_belong_together_are_refused(
    trained: Path, run_copy: Path, parts: ImageSet, tmp_path: Path
) -> None:
    path, out = save(tmp_path / "in/a.png", HOLE), tmp_path / "out"
    judged(trained, [path], out)
    judged(run_copy, [path], out)  # a copy is the same run
    before = (out / "verdicts.json").read_text()
    train_run(small_config(seed=3), parts, tmp_path / "other", device="cpu", batch_size=4)
    with pytest.raises(RunError, match=r"out/verdicts.json: holds verdicts of another run; choose another --out, or"):
        judged(tmp_path / "other", [path], out)
    with pytest.raises(RunError, match=r"json: holds verdicts at other thresholds \(.*\); choose another --out"):
        judged(trained, [path], out, alarm=evaluation.Alarm(threshold=1.5))
    with owned(out, "these verdicts"), pytest.raises(RunError, match="another process is writing these verdicts"):
        judged(trained, [path], out)
    assert (out / "verdicts.json").read_text() == before
    for content in ("[]", '{"pictures": []}', before.replace('"file"', '"fail"')):
        (out / "verdicts.json").write_text(content)
        with pytest.raises(RunError, match=r"verdicts.json: is no list of verdicts that can be added to; choose"):
            judged(trained, [path], out)
        assert (out / "verdicts.json").read_text() == content
