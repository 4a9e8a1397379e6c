"""Files are whole or absent: after an error, a kill, a full disk; and every failure says what to do."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from manyeyes.errors import RunError
from manyeyes.files import make_folder, read_json, require_space, reserve, write_json, write_text, writing

MEGABYTE = 1 << 20


def kill_inside_writing(path: str) -> None:
    with writing(path) as temporary:
        temporary.write_text("half of the ne")
        os.kill(os.getpid(), signal.SIGKILL)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_writing_replaces_and_makes_folders(tmp_path: Path) -> None:
    path = tmp_path / "a/b/c.txt"
    write_text(path, "one")
    write_text(path, "two")
    assert path.read_text() == "two"
    assert names(path.parent) == ["c.txt"]


def test_the_old_file_is_replaced_in_one_step_and_never_written_to(tmp_path: Path) -> None:
    path, reader = tmp_path / "file.txt", tmp_path / "still open elsewhere"
    write_text(path, "old")
    os.link(path, reader)
    write_text(path, "new")
    assert (path.read_text(), reader.read_text()) == ("new", "old")


@pytest.mark.parametrize("error", [ValueError("broken"), KeyboardInterrupt(), RunError("inner")])
def test_a_body_that_raises_leaves_the_old_file_and_nothing_else(tmp_path: Path, error: BaseException) -> None:
    path = tmp_path / "file.txt"
    write_text(path, "old")

    def write() -> None:
        with writing(path) as temporary:
            temporary.write_text("new")
            raise error

    with pytest.raises(type(error)):
        write()
    assert path.read_text() == "old"
    assert names(tmp_path) == ["file.txt"]


def test_a_kill_leaves_the_old_file_whole(tmp_path: Path, in_process: Callable[..., int]) -> None:
    path = tmp_path / "file.txt"
    write_text(path, "old")
    assert in_process(kill_inside_writing, str(path)) == -signal.SIGKILL
    assert path.read_text() == "old"
    write_text(path, "new")
    assert path.read_text() == "new"


def test_a_full_disk_is_said_and_leaves_the_old_file(small_disk: Path) -> None:
    path = small_disk / "file.txt"
    write_text(path, "old")
    with pytest.raises(RunError, match=r"file.txt: cannot be written: the disk is full; free some space"):
        write_text(path, "x" * 2 * MEGABYTE)
    assert path.read_text() == "old"
    assert names(small_disk) == ["file.txt"]
    with pytest.raises(RunError, match=r"104.86 MB are needed and 1.0\d MB are free"):
        require_space(small_disk, 100 * MEGABYTE)


def test_reserved_space_can_be_written_and_missing_space_is_said(small_disk: Path) -> None:
    path = small_disk / "map.bin"
    with open(path, "wb+") as file:
        reserve(file.fileno(), 1000, path)
        assert path.stat().st_blocks * 512 >= 1000
        with pytest.raises(RunError, match=r"map.bin: 2.10 MB are needed: the disk is full"):
            reserve(file.fileno(), 2 * MEGABYTE, path)


@pytest.mark.parametrize(
    ("number", "advice"),
    [
        (errno.ENOSPC, "the disk is full; free some space"),
        (errno.EROFS, "read-only"),
        (errno.EACCES, "no permission"),
        (errno.EDQUOT, "quota"),
        (errno.EIO, "Input/output error"),
    ],
)
def test_every_failure_of_the_system_says_what_to_do(tmp_path: Path, number: int, advice: str) -> None:
    def write() -> None:
        with writing(tmp_path / "file.txt"):
            raise OSError(number, os.strerror(number))

    with pytest.raises(RunError, match=f"file.txt: cannot be written: .*{advice}"):
        write()


def test_a_path_below_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for use in (make_folder, lambda path: write_text(path / "x.txt", "")):
        with pytest.raises(RunError, match=r"part of the path is a file; choose another folder"):
            use(tmp_path / "file/folder")


def test_a_folder_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match=r"file: cannot be used as an output folder: there is a file of that name"):
        make_folder(tmp_path / "file")


def test_make_folder_leaves_no_probe(tmp_path: Path) -> None:
    assert names(make_folder(tmp_path / "a/b")) == []
    assert make_folder(tmp_path / "a/b") == tmp_path / "a/b"


def test_json_round_trip_and_refusal_of_what_json_has_not(tmp_path: Path) -> None:
    path = tmp_path / "values.json"
    values = {"a": [1, 2.5, None, True, "ä"], "b": {}}
    write_json(path, values)
    assert read_json(path) == json.loads(path.read_text()) == values
    for value in (float("nan"), float("inf")):
        with pytest.raises(ValueError, match="JSON compliant"):
            write_json(path, {"a": value})
    with pytest.raises(TypeError):
        write_json(path, {"a": np.zeros(2)})
    assert read_json(path) == values


def test_json_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"none.json: cannot be read \(No such file"):
        read_json(tmp_path / "none.json")
    for text in (b'{"a": 1', b"", b"\xff"):
        (tmp_path / "half.json").write_bytes(text)
        with pytest.raises(RunError, match=r"half.json: is no valid JSON .* delete it and run again"):
            read_json(tmp_path / "half.json")


def test_files_have_the_permissions_of_any_other_file(tmp_path: Path) -> None:
    """safetensors writes files that only their owner may read; a run is often read by others."""
    (tmp_path / "plain").touch()
    with writing(tmp_path / "tensors") as temporary:
        save_file({"a": torch.zeros(1)}, str(temporary))
    assert (tmp_path / "tensors").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_a_pipe_is_written_into_and_stays_one(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    write_json(pipe, {"a": 1})
    assert json.loads(os.read(reader, 100)) == {"a": 1}
    assert pipe.is_fifo()
    assert names(tmp_path) == ["pipe"]
    os.close(reader)


def test_a_link_stays_a_link_and_its_file_is_written(tmp_path: Path) -> None:
    real, link = tmp_path / "real.json", tmp_path / "link.json"
    real.write_text("{}")
    link.symlink_to(real)
    write_json(link, {"a": 1})
    assert link.is_symlink()
    assert json.loads(real.read_text()) == {"a": 1}
    dangling = tmp_path / "dangling.json"
    dangling.symlink_to(tmp_path / "new.json")
    write_json(dangling, {"b": 2})
    assert json.loads((tmp_path / "new.json").read_text()) == {"b": 2}


def test_a_device_is_written_into() -> None:
    write_json("/dev/null", {"a": 1})
    assert Path("/dev/null").is_char_device()
    with pytest.raises(RunError, match="/dev/full: cannot be written: the disk is full"):
        write_json("/dev/full", {"a": 1})
    assert Path("/dev/full").is_char_device()


@pytest.mark.skipif(not Path("/dev/shm").is_dir(), reason="no folder in memory here")
def test_a_folder_in_memory_is_a_folder() -> None:
    folder = Path(f"/dev/shm/manyeyes-test-{os.getpid()}")
    try:
        write_json(folder / "deep/a.json", {"a": 1})
        write_json(folder / "deep/a.json", {"a": 2})
        assert read_json(folder / "deep/a.json") == {"a": 2}
        assert names(folder / "deep") == ["a.json"]
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def test_standard_output_that_leads_to_a_file_is_added_to(tmp_path: Path) -> None:
    code = (
        "from manyeyes.files import write_text; print('first'); write_text('/dev/stdout', 'second\\n'); print('last')"
    )
    with open(tmp_path / "log", "w") as log:
        log.write("before\n")
        log.flush()
        subprocess.run([sys.executable, "-c", code], stdout=log, check=True)
    assert (tmp_path / "log").read_text() == "before\nfirst\nsecond\nlast\n"
