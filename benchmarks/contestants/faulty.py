"""The work of failures.py: the CNN of steady.py, without an end, on two workers that write down what they do."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import steady
import torch

from paceline.grid import Grid

WORKERS = 2
work = steady.WORKLOADS["cnn"]
loss = steady.loss


class StepLog:
    """A process's steps, a JSON line for each, in FOLDER/PID.steps; it exists from the moment this is made."""

    def __init__(self, folder: Path) -> None:
        self._file = (folder / f"{os.getpid()}.steps").open("a")
        self._started = time.time()

    def begin(self) -> None:
        self._started = time.time()

    def end(self, step: int, samples: int, loss: float | None = None) -> None:
        """A step is done. step: how many the model has taken; samples: how many it has consumed."""
        now = time.time()
        line = {"at": now, "started": self._started, "step": step, "samples": samples, "loss": loss}
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()


class LoggedAdamW(torch.optim.AdamW):
    """The optimizer of steady.py for a loop that is not ours: it writes down each step that it takes."""

    def __init__(self, params: Iterable[Any], folder: str) -> None:
        super().__init__(params, **steady.optimizer.keywords)
        self._log = StepLog(Path(folder))
        # a step torn by a kill and computed anew is one of after the kill: so each microbatch's gradient is a beginning
        self.param_groups[0]["params"][0].register_hook(lambda _: self._log.begin())

    def step(self, closure: Any = None) -> None:
        super().step(closure)
        taken = int(next(iter(self.state.values()))["step"])  # copied with the state, as the model is
        self._log.end(taken, taken * work.batch)


def grid_of(x: torch.Tensor) -> Grid:
    """Each batch in one part for each worker."""
    return Grid(len(x), work.batch, WORKERS, drop_last=True, seed=0)


def train(
    wrapped: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    rank: int,
    done: int,
    folder: Path,
    after_step: Callable[[int], None],
) -> None:
    """What a DDP peer's worker does, without end. done: the steps already in the model."""
    x, y = work.data()
    grid, log = grid_of(x), StepLog(folder)
    while True:
        log.begin()
        index = torch.from_numpy(grid.cell_samples(done, rank))
        step_loss = loss(wrapped(x[index]), y[index])
        step_loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        done += 1
        log.end(done, done * work.batch, step_loss.item())
        after_step(done)


def save(path: Path, **state: Any) -> None:
    """A kill in the middle must leave the checkpoint before it whole."""
    beside = path.with_suffix(".new")
    torch.save(state, beside)
    beside.replace(path)
