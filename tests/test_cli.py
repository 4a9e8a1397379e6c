"""The command line: pictures of every kind go through, and every mistake is one line with exit code 2."""

from __future__ import annotations

import csv
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import timm
import torch
from conftest import HEIGHT, WIDTH, draw_parts, lines, picture, save, small_config, small_member, small_trunk
from PIL import Image
from safetensors.torch import load_file, save_file

from manyeyes import __version__
from manyeyes.backbones import PatchCoreConfig, PdnTrunkConfig, TimmTrunkConfig
from manyeyes.cli import app
from manyeyes.data import DataConfig, ImageSet, ground_truth_mask
from manyeyes.ensemble import PRESETS, EnsembleConfig, load_config, load_run
from manyeyes.experiments.engines import Processes, Sequential
from manyeyes.experiments.metrics.maps import evaluate_maps
from manyeyes.heads import MemoryBankConfig

Call = Callable[..., tuple[int, str, str]]
COMMANDS = [(command.name or command.callback.__name__,) for command in app.registered_commands if command.callback]
COMMANDS += [("synthesize", "flat-connector")]


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "small.yaml"
    path.write_text(small_config().to_yaml())
    return path


@pytest.fixture
def refused(manyeyes: Call) -> Callable[..., str]:
    """Call, expect exit code 2 and one line on stderr besides notes; give the line."""

    def call(*arguments: object) -> str:
        code, out, err = manyeyes(*arguments)
        said = [line for line in lines(err) if not line.startswith(("note: ", "left out "))]
        assert (code, len(said)) == (2, 1), f"left with {code}: {err}"
        assert said[0].startswith("manyeyes: ")
        assert "Traceback" not in out + err
        return said[0]

    return call


def train(manyeyes: Call, config: object, data: Path, out: Path, *more: object) -> tuple[int, str, str]:
    return manyeyes(
        *("train", config, "--data", data, "--out", out, "--device", "cpu", "--batch-size", 4, "--quiet", *more)
    )


@pytest.mark.parametrize("command", COMMANDS, ids="-".join)
def test_every_command_explains_itself_with_an_example(command: tuple[str, ...], manyeyes: Call) -> None:
    code, out, err = manyeyes(*command, "--help")
    assert code == 0
    assert not err
    assert re.search(rf"Example: manyeyes {' '.join(command)}\b", out)


def test_the_whole_way(manyeyes: Call, config: Path, parts: ImageSet, tmp_path: Path) -> None:
    run = tmp_path / "run"
    code, out, err = train(manyeyes, config, parts.root, run, "--set", "heads.0.steps=12")
    assert (code, out) == (0, f"run: {run}\n")
    assert "note: recognised as mvtec-ad" in err
    assert "can promise a false-alarm rate of 0.200 at best" in err
    assert load_run(run).config.heads[0].steps == 12  # type: ignore[union-attr]

    figures = tmp_path / "figures/figures.json"
    code, out, _ = manyeyes("evaluate", run, "--data", parts.root, "--json", figures, "--quiet")
    assert code == 0
    assert "image AUROC" in out
    assert json.loads(figures.read_text())["image"]["auroc"] == 1

    verdicts = tmp_path / "verdicts.json"
    code, out, _ = manyeyes("predict", run, parts.root / "test", "--out", tmp_path / "out", "--json", verdicts)
    assert (code, out) == (0, f"9 pictures, 4 alarms: {tmp_path / 'out'}\n")
    assert len(json.loads(verdicts.read_text())["pictures"]) == 9
    own, one = tmp_path / "out/verdicts.json", parts.test[0].path
    code, _, _ = manyeyes("predict", run, one, "--out", tmp_path / "out", "--json", own)
    assert code == 0
    assert len(json.loads(own.read_text())["pictures"]) == 9, "the list itself is no place for a copy of one call's"

    code, _, err = train(manyeyes, config, parts.root, run, "--set", "heads.0.steps=12", "--resume")
    assert code == 0
    assert "already finished, nothing to do" in err


def test_compare(manyeyes: Call, config: Path, parts: ImageSet, tmp_path: Path) -> None:
    code, out, _ = manyeyes("compare", config, "--data", parts.root, "--out", tmp_path / "study", "--seeds", "0,1")
    assert code == 0
    assert "striped: image AUROC" in out
    assert f"report: {tmp_path / 'study/report.html'}" in out
    assert (tmp_path / "study/report.html").stat().st_size > 1000


