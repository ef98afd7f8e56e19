"""The workers of a round, and the exchanges that exact training needs."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from paceline.messages.to_worker import Group
from paceline.training.monitor import Monitor
from paceline.training.reduction import root_sum
from paceline.tree import Block, blocks

EXCHANGE_BOUND_S = 600.0
CONNECT_BOUND_S = 30.0
POLL = timedelta(seconds=0.1)


class LostPeer(Exception):
    """An exchange failed: another worker is gone, or the master has given the group up."""


@contextmanager
def _peers_may_fail() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:  # what torch.distributed raises for a broken or late connection
        raise LostPeer(str(error)) from error


class WorkerGroup:
    """This worker's place among those that share each step's cells. Every wait ends when the group is given up.

    The process group is our own, not torch's default one: user code that looks for that (torchmetrics, SyncBatchNorm)
    finds none, and does not wait for workers that do something else.
    """

    def __init__(
        self,
        group: Group,
        rank: int,
        device: torch.device,
        monitor: Monitor,
        given_up: threading.Event,
    ) -> None:
        self.key = group.key
        self.members = group.members
        self.shares = group.shares
        self.place = group.members.index(rank)
        self.world = len(group.members)
        self.device = device if device.type == "cuda" else torch.device("cpu")  # what the exchanges work on
        self._monitor = monitor
        self._given_up = given_up
        if self.world == 1:
            return
        with self._exchange():
            self._forming(lambda: _process_group(group, self))

    def _forming(self, make: Callable[[], Any]) -> None:
        """Connect in a thread: connecting waits for all members, and one of them may die before it comes."""
        made: list[Any] = []

        def run() -> None:
            try:
                made.append(make())
            except RuntimeError as error:
                made.append(error)

        thread = threading.Thread(target=run, name="forming", daemon=True)
        thread.start()
        while thread.is_alive():
            thread.join(POLL.total_seconds())
            if self._given_up.is_set():
                raise LostPeer("the group was given up while it formed")
        if isinstance(made[0], RuntimeError):
            raise made[0]
        self.peers = made[0]

    @contextmanager
    def _exchange(self) -> Iterator[None]:
        with self._monitor.doing("exchange"), _peers_may_fail():
            yield

    def wait(self, work: Any) -> None:
        """Wait for a collective, but no longer than the master believes in its members. Raises LostPeer."""
        with self._exchange():
            self._wait(work)

    def _wait(self, work: Any) -> None:
        deadline = time.monotonic() + EXCHANGE_BOUND_S
        while True:
            try:
                work.wait(POLL)
                return
            except RuntimeError:
                if work.is_completed():
                    work.wait()  # raises what it failed of; it may also have succeeded just after this wait was late
                    return
                if time.monotonic() > deadline:
                    raise
                if self._given_up.is_set():
                    raise LostPeer("the master gave the group up") from None

    def broadcast(self, data: bytes | None, source: int) -> bytes:
        """The source rank's bytes, on every member; `data` is read there only."""
        root = self.members.index(source)
        options = dist.BroadcastOptions()
        options.rootRank = root
        length = torch.tensor([len(data or b"")], dtype=torch.int64, device=self.device)
        with self._exchange():
            self._wait(self.peers.broadcast([length], options))
            sent = torch.frombuffer(bytearray(data or bytes(int(length))), dtype=torch.uint8).to(self.device)
            self._wait(self.peers.broadcast([sent], options))
        return sent.cpu().numpy().tobytes()


class PendingSum:
    """A sum of the workers' partial sums along the grid's tree, under way; all workers begin theirs in one order.

    partials: one row for each tree node of this worker's share, shape (nodes, length); `world` divides the length.
    Each worker joins one slice of the vectors and shares it: two exchanges, with the traffic of a ring all-reduce where
    every share is one tree node.
    """

    def __init__(
        self, workers: WorkerGroup, partials: torch.Tensor, shares: Sequence[tuple[int, int]], num_cells: int
    ) -> None:
        self._workers, self._num_cells = workers, num_cells
        world, slice_len = workers.world, partials.shape[1] // workers.world
        self._nodes: list[list[Block]] = [list(blocks(first, end, num_cells)) for first, end in shares]
        outgoing = partials.view(-1, world, slice_len).transpose(0, 1).contiguous().view(-1)
        received = [len(nodes) * slice_len for nodes in self._nodes]
        self._incoming = partials.new_empty(sum(received))
        self._total = partials.new_empty(partials.shape[1])
        with _peers_may_fail():
            self._work = workers.peers.alltoall_base(
                self._incoming, outgoing, received, [len(partials) * slice_len] * world
            )

    def join(self) -> None:
        """Wait for everyone's part of this worker's slice, add them up, and begin to share the sum."""
        self._workers.wait(self._work)
        slices = iter(self._incoming.view(-1, len(self._total) // self._workers.world))
        by_node = {node: next(slices) for nodes in self._nodes for node in nodes}
        mine = root_sum(by_node, self._num_cells, lambda into, other: into.add_(other))
        with _peers_may_fail():
            self._work = self._workers.peers._allgather_base(self._total, mine.contiguous())

    def total(self) -> torch.Tensor:
        """The same bits on every worker, shape (length,); call once `join` has returned."""
        self._workers.wait(self._work)
        return self._total


class PendingRows:
    """All workers' rows, under way. rows: this one's, float64 on the CPU, shape (counts[place], width)."""

    def __init__(self, workers: WorkerGroup, rows: torch.Tensor, counts: Sequence[int]) -> None:
        self._workers, self._rows, self._counts = workers, rows, counts
        if workers.world == 1:
            return
        padded = torch.zeros(max(counts), rows.shape[1], dtype=torch.float64, device=workers.device)
        padded[: len(rows)] = rows
        self._everyone = padded.new_empty(workers.world * len(padded), rows.shape[1])
        with _peers_may_fail():
            self._work = workers.peers._allgather_base(self._everyone, padded)

    def all(self) -> torch.Tensor:
        """In the workers' order."""
        if self._workers.world == 1:
            return self._rows
        self._workers.wait(self._work)
        parts = self._everyone.chunk(self._workers.world)
        return torch.cat([rows[:count] for rows, count in zip(parts, self._counts, strict=True)]).cpu()


def _process_group(group: Group, mine: WorkerGroup) -> Any:
    """NCCL between GPUs, gloo otherwise, over the first member's store.

    Each forming has a connection of its own to it, the first member's too: one that was given up may still wait in
    its connection, and would hold up the next.
    """
    own = dist.TCPStore(group.host, group.port, is_master=False, timeout=timedelta(seconds=CONNECT_BOUND_S))
    store, bound = dist.PrefixStore(group.key, own), timedelta(seconds=EXCHANGE_BOUND_S)
    if mine.device.type == "cuda":
        options = dist.ProcessGroupNCCL.Options()
        options._timeout = bound
        return dist.ProcessGroupNCCL(store, mine.place, mine.world, options)
    return dist.ProcessGroupGloo(store, mine.place, mine.world, bound)
