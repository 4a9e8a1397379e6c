"""The same code on a CUDA device: fits, runs that move between devices, trainings that go on. Skipped without one."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import NEEDS_CUDA, placed, small_config, small_efficientad
from torch import Tensor

from manyeyes.backbones import EfficientAdTrunkConfig, PdnTrunkConfig, TimmTrunkConfig
from manyeyes.backbones.student_schedule import Schedule, TrainingConfig
from manyeyes.data import ImageSet
from manyeyes.device import Precision, resolve_device, trunk_precision
from manyeyes.ensemble import Ensemble, EnsembleConfig, Prediction, load_config, load_run, train_run
from manyeyes.experiments.compare import run_study
from manyeyes.experiments.evaluation import evaluate_run
from manyeyes.files import read_json
from manyeyes.fusion import GlobalPcaConfig
from manyeyes.heads import SimpleNetConfig, UFlowHeadConfig, greedy_coreset
from manyeyes.heads.flow_training import Schedule as FlowSchedule
from manyeyes.heads.nearest import nearest_entries

pytestmark = NEEDS_CUDA

GPU, CPU = torch.device("cuda"), torch.device("cpu")


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module", autouse=True)
def exact() -> None:
    resolve_device("cuda")


def judged(ensemble: Ensemble, image_set: ImageSet, device: torch.device, precision: Precision) -> Prediction:
    with trunk_precision(device, precision):
        found = ensemble.to(device).predict(placed(ensemble, image_set.test).to(device))
    return dataclasses.replace(found, score=found.score.cpu(), map=found.map.cpu())


def close(one: Tensor, other: Tensor, tolerance: float) -> None:
    """Within a share of the spread of ``other``, which holds for scores of any offset."""
    torch.testing.assert_close(one, other, rtol=0, atol=tolerance * float(other.std()))


@pytest.mark.parametrize(("precision", "tolerance"), [("float32", 5e-3), ("auto", 5e-2)])
def test_a_run_of_a_cpu_judges_the_same_on_a_gpu(
    trained: Path, parts: ImageSet, precision: Precision, tolerance: float
) -> None:
    expected = judged(load_run(trained), parts, CPU, "float32")
    found = judged(load_run(trained, GPU), parts, GPU, precision)
    close(found.score, expected.score, tolerance)
    close(found.map, expected.map, tolerance)


def test_a_run_of_a_gpu_judges_the_same_on_a_cpu(parts: ImageSet, tmp_path: Path) -> None:
    made = train_run(small_config(), parts, tmp_path / "run", device="cuda", batch_size=4)
    here = judged(made, parts, GPU, "float32")
    again = judged(load_run(tmp_path / "run", GPU), parts, GPU, "float32")
    assert torch.equal(again.score, here.score)
    elsewhere = judged(load_run(tmp_path / "run"), parts, CPU, "float32")
    close(elsewhere.score, here.score, 5e-3)
    figures = evaluate_run(tmp_path / "run", parts, device="cuda", repetitions=10)
    assert figures["image"]["auroc"] > 0.9
    assert figures["cost"]["peak_memory_mb"] > 0
    assert read_json(tmp_path / "run" / "environment.json")["device"] == "cuda"


def efficientad() -> EnsembleConfig:
    quick = TrainingConfig(schedule=Schedule(steps=3, crop=40, learning_rate=1e-3))
    teacher = PdnTrunkConfig(weights="bundled", image_size=64)
    return small_efficientad("puad", EfficientAdTrunkConfig(teacher=teacher, training=quick))


def uflow() -> EnsembleConfig:
    config = load_config("uflow").model_dump(mode="json")
    [member] = config["members"]
    member["extractor"]["sources"] = [
        {"trunk": TimmTrunkConfig(architecture="resnet18", weights="random", size=128).model_dump(mode="json")}
    ]
    member["heads"] = [UFlowHeadConfig(steps=2, training=FlowSchedule(steps=4)).model_dump(mode="json")]
    return EnsembleConfig.parse(config | {"validation": 0.4})


CONFIGS: dict[str, Callable[[], EnsembleConfig]] = {
    "global PCA": lambda: small_config(fusion=GlobalPcaConfig(components=16)),
    "SimpleNet": lambda: small_config(heads=(SimpleNetConfig(steps=30),)),
    "EfficientAD": efficientad,
    "U-Flow": uflow,
}


@pytest.mark.parametrize("name", CONFIGS)
def test_every_method_fits_there_and_its_run_moves(name: str, parts: ImageSet, tmp_path: Path) -> None:
    train_run(CONFIGS[name](), parts, tmp_path / "run", device="cuda", batch_size=4)
    here = judged(load_run(tmp_path / "run", GPU), parts, GPU, "float32")
    elsewhere = judged(load_run(tmp_path / "run"), parts, CPU, "float32")
    assert bool(here.score.isfinite().all())
    close(elsewhere.score, here.score, 2e-2)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of the compiler's own
def test_compiled_trunks_say_the_same(trained: Path, parts: ImageSet) -> None:
    expected = judged(load_run(trained, GPU), parts, GPU, "float32")
    compiled = load_run(trained, GPU)
    compiled.eyes.compile_trunks()
    close(judged(compiled, parts, GPU, "float32").score, expected.score, 1e-2)


def test_a_study_extracts_on_the_gpu_and_keeps_its_features_apart(parts: ImageSet, tmp_path: Path) -> None:
    for device in ("cuda", "cpu"):
        run_study([small_config()], [parts], tmp_path, seeds=[0], device=device)
    names = {path.name.split("-", 1)[1] for path in (tmp_path / "features").glob("*/*") if path.is_dir()}
    assert {"cuda-float16", "cpu-float32"} <= {"-".join(name.split("-")[-2:]) for name in names}


@pytest.mark.parametrize("k", [1, 3])
def test_the_nearest_of_a_bank_are_those_of_a_cpu(k: int) -> None:
    bank, rows = drawn(700, 40, seed=1), drawn(300, 40)
    expected = nearest_entries(rows, bank, k, 128).sort(dim=1).values
    found = nearest_entries(rows.to(GPU), bank.to(GPU), k, 128).cpu().sort(dim=1).values
    assert float((found == expected).float().mean()) > 0.995, "ties in rounding"


def test_a_coreset_is_drawn_where_the_points_are() -> None:
    points = drawn(2000, 16)
    expected = greedy_coreset(points, 50, seed=0)
    found = greedy_coreset(points.to(GPU), 50, seed=0).cpu()
    assert len(found) == len(expected)
    assert len(set(found.tolist()) & set(expected.tolist())) > 40
