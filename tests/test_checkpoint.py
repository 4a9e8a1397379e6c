"""Checkpoints of a training: what is broken is refused in words, and nothing broken is kept."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from manyeyes.checkpoint import load_checkpoint, save_checkpoint
from manyeyes.errors import DataError, RunError


def learning(width: int = 3) -> tuple[nn.Linear, torch.optim.Optimizer]:
    network = nn.Linear(2, width)
    optimiser = torch.optim.Adam(network.parameters())
    network(torch.ones(1, 2)).sum().backward()
    optimiser.step()
    return network, optimiser


def test_a_network_that_was_spoilt_is_not_kept_and_the_last_good_one_is(tmp_path: Path) -> None:
    path, (network, optimiser) = tmp_path / "checkpoint", learning()
    save_checkpoint(path, 1, "mine", {"network": network}, optimiser)
    good = network.weight.detach().clone()
    with torch.no_grad():
        network.weight[0, 0] = float("nan")
    with pytest.raises(DataError, match=r"diverged: network\.weight is not finite at step 2, .*lower learning_rate"):
        save_checkpoint(path, 2, "mine", {"network": network}, optimiser)
    found = load_checkpoint(path, "mine", {"network": network}, optimiser)
    assert found is not None
    assert found[0] == 1
    assert torch.equal(network.weight, good)


def test_one_of_another_network_or_training_is_refused_in_words(tmp_path: Path) -> None:
    path, (network, optimiser) = tmp_path / "checkpoint", learning()
    save_checkpoint(path, 1, "mine", {"network": network}, optimiser)
    other, others = learning(width=4)
    with pytest.raises(RunError, match="holds another network, of another version; delete it and train again"):
        load_checkpoint(path, "mine", {"network": other}, others)
    with pytest.raises(RunError, match="belongs to another training"):
        load_checkpoint(path, "theirs", {"network": network}, optimiser)
    assert load_checkpoint(tmp_path / "none", "mine", {"network": network}, optimiser) is None
