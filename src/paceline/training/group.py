"""The workers of a round, and the two exchanges that exact training needs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from paceline.messages import Group
from paceline.training.reduction import Block, blocks, root_sum

COLLECTIVE_TIMEOUT_S = 120


class LostPeer(Exception):
    """A collective failed: another worker is gone, or too late."""


@contextmanager
def _peers() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:  # what torch.distributed raises for a broken or late connection
        raise LostPeer(str(error)) from error


def _process_group(store: dist.Store, rank: int, world: int, device: torch.device, timeout: timedelta) -> Any:
    """NCCL between GPUs, gloo otherwise."""
    if device.type == "cuda":
        options = dist.ProcessGroupNCCL.Options()
        options._timeout = timeout
        return dist.ProcessGroupNCCL(store, rank, world, options)
    return dist.ProcessGroupGloo(store, rank, world, timeout)


class WorkerGroup:
    """Rank `rank` of the workers that share each step's cells. Every wait is bounded by COLLECTIVE_TIMEOUT_S.

    The process group is our own, not torch's default one: user code that looks for that (torchmetrics, SyncBatchNorm)
    finds none, and does not wait for workers that do something else.
    """

    def __init__(self, group: Group, rank: int, store: dist.Store | None, device: torch.device) -> None:
        self.rank = rank
        self.world = len(group.shares)
        self.shares = group.shares
        self.device = device if device.type == "cuda" else torch.device("cpu")  # what the exchanges work on
        if self.world == 1:
            return
        timeout = timedelta(seconds=COLLECTIVE_TIMEOUT_S)
        with _peers():
            store = store or dist.TCPStore(group.host, group.port, is_master=False, timeout=timeout)
            self._peers = _process_group(dist.PrefixStore(group.key, store), rank, self.world, device, timeout)

    def close(self) -> None:
        if self.world > 1:
            self._peers.shutdown()

    def gather_rows(self, rows: torch.Tensor, counts: Sequence[int]) -> torch.Tensor:
        """All workers' rows, in rank order. rows: this rank's, float64 on the CPU, shape (counts[rank], width)."""
        if self.world == 1:
            return rows
        most = max(counts)
        padded = torch.zeros(most, rows.shape[1], dtype=torch.float64, device=self.device)
        padded[: len(rows)] = rows
        everyone = padded.new_empty(self.world * most, rows.shape[1])
        with _peers():
            self._peers._allgather_base(everyone, padded).wait()
        return torch.cat([everyone[at * most : at * most + count] for at, count in enumerate(counts)]).cpu()

    def reduce(self, partials: torch.Tensor, shares: Sequence[tuple[int, int]], num_cells: int) -> torch.Tensor:
        """Sum all workers' partial sums along the grid's tree; every worker gets the same bits, shape (length,).

        partials: one row for each tree node of this rank's share, shape (nodes, length); `world` divides the length.
        Each rank joins one slice of the vectors and shares it: two exchanges, with the traffic of a ring all-reduce
        where every share is one tree node.
        """
        slice_len = partials.shape[1] // self.world
        nodes_of: list[list[Block]] = [list(blocks(first, end, num_cells)) for first, end in shares]
        outgoing = partials.view(-1, self.world, slice_len).transpose(0, 1).contiguous().view(-1)
        received = [len(nodes) * slice_len for nodes in nodes_of]
        incoming = partials.new_empty(sum(received))
        with _peers():
            self._peers.alltoall_base(incoming, outgoing, received, [len(partials) * slice_len] * self.world).wait()
        slices = iter(incoming.view(-1, slice_len))
        by_node = {node: next(slices) for nodes in nodes_of for node in nodes}
        mine = root_sum(by_node, num_cells, lambda into, other: into.add_(other))
        total = partials.new_empty(partials.shape[1])
        with _peers():
            self._peers._allgather_base(total, mine.contiguous()).wait()
        return total
