"""Activations computed again in backward: another memory, the same losses."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import pytest
import torch
import torch.distributed as dist
from torch.distributed import TCPStore

from paceline.messages.to_worker import Group
from paceline.plan import Sharding
from paceline.planner.sharded import UNITS_AT_ONCE
from paceline.training.footprint import LiveBytes, footprint
from paceline.training.monitor import Monitor
from paceline.training.program import assemble, build_model
from paceline.training.seeds import seed_microbatch
from paceline.training.sharded.group import ShardGroup
from paceline.training.sharded.materialise import shard, skeleton

SEED = 3
UNITS, WIDTH, SAMPLES = 16, 256, 2048


def deep() -> torch.nn.Module:
    """Units of a quarter of a MiB each, with dropout, whose random numbers are drawn twice where it is recomputed."""
    block = [
        torch.nn.Sequential(torch.nn.Linear(WIDTH, WIDTH), torch.nn.Dropout(0.1), torch.nn.Tanh()) for _ in range(UNITS)
    ]
    return torch.nn.Sequential(*block, torch.nn.Linear(WIDTH, 1))


@pytest.fixture
def alone() -> Iterator[ShardGroup]:
    """A group of one."""
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    told = Group(key="only", host="127.0.0.1", port=store.port, members=(0,), shares=((0, 1),))
    yield ShardGroup(told, 0, torch.device("cpu"), Monitor())
    dist.destroy_process_group()


def to_mean(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return (outputs - targets).square().mean()


def inputs() -> torch.Tensor:
    return torch.randn(SAMPLES, WIDTH, generator=torch.Generator().manual_seed(0))


def trained(group: ShardGroup, sharding: Sharding) -> tuple[list[float], int]:
    """(losses, the most bytes that a pass made)."""
    model = skeleton(deep, SEED)
    shard(model, group, SEED, sharding)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    samples = inputs()
    losses, most = [], 0
    for step in range(3):
        seed_microbatch(SEED, step, 0, group.device)
        with LiveBytes() as live:
            loss = to_mean(model(samples), samples.mean(1, keepdim=True))
            loss.backward()
        most = max(most, live.most)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    return losses, most


@pytest.mark.slow
def test_recomputed_activations_change_no_loss_and_take_less_memory(alone: ShardGroup) -> None:
    kept, kept_bytes = trained(alone, Sharding(microbatches=1))
    again, again_bytes = trained(alone, Sharding(microbatches=1, recompute=True))
    assert again == pytest.approx(kept, rel=1e-5)
    assert again[0] != again[-1]
    inside = SAMPLES * WIDTH * 4  # of a unit: dropout's factors; its input, the output of the one before, is kept
    assert kept_bytes - again_bytes >= (UNITS - 2) * inside  # the one being computed has its own, and outputs beside


@pytest.mark.slow
def test_what_an_unsharded_pass_takes_foretells_a_sharded_one_with_and_without_recomputing(alone: ShardGroup) -> None:
    fields = {
        "loss": to_mean, "training_step": None, "metrics": {}, "lr_schedule": None,
        "optimizer": partial(torch.optim.SGD, lr=0.1),
    }  # fmt: skip
    program = assemble(build_model(deep, SEED), fields, torch.device("cpu"), "fp32")
    samples = inputs()
    found = footprint(program, (samples, samples.mean(1, keepdim=True)))
    beside = found.gradients + UNITS_AT_ONCE * 4 * WIDTH * WIDTH  # of one worker, whose part is the whole
    for again, activations in ((False, found.activations), (True, found.recomputed)):
        _, most = trained(alone, Sharding(microbatches=1, recompute=again))
        assert most == pytest.approx(activations + beside, rel=0.15)
    assert found.recomputed < 2 / 3 * found.activations
