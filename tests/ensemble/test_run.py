"""Run folders: a fresh process scores the same, nothing is pickled, and every kind of damage gets its one line."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import yaml
from conftest import small_config, small_member, small_trunk
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from manyeyes.backbones import PatchCoreConfig
from manyeyes.data import ImageBatches, ImageSet, read_image_set
from manyeyes.ensemble import Ensemble, Prediction, load_run, save_run, train_run
from manyeyes.ensemble.run import STATE, owned, read_header
from manyeyes.errors import ConfigError, NotFittedError, RunError, WeightsError
from manyeyes.experiments.evaluation import evaluate_run
from manyeyes.fusion import GlobalPcaConfig, StackingForestConfig, TailConfig

CPU = torch.device("cpu")


def test_pictures(root: Path) -> Tensor:
    frame = small_config().frame
    return next(iter(ImageBatches(read_image_set(root).test, frame, 9))).images


test_pictures.__test__ = False  # type: ignore[attr-defined]


def predict_and_save(run: str, root: str, out: str) -> None:
    """In a process that has seen nothing but the folder."""
    prediction = load_run(run).predict(test_pictures(Path(root)))
    np.savez(out, score=prediction.score, map=prediction.map, alarm=prediction.alarm, **prediction.heads)


def same(one: Prediction, other: Prediction) -> bool:
    return torch.equal(one.score, other.score) and torch.equal(one.map, other.map)


def test_a_fresh_process_gives_the_same_scores(
    trained: Path, parts: ImageSet, tmp_path: Path, in_process: Callable[..., int]
) -> None:
    here = load_run(trained).predict(test_pictures(parts.root))
    assert in_process(predict_and_save, str(trained), str(parts.root), str(tmp_path / "there.npz")) == 0
    there = np.load(tmp_path / "there.npz", allow_pickle=False)
    np.testing.assert_array_equal(there["score"], here.score)
    np.testing.assert_array_equal(there["map"], here.map)
    np.testing.assert_array_equal(there["alarm"], here.alarm)
    for name, scores in here.heads.items():
        np.testing.assert_array_equal(there[name], scores)


@pytest.mark.parametrize(
    "change",
    [
        {"normaliser": TailConfig(), "fusion": GlobalPcaConfig(components=0.8)},
        {"combiner": StackingForestConfig(trees=5)},
    ],
    ids=["tail", "forest"],
)
def test_every_fitted_tensor_survives(change: dict[str, Any], parts: ImageSet, tmp_path: Path) -> None:
    config = small_config(**change)
    ensemble = train_run(config, parts, tmp_path / "run", device="cpu", batch_size=4, labelled=parts)
    again = load_run(tmp_path / "run")
    mine, yours = ensemble.state_dict(), again.state_dict()
    assert list(mine) == list(yours)
    for name, value in mine.items():
        assert torch.equal(value, yours[name]), name
        assert value.dtype == yours[name].dtype, name
    batch = test_pictures(parts.root)
    assert same(ensemble.predict(batch), again.predict(batch))
    assert again.notes == ensemble.notes
    assert again.config == config


def test_the_folder_holds_four_files_and_no_pickle(trained: Path) -> None:
    files = {path.name for path in trained.iterdir()} - {".lock"}
    assert files == {STATE, "config.yaml", "environment.json", "metrics.json"}
    state = load_file(trained / STATE)
    assert not [name for name in state if "trunk" in name or name.startswith("eyes.")], "trunk weights are not copied"
    assert all(torch.isfinite(value).all() for value in state.values() if value.is_floating_point())
    with safe_open(str(trained / STATE), framework="pt") as file:
        assert set(file.metadata()) == {"format", "config", "details"}
    assert yaml.safe_load((trained / "config.yaml").read_text()) == small_config().model_dump(mode="json")


def test_the_state_says_the_same_as_the_files_for_people(trained: Path) -> None:
    config, details = read_header(trained)
    assert config == small_config()
    metrics = json.loads((trained / "metrics.json").read_text())
    assert metrics == details["metrics"] | {"notes": details["notes"]}
    assert metrics["train_images"] == 6
    assert metrics["validation_images"] == 4
    assert metrics["false_alarm_rate"] == {"asked": 0.05, "guaranteed": 0.2}
    environment = json.loads((trained / "environment.json").read_text())
    assert environment["torch"] == torch.__version__.partition("+")[0]
    assert [entry["weights"] for entry in environment["trunks"].values()] == ["random, seed 0", "random, seed 1"]


def test_a_save_on_top_of_a_run_replaces_it(run_copy: Path, parts: ImageSet) -> None:
    ensemble = load_run(run_copy)
    ensemble.score_threshold_ = torch.tensor(1.5)
    save_run(run_copy, ensemble, CPU, {})
    assert float(load_run(run_copy).score_threshold_) == 1.5


def test_a_save_on_a_full_disk_leaves_the_old_run(trained: Path, small_disk: Path) -> None:
    run = Path(shutil.copytree(trained, small_disk / "run"))
    (small_disk / "ballast").write_bytes(bytes(os.statvfs(small_disk).f_bavail * os.statvfs(small_disk).f_frsize))
    ensemble = load_run(run)
    ensemble.score_threshold_ = torch.tensor(1.5)
    with pytest.raises(RunError, match=r"state.safetensors: cannot be written: the disk is full; free some space"):
        save_run(run, ensemble, CPU, {})
    assert torch.equal(load_run(run).score_threshold_, load_run(trained).score_threshold_)
    assert {path.name for path in run.iterdir()} == {path.name for path in trained.iterdir()}


def damage(function: Callable[[Path], object], run: Path) -> str:
    function(run)
    with pytest.raises(RunError) as caught:
        load_run(run)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def cut(length: int) -> Callable[[Path], object]:
    return lambda run: (run / STATE).write_bytes((run / STATE).read_bytes()[:length])


def edit(old: str, new: str) -> Callable[[Path], object]:
    def change(run: Path) -> None:
        text = (run / "config.yaml").read_text()
        assert old in text
        (run / "config.yaml").write_text(text.replace(old, new, 1))

    return change


def drop(ending: str) -> Callable[[Path], object]:
    return lambda run: drop_tensor(run, ending)


def drop_tensor(run: Path, ending: str) -> None:
    with safe_open(str(run / STATE), framework="pt") as file:
        header = file.metadata()
    state = load_file(run / STATE)
    del state[next(name for name in state if name.endswith(ending))]
    save_file(state, str(run / STATE), metadata=header)


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (lambda run: shutil.rmtree(run), "holds no finished run"),
        (lambda run: (run / STATE).unlink(), "holds no finished run"),
        (cut(0), "is no whole run"),
        (cut(5), "is no whole run"),
        (cut(2000), "is no whole run"),
        (cut(-1), "is no whole run"),
        (lambda run: (run / STATE).write_bytes(b"x" * 5000), "is no whole run"),
        (lambda run: save_file({"a": torch.zeros(1)}, str(run / STATE)), "is no whole run"),
        (edit("blur: 0.0156", "blur: 0.03"), "was changed after the fit"),
        (edit("members:", "members: ["), "was changed after the fit"),
        (edit("seed:", "sede:"), "was changed after the fit"),
        (lambda run: (run / "config.yaml").write_bytes(b"\xff\xfe"), "was changed after the fit"),
        (lambda run: (run / "config.yaml").write_text(""), "was changed after the fit"),
        (drop("fusion.weight_"), "does not fit its config"),
        (drop("bank_"), "does not fit its config"),
        (drop("score_threshold_"), "does not fit its config"),
    ],
    ids=[
        *("folder", "state", "empty", "5 bytes", "header cut", "last byte", "noise", "foreign"),
        *("value", "yaml", "field", "bytes", "blank", "block", "bank", "threshold"),
    ],
)
def test_a_damaged_run(function: Callable[[Path], object], expected: str, run_copy: Path) -> None:
    message = damage(function, run_copy)
    assert expected in message
    assert str(run_copy) in message


def test_a_config_that_only_looks_different_is_the_same(run_copy: Path) -> None:
    values = yaml.safe_load((run_copy / "config.yaml").read_text())
    (run_copy / "config.yaml").write_text("# mine\n" + yaml.safe_dump(values, sort_keys=True))
    assert load_run(run_copy).config == small_config()
    (run_copy / "config.yaml").unlink()  # the state alone is the run
    assert load_run(run_copy).config == small_config()


def test_other_weights_under_the_old_name_are_refused(parts: ImageSet, tmp_path: Path) -> None:
    path = tmp_path / "trunk.safetensors"

    def write_weights(seed: int) -> None:
        torch.manual_seed(seed)
        save_file(timm.create_model(small_trunk().architecture, num_classes=0).state_dict(), str(path))

    write_weights(0)
    trunk = small_trunk().model_copy(update={"weights": str(path)})
    member = small_member("one", extractor=PatchCoreConfig(trunk=trunk, stages=(1, 2)))
    train_run(small_config(members=(member,)), parts, tmp_path / "run", device="cpu", batch_size=4)
    digest = next(iter(read_header(tmp_path / "run")[1]["trunks"].values()))["digest"]
    load_run(tmp_path / "run")
    write_weights(1)
    with pytest.raises(WeightsError, match=rf"was fitted with weights .*{digest}.*found .*trunk.safetensors"):
        load_run(tmp_path / "run")
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(WeightsError, match=r"trunk.safetensors: is truncated or no weights file"):
        load_run(tmp_path / "run")
    path.unlink()
    with pytest.raises(WeightsError, match=r"trunk.safetensors: there is no such weights file"):
        load_run(tmp_path / "run")


def test_a_run_goes_where_it_is_sent(trained: Path) -> None:
    wanted = "cuda" if torch.cuda.is_available() else "cpu"
    assert load_run(trained, "auto").score_threshold_.device.type == wanted
    with pytest.raises(ConfigError, match=r"device 'gpu': not usable here"):
        load_run(trained, "gpu")


def test_bfloat16_is_for_fit_and_judgement_alike(parts: ImageSet, trained: Path, tmp_path: Path) -> None:
    coarse = train_run(small_config(), parts, tmp_path / "run", device="cpu", precision="bfloat16")
    loaded, fine = load_run(tmp_path / "run"), load_run(trained)
    assert (coarse.trunk_dtype, loaded.trunk_dtype, fine.trunk_dtype) == ("bfloat16", "bfloat16", "float32")
    assert (loaded.agreed("auto"), fine.agreed("auto"), fine.agreed("float16")) == ("bfloat16", "auto", "float16")
    cases = ((loaded, tmp_path / "run", "float32"), (loaded, tmp_path / "run", "float16"), (fine, trained, "bfloat16"))
    for ensemble, run, precision in cases:
        with pytest.raises(ConfigError, match=rf"precision {precision}: the trunks had \w+ in the fit"):
            ensemble.verdicts([parts.test[0].path], precision=precision)  # type: ignore[arg-type]
        with pytest.raises(ConfigError, match="train again with this precision"):
            evaluate_run(run, parts, device="cpu", precision=precision)  # type: ignore[arg-type]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        expected = loaded.predict(test_pictures(parts.root)).score
    torch.testing.assert_close(loaded.predict(test_pictures(parts.root)).score, expected)


def test_a_run_that_may_not_be_read_is_not_said_to_be_missing(run_copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)  # root may read everything
    with pytest.raises(RunError, match=r"state.safetensors: no permission to read it"):
        read_header(run_copy)


def test_two_owners_of_one_folder(tmp_path: Path, parts: ImageSet) -> None:
    with (
        owned(tmp_path / "run"),
        pytest.raises(RunError, match=r"another process is writing this run; wait for it or choose another folder"),
    ):
        train_run(small_config(), parts, tmp_path / "run", device="cpu")


def test_an_unfitted_ensemble_is_not_saved(tmp_path: Path) -> None:
    with pytest.raises(NotFittedError):
        save_run(tmp_path / "run", Ensemble(small_config()), CPU, {})
    assert not (tmp_path / "run").exists()


def test_a_run_of_another_version_is_named_as_such(run_copy: Path) -> None:
    with safe_open(run_copy / STATE, framework="pt") as file:
        header = file.metadata()
    config = json.loads(header["config"])
    config["heads"][0]["jitter"] = 1
    save_file(load_file(run_copy / STATE), run_copy / STATE, metadata={**header, "config": json.dumps(config)})
    with pytest.raises(RunError, match=r"jitter: unknown field.*manyeyes 0\.1\.0 fitted this run.*train it again"):
        load_run(run_copy)
