"""The sum of all workers' gradients, sent while the last cell's backward still runs.

The parameters are cut into buckets, in the order in which backward tends to finish them. A bucket leaves as soon as its
last gradient is there; buckets leave in one order, which is the same on every worker whatever order backward took.
(After Li et al., "PyTorch Distributed: Experiences on Accelerating Data Parallel Training", VLDB 2020.)
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import partial

import torch

from paceline.errors import InvalidSpec
from paceline.training.gradients import CellAccumulator, FlatLayout, Gradients
from paceline.training.group import PendingSum, WorkerGroup
from paceline.tree import Block

BUCKET_BYTES = 1 << 20


def buckets(parameters: Sequence[torch.nn.Parameter]) -> Iterator[list[int]]:
    """Indices of parameters whose gradients travel together: of one dtype, last ones first."""
    held: list[int] = []
    for i in reversed(range(len(parameters))):
        full = sum(parameters[j].nbytes for j in held) >= BUCKET_BYTES
        if held and (full or parameters[i].dtype != parameters[held[0]].dtype):
            yield held
            held = []
        held.append(i)
    yield held


class GradientExchange:
    """For each step: `begin`, `cell_done` after each cell of the share (`last_cell` before the last one), `total`."""

    def __init__(self, parameters: Sequence[torch.nn.Parameter], group: WorkerGroup) -> None:
        self._parameters = parameters
        self._group = group
        self._layouts = [FlatLayout(parameters, indices, group.world) for indices in buckets(parameters)]
        self._bucket_of = {i: at for at, layout in enumerate(self._layouts) for i in layout.indices}
        self._may_leave_early: bool | None = None  # until a first step has shown that gradients come whole
        self._listening = self._early = False
        self._hooks = [
            parameter.register_post_accumulate_grad_hook(partial(self._arrived, i))
            for i, parameter in enumerate(parameters)
            if group.world > 1
        ]

    def close(self) -> None:
        """Leave the parameters as they were."""
        for hook in self._hooks:
            hook.remove()

    def begin(self, shares: Sequence[tuple[int, int]], num_cells: int) -> None:
        self._shares, self._num_cells = shares, num_cells
        share = shares[self._group.place]
        self._sums = [
            CellAccumulator([self._parameters[i] for i in layout.indices], share, num_cells) for layout in self._layouts
        ]
        self._sent: list[PendingSum] = []
        self._norm = 0.0
        self._listening = True
        self._await_all()

    def last_cell(self, cell: int) -> None:
        """The next backward is this share's last: what it completes may leave at once."""
        self._last = cell
        self._early = bool(self._may_leave_early)

    def cell_done(self, cell: int) -> None:
        """Call after each cell's backward, in order."""
        self._early = False
        for accumulator in self._sums[len(self._sent) :]:
            accumulator.cell_done(cell)
        self._await_all()

    def _await_all(self) -> None:
        """The next backward has brought nothing yet; a lone worker has no hooks to tell, and nothing to send."""
        if self._hooks:
            self._awaited = [set(layout.indices) for layout in self._layouts]

    def _arrived(self, index: int, _parameter: torch.nn.Parameter) -> None:
        """A backward has a parameter's gradient; the last backward's may complete the next buckets to leave."""
        if not self._listening:  # a backward of somebody else's, such as a check's
            return
        bucket = self._bucket_of[index]
        if index not in self._awaited[bucket]:
            self._comes_in_pieces(index, sent=bucket < len(self._sent))
            return
        self._awaited[bucket].remove(index)
        while self._early and len(self._sent) < len(self._sums) and not self._awaited[len(self._sent)]:
            self._sums[len(self._sent)].cell_done(self._last)
            self._send()

    def _comes_in_pieces(self, index: int, sent: bool) -> None:
        """One backward adds to a gradient twice (reentrant checkpointing does): from now on wait for its end."""
        self._may_leave_early = False
        if sent:
            raise InvalidSpec(
                f"the gradient of parameter {index} came in pieces, though in earlier steps it did not.",
                "Use checkpoint(..., use_reentrant=False), or microbatches=1.",
            )

    def _send(self) -> None:
        at = len(self._sent)
        layout, partials = self._layouts[at], self._sums[at].partials()
        flat = torch.zeros(len(partials), layout.length, dtype=layout.dtype, device=self._group.device)
        for row, gradients in zip(flat, partials.values(), strict=True):
            layout.pack(gradients, row)
        self._norm = math.hypot(self._norm, float(torch.linalg.vector_norm(flat[:, : layout.flags])))
        self._sent.append(PendingSum(self._group, flat, self._shares, self._num_cells))

    def send_rest(self) -> None:
        """All of this worker's cells are done."""
        self._listening = False
        while self._group.world > 1 and len(self._sent) < len(self._sums):
            self._send()

    def partials(self) -> dict[Block, Gradients]:
        """This worker's own sums over its share, by tree node; call `send_rest` before."""
        own: dict[Block, Gradients] = {}
        for layout, held in zip(self._layouts, self._sums, strict=True):
            for block, gradients in held.partials().items():
                row = own.setdefault(block, [None] * len(self._parameters))
                for i, gradient in zip(layout.indices, gradients, strict=True):
                    row[i] = gradient
        return own

    def norm(self) -> float:
        """The norm of what this worker sent of the step."""
        return self._norm

    def total(self) -> Gradients:
        """The gradients of the whole batch, the same bits on every worker; call `send_rest` before."""
        if self._group.world == 1:
            (whole,) = self.partials().values()
            return whole
        result: Gradients = [None] * len(self._parameters)
        if self._may_leave_early is None and self._shares[self._group.place][0] < self._shares[self._group.place][1]:
            self._may_leave_early = True
        for pending in self._sent:
            pending.join()
        for layout, pending in zip(self._layouts, self._sent, strict=True):
            total = pending.total().to(self._parameters[layout.indices[0]].device)
            layout.unpack(total, self._parameters, result)
        return result
