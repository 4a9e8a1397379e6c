"""kill -9 anywhere between the first picture and the last file: resumed, the run is the one that was never killed."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import draw_parts, small_config
from safetensors.torch import load_file

from manyeyes import checkpoint
from manyeyes.data import ImageSet, read_image_set
from manyeyes.ensemble import load_run, run, store, train_run, training
from manyeyes.ensemble.run import STATE, save_run
from manyeyes.errors import ConfigError, RunError
from manyeyes.progress import Silent

CPU = torch.device("cpu")


def die(*_: object, **__: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


class Deadly:
    """Progress that kills its process in a step, once ``done`` is reached."""

    def __init__(self, what: str, at: int) -> None:
        self.what, self.at = what, at

    def step(self, what: str) -> Callable[[int, int], None]:
        return lambda done, total: die() if what.startswith(self.what) and done >= self.at else None

    def say(self, text: str) -> None:
        pass


def half_a_save(tensors: Any, path: str, metadata: Any) -> None:
    Path(path).write_bytes(b"half of a state")
    die()


def train_and_die(where: str, root: str, out: str) -> None:
    progress = Deadly(where, 1 if where.startswith("fitting") else 8)
    if where == "extracting":
        store.CHECKPOINT_SECONDS = 0.0
    elif where == "saving":
        checkpoint.save_file = half_a_save
    elif where == "after the state":
        run.write_json = die  # type: ignore[assignment]
    elif where == "cleaning up":
        training.shutil.rmtree = die  # type: ignore[assignment]
    train_run(small_config(), read_image_set(root), out, device="cpu", batch_size=4, progress=progress)


def save_and_die(folder: str) -> None:
    """A second save on top of a run, killed half way."""
    ensemble = load_run(folder)
    ensemble.score_threshold_ = torch.tensor(1.5)
    checkpoint.save_file = half_a_save
    save_run(folder, ensemble, CPU, {})


def train(parts: ImageSet, out: Path, **options: Any) -> None:
    train_run(small_config(), parts, out, device="cpu", batch_size=4, **options)


def same_tensors(one: Path, other: Path) -> bool:
    mine, yours = load_file(one / STATE), load_file(other / STATE)
    return mine.keys() == yours.keys() and all(torch.equal(mine[key], yours[key]) for key in mine)


@pytest.mark.parametrize("where", ["extracting", "fitting two", "saving", "after the state"])
def test_a_killed_run_resumes_to_the_same_scores(
    where: str, parts: ImageSet, trained: Path, tmp_path: Path, in_process: Callable[..., int]
) -> None:
    out = tmp_path / "run"
    assert in_process(train_and_die, where, str(parts.root), str(out)) == -signal.SIGKILL
    assert (out / STATE).exists() == (where == "after the state")
    with pytest.raises(RunError, match=r"holds an unfinished run; go on with --resume"):
        train(parts, out)
    train(parts, out, resume=True)
    assert same_tensors(out, trained)
    assert {path.name for path in out.iterdir()} == {path.name for path in trained.iterdir()}, "nothing is left over"
    said = Deadly("", 0)
    told: list[str] = []
    said.say = told.append  # type: ignore[method-assign]
    train(parts, out, resume=True, progress=said)
    assert told == [f"{out}: already finished, nothing to do"]


def test_a_kill_while_cleaning_up_leaves_a_finished_run(
    parts: ImageSet, trained: Path, tmp_path: Path, in_process: Callable[..., int]
) -> None:
    out = tmp_path / "run"
    assert in_process(train_and_die, "cleaning up", str(parts.root), str(out)) == -signal.SIGKILL
    train(parts, out, resume=True)
    assert same_tensors(out, trained)
    assert {path.name for path in out.iterdir()} == {path.name for path in trained.iterdir()}


def test_a_kill_during_a_second_save_leaves_the_old_run(run_copy: Path, trained: Path, in_process: Any) -> None:
    assert in_process(save_and_die, str(run_copy)) == -signal.SIGKILL
    assert same_tensors(run_copy, trained)
    assert torch.equal(load_run(run_copy).score_threshold_, load_run(trained).score_threshold_)


def files_of(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_finished_run_is_not_found_for_other_pictures(tmp_path: Path) -> None:
    root, out = draw_parts(tmp_path / "parts"), tmp_path / "run"
    train(read_image_set(root), out)
    before = files_of(out)
    shutil.copy(root / "test/good/000.png", root / "train/good/010.png")
    with pytest.raises(RunError, match=r"pictures of .*parts \(10 good ones then, 11 now, or other names\); choose"):
        train(read_image_set(root), out, resume=True)
    (root / "train/good/000.png").unlink()  # as many as before
    with pytest.raises(RunError, match=r"10 good ones then, 10 now, or other names"):
        train(read_image_set(root), out, resume=True)
    (root / "train/good/010.png").rename(root / "train/good/000.png")
    (root / "validation/good").mkdir(parents=True)
    (root / "train/good/009.png").rename(root / "validation/good/009.png")
    with pytest.raises(RunError, match=r"other pictures of"):
        train(read_image_set(root), out, resume=True)
    for folder in ("test/hole", "ground_truth"):  # of no account for a training
        shutil.rmtree(root / folder)
    (root / "validation/good/009.png").rename(root / "train/good/009.png")
    train(read_image_set(root), out, resume=True)
    assert files_of(out) == before


@pytest.mark.parametrize("finished", [False, True])
def test_another_folder_of_pictures_is_refused(finished: bool, tmp_path: Path, in_process: Callable[..., int]) -> None:
    root, other, out = draw_parts(tmp_path / "parts"), draw_parts(tmp_path / "other"), tmp_path / "run"
    if finished:
        train(read_image_set(root), out)
    else:
        assert in_process(train_and_die, "extracting", str(root), str(out)) == -signal.SIGKILL
    before = files_of(out)
    with pytest.raises(RunError, match=rf"holds a run on {root}, not on {other}; choose another folder"):
        train(read_image_set(other), out, resume=True)
    assert files_of(out) == before


def test_pictures_that_came_or_went_meanwhile_are_told_and_the_resumed_run_goes_on_with_those_that_are_there(
    tmp_path: Path, in_process: Callable[..., int]
) -> None:
    """A run may have stopped at a broken picture, which is then taken away."""
    root, out = draw_parts(tmp_path / "parts"), tmp_path / "run"
    assert in_process(train_and_die, "extracting", str(root), str(out)) == -signal.SIGKILL
    shutil.copy(root / "test/good/000.png", root / "train/good/010.png")
    (root / "train/good/003.png").unlink()
    said: list[str] = []

    class Heard(Silent):
        def say(self, text: str) -> None:
            said.append(text)

    train(read_image_set(root), out, resume=True, progress=Heard())
    assert any(
        "pictures have changed since the run began (10 good ones then, 10 now, or other names)" in s for s in said
    )
    train(read_image_set(root), tmp_path / "whole")
    assert same_tensors(out, tmp_path / "whole")


def test_the_same_pictures_are_the_same_however_their_folder_is_called(
    parts: ImageSet, run_copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "link").symlink_to(parts.root)
    monkeypatch.chdir(parts.root.parent)
    for root in (tmp_path / "link", Path(parts.root.name)):
        train(read_image_set(root), run_copy, resume=True)


def test_a_run_that_does_not_say_its_pictures_goes_on(parts: ImageSet, tmp_path: Path) -> None:
    (tmp_path / "unfinished.yaml").write_text(small_config().to_yaml())
    train(parts, tmp_path, resume=True)
    assert (tmp_path / STATE).exists()


def test_resume_without_anything_to_resume_is_a_plain_run(parts: ImageSet, trained: Path, tmp_path: Path) -> None:
    train(parts, tmp_path / "run", resume=True)
    assert same_tensors(tmp_path / "run", trained)


def test_one_folder_holds_one_run(parts: ImageSet, run_copy: Path) -> None:
    with pytest.raises(RunError, match=r"already holds a run; choose another folder or delete it"):
        train(parts, run_copy)
    with pytest.raises(RunError, match=r"already holds a run of another config"):
        train_run(small_config(seed=1), parts, run_copy, device="cpu", resume=True)


def test_an_unfinished_run_of_another_config(parts: ImageSet, tmp_path: Path) -> None:
    (tmp_path / "unfinished.yaml").write_text(small_config(seed=1).to_yaml())
    with pytest.raises(RunError, match=r"the unfinished run has another config \(.*unfinished.yaml\)"):
        train(parts, tmp_path, resume=True)
    (tmp_path / "unfinished.yaml").write_text("seed: [")
    with pytest.raises(ConfigError, match=r"unfinished.yaml: is no valid YAML"):
        train(parts, tmp_path, resume=True)


def test_a_folder_called_features_that_is_not_ours_is_left_alone(parts: ImageSet, tmp_path: Path) -> None:
    (tmp_path / "features").mkdir()
    (tmp_path / "features/mine.csv").write_text("precious")
    for resume in (False, True):
        with pytest.raises(RunError, match=r"holds a folder features that is not this run's"):
            train(parts, tmp_path, resume=resume)
    assert (tmp_path / "features/mine.csv").read_text() == "precious"


def test_a_failed_run_can_be_mended_and_resumed(parts: ImageSet, trained: Path, tmp_path: Path) -> None:
    broken = draw_parts(tmp_path / "parts")
    picture = broken / "train/good/003.png"
    whole = picture.read_bytes()
    picture.write_bytes(whole[:50])
    with pytest.raises(Exception, match=r"003.png: is damaged"):
        train(read_image_set(broken), tmp_path / "run")
    picture.write_bytes(whole)
    train(read_image_set(broken), tmp_path / "run", resume=True)
    assert (tmp_path / "run" / STATE).exists()
