import pytest
import torch
from einops import rearrange
from hypothesis import given, settings
from hypothesis import strategies as st

from manyeyes.errors import DataError, ShapeError
from manyeyes.heads import draw_positions, sample_positions


def numbered(images: int, h: int = 3, w: int = 2) -> torch.Tensor:
    """Embeddings whose first channel is the number of the position in the stream, and second that of the image."""
    order = torch.arange(images * h * w).float()
    return rearrange(torch.stack([order, order // (h * w)]), "d (b h w) -> b d h w", h=h, w=w)


def test_all_positions_in_order_where_they_are_few():
    values = torch.randn(5, 7, 3, 2)
    rows = sample_positions(values.split(2), limit=30, seed=0)
    assert torch.equal(rows, rearrange(values, "b d h w -> (b h w) d"))


@settings(max_examples=40, deadline=None)
@given(images=st.integers(1, 9), limit=st.integers(1, 60), size=st.integers(1, 9), seed=st.integers(0, 99))
def test_sample_is_distinct_ordered_and_independent_of_batches(images, limit, size, seed):
    values = numbered(images)
    drawn = draw_positions(values.split(size), limit, seed)
    order = drawn.values[:, 0]
    assert len(order) == min(limit, images * 6)
    assert (order.diff() > 0).all()
    assert drawn.seen == images * 6
    assert torch.equal(drawn.values, sample_positions([values], limit, seed))


def test_every_position_is_drawn_equally_often():
    values = numbered(5)
    counts = torch.zeros(30)
    for seed in range(600):
        counts[sample_positions(values.split(2), 10, seed)[:, 0].long()] += 1
    # 600 draws of probability 1/3: standard deviation 11.5.
    assert (counts - 200).abs().max() < 50


def test_seeds_differ():
    values = numbered(9)
    assert not torch.equal(sample_positions([values], 9, 0), sample_positions([values], 9, 1))


def test_grids_may_differ_between_batches():
    small, large = numbered(2), numbered(2, 4, 5)
    drawn = draw_positions([small, large], 1000, 0)
    assert drawn.values[:, 1].tolist() == [0] * 6 + [1] * 6 + [0] * 20 + [1] * 20


def test_a_limit_beyond_all_memory_takes_what_is_there():
    values = numbered(4)
    assert torch.equal(sample_positions(values.split(1), 10**13, 0)[:, 0], torch.arange(24.0))


def test_sample_shares_no_memory_with_the_stream_and_is_float32():
    values = numbered(3).half()
    rows = sample_positions([values], 100, 0)
    values.zero_()
    assert rows.dtype == torch.float32
    assert rows[:, 0].tolist() == list(range(18))


def test_nothing_and_broken_values_are_refused():
    with pytest.raises(DataError, match="at least one normal image"):
        sample_positions([], 5, 0)
    with pytest.raises(DataError, match="at least one normal image"):
        sample_positions([torch.zeros(0, 2, 3, 3)], 5, 0)
    with pytest.raises(DataError, match="limit"):
        sample_positions([numbered(1)], 0, 0)
    broken = numbered(5)
    broken[3, 1, 2, 1] = torch.inf
    with pytest.raises(DataError, match="image 3"):
        sample_positions(broken.split(2), 5, 0)


def test_maps_of_another_width_are_refused():
    with pytest.raises(ShapeError, match=r"\(b, 2, h, w\)"):
        sample_positions([numbered(1), torch.zeros(1, 3, 2, 2)], 5, 0)
    with pytest.raises(ShapeError, match=r"\(b, d, h, w\)"):
        sample_positions([torch.zeros(4, 3)], 5, 0)
