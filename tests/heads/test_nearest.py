"""The search on leading axes finds what the plain search finds, whatever its guesses."""

import pytest
import torch
from einops import rearrange
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from manyeyes.heads import MemoryBankConfig
from manyeyes.heads.nearest import BLOCK, LeadingAxes, exact_distances, nearest_entries, tiled


def features(n: int, d: int = 64, seed: int = 0, decay: float = 1.5) -> Tensor:
    """Features whose variance falls along turned axes, as that of principal components does."""
    draws = torch.Generator().manual_seed(seed)
    turned = torch.linalg.qr(torch.randn(d, d, generator=torch.Generator().manual_seed(9))).Q
    widths = torch.arange(1, d + 1).float() ** -decay
    return torch.randn(n, d, generator=draws) * widths @ turned


def distances(rows: Tensor, bank: Tensor, entries: Tensor) -> Tensor:
    return exact_distances(rows, bank, entries, 2048)


@settings(max_examples=25, deadline=None)
@given(
    n=st.integers(1, 400),
    decay=st.sampled_from([0.0, 0.5, 2.0]),
    scale=st.sampled_from([1e-3, 1.0, 30.0]),
    offset=st.sampled_from([0.0, 100.0]),
    seed=st.integers(0, 99),
)
def test_distances_are_those_of_the_plain_search(n: int, decay: float, scale: float, offset: float, seed: int) -> None:
    bank = features(500, seed=seed, decay=decay) + offset
    rows = scale * features(n, seed=seed + 1, decay=decay) + offset
    rows[: n // 4] = bank[: n // 4]
    found = LeadingAxes(bank)(rows, torch.arange(n))
    plain = distances(rows, bank, nearest_entries(rows, bank, 1, 128))
    torch.testing.assert_close(distances(rows, bank, found), plain, rtol=1e-4, atol=1e-4 * float(bank.std()))


@pytest.mark.parametrize("spread", [0.0, 1e-3, 1e3])
def test_no_guess_changes_the_answer(spread: float) -> None:
    bank, rows = features(700, decay=0.5), features(300, seed=1, decay=0.5)
    search = LeadingAxes(bank)
    search.spread = spread
    exact = torch.cdist(rows.double(), bank.double()).argmin(dim=1)
    assert torch.equal(search(rows, torch.arange(300))[:, 0], exact)


def test_a_guess_that_is_too_small_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The test above proves nothing if the guess is always large enough."""
    bank, rows = features(700, decay=0.5), features(300, seed=1, decay=0.5)
    search = LeadingAxes(bank)
    search.spread = 0.0
    monkeypatch.setattr("manyeyes.heads.nearest.ROUNDING", -torch.inf)  # any excess is taken for rounding
    exact = torch.cdist(rows.double(), bank.double()).argmin(dim=1)
    assert not torch.equal(search(rows, torch.arange(300))[:, 0], exact)


def test_the_order_of_the_rows_changes_nothing() -> None:
    bank, rows = features(700), features(300, seed=1)
    search, order = LeadingAxes(bank), torch.randperm(300, generator=torch.Generator().manual_seed(2))
    assert torch.equal(search(rows, torch.arange(300)), search(rows, order))


def test_constant_banks_and_twins_have_distance_zero() -> None:
    for bank in (torch.full((600, 32), 7.5), features(300, 32).repeat(2, 1)):
        found = LeadingAxes(bank)(bank, torch.arange(600))
        assert distances(bank, bank, found).max() == 0


def test_only_part_of_the_bank_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    bank = features(2000)
    search = LeadingAxes(bank)
    assert search.pays
    assert search.count == 16
    one = tiled(8, 4, 4)
    assert len(one) == BLOCK
    rows = bank[:1].repeat(BLOCK, 1) + 0.01 * features(BLOCK, seed=3)
    measured = []
    addmm = torch.addmm

    def counted(halves: Tensor, queries: Tensor, entries: Tensor, alpha: float) -> Tensor:
        measured.append(len(queries) * len(halves))
        return addmm(halves, queries, entries, alpha=alpha)

    monkeypatch.setattr(torch, "addmm", counted)
    search(rows, one)
    assert sum(measured) < 0.2 * len(rows) * len(bank)


def test_it_is_not_used_where_it_cannot_pay() -> None:
    assert not LeadingAxes(features(600, decay=0.0)).pays
    assert not LeadingAxes(features(100)).pays


@pytest.mark.parametrize(("b", "h", "w"), [(1, 32, 32), (8, 32, 32), (3, 5, 9), (200, 2, 3)])
def test_tiles_hold_every_position_once_and_lie_together(b: int, h: int, w: int) -> None:
    order = tiled(b, h, w)
    assert order.sort().values.tolist() == list(range(b * h * w))
    block = order[:BLOCK]
    assert (block % (h * w) // w).max() <= max(1, round((BLOCK / b) ** 0.5))


def test_memory_bank_uses_it_and_a_second_fit_forgets_it() -> None:
    first, second, fresh = (
        rearrange(features(n * 100, seed=seed), "(b h w) d -> b d h w", h=10, w=10) for seed, n in enumerate((8, 8, 2))
    )
    config = MemoryBankConfig(ratio=0.5)
    head = config.build(64).fit([first], 0)
    plain = MemoryBankConfig(ratio=0.5, neighbours=2).build(64)
    for values in (first, second):
        head.fit([values], 0)
        plain.bank_ = head.bank_
        nearest = plain._search(fresh)[0][..., 0]
        torch.testing.assert_close(head.anomaly_map(fresh), nearest)
        assert head.leading is not None
        assert head.leading.pays
    assert "leading" not in " ".join(head.state_dict())
