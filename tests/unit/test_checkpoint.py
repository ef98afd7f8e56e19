"""Training state through a file: the same values, in the same layout in memory."""

from __future__ import annotations

import copy
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from paceline.training.checkpoint import load_training, save_training, training_tensors


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
    save_training(*training_tensors(model, optimizer, None), tmp_path / "file")
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
