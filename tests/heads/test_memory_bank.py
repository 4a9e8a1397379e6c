import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from einops import rearrange
from torch import Tensor

from manyeyes.errors import ConfigError
from manyeyes.heads import MemoryBankConfig, greedy_coreset
from manyeyes.heads.coreset import AXES_ROWS
from manyeyes.heads.memory_bank import MemoryBank, nearest_weight
from manyeyes.heads.nearest import faiss_nearest, nearest_entries

FAISS = importlib.util.find_spec("faiss") is not None


def embeddings(images: int, d: int = 20, seed: int = 0, offset: float = 0.0) -> Tensor:
    draws = torch.Generator().manual_seed(seed)
    widths = torch.rand(1, d, 1, 1, generator=draws)
    return widths * torch.randn(images, d, 6, 5, generator=draws) + offset


def bank_of(values: Tensor, **fields) -> MemoryBank:
    return MemoryBankConfig(**{"ratio": 0.2, **fields}).build(values.shape[1]).fit([values], 0)


def rows_of(values: Tensor) -> Tensor:
    return rearrange(values, "b d h w -> (b h w) d")


@pytest.mark.parametrize("neighbours", [1, 4])
@pytest.mark.parametrize("chunk", [1, 7, 2048])
@pytest.mark.parametrize("offset", [0.0, 300.0])
def test_map_equals_a_float64_distance_matrix(neighbours, chunk, offset):
    """An offset far above the spread is where the expanded square in float32 breaks down."""
    head = bank_of(embeddings(8, offset=offset), neighbours=neighbours, chunk=chunk)
    fresh = embeddings(2, seed=1, offset=offset)
    matrix = torch.cdist(rows_of(fresh).double(), head.bank_.double())
    expected = matrix.topk(neighbours, largest=False).values.mean(dim=1).float().reshape(2, 6, 5)
    torch.testing.assert_close(head.anomaly_map(fresh), expected, rtol=1e-3, atol=0)


def test_bank_members_score_zero():
    values = embeddings(8, offset=300.0)
    head = bank_of(values, ratio=1.0)
    assert len(head.bank_) == 8 * 30
    assert head.anomaly_map(values).max() == 0


@pytest.mark.parametrize("level", [0.0, 1.7, 1e4])
@pytest.mark.parametrize("reweight", [False, True])
def test_equal_images_score_exactly_zero(level, reweight):
    values = torch.full((4, 3, 5, 5), level)
    head = bank_of(values, neighbours=2, reweight=reweight)
    assert torch.equal(head.score(values), torch.zeros(4))
    assert (head.score(values + 1) > 0).all()


def test_bank_holds_greedy_picks_of_the_training_positions():
    values = embeddings(8)
    head = bank_of(values, ratio=0.1)
    rows = rows_of(values)
    assert torch.equal(head.bank_, rows[greedy_coreset(rows - rows.mean(dim=0), 24, seed=0)])


@pytest.mark.parametrize(
    ("fields", "entries"),
    [
        ({"ratio": 0.05}, 12),
        ({"ratio": 0.0001}, 1),
        ({"max_entries": 3}, 3),
        ({"candidates": 100, "ratio": 0.05}, 12),
        ({"candidates": 10, "ratio": 0.5}, 10),
    ],
)
def test_number_of_entries(fields, entries):
    """The ratio is of all 240 positions, also where the candidates are fewer."""
    assert len(bank_of(embeddings(8), **fields).bank_) == entries


def test_more_neighbours_than_entries_take_all():
    values = embeddings(2)
    head = bank_of(values, max_entries=3, neighbours=9)
    expected = torch.cdist(rows_of(values), head.bank_).mean(dim=1).reshape(2, 6, 5)
    torch.testing.assert_close(head.anomaly_map(values), expected)


def equation_7(values: Tensor, bank: Tensor, neighbours: int) -> float:
    """PatchCore's image score, written out for one image in float64."""
    patches, bank = values.flatten(1).T.double(), bank.double()
    matrix = torch.cdist(patches, bank)
    distance, patch = matrix.min(dim=1).values.max(dim=0)
    entry = bank[matrix[patch].argmin()]
    around = torch.cdist(entry[None], bank)[0].argsort()[:neighbours]
    exponentials = (bank[around] - patches[patch]).norm(dim=1).exp()
    return float((1 - distance.exp() / exponentials.sum()) * distance)


def test_reweighted_score_equals_the_paper_and_leaves_the_map():
    values, fresh = embeddings(8), 1.5 * embeddings(3, seed=1)
    head = bank_of(values, reweight=True, reweight_neighbours=5)
    plain = bank_of(values)
    expected = torch.tensor([equation_7(one, head.bank_, 5) for one in fresh])
    torch.testing.assert_close(head.score(fresh), expected, rtol=1e-4, atol=0)
    assert torch.equal(head.anomaly_map(fresh), plain.anomaly_map(fresh))
    assert not torch.allclose(head.score(fresh), plain.score(fresh), rtol=1e-3)


