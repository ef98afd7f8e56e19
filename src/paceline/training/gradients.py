"""Gradients of one step: accumulated over this worker's cells in the grid's order, and laid out flat to be sent."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from paceline.training.reduction import TreeSum
from paceline.tree import Block

Gradients = list[torch.Tensor | None]
ALIGNMENT = 64  # bytes; kernels may give other bits for other alignments


def add_gradients(into: Gradients, other: Gradients) -> Gradients:
    """Add in place; a parameter without a gradient on one side takes the other's."""
    both = [(a, b) for a, b in zip(into, other, strict=True) if a is not None and b is not None]
    if both:
        torch._foreach_add_([a for a, _ in both], [b for _, b in both])
    return [a if a is not None else b for a, b in zip(into, other, strict=True)]


class CellAccumulator:
    """Takes each cell's gradients out of `.grad` and adds them along the tree.

    A pair of sibling cells adds up in `.grad` itself, which costs what an ordinary loop's accumulation costs.
    """

    def __init__(self, parameters: Sequence[torch.nn.Parameter], share: tuple[int, int], num_cells: int) -> None:
        self._parameters = parameters
        self._first, self._end = share
        self._sum: TreeSum[Gradients] = TreeSum(num_cells, add_gradients)

    def cell_done(self, cell: int) -> None:
        """Call after each cell's backward, in order."""
        if cell % 2 == 0 and cell + 1 < self._end:
            return
        paired = cell % 2 == 1 and cell - 1 >= self._first
        gradients = [parameter.grad for parameter in self._parameters]
        for parameter in self._parameters:
            parameter.grad = None
        self._sum.push((1, cell >> 1) if paired else (0, cell), gradients)

    def partials(self) -> dict[Block, Gradients]:
        return self._sum.partials()


class FlatLayout:
    """Where each of some parameters of one dtype lies in a flat vector, aligned; behind them, a presence flag each.

    indices: of those parameters among all. `world` divides the length.
    """

    def __init__(self, parameters: Sequence[torch.nn.Parameter], indices: Sequence[int], world: int) -> None:
        self.dtype = parameters[indices[0]].dtype
        self.indices = indices
        step = ALIGNMENT // torch.empty(0, dtype=self.dtype).element_size()
        self.offsets: list[int] = []
        at = 0
        for i in indices:
            self.offsets.append(at)
            at += -(-parameters[i].numel() // step) * step
        self.flags = at
        self.length = -(-(at + len(indices)) // (world * step)) * world * step

    def pack(self, gradients: Gradients, out: torch.Tensor) -> None:
        """Copy the gradients, in the order of `indices`, into `out`, zeros where there is none."""
        for slot, (gradient, at) in enumerate(zip(gradients, self.offsets, strict=True)):
            if gradient is not None:
                torch.as_strided(out, gradient.shape, gradient.stride(), out.storage_offset() + at).copy_(gradient)
                out[self.flags + slot] = 1

    def unpack(self, total: torch.Tensor, parameters: Sequence[torch.nn.Parameter], into: Gradients) -> None:
        """Views of `total` in each parameter's own layout, by its index; None where no cell had a gradient."""
        present = total[self.flags : self.flags + len(self.indices)].tolist()
        for slot, (i, at) in enumerate(zip(self.indices, self.offsets, strict=True)):
            if present[slot]:
                parameter = parameters[i]
                into[i] = torch.as_strided(total, parameter.shape, parameter.stride(), total.storage_offset() + at)
