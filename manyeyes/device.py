"""Where the arithmetic runs, and in what precision the frozen trunks run there."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Literal

import torch
from torch import Tensor

from manyeyes.errors import ConfigError

Precision = Literal["auto", "float32", "float16", "bfloat16"]


def resolve_device(name: str = "auto") -> torch.device:
    """``auto`` is the first CUDA device, else the CPU.

    On CUDA, convolutions in float32 are float32 from then on: PyTorch's own default lets cuDNN round their inputs to
    TF32, no finer than float16, which a flow's permutations or an explicit ``float32`` do not bear.
    Raises: ConfigError for an unknown name or a device that this machine does not have.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
        return _exact(torch.device(name))
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).cpu()  # the copy back fails on devices that compute nothing, such as meta
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0][:120]
        raise ConfigError(f"device {name!r}: not usable here ({reason}); use auto, cpu or cuda:0") from None
    return _exact(device)


def _exact(device: torch.device) -> torch.device:
    if device.type == "cuda":
        torch.backends.cudnn.allow_tf32 = False
    return device


def to_device(images: Tensor, device: torch.device) -> Tensor:
    """The images on ``device``; to a CUDA device from pinned memory, so that nobody waits for the copy."""
    if device.type != "cuda":
        return images.to(device)
    return images.pin_memory().to(device, non_blocking=True)


def trunk_precision(device: torch.device, precision: Precision = "auto") -> AbstractContextManager[object]:
    """Autocast for the trunks alone; everything fitted stays in float32.

    ``auto`` is float16 on CUDA, which is also the precision of stored features, and float32 elsewhere.
    """
    named = trunk_dtype(device, precision)
    return nullcontext() if named == "float32" else torch.autocast(device.type, dtype=getattr(torch, named))


def trunk_dtype(device: torch.device, precision: Precision = "auto") -> str:
    """The precision by its own name: what ``auto`` means on this device."""
    if precision == "auto":
        return "float16" if device.type == "cuda" else "float32"
    return precision


def full_precision(device: torch.device) -> AbstractContextManager[object]:
    """No autocast, whatever surrounds it: for what is fitted, which judges small differences of large features."""
    return torch.autocast(device.type, enabled=False)


def arithmetic(device: torch.device) -> str:
    """Device and precision of trunks that run here, inside `trunk_precision` or not, such as ``cuda-float16``."""
    autocast = torch.is_autocast_enabled(device.type)
    dtype = torch.get_autocast_dtype(device.type) if autocast else torch.float32
    return f"{device.type}-{str(dtype).removeprefix('torch.')}"


def training_precision(device: torch.device) -> AbstractContextManager[object]:
    """Autocast to bfloat16 for the networks that learn, where the hardware multiplies it faster; weights stay float32.

    On a CPU with bfloat16 instructions a step of a patch description network takes half the time. GPUs have them from
    compute capability 8.0 on; older ones emulate them.
    """
    on_gpu = device.type == "cuda" and torch.cuda.get_device_capability(device)[0] >= 8
    if on_gpu or (device.type == "cpu" and multiplies_bfloat16()):
        return torch.autocast(device.type, dtype=torch.bfloat16)
    return nullcontext()


def multiplies_bfloat16() -> bool:
    """Whether this CPU has instructions for bfloat16; PyTorch only tells so in private, and not in every version."""
    return bool(getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)())