def test_weight_of_far_positions_and_tiny_banks_is_finite():
    """exp(distance) overflows float32 at 89; a bank of one entry has no neighbours to weigh by."""
    far, nearest = torch.full((1, 4), 1e4), torch.tensor([0])
    assert nearest_weight(far, nearest, torch.eye(4), 9).isfinite().all()
    assert nearest_weight(far, nearest, torch.eye(4)[:1], 9).item() == 1
    assert nearest_weight(far, torch.tensor([2]), torch.ones(3, 4), 9).item() == pytest.approx(2 / 3)


def test_search_finds_the_nearest_of_near_twins():
    rows = torch.randn(50, 8, generator=torch.Generator().manual_seed(0))
    bank = torch.cat([rows, rows + 1e-2])
    assert torch.equal(nearest_entries(rows, bank, 1, chunk=16).squeeze(1), torch.arange(50))
    assert nearest_entries(rows, bank, 2, chunk=16).sort(dim=1).values[:, 1].tolist() == list(range(50, 100))


def test_a_bank_for_ten_thousand_images_fits_in_four_gigabytes():
    """By arithmetic, for the widest map of the literature: what a fit holds does not grow with the images."""
    config, channels, positions = MemoryBankConfig(), 1536, 10_000 * 32 * 32
    assert config.ratio * positions > config.max_entries, "the limits are reached: more images change nothing"
    assert positions > config.candidates
    bank = config.max_entries * channels
    search = 2 * bank + 2 * config.chunk**2
    assert fit_bytes(config.candidates, channels) + 4 * (bank + search) < 4e9


def fit_bytes(candidates: int, channels: int) -> int:
    """What a fit holds at most, while it looks for axes or while it picks."""
    drawn = candidates * (channels + 6)  # with each position's key, order and image, 8 bytes each
    coordinates = candidates * MemoryBankConfig().coreset_dimensions
    axes = min(candidates, AXES_ROWS) * channels
    picking = 4 * coordinates + 8 * candidates  # coordinates, those around the first pick, rows and queries lifted
    return 4 * (drawn + max(axes, picking))


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the peak of a process is read from Linux")
def test_a_fit_holds_what_the_arithmetic_says_and_no_copy_besides():
    candidates, channels = 65_536, 384
    script = f"""
import torch
from manyeyes.heads import MemoryBankConfig

def status(key):
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(key)) * 1024

def fit(candidates, images):
    draws = torch.Generator().manual_seed(0)
    batches = (torch.randn(4, {channels}, 32, 32, generator=draws) for _ in range(images // 4))
    MemoryBankConfig(candidates=candidates, max_entries=64).build({channels}).fit(batches, 0)

torch.set_num_threads(1)
fit(256, 4)
open("/proc/self/clear_refs", "w").write("5")
before = status("VmRSS")
fit({candidates}, 72)
print(status("VmHWM") - before)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=300, check=True)
    held = int(done.stdout)
    # Libraries and a fragmented heap take more than half of one copy; a hidden copy would come on top of that.
    one_copy = 4 * candidates * channels
    assert one_copy < held < fit_bytes(candidates, channels) + one_copy


def test_missing_faiss_is_named_when_the_head_is_built(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install manyeyes\[faiss\]"):
        MemoryBankConfig(search="faiss").build(4)


@pytest.mark.skipif(not FAISS, reason="faiss is not installed; pip install manyeyes[faiss]")
def test_faiss_finds_what_torch_finds():
    values, fresh = embeddings(8), embeddings(2, seed=1)
    by_torch, by_faiss = bank_of(values, neighbours=3), bank_of(values, neighbours=3, search="faiss")
    torch.testing.assert_close(by_faiss.anomaly_map(fresh), by_torch.anomaly_map(fresh))


def test_faiss_answer_is_read_as_indices(monkeypatch):
    """A stand-in with faiss.knn's signature, so that the call itself is tested without the library."""
    import sys
    import types

    def knn(queries, entries, k):
        distances = torch.cdist(torch.from_numpy(queries), torch.from_numpy(entries)) ** 2
        values, indices = distances.topk(k, largest=False)
        return values.numpy(), indices.numpy()

    stand_in = types.ModuleType("faiss")
    stand_in.knn = knn
    monkeypatch.setitem(sys.modules, "faiss", stand_in)
    rows, bank = torch.randn(9, 4), torch.randn(30, 4)
    found = faiss_nearest(rows, bank, 3).sort(dim=1).values
    assert torch.equal(found, nearest_entries(rows, bank, 3, 8).sort(dim=1).values)
