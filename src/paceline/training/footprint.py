"""What a program takes in memory, counted tensor by tensor: real ones, or fake ones before anything is allocated.

Fake tensors have shapes and no data: the same forward, backward and update run on them in a process of their own, so
that nothing of it stays here, neither what user code kept nor what was imported.
"""

from __future__ import annotations

import copy
import json
import os
import select
import signal
import warnings
import weakref
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from paceline.spec import TrainOptions
from paceline.training.program import Program, assemble, build_model
from paceline.training.recompute import recomputed_units

FAKE_BOUND_S = 30.0
OVERHEAD_BYTES = 24 * 2**20  # of allocators, threads, and what the first step imports


@dataclass(frozen=True)
class Footprint:
    """Bytes. model: parameters and buffers. activations: the most that a microbatch adds for forward and backward.

    recomputed: the same where a sharded model's units compute them again in backward.
    """

    model: int
    gradients: int
    optimizer: int
    activations: int
    recomputed: int

    @property
    def state(self) -> int:
        return self.model + self.gradients + self.optimizer

    def growth(self, cells: int, keeps_best: bool) -> int:
        """What training alone adds to a worker: the state, a microbatch, partial sums, a checkpoint that is written."""
        best = self.model if keeps_best else 0
        sums = (live_sums(cells) - 1) * self.gradients
        copied = self.model + self.optimizer + best
        return self.state + self.activations + sums + best + copied + OVERHEAD_BYTES


def live_sums(cells: int) -> int:
    """Sets of gradients that a lone worker holds at once, at most: a pair's, and the tree nodes to its left."""
    return ((cells + 1) // 2).bit_length()


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of tensors that operations make inside the block; `most`: that lived at once."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.most = self._now = 0
        self._alive: dict[int, int] = {}  # by storage; 0 for those that were there before

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for storage in _storages((args, kwargs)):
            self._note(storage, 0)
        result = func(*args, **(kwargs or {}))
        for storage in _storages(result):
            self._note(storage, storage.nbytes())
        return result

    @property
    def now(self) -> int:
        return self._now

    def _note(self, storage: torch.UntypedStorage, nbytes: int) -> None:
        key = storage._cdata
        if key in self._alive:
            return
        self._alive[key] = nbytes
        weakref.finalize(storage, self._gone, key)
        self._now += nbytes
        self.most = max(self.most, self._now)

    def _gone(self, key: int) -> None:
        self._now -= self._alive.pop(key)


def _storages(values: Any) -> Iterable[torch.UntypedStorage]:
    strided = (t for t in tree_leaves(values) if isinstance(t, torch.Tensor) and t.layout is torch.strided)
    return (tensor.untyped_storage() for tensor in strided)


def footprint(program: Program, batch: Any) -> Footprint:
    """Run one microbatch and one update, and count. The gradients are there before, as in most microbatches."""
    program.model.train()
    for parameter in program.parameters:
        parameter.grad = torch.zeros_like(parameter)
    with LiveBytes() as live, _passes(program.model, live) as passes:
        program.cell_loss(batch).backward()
    program.optimizer.step()
    program.optimizer.zero_grad(set_to_none=True)
    return kept(program, live.most, _recomputed(live.most, passes))


@dataclass(frozen=True)
class Pass:
    """Bytes that a unit's forward leaves for backward: all of them, and its outputs, which are the next's inputs."""

    inside: int
    outputs: int


@contextmanager
def _passes(model: torch.nn.Module, live: LiveBytes) -> Iterator[list[Pass]]:
    """The forwards, inside the block, of the units that could be computed again."""
    found: list[Pass] = []
    entered: list[int] = []

    def leave(_module: torch.nn.Module, _inputs: Any, outputs: Any) -> None:
        inside = live.now - entered.pop()
        storages = {storage._cdata: storage.nbytes() for storage in _storages(outputs)}
        found.append(Pass(inside, min(inside, sum(storages.values()))))

    handles = []
    for unit in recomputed_units(model):
        handles.append(unit.register_forward_pre_hook(lambda *_: entered.append(live.now)))
        handles.append(unit.register_forward_hook(leave))
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def _recomputed(most: int, passes: Sequence[Pass]) -> int:
    """Of the most that a microbatch takes, what is left where units keep their inputs, and one at a time the rest."""
    inside = [each.inside for each in passes]
    return most - sum(inside) + sum(each.outputs for each in passes) + max(inside, default=0)


def kept(program: Program, activations: int, recomputed: int) -> Footprint:
    """The footprint of a program whose optimizer has done a step."""
    state = tree_leaves([list(entries.values()) for entries in program.optimizer.state.values()])
    return Footprint(
        model=sum(t.nbytes for t in [*program.model.parameters(), *program.model.buffers()]),
        gradients=sum(parameter.nbytes for parameter in program.parameters),
        optimizer=sum(t.nbytes for t in state if isinstance(t, torch.Tensor)),
        activations=activations,
        recomputed=recomputed,
    )


# ---- fake tensors ----


def fake_footprint(fields: dict[str, Any], batch: Any, options: TrainOptions) -> Footprint | None:
    """The footprint before anything real is allocated; None where the user's code does not run on fake tensors."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            warnings.simplefilter("ignore")  # of torch, about fake tensors: the job's log is its user's
            os.write(write, json.dumps(asdict(_faked(fields, batch, options))).encode())
        except BaseException as error:  # noqa: BLE001 - a fork must not return; what is wrong with the code is told later
            print(f"paceline: the model does not run on fake tensors: {error!r}")  # noqa: T201 - to the worker's log
        finally:
            os._exit(0)
    os.close(write)
    try:
        ready, _, _ = select.select([read], [], [], FAKE_BOUND_S)
        answer = os.read(read, 4096) if ready else b""
    finally:
        os.close(read)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    return Footprint(**json.loads(answer)) if answer else None


def _faked(fields: dict[str, Any], batch: Any, options: TrainOptions) -> Footprint:
    """On the CPU, whatever the job's device: a tensor takes the same there."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode(allow_non_fake_inputs=True):
        model = _copied(build_model(fields["model"], options.seed))
        return footprint(assemble(model, fields, torch.device("cpu"), options.precision), _cloned(batch))


def _copied(model: torch.nn.Module) -> torch.nn.Module:
    """The model with fake tensors in place of its own; those that are no parameters can't be copied by deepcopy."""
    held = [value for module in model.modules() for value in vars(module).values() if isinstance(value, torch.Tensor)]
    return copy.deepcopy(model, {id(tensor): tensor.detach().clone() for tensor in [*model.buffers(), *held]})


def _cloned(batch: Any) -> Any:
    """The batch in fake tensors."""
    if isinstance(batch, torch.Tensor):
        return batch.clone()
    if isinstance(batch, dict):
        return {key: _cloned(value) for key, value in batch.items()}
    if isinstance(batch, list | tuple):
        parts = [_cloned(part) for part in batch]
        return type(batch)(*parts) if hasattr(batch, "_fields") else type(batch)(parts)
    return batch
