"""Fitted modules: tensors of any size come back from a state, and nothing is used before it was fitted."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from manyeyes.errors import NotFittedError
from manyeyes.fitted import Fitted


class Mean(Fitted):
    mean_: Tensor
    count_: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.declare("mean_", "count_")

    def fit(self, values: Tensor) -> Mean:
        self.mean_, self.count_ = values.mean(0), torch.tensor(len(values))
        return self


def test_a_fitted_state_of_any_size_is_loaded_into_a_fresh_module() -> None:
    fitted = nn.Sequential(Mean().fit(torch.rand(5, 3)), Mean().fit(torch.rand(2, 7, dtype=torch.float64)))
    fresh = nn.Sequential(Mean(), Mean())
    fresh.load_state_dict(fitted.state_dict())
    for (name, mine), yours in zip(fresh.named_buffers(), fitted.buffers(), strict=True):
        assert torch.equal(mine, yours), name
        assert mine.dtype == yours.dtype
        assert mine.data_ptr() != yours.data_ptr()
    fresh.load_state_dict(nn.Sequential(Mean().fit(torch.rand(5, 4)), Mean().fit(torch.rand(2, 1))).state_dict())
    assert fresh[0].mean_.shape == (4,)


def test_before_fit_nothing_is_saved_and_use_is_refused() -> None:
    module = Mean()
    assert not module.is_fitted
    assert not module.state_dict()
    with pytest.raises(NotFittedError, match=r"Mean was used before fit; call fit or load"):
        module.require_fit()
    module.mean_ = torch.zeros(3)
    assert not module.is_fitted, "half fitted"
    module.fit(torch.zeros(2, 3)).require_fit()


def test_a_state_of_another_module_is_refused() -> None:
    with pytest.raises(RuntimeError, match="Unexpected key"):
        Mean().load_state_dict({"median_": torch.zeros(3)})


def test_a_fitted_tensor_is_named_with_an_underscore() -> None:
    with pytest.raises(ValueError, match="'mean' must end in an underscore"):
        Mean().declare("mean")
