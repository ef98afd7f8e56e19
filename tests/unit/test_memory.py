"""A worker's memory limit, and the count of what a model takes: by real tensors and by fake ones."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch

from paceline.training.footprint import fake_footprint, footprint, live_sums
from paceline.training.gradients import CellAccumulator
from paceline.training.memory import MemoryLimit, out_of_memory, own_bytes
from paceline.training.program import build

from builders import options
from workloads import Cnn, Transformer, mlp

MIB = 2**20
BOUND_S = 30


def in_a_fork(act: Callable[[], int]) -> int:
    """The exit code of a process that does this."""
    child = os.fork()
    if child == 0:
        signal.alarm(BOUND_S)
        torch.set_num_threads(1)  # a fork has none of its parent's threads, which a parallel sum would wait for
        try:
            os._exit(act())
        finally:
            os._exit(99)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@pytest.mark.parametrize("take", [lambda: torch.ones(500 * MIB), lambda: np.ones(500 * MIB), lambda: bytes(500 * MIB)])
def test_an_allocation_far_over_the_limit_raises_and_the_process_goes_on(take: Callable[[], Any]) -> None:
    def act() -> int:
        with MemoryLimit(64 * MIB, 0, lambda _: os._exit(50)) as memory:
            try:
                take()
            except (MemoryError, RuntimeError) as error:
                return 7 if out_of_memory(error) and memory.sample() < 64 * MIB else 51
        return 52

    assert in_a_fork(act) == 7


def test_a_process_that_grows_little_by_little_is_told_before_the_kernel_would_end_it() -> None:
    def act() -> int:
        kept: list[torch.Tensor] = []  # the first ones may lie in what earlier tests freed, which is no growth
        with MemoryLimit(64 * MIB, 0, lambda growth: os._exit(7 if 64 * MIB < growth < 128 * MIB else 50)):
            while len(kept) < 1000:
                kept.append(torch.ones(MIB // 4))
                torch.ones(10 * MIB // 4).sum()
        return 51

    assert in_a_fork(act) == 7


def test_the_most_that_was_taken_is_known_after_it_is_given_back() -> None:
    def act() -> int:
        with MemoryLimit(400 * MIB, 0, lambda _: os._exit(50)) as memory:
            taken = torch.ones(100 * MIB // 4)
            memory.sample()
            del taken
        after = torch.ones(600 * MIB // 4)  # the limit is over
        return 7 if 95 * MIB < memory.most < 110 * MIB and own_bytes() > 600 * MIB and len(after) else 51

    assert in_a_fork(act) == 7


def fields(model: Any, **changes: Any) -> dict[str, Any]:
    usual = {
        "model": model, "loss": torch.nn.functional.cross_entropy, "training_step": None, "metrics": {},
        "optimizer": partial(torch.optim.AdamW, lr=1e-3), "lr_schedule": None,
    }  # fmt: skip
    return {**usual, **changes}


BATCH = (torch.randn(16, 64), torch.zeros(16, dtype=torch.long))


@pytest.mark.parametrize(
    "model", [mlp(), Cnn(), Transformer(), Transformer], ids=["mlp", "cnn", "transformer", "built"]
)
@pytest.mark.parametrize("precision", ["fp32", "bf16-mixed"])
def test_fake_tensors_take_what_real_ones_take_and_nothing_of_them_stays(model: Any, precision: str) -> None:
    before = own_bytes()
    faked = fake_footprint(fields(model), BATCH, options(precision=precision))
    assert own_bytes() - before < 4 * MIB
    real = footprint(build(fields(model), 0, torch.device("cpu"), precision), BATCH)
    assert faked is not None
    assert (faked.model, faked.gradients, faked.optimizer) == (real.model, real.gradients, real.optimizer)
    assert faked.activations == pytest.approx(real.activations, rel=0.15)


def test_a_footprint_is_the_sum_of_its_tensors() -> None:
    net = torch.nn.Linear(64, 10, bias=False)
    found = footprint(
        build(fields(net, optimizer=partial(torch.optim.SGD, lr=1.0, momentum=0.9)), 0, torch.device("cpu"), "fp32"),
        BATCH,
    )
    assert (found.model, found.gradients, found.optimizer) == (2560, 2560, 2560)
    weights, logits = 2560, 640  # of both, the gradients live at once, and the loss
    assert weights + logits < found.activations < weights + logits + 64


@pytest.mark.parametrize("cells", [1, 2, 3, 4, 5, 8, 13, 16])
def test_a_lone_worker_holds_as_many_sums_of_gradients_as_are_foretold(cells: int) -> None:
    parameter = torch.nn.Parameter(torch.zeros(3))
    sums, most = CellAccumulator([parameter], (0, cells), cells), 0
    for cell in range(cells):
        parameter.grad = torch.ones(3)
        most = max(most, len(sums.partials()) + 1)
        sums.cell_done(cell)
    assert most == live_sums(cells)


def test_code_that_fake_tensors_do_not_run_gives_no_footprint_and_no_error() -> None:
    class Looks(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = torch.nn.Linear(64, 10)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(x) * float(x.sum())

    assert fake_footprint(fields(Looks()), BATCH, options()) is None
