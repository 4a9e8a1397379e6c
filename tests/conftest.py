"""What several rooms share: a tiny set of drawn parts, a config small enough to fit in a second, one trained run."""

from __future__ import annotations

import multiprocessing
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from manyeyes.backbones import EfficientAdConfig, EfficientAdTrunkConfig, PatchCoreConfig, TimmTrunkConfig
from manyeyes.backbones.trunk import TimmTrunk
from manyeyes.cli import main
from manyeyes.data import Frame, ImageBatches, ImageSet, Sample, read_image_set
from manyeyes.ensemble import Ensemble, EnsembleConfig, MemberConfig, load_config, train_run
from manyeyes.fusion import IndependentPcaConfig
from manyeyes.heads import DiscriminatorConfig, GaussianConfig, MemoryBankConfig
from manyeyes.progress import Silent

# Tensors here are tiny: more threads would only wait for each other, and one thread gives the same bits every time.
torch.set_num_threads(1)
HEIGHT, WIDTH = 56, 64
NEEDS_CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device here")
FORKSERVER = multiprocessing.get_context("forkserver")
# Imported once for all processes that tests start: torch and timm take seconds each.
FORKSERVER.set_forkserver_preload(
    ["manyeyes.experiments.compare", "manyeyes.experiments.prediction", "timm", "sklearn.covariance", "pytest"]
)


def picture(rng: np.random.Generator, defective: bool = False) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """A striped, grainy part, and where a dark hole was punched into it. Shapes: (56, 64, 3), (56, 64)."""
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    grain = rng.normal(0, 6, (HEIGHT, WIDTH, 3))
    stripes = 130 + 40 * np.sin(x / 4 + rng.uniform(0, 0.5))[..., None] + np.array([10.0, 0.0, -20.0]) + grain
    hole = np.zeros((HEIGHT, WIDTH), dtype=bool)
    if defective:
        cy, cx = rng.integers(16, HEIGHT - 16), rng.integers(16, WIDTH - 16)
        hole = (y - cy) ** 2 + (x - cx) ** 2 < 10**2
        stripes[hole] = 15
    return np.clip(stripes, 0, 255).astype(np.uint8), hole


def save(path: Path, array: NDArray[Any], **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path, **options)
    return path


def draw_parts(root: Path, train: int = 10, good: int = 5, defective: int = 4, seed: int = 0) -> Path:
    """A set in the layout of MVTec AD with one defect, ``hole``, and its masks."""
    rng = np.random.default_rng(seed)
    for index in range(train):
        save(root / f"train/good/{index:03}.png", picture(rng)[0])
    for index in range(good):
        save(root / f"test/good/{index:03}.png", picture(rng)[0])
    for index in range(defective):
        image, hole = picture(rng, defective=True)
        save(root / f"test/hole/{index:03}.png", image)
        save(root / f"ground_truth/hole/{index:03}_mask.png", hole.astype(np.uint8) * 255)
    return root


def small_trunk(seed: int = 0) -> TimmTrunkConfig:
    return TimmTrunkConfig(architecture="test_resnet", weights="random", size=64, seed=seed)


def small_member(name: str, seed: int = 0, **fields: Any) -> MemberConfig:
    extractor = PatchCoreConfig(trunk=small_trunk(seed), stages=(1, 2))
    defaults = {"heads": (MemoryBankConfig(ratio=0.05),), "fusion": IndependentPcaConfig()}
    return MemberConfig(**({"name": name, "extractor": extractor} | defaults | fields))


def small_config(**fields: Any) -> EnsembleConfig:
    """Two eyes with heads of their own beside two heads on what they see together."""
    defaults: dict[str, Any] = {
        "name": "small",
        "frame": Frame(size=64),
        "members": (
            small_member("one", heads=(MemoryBankConfig(ratio=0.05), GaussianConfig())),
            small_member("two", 1),
        ),
        "fusion": IndependentPcaConfig(components=16),
        "heads": (DiscriminatorConfig(steps=30, hidden=32, batch=128), MemoryBankConfig(ratio=0.05)),
        "validation": 0.4,
    }
    return EnsembleConfig(**(defaults | fields))


