"""Tensors on disk: whatever their memory looks like, they come back, or nothing is there."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError

from manyeyes import checkpoint
from manyeyes.checkpoint import read_tensors, write_tensors
from manyeyes.errors import RunError


def test_tensors_of_any_layout_come_back_with_their_header(tmp_path: Path) -> None:
    kernel = torch.rand(4, 3, 2, 2).to(memory_format=torch.channels_last)
    given = {"kernel": kernel, "view": kernel[1:], "parameter": torch.nn.Parameter(torch.ones(2, dtype=torch.float16))}
    write_tensors(tmp_path / "a.safetensors", given, {"seconds": "1.5"})
    found, header = read_tensors(tmp_path / "a.safetensors")
    assert header == {"seconds": "1.5"}
    assert found.keys() == given.keys()
    for name, value in given.items():
        assert found[name].dtype == value.dtype
        assert torch.equal(found[name], value)


def test_a_full_disk_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(checkpoint, "save_file", full)
    with pytest.raises(RunError, match=r"a\.safetensors: .*space"):
        write_tensors(tmp_path / "a.safetensors", {"one": torch.ones(1)}, {})
    assert not list(tmp_path.iterdir())
