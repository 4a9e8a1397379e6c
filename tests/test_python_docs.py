"""docs/python.md runs as it stands, on drawn parts and a smaller input."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from conftest import draw_parts

ROOT = Path(__file__).parents[1]


def test_the_python_of_the_docs_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text = (ROOT / "docs/python.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert len(blocks) == 3
    draw_parts(tmp_path / "parts", train=10)
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    for block in blocks:
        code = block.replace("size=256", "size=64").replace('device="auto"', 'device="cpu"')
        exec(compile(code.replace("steps=1000", "steps=20"), "docs/python.md", "exec"), names)
    said = capsys.readouterr().out
    assert "(480, 640)" in said
    assert (tmp_path / "runs/moved").is_dir()
    assert float(names["ensemble"].score_threshold_) == 3.0
    assert names["figures"]["image"]["auroc"] is not None