def small_efficientad(preset: str, trunk: EfficientAdTrunkConfig, **fields: Any) -> EnsembleConfig:
    """A preset of EfficientAD that looks through ``trunk``."""
    config = load_config(preset)
    members = []
    for member in config.members:
        assert isinstance(member.extractor, EfficientAdConfig)
        extractor = member.extractor.model_copy(update={"trunk": trunk})
        members.append(member.model_copy(update={"extractor": extractor}))
    return config.model_copy(update={"members": tuple(members), "validation": 0.4} | fields)


def placed(ensemble: Ensemble, samples: Sequence[Sample]) -> Tensor:
    """All the pictures on the ensemble's canvas. Shapes: (n, 3, H, W)."""
    frame = ensemble.config.frame.sized(ensemble.canvas)
    return next(iter(ImageBatches(samples, frame, len(samples)))).images


class Stopped(Exception):
    pass


class Interrupting(Silent):
    """Stops a training after some steps; keeps what was said."""

    def __init__(self, at: int | None = None) -> None:
        self.at, self.said = at, list[str]()

    def step(self, what: str) -> Callable[[int, int], None]:
        def advance(done: int, total: int) -> None:
            if done == self.at:
                raise Stopped

        return advance

    def say(self, text: str) -> None:
        self.said.append(text)


@pytest.fixture(scope="session")
def parts(tmp_path_factory: pytest.TempPathFactory) -> ImageSet:
    """Drawn once; whoever changes files draws his own."""
    return read_image_set(draw_parts(tmp_path_factory.mktemp("parts") / "striped"))


@pytest.fixture(scope="session")
def trained(parts: ImageSet, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of `small_config` on `parts`. Read only."""
    out = tmp_path_factory.mktemp("runs") / "small"
    train_run(small_config(), parts, out, device="cpu", batch_size=4)
    return out


@pytest.fixture
def run_copy(trained: Path, tmp_path: Path) -> Path:
    """A copy of the trained run to break."""
    return Path(shutil.copytree(trained, tmp_path / "run"))


@pytest.fixture
def manyeyes(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    """Call the command line in this process: (exit code, stdout, stderr)."""

    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["manyeyes", *map(str, arguments)])
        capsys.readouterr()
        try:
            main()
        except SystemExit as leaving:
            code = leaving.code
        else:
            code = 0
        out, err = capsys.readouterr()
        assert isinstance(code, int), f"left with {code!r}"
        return code, out, err

    return call


@pytest.fixture
def in_process() -> Iterator[Callable[..., int]]:
    """Run a function of a module in a fresh process and give its exit code; minus the signal that killed it."""
    started = []

    def run(function: Callable[..., None], *arguments: object) -> int:
        process = FORKSERVER.Process(target=function, args=arguments)
        started.append(process)
        process.start()
        process.join(120)
        assert process.exitcode is not None, "still running after two minutes"
        return process.exitcode

    yield run
    for process in started:
        process.kill()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of one megabyte, where this user may mount one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    try:
        mounted = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)], capture_output=True, check=False
        )
    except FileNotFoundError:
        pytest.skip("there is no mount command to make a small disk with")
    if mounted.returncode:
        pytest.skip("only root may mount the small disk that this test fills")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def lines(text: str) -> Sequence[str]:
    return [line for line in text.splitlines() if line.strip()]


@pytest.fixture
def forwards(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Batch sizes of all trunk forwards since the test began."""
    seen: list[int] = []
    forward = TimmTrunk.forward

    def counted(self: TimmTrunk, pictures: Tensor, stages: Any) -> dict[str, Tensor]:
        seen.append(len(pictures))
        return forward(self, pictures, stages)

    monkeypatch.setattr(TimmTrunk, "forward", counted)
    return seen
