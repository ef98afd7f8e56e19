"""The members of a sharded attempt, and the collectives between them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor

from paceline.messages.to_worker import Group
from paceline.training.group import CONNECT_BOUND_S, EXCHANGE_BOUND_S, LostPeer
from paceline.training.monitor import Monitor

_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor  # their names before torch 2.13
_scatter = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor


class ShardGroup:
    """This worker's place among those that hold one shard each. It lasts as long as the attempt.

    Unlike exact training's, it is torch's default process group: FSDP's mesh asks for that one. A lost member ends the
    attempt, so that no wait needs to end before this process does.
    """

    def __init__(self, group: Group, rank: int, device: torch.device, monitor: Monitor) -> None:
        self.key = group.key
        self.shares = group.shares
        self.place = group.members.index(rank)
        self.world = len(group.members)
        self.device = device
        self._monitor = monitor
        if device.type == "cuda":
            torch.cuda.set_device(device)  # FSDP asks for the current one
        with self.exchange():
            own = dist.TCPStore(group.host, group.port, is_master=False, timeout=timedelta(seconds=CONNECT_BOUND_S))
            dist.init_process_group(
                "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo",
                store=dist.PrefixStore(group.key, own),
                rank=self.place,
                world_size=self.world,
                timeout=timedelta(seconds=EXCHANGE_BOUND_S),
            )
            self.mesh = DeviceMesh(device.type, list(range(self.world)))
            self.beside: Any = dist.new_group(backend="gloo")  # for checkpoints, which go on beside the training

    @contextmanager
    def exchange(self) -> Iterator[None]:
        """Whatever collective fails inside the block means a lost member. Raises LostPeer."""
        with self._monitor.doing("exchange"):
            try:
                yield
            except RuntimeError as error:
                raise LostPeer(str(error)) from error

    def add_up(self, values: torch.Tensor) -> torch.Tensor:
        """The sum over all members, on the CPU; values: of the same shape on each, changed in place."""
        moved = values.to(self.device)
        with self.exchange():
            dist.all_reduce(moved)
        return moved.cpu()

    def whole(self, tensor: torch.Tensor) -> torch.Tensor:
        """A sharded tensor, gathered: all members have to ask for it. Any other one as it is."""
        if not isinstance(tensor, DTensor):
            return tensor
        with self.exchange():
            return tensor.full_tensor()

    def everyones(self, mine: Any) -> Sequence[Any]:
        """What each member gave, by place; beside the training."""
        given: list[Any] = [None] * self.world
        try:
            dist.all_gather_object(given, mine, group=self.beside)
        except RuntimeError as error:
            raise LostPeer(str(error)) from error
        return given


class _Collective:
    """How FSDP is to allocate what it sends and receives."""

    def __init__(self, group: ShardGroup) -> None:
        self._group = group

    def allocate(self, size: Sequence[int], *, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
        return torch.empty(*size, dtype=dtype, device=device)


class _Waiting(dist.Work):
    """An exchange under way, whose failure is a lost member and whose end is waited for as an exchange."""

    def __init__(self, work: dist.Work, group: ShardGroup) -> None:
        super().__init__()
        self._work, self._group = work, group

    def wait(self, *timeout: Any) -> bool:
        with self._group.exchange():
            return bool(self._work.wait(*timeout))


class GatherUnit(_Collective):
    """FSDP's all-gather of one unit's parameters, whose failure is a lost member and whose time is waiting."""

    def __call__(
        self, output_tensor: torch.Tensor, input_tensor: torch.Tensor, group: Any, async_op: bool = False
    ) -> Any:
        with self._group.exchange():
            work = _gather(output_tensor, input_tensor, group=group, async_op=async_op)
        return work and _Waiting(work, self._group)


class ScatterGradients(_Collective):
    """FSDP's reduce-scatter of one unit's gradients."""

    def __call__(
        self, output_tensor: torch.Tensor, input_tensor: torch.Tensor, group: Any, op: Any, async_op: bool = False
    ) -> Any:
        with self._group.exchange():
            return _scatter(output_tensor, input_tensor, op=op, group=group, async_op=async_op)
