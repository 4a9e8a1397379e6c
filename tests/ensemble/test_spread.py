"""The two matrix products equal the plain resize and convolution."""

import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from manyeyes.ensemble.spread import REACH, spread


def plain(maps: torch.Tensor, canvas: tuple[int, int], sigma: float) -> torch.Tensor:
    resized = F.interpolate(maps[:, None], size=canvas, mode="bilinear", align_corners=False)
    if sigma == 0:
        return resized[:, 0]
    reach = max(1, round(REACH * sigma))
    kernel = torch.exp(-0.5 * (torch.arange(-reach, reach + 1, dtype=maps.dtype) / sigma).square())
    square = torch.outer(kernel, kernel) / kernel.sum() ** 2
    return F.conv2d(F.pad(resized, (reach,) * 4, mode="replicate"), square[None, None])[:, 0]


@settings(max_examples=25, deadline=None)
@given(
    grid=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    canvas=st.tuples(st.integers(9, 40), st.integers(9, 40)),
    sigma=st.sampled_from([0.0, 0.3, 1.5, 4.0]),
)
def test_spread_equals_interpolation_and_convolution(
    grid: tuple[int, int], canvas: tuple[int, int], sigma: float
) -> None:
    maps = torch.randn(2, *grid, dtype=torch.float64)
    torch.testing.assert_close(spread(maps, canvas, sigma), plain(maps, canvas, sigma), atol=1e-10, rtol=1e-10)


def test_a_constant_map_stays_constant() -> None:
    torch.testing.assert_close(spread(torch.full((1, 4, 5), 3.0), (32, 48), 2.0), torch.full((1, 32, 48), 3.0))
