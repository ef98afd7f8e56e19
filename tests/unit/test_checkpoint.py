"""Training state through a file: the same values, in the same layout in memory."""

from __future__ import annotations

import copy
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from paceline.training.checkpoint import Snapshot, load_training, save_tensors


def trained(model: torch.nn.Module, optimizer: torch.optim.Optimizer, steps: int) -> None:
    torch.manual_seed(steps)
    for _ in range(steps):
        optimizer.zero_grad()
        model(torch.randn(4, 5, 8, 8)).square().mean().backward()
        optimizer.step()


@pytest.mark.parametrize(
    "make", [partial(torch.optim.SGD, lr=0.1, momentum=0.9), partial(torch.optim.AdamW, lr=0.01)], ids=["sgd", "adamw"]
)
def test_a_channels_last_model_goes_on_from_a_checkpoint_with_the_bits_and_strides_that_it_would_have_had(
    make: Any, tmp_path: Path
) -> None:
    model = torch.nn.Conv2d(5, 7, 3).to(memory_format=torch.channels_last)
    fresh = copy.deepcopy(model)
    optimizer, again = make(model.parameters()), make(fresh.parameters())
    trained(model, optimizer, 3)
    tensors, metadata = Snapshot().take(model, optimizer, None)
    save_tensors(tensors, tmp_path / "file", metadata)
    load_training(tmp_path / "file", fresh, again)
    for mine, theirs in zip(model.parameters(), fresh.parameters(), strict=True):
        assert theirs.stride() == mine.stride()
        for key, value in optimizer.state[mine].items():
            loaded = again.state[theirs][key]
            assert torch.equal(torch.as_tensor(loaded), torch.as_tensor(value))
            assert not isinstance(value, torch.Tensor) or loaded.stride() == value.stride()
    trained(model, optimizer, 2)
    trained(fresh, again, 2)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), fresh.parameters(), strict=True))


def test_a_snapshot_lies_in_the_memory_of_the_one_before_and_holds_the_values_of_its_moment() -> None:
    model = torch.nn.Linear(6, 3)
    optimizer = torch.optim.AdamW(model.parameters())
    snapshot, states = Snapshot(), []
    for steps in (1, 2):
        for _ in range(steps):
            model(torch.ones(2, 6)).sum().backward()
            optimizer.step()
        tensors, _ = snapshot.take(model, optimizer, None)
        torch.nn.init.zeros_(model.bias)
        states.append({name: (value.data_ptr(), value.clone()) for name, value in tensors.items()})
    first, second = states
    assert {name: at for name, (at, _) in first.items()} == {name: at for name, (at, _) in second.items()}
    assert second["model/bias"][1].abs().min() > 0
    assert float(second["optim/0/step"][1]) == 3.0


def test_a_file_that_can_not_be_written_is_the_systems_error_and_not_the_users(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        save_tensors({"a": torch.zeros(1)}, tmp_path / "missing" / "file")
