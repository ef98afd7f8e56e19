"""The work of startup.py: one small model, ten steps. Every contestant takes model, data and order from here."""

from __future__ import annotations

import contextlib
from functools import partial

import torch
from torch.nn.functional import cross_entropy

from paceline.grid import Grid
from paceline.shares import split_evenly

STEPS, BATCH, MICROBATCHES = 10, 64, 8

optimizer = partial(torch.optim.AdamW, lr=3e-3)
loss = cross_entropy


def data(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """6,400 rows of 64 numbers in ten classes; a seed of its own for each submission, so that none is cached."""
    x = torch.randn(6400, 64, generator=torch.Generator().manual_seed(seed))
    return x, x[:, :10].argmax(1)


def model() -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(64, 128), torch.nn.ReLU(), torch.nn.Linear(128, 10))


def train(net: torch.nn.Module, seed: int, rank: int, world: int) -> None:
    """What a peer's worker does: ordinary data-parallel training with gradient accumulation over its microbatches.

    net: wrapped for `world` workers, or plain where there is one.
    """
    torch.set_num_threads(1)
    x, y = data(seed)
    grid = Grid(len(x), BATCH, MICROBATCHES, drop_last=False, seed=0)
    steps = optimizer(net.named_parameters())
    first, end = split_evenly(MICROBATCHES, world)[rank]
    for step in range(STEPS):
        for cell in range(first, end):
            index = torch.from_numpy(grid.cell_samples(step, cell))
            share = world * len(index) / grid.batch_len(step)  # the wrapper averages over the workers
            syncs = cell == end - 1 or not hasattr(net, "no_sync")
            with contextlib.nullcontext() if syncs else net.no_sync():
                (loss(net(x[index]), y[index]) * share).backward()
        steps.step()
        steps.zero_grad()


def loss_of(state: dict[str, torch.Tensor], seed: int) -> float:
    """Of a delivered model, on all its data."""
    net = model()
    net.load_state_dict(state)
    x, y = data(seed)
    with torch.no_grad():
        return float(loss(net(x), y))
