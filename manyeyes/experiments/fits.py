"""Blocks and heads that several ensembles of a study fit alike: fitted once, kept in the study's folder, used again.

Two ensembles with a member in common have its memory bank in common, too: the same features, rows and seed under the
same head. A part is known by everything that its fit depends on; what comes back are the very tensors of the first fit.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from pathlib import Path

import torch
from filelock import FileLock
from safetensors import SafetensorError
from torch import nn

from manyeyes.checkpoint import read_tensors, write_tensors
from manyeyes.config import Config
from manyeyes.ensemble import EnsembleConfig
from manyeyes.ensemble.branch import Branch
from manyeyes.ensemble.reading import TapSource
from manyeyes.errors import RunError
from manyeyes.experiments.sources import code_digest
from manyeyes.files import make_folder


class SharedFits:
    """The fits of one ensemble, shared with all others in ``folder``: a `manyeyes.ensemble.memory.Memory`.

    ``recalled`` is the number of seconds that the parts which were not fitted here took to fit when they were;
    ``waited`` those that were spent waiting for others who fitted them.
    """

    def __init__(self, folder: Path, config: EnsembleConfig, device: torch.device) -> None:
        self.folder, self.config, self.device = make_folder(folder), config, device
        self.recalled = self.waited = 0.0

    def __call__(
        self, branch: Branch, taps: TapSource, part: Config, module: nn.Module, fit: Callable[[], object]
    ) -> None:
        path = self.folder / f"{part.model_dump()['kind']}-{self.key(branch, taps, part)}.safetensors"
        begun = time.perf_counter()
        with FileLock(path.with_suffix(".lock")):  # whoever needs the same part waits for it, and takes over if we die
            self.waited += time.perf_counter() - begun
            if path.exists():
                self.recalled += self._load(path, module)
                return
            start = time.perf_counter()
            fit()
            seconds = time.perf_counter() - start
            write_tensors(path, module.state_dict(), {"seconds": f"{seconds:.3f}"})

    def _load(self, path: Path, module: nn.Module) -> float:
        try:
            tensors, header = read_tensors(path, self.device)
            module.load_state_dict(tensors)
            module.to(self.device)
            return float(header["seconds"])
        except (SafetensorError, OSError, RuntimeError, KeyError) as error:
            reason = " ".join(str(error).split())[:160]
            raise RunError(f"{path}: is no whole fit ({reason}); delete it and run the study again") from None

    def key(self, branch: Branch, taps: TapSource, part: Config) -> str:
        """24 hexadecimal digits of all that the fit of ``part`` depends on."""
        extractors = {member.name: member.extractor.fingerprint() for member in self.config.members}
        facts = [code_digest(), self.device.type, self.config.seed, taps.fingerprint, part.fingerprint()]
        facts += [extractors[name] for name in branch.members]
        if getattr(part, "reads", None) != "vector":  # the pooled features know neither block nor grid nor names
            grid = branch.fusion.grid if branch.fusion is not None else None
            facts += [branch.fusion_config.fingerprint(), grid, *branch.members]
        return hashlib.sha256(repr(facts).encode()).hexdigest()[:24]
