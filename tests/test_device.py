"""What is promised for GPUs, as far as it can be seen without one."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch

from manyeyes.device import resolve_device, training_precision


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)


def test_convolutions_in_float32_are_float32_on_cuda(monkeypatch: pytest.MonkeyPatch, cuda: None) -> None:
    """PyTorch's default is TF32, which rounds what a flow's permutations pass on."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    resolve_device("cpu")
    assert torch.backends.cudnn.allow_tf32, "the CPU has nothing to do with it"
    assert resolve_device("auto").type == "cuda"
    assert not torch.backends.cudnn.allow_tf32


@pytest.mark.parametrize(("capability", "learns_in_bfloat16"), [((7, 5), False), ((8, 0), True), ((9, 0), True)])
def test_networks_learn_in_bfloat16_where_a_gpu_multiplies_it(
    monkeypatch: pytest.MonkeyPatch, cuda: None, capability: tuple[int, int], learns_in_bfloat16: bool
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: capability)
    monkeypatch.setattr(torch, "autocast", lambda kind, dtype: (kind, dtype))
    found = training_precision(torch.device("cuda"))
    if learns_in_bfloat16:
        assert found == ("cuda", torch.bfloat16)
    else:
        assert isinstance(found, nullcontext)
