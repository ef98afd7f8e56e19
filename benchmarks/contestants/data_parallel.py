"""What each rank of a peer does in throughput.py: an ordinary loop, its part of the grid's batch in one pass."""

from __future__ import annotations

import time

import steady
import torch
import torch.distributed as dist
from torch import nn
from traffic import loopback_bytes

from paceline.grid import Grid


def train(work: steady.Workload, model: nn.Module, rank: int, world: int, steps: int) -> dict[str, float]:
    """`{samples_per_s, mean_loss, bytes_per_step}`, the same on every rank; rate and bytes without the warm-up.

    model: wrapped already, where there is more than one rank.
    """
    x, y = work.data()
    optimizer = steady.optimizer(model.parameters())
    grid = Grid(len(x), work.batch, world, drop_last=True, seed=0)
    started, before, losses = time.perf_counter(), 0, []
    for step in range(steps):
        if step == steady.WARM_UP_STEPS:
            started, before = time.perf_counter(), loopback_bytes()
        index = torch.from_numpy(grid.cell_samples(step, rank))
        loss = steady.loss(model(x[index]), y[index])
        loss.backward()
        losses.append(loss.item() * len(index))
        optimizer.step()
        optimizer.zero_grad()
    seconds, sent = time.perf_counter() - started, loopback_bytes() - before
    total = torch.tensor([sum(losses)])
    if world > 1:
        dist.all_reduce(total)
    measured = steps - steady.WARM_UP_STEPS
    return {
        "samples_per_s": measured * work.batch / seconds,
        "mean_loss": total.item() / (steps * work.batch),
        "bytes_per_step": sent / measured,
    }