def test_figures_go_to_standard_output_and_nothing_else_does(manyeyes: Call, trained: Path, parts: ImageSet) -> None:
    code, out, err = manyeyes("evaluate", trained, "--data", parts.root, "--json", "-", "--device", "cpu", "--quiet")
    assert code == 0
    assert json.loads(out)["image"]["auroc"] > 0.5
    assert "image AUROC" in err
    assert not Path("-").exists()


def test_evaluate_says_what_the_threshold_does(manyeyes: Call, trained: Path, parts: ImageSet) -> None:
    code, out, _ = manyeyes("evaluate", trained, "--data", parts.root, "--device", "cpu", "--quiet")
    assert code == 0
    good = sum(not sample.label for sample in parts.test)
    assert re.search(rf"at its threshold \d+ of {good} good parts raise an alarm \(95 % interval", out)
    assert re.search(rf"\d+ of {len(parts.test) - good} defective parts raise none", out)


def test_evaluate_writes_a_row_for_every_picture(
    manyeyes: Call, trained: Path, parts: ImageSet, tmp_path: Path
) -> None:
    table, figures = tmp_path / "there/pictures.csv", tmp_path / "figures.json"
    call = ("evaluate", trained, "--data", parts.root, "--device", "cpu", "--quiet", "--json", figures)
    assert manyeyes(*call, "--pictures", table)[0] == 0
    with open(table, newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    heads = list(json.loads(figures.read_text())["heads"])
    assert list(rows[0]) == ["path", "label", "defect", "score", "alarm", *heads]
    found = {(row["path"], row["label"], row["defect"]) for row in rows}
    assert found == {(str(sample.path), str(sample.label), sample.defect) for sample in parts.test}
    assert len(rows) == len(parts.test)
    threshold = json.loads(figures.read_text())["threshold"]
    assert all(int(row["alarm"]) == (float(row["score"]) >= threshold) for row in rows)
    assert {row["alarm"] for row in rows} == {"0", "1"}
    assert all(np.isfinite(float(row[head])) for row in rows for head in heads)


def test_a_set_of_good_parts_alone_says_why_figures_are_missing(
    manyeyes: Call, trained: Path, parts: ImageSet, tmp_path: Path
) -> None:
    shutil.copytree(parts.root, tmp_path / "good", ignore=lambda folder, names: [n for n in names if n == "hole"])
    for folder in (tmp_path / "good/test").iterdir():
        if folder.name != "good":
            shutil.rmtree(folder)
    code, out, _ = manyeyes("evaluate", trained, "--data", tmp_path / "good", "--device", "cpu", "--quiet")
    assert code == 0
    assert "good parts raise an alarm" in out
    assert "no figure: " in out
    assert "defective parts raise none" not in out


def test_alarm_begins_elsewhere_without_a_new_fit(
    manyeyes: Call, trained: Path, parts: ImageSet, tmp_path: Path
) -> None:
    def alarms(*more: object) -> int:
        folder = parts.root / "test"
        manyeyes("predict", trained, folder, "--out", tmp_path / "out", "--device", "cpu", "--quiet", *more)
        written = json.loads((tmp_path / "out/verdicts.json").read_text())
        shutil.rmtree(tmp_path / "out")
        return sum(picture["alarm"] for picture in written["pictures"])

    assert alarms("--threshold", "1e9") == 0
    assert alarms("--threshold", "-1e9") == len(parts.test)
    assert alarms("--false-alarm-rate", "0.9") >= alarms()


def test_every_option_of_compare_reaches_its_place(
    manyeyes: Call, parts: ImageSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[dict[str, Any]] = []

    def spied(ensembles: Any, sets: Any, out: Path, **options: Any) -> None:
        seen.append({"ensembles": [one.name for one in ensembles], "out": out, **options} | {"sets": list(sets)})
        seen[-1]["choice"] = [one.fusion.kind == "auto" for one in ensembles]
        raise KeyboardInterrupt  # nothing is to be printed of a study that was not made

    monkeypatch.setattr("manyeyes.experiments.compare.run_study", spied)
    words = ["compare", "bundled", "bundled-score", "--data", parts.root, "--out", tmp_path / "study", "--quiet"]
    assert manyeyes(*words)[0] == 130
    more = ["--choose", "--leave-one-out", "--baseline", "bundled-score", "--jobs", 3, "--folds", 4, "--seeds", "2,5"]
    more += ["--device", "cpu", "--precision", "float32", "--batch-size", 5, "--skip-bad", "--set", "blur=0.01"]
    assert manyeyes(*words, *more)[0] == 130
    plain, full = seen
    assert plain["ensembles"] == ["bundled", "bundled-score"]
    assert (plain["seeds"], plain["folds"], plain["baseline"], plain["skip_bad"]) == ((0,), 0, None, False)
    assert isinstance(plain["engine"], Sequential)
    without = [f"{name}-without-{member}" for name in plain["ensembles"] for member in ("lite0", "lite0-fine")]
    chosen = ["bundled-auto", "bundled-score-auto"]
    assert full["ensembles"] == [*plain["ensembles"], *without, *chosen]
    assert full["choice"] == [name in chosen for name in full["ensembles"]]
    assert [one.root for one in full["sets"]] == [parts.root]
    assert full["out"] == tmp_path / "study"
    assert (full["seeds"], full["folds"], full["baseline"], full["skip_bad"]) == ((2, 5), 4, "bundled-score", True)
    assert (full["device"], full["precision"], full["batch_size"]) == ("cpu", "float32", 5)
    assert isinstance(full["engine"], Processes)
    assert full["engine"].jobs == 3


def test_metrics_are_printed_or_written_and_equal_those_of_the_function(
    manyeyes: Call, parts: ImageSet, tmp_path: Path
) -> None:
    rng = np.random.default_rng(0)
    for sample in parts.test:
        values = rng.normal(size=(HEIGHT, WIDTH)).astype(np.float32) + 2 * ground_truth_mask(sample)
        path = tmp_path / "maps/test" / sample.defect / f"{sample.path.stem}.npy"
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, values)
    expected = json.loads(json.dumps(evaluate_maps(tmp_path / "maps", parts.root)))
    assert 0.5 < expected["pixel"]["auroc"] < 1
    words = ["metrics", tmp_path / "maps", "--data", parts.root]
    code, out, err = manyeyes(*words)
    assert (code, json.loads(out)) == (0, expected), err
    code, out, err = manyeyes(*words, "--json", tmp_path / "new/figures.json")
    assert (code, out) == (0, ""), err
    assert json.loads((tmp_path / "new/figures.json").read_text()) == expected


def test_demo_and_synthesize_hand_over(manyeyes: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[Any, ...]] = []

    class Done:
        report = Path("there/report.html")

        def tables(self) -> list[list[dict[str, str]]]:
            return [[{"ensemble": "bundled", "image AUROC": "98.7"}]]

    def run_demo(out: Path, *, seed: int, progress: Any) -> Done:
        seen.append((out, seed))
        return Done()

    def draw(out: Path, *, seed: int, progress: Any) -> None:
        seen.append((out, seed))

    monkeypatch.setattr("manyeyes.experiments.demo.run_demo", run_demo)
    monkeypatch.setattr("manyeyes.data.synthesize.synthesize_flat_connector", draw)
    code, out, _ = manyeyes("demo", "--out", tmp_path, "--seed", 4)
    assert code == 0
    assert "98.7" in out
    assert "report: there/report.html" in out
    assert manyeyes("synthesize", "flat-connector", "--out", tmp_path)[0] == 0
    assert seen == [(tmp_path, 4), (tmp_path, 0)]


def test_schema_and_presets(manyeyes: Call, tmp_path: Path) -> None:
    code, out, _ = manyeyes("schema")
    assert code == 0
    schema = json.loads(out)
    assert set(EnsembleConfig.model_fields) == set(schema["properties"])
    code, out, _ = manyeyes("presets")
    assert [line.split()[0] for line in lines(out)] == list(PRESETS)
    code, out, _ = manyeyes("presets", "bundled")
    (tmp_path / "mine.yaml").write_text(out)
    assert load_config(str(tmp_path / "mine.yaml")) == load_config("bundled")


def test_version_and_no_arguments(manyeyes: Call) -> None:
    assert manyeyes("--version") == (0, f"manyeyes {__version__}\n", "")
    code, out, err = manyeyes()
    assert code == 2
    assert "Commands" in out + err


def test_as_a_process(tmp_path: Path) -> None:
    call = [sys.executable, "-c", "from manyeyes.cli import main; main()", "train", "nope", "--data", ".", "--out", "x"]
    done = subprocess.run(call, capture_output=True, text=True, cwd=tmp_path, timeout=120, check=False)
    assert done.returncode == 2
    assert done.stdout == ""
    assert len(lines(done.stderr)) == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no device that is always full")
def test_a_full_disk_under_the_standard_output_is_one_line() -> None:
    words = [sys.executable, "-c", "from manyeyes.cli import main; main()", "presets", "bundled"]
    with open("/dev/full", "w") as full:
        done = subprocess.run(words, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 2
    assert lines(done.stderr)[0].startswith("manyeyes: the output cannot be written: the disk is full")
    assert len(lines(done.stderr)) == 1


def test_an_interrupt(manyeyes: Call, config: Path, parts: ImageSet, tmp_path: Path, monkeypatch: Any) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("manyeyes.ensemble.train_run", interrupt)
    code, _, err = train(manyeyes, config, parts.root, tmp_path / "run")
    assert code == 130
    assert "the same command with --resume goes on" in err
    assert "Traceback" not in err


def test_too_little_memory_is_one_line(
    config: Path, parts: ImageSet, tmp_path: Path, monkeypatch: Any, refused: Any
) -> None:
    def exhausted(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")

    monkeypatch.setattr("manyeyes.ensemble.train_run", exhausted)
    said = refused("train", str(config), "--data", str(parts.root), "--out", str(tmp_path / "run"), "--device", "cpu")
    assert "out of memory" in said
    assert "take a smaller batch" in said


def test_labelled_pictures_need_no_training_split(
    manyeyes: Call, config: Path, parts: ImageSet, tmp_path: Path, monkeypatch: Any
) -> None:
    given: list[Any] = []

    def spied(*_: object, labelled: ImageSet, **__: object) -> type[EnsembleConfig]:
        given.append(labelled)
        return EnsembleConfig

    monkeypatch.setattr("manyeyes.ensemble.train_run", spied)
    monkeypatch.setattr(EnsembleConfig, "notes", (), raising=False)
    shutil.copytree(parts.root / "test", tmp_path / "known/test")
    code, _, err = train(manyeyes, config, parts.root, tmp_path / "run", "--labelled", str(tmp_path / "known"))
    assert code == 0, err
    assert [sample.label for sample in given[0].test] == [sample.label for sample in parts.test]


def every_kind(folder: Path) -> dict[str, Path]:
    """One part as a file of every kind."""
    rng = np.random.default_rng(2)
    rgb = [picture(rng)[0] for _ in range(8)]
    grey = rgb[1].mean(axis=2)
    folder.mkdir(parents=True)
    paths = {
        "rgb": save(folder / "rgb.png", rgb[0]),
        "grey": save(folder / "grey.png", grey.astype(np.uint8)),
        "sixteen": save(folder / "sixteen.png", (grey * 257).astype(np.uint16)),
        "rgba": save(folder / "rgba.png", np.dstack([rgb[2], np.full((HEIGHT, WIDTH), 255, np.uint8)])),
        "jpeg": save(folder / "photo.jpg", rgb[5], quality=95),
        "tiff": save(folder / "scan.tiff", rgb[6]),
    }
    Image.fromarray(rgb[3]).convert("P").save(folder / "palette.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(rgb[4]).rotate(90, expand=True).save(folder / "turned.jpg", exif=exif, quality=95)
    return paths | {"palette": folder / "palette.png", "turned": folder / "turned.jpg"}


def test_pictures_of_every_kind_go_through(manyeyes: Call, config: Path, tmp_path: Path) -> None:
    paths = every_kind(tmp_path / "parts")
    code, _, err = train(manyeyes, config, tmp_path / "parts", tmp_path / "run", "--layout", "folder")
    assert code == 0, err
    figures = tmp_path / "v.json"
    code, out, err = manyeyes(
        "predict", tmp_path / "run", tmp_path / "parts", "--out", tmp_path / "o", "--json", figures
    )
    assert code == 0, err
    pictures = {Path(item["path"]).name: item for item in json.loads(figures.read_text())["pictures"]}
    assert set(pictures) == {path.name for path in paths.values()}
    for item in pictures.values():
        assert np.load(item["map"]).shape == (HEIGHT, WIDTH), item["path"]
        assert np.isfinite(item["score"])
    assert f"{len(paths)} pictures" in out


def spoil(root: Path, name: str, content: bytes) -> None:
    (root / name).write_bytes(content)


def one_pixel(root: Path) -> None:
    save(root / "train/good/003.png", np.zeros((1, 1, 3), dtype=np.uint8))


@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        (lambda root: spoil(root, "train/good/003.png", b""), r"003.png: is empty \(0 bytes\)"),
        (lambda root: spoil(root, "train/good/003.png", b"text"), r"003.png: is no image"),
        (
            lambda root: spoil(root, "train/good/003.png", (root / "train/good/004.png").read_bytes()[:400]),
            r"003.png: is damaged or truncated",
        ),
        (one_pixel, r"003.png: is 1 x 1 px; both sides must be at least 8 px"),
        (lambda root: [p.unlink() for p in (root / "train/good").iterdir()], r"no picture of a good part to train on"),
        (
            lambda root: [p.unlink() for p in (root / "train/good").iterdir() if p.stem != "003"],
            r"only one training picture; at least 2 are needed",
        ),
        (
            lambda root: [save(p, np.full((20, 20), 90, np.uint8)) for p in (root / "train/good").iterdir()],
            r"all 4 training pictures are equal",
        ),
        (
            lambda root: save(root / "ground_truth/hole/009_mask.png", np.zeros((9, 9), np.uint8)),
            r"009_mask.png: mask without a picture",
        ),
    ],
    ids=["zero bytes", "no image", "truncated", "1 px", "none", "one", "equal", "mask"],
)
def test_bad_data(
    damage: Callable[[Path], object], expected: str, config: Path, tmp_path: Path, refused: Callable[..., str]
) -> None:
    root = draw_parts(tmp_path / "parts", train=7, good=1, defective=1)
    damage(root)
    said = refused("train", config, "--data", root, "--out", tmp_path / "run", "--device", "cpu", "--quiet")
    assert re.search(expected, said)


def test_folders_with_names_of_their_own(manyeyes: Call, config: Path, tmp_path: Path) -> None:
    root, layout = draw_parts(tmp_path / "drawn"), tmp_path / "parts.yaml"
    for old, new in {"train/good": "normal/cam", "test/good": "checked", "test/hole": "dents"}.items():
        (tmp_path / "parts" / new).parent.mkdir(parents=True, exist_ok=True)
        (root / old).rename(tmp_path / "parts" / new)
    (root / "ground_truth/hole").rename(tmp_path / "parts/marks")
    layout.write_text("{kind: folder, train: [normal], good: [checked], defective: [dents], masks: [marks]}")
    call = ("--data", tmp_path / "parts", "--layout", layout, "--device", "cpu", "--quiet")
    code, _, err = manyeyes("train", config, "--out", tmp_path / "run", *call)
    assert code == 0, err
    assert "took 10 pictures from 1 subfolder of" in err
    code, _, err = manyeyes("evaluate", tmp_path / "run", "--json", tmp_path / "f.json", *call)
    assert code == 0, err
    figures = json.loads((tmp_path / "f.json").read_text())
    assert figures["counts"] == {**figures["counts"], "good": 5, "defective": 4}
    assert figures["pixel"]["auroc"] > 0.9
    code, _, err = manyeyes("compare", config, "--out", tmp_path / "study", *call)
    assert code == 0, err
    for sample in sorted((tmp_path / "parts/checked").iterdir()) + sorted((tmp_path / "parts/dents").iterdir()):
        target = tmp_path / "maps/test" / ("good" if sample.parent.name == "checked" else "dents") / sample.stem
        target.parent.mkdir(parents=True, exist_ok=True)
        np.save(f"{target}.npy", np.random.default_rng(0).random((HEIGHT, WIDTH)).astype(np.float32))
    code, out, err = manyeyes("metrics", tmp_path / "maps", "--data", tmp_path / "parts", "--layout", layout)
    assert code == 0, err
    assert json.loads(out)["counts"]["defective"] == 4


def test_every_layout_stands_in_the_help(manyeyes: Call) -> None:
    _, out, _ = manyeyes("train", "--help")
    words = set(re.findall(r"[\w-]+", re.sub(r"-\s+│\s*\n\s*│\s+", "-", out)))
    kinds = {config.model_fields["kind"].default for config in get_args(get_args(DataConfig)[0])}
    assert kinds <= words


def test_bad_pictures_are_left_out_when_asked(manyeyes: Call, config: Path, tmp_path: Path) -> None:
    root = draw_parts(tmp_path / "parts", train=8, good=2, defective=2)
    spoil(root, "train/good/003.png", b"")
    spoil(root, "test/good/001.png", b"")
    code, _, err = train(manyeyes, config, root, tmp_path / "run", "--skip-bad")
    assert code == 0
    assert re.search(r"left out .*003.png: .*is empty", err)
    metrics = json.loads((tmp_path / "run/metrics.json").read_text())
    assert [Path(path).name for path in metrics["left_out"]] == ["003.png"]
    assert metrics["train_images"] + metrics["validation_images"] == 7
    for words in (("evaluate", "--data", root), ("predict", root / "test", "--out", tmp_path / "out")):
        code, out, _ = manyeyes(words[0], tmp_path / "run", *words[1:], "--skip-bad", "--quiet")
        assert code == 0
        assert re.search(r"left out: .*test/good/001.png: is empty", out)


def test_a_mask_of_another_size(manyeyes: Call, trained: Path, tmp_path: Path) -> None:
    root = draw_parts(tmp_path / "parts", train=2, good=2, defective=2)
    for mask in (root / "ground_truth/hole").iterdir():
        Image.open(mask).resize((2 * WIDTH, 2 * HEIGHT), Image.Resampling.NEAREST).save(mask)
    code, _, err = manyeyes("evaluate", trained, "--data", root, "--json", tmp_path / "f.json", "--quiet")
    assert code == 0, err
    assert json.loads((tmp_path / "f.json").read_text())["pixel"]["auroc"] > 0.9


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (["train", "nope"], "nope: neither a file nor a preset; presets: bundled"),
        (["train", "CONFIG", "--set", "fusion.component=3"], "component: unknown field"),
        (["train", "CONFIG", "--set", "fusion.kind=blend"], "unknown kind 'blend'; allowed"),
        (["train", "CONFIG", "--set", "seed=one"], "seed: "),
        (["train", "CONFIG", "--set", "seed"], "expected field=value"),
        (["train", "CONFIG", "--layout", "imagenet"], "'imagenet': top level: unknown kind"),
        (["train", "CONFIG", "--layout", "nowhere.yaml"], "nowhere.yaml: cannot be read"),
        (["train", "CONFIG", "--layout", "CONFIG"], "the field 'kind' is missing"),
        (["train", "CONFIG", "--layout", "btad"], "kind btad needs the folder train/ok"),
        (["train", "CONFIG", "--device", "gpu"], "device 'gpu': not usable here"),
        (["train", "CONFIG", "--device", "meta"], "use auto, cpu or cuda:0"),
        (["train", "CONFIG", "--device", "cuda:99"], "device 'cuda:99': not usable here"),
        (["train", "CONFIG", "--precision", "int8"], "'int8'"),
        (["train", "CONFIG", "--batch-size", "0"], "--batch-size"),
        (["train", "CONFIG", "--bacth-size", "3"], "No such option: --bacth-size"),
        (["train", "CONFIG", "--data", "nowhere"], "nowhere: does not exist"),
        (["train", "CONFIG", "--data", "EMPTY"], "no known layout"),
        (["train", "CONFIG", "--data", "CONFIG"], "is a file; expected the folder of an image set"),
        (["train", "CONFIG", "--out", "CONFIG"], "cannot be used as an output folder"),
        (["train", "CONFIG", "--out", "CONFIG/run"], "part of the path is a file"),
        (["train", "CONFIG", "--out", "RUN"], "already holds a run"),
        (["train", "CONFIG", "--out", "RUN", "--resume", "--set", "seed=1"], "already holds a run of another config"),
        (["train", "CONFIG", "--labelled", "nowhere"], "nowhere: does not exist"),
        (["train", "CONFIG", "--set", "combiner.kind=stacking_logistic"], "--labelled"),
        (
            ["train", "CONFIG", "--set", "members.0.extractor.trunk.architecture=resnet19"],
            "no such model; did you mean",
        ),
        (["train", "CONFIG", "--set", "members.0.extractor.trunk.size=65536"], "size"),
        (["train", "CONFIG", "--set", "members.0.extractor.stages=[9]"], "stage '9' does not exist"),
        (["train", "CONFIG", "--set", "members.0.extractor.trunk.weights=bundled"], "bundled weights exist for"),
        (["evaluate", "nowhere"], "nowhere: holds no finished run"),
        (["evaluate", "RUN", "--data", "nowhere"], "nowhere: does not exist"),
        (["evaluate", "RUN", "--data", "PLAIN"], "has no test pictures"),
        (["evaluate", "RUN", "--json", "CONFIG/f.json"], "cannot be used as an output folder"),
        (["evaluate", "RUN", "--pictures", "CONFIG/f.csv"], "cannot be used as an output folder"),
        (["predict", "nowhere", "PLAIN", "--out", "OUT"], "nowhere: holds no finished run"),
        (["predict", "RUN", "nowhere.png", "--out", "OUT"], "nowhere.png: does not exist"),
        (["predict", "RUN", "PLAIN", "--out", "OUT", "--false-alarm-rate", "2"], "false_alarm_rate: "),
        (["predict", "RUN", "PLAIN", "--out", "OUT", "--false-alarm-rate", "0.1", "--threshold", "1"], "one of them"),
        (["predict", "RUN", "EMPTY", "--out", "OUT"], "holds no picture"),
        (["predict", "RUN", "CONFIG", "--out", "OUT"], "is no image"),
        (["predict", "RUN", "--out", "OUT"], "Missing argument"),
        (["predict", "RUN", "PLAIN", "--out", "CONFIG/out"], "part of the path is a file"),
        (["compare", "CONFIG", "--seeds", "one"], "--seeds 'one': expected whole numbers with commas"),
        (["compare", "CONFIG", "--seeds", ""], "expected whole numbers"),
        (["compare", "CONFIG", "--seeds", "0,-1"], "expected numbers from 0 on"),
        (["compare", "CONFIG", "--seeds", "5000000000"], "seeds: expected numbers up to 4294967295, got 5000000000"),
        (["evaluate", "RUN", "--json", "EMPTY"], "EMPTY: is a folder; expected the name of a file"),
        (["evaluate", "RUN", "--pictures", "OUT", "--json", "OUT"], "is the file that --json names, too"),
        (
            ["distill", "--images", "PLAIN", "--out", "a.safetensors", "--set", "step=2"],
            "step: unknown field (misspelt?",
        ),
        (["evaluate", "RUN", "--pictures", "-"], "--pictures -: expected the name of a file"),
        (["compare", "CONFIG", "CONFIG"], "need different names; small stands more than once"),
        (["compare", "CONFIG", "--folds", "1"], "folds: expected a number from 2"),
        (["compare", "CONFIG", "--data", "PLAIN"], "has no test pictures"),
        (["presets", "nope"], "neither a file nor a preset"),
        (["metrics", "nowhere"], "nowhere/test: does not exist"),
        (["compare", "CONFIG", "--ray", "nonsense"], "--ray nonsense: no cluster answers there"),
        (["synthesize", "flat-connector", "--out", "PLAIN", "--quiet"], "expected a new or empty folder"),
        (["frobnicate"], "No such command 'frobnicate'"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_every_mistake_is_one_line(
    change: list[str], expected: str, config: Path, trained: Path, parts: ImageSet, tmp_path: Path, refused: Any
) -> None:
    (tmp_path / "EMPTY").mkdir()
    save(tmp_path / "PLAIN/a.png", picture(np.random.default_rng(0))[0])
    places = {"CONFIG": config, "RUN": trained, "OUT": tmp_path / "out"}
    words = [
        re.sub("^(CONFIG|RUN|OUT)", lambda m: str(places[m[0]]), str(tmp_path / w) if w in ("EMPTY", "PLAIN") else w)
        for w in change
    ]
    if words[0] in ("train", "evaluate", "compare", "metrics") and "--data" not in words:
        words += ["--data", str(parts.root)]
    if words[0] in ("train", "compare") and "--out" not in words:
        words += ["--out", str(tmp_path / "run")]
    if words[0] in ("train", "evaluate", "compare", "predict") and "--device" not in words:
        words += ["--device", "cpu"]
    if words[0] in ("train", "evaluate", "compare", "predict"):
        words += ["--quiet"]
    assert expected in refused(*words)
    assert {path.name for path in (tmp_path / "out").glob("*")} <= {".lock"}, "what is refused writes nothing"


def test_weights_that_cannot_be_used(tmp_path: Path, parts: ImageSet, refused: Callable[..., str]) -> None:
    weights = tmp_path / "trunk.safetensors"
    trunk = small_trunk().model_copy(update={"weights": str(weights)})
    member = small_member("one", extractor=PatchCoreConfig(trunk=trunk, stages=(1, 2)))
    config = tmp_path / "weights.yaml"
    config.write_text(small_config(members=(member,), heads=(MemoryBankConfig(),)).to_yaml())

    def said() -> str:
        return refused("train", config, "--data", parts.root, "--out", tmp_path / "run", "--device", "cpu", "--quiet")

    assert "trunk.safetensors: there is no such weights file" in said()
    state = timm.create_model(small_trunk().architecture, num_classes=0).state_dict()
    save_file(state, str(weights))
    weights.write_bytes(weights.read_bytes()[: weights.stat().st_size // 2])
    assert "is truncated or no weights file" in said()
    del state[next(iter(state))]
    save_file(state, str(weights))
    assert "holds another network: 1 keys differ" in said()
    assert not (tmp_path / "run/unfinished.yaml").exists(), "nothing was begun, so there is nothing to resume"


def test_distilling_a_teacher(manyeyes: Call, tmp_path: Path, refused: Callable[..., str]) -> None:
    rng = np.random.default_rng(0)
    for index in range(6):
        save(tmp_path / f"photographs/deep/{index}.png", rng.integers(0, 256, (50 + index, 60, 3)).astype(np.uint8))
    out = tmp_path / "made/pdn.safetensors"
    quick = ("trunk.size=96", "image_size=48", "steps=2", "crop=40", "batch=1", "views=2", "refit=2", "held_out=0.3")
    words = ["distill", "--images", tmp_path / "photographs", "--trunk", "resnet10t.random", "--size", "medium"]
    words += ["--device", "cpu", "--quiet"]
    for setting in quick:
        words += ["--set", setting]
    code, said, err = manyeyes(*words, "--out", out)
    assert code == 0, err
    assert re.fullmatch(rf"teacher: {out}, explains -?\d+\.\d{{3}} of the variance on 2 held-out pictures\n", said)
    figures = json.loads(out.with_suffix(".json").read_text())
    assert (figures["pictures"], figures["held_out_pictures"]) == (6, 2)
    assert len(figures["explained_per_channel"]) == 384
    assert figures["config"]["steps"] == 2
    trunk = TimmTrunkConfig(architecture="resnet10t", weights="random", size=96)
    assert figures["trunk_digest"] == trunk.build().weights_digest
    assert sorted(path.name for path in out.parent.iterdir()) == ["pdn.json", "pdn.safetensors"]
    assert {value.dtype for value in load_file(out).values()} == {torch.float16}
    teacher = PdnTrunkConfig(size="medium", weights=str(out), image_size=40).build()
    assert teacher(torch.rand(1, 3, 40, 40), ["teacher"])["teacher"].isfinite().all()

    before = out.read_bytes()
    assert "is there already; delete it to distil it anew, or choose another --out" in refused(*words, "--out", out)
    assert out.read_bytes() == before

    plain = out.with_name("plain.safetensors")
    code, _, err = manyeyes(*words, "--set", "norms=false", "--set", "refit=0", "--out", plain)
    assert code == 0, err
    assert PdnTrunkConfig(size="medium", weights=str(plain), image_size=40).build().weights_source == str(plain)

    words = words[:7]
    assert "expected a name that ends in .safetensors" in refused(*words, "--out", tmp_path / "teacher.pth")
    assert "--stages 'two': expected whole numbers" in refused(*words, "--out", out, "--stages", "two")
    assert "steps_: unknown field" in refused(*words, "--out", out, "--set", "steps_=3")
    assert "'large'" in refused(*words[:5], "--size", "large", "--out", out)
    missing = [word if word != tmp_path / "photographs" else tmp_path / "none" for word in words]
    assert "none: does not exist" in refused(*missing, "--out", tmp_path / "new.safetensors", "--quiet")
    few = ("--stages", "1", "--out", tmp_path / "few.safetensors", "--quiet", "--set", "trunk.size=96")
    assert "at least 384 channels" in refused(*words, *few)
    (tmp_path / "photographs/deep/3.png").write_bytes(b"")
    assert "3.png: is empty" in refused(*words, "--out", tmp_path / "broken.safetensors", "--quiet")
    assert not (tmp_path / "broken.checkpoint").exists(), "said before the first step"
