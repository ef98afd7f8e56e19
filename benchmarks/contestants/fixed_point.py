"""The other candidate for a sum that does not depend on who computed what: integers under a scale that all agree on.

Integer sums are exact, so any collective may sum them in any order. A scale is a power of two for each parameter, taken
from the largest gradient that any cell had in the step before; so buckets can leave while backward still runs, and the
step's own maxima, which travel with the losses, tell afterwards whether it held. Where not, the step is done again.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch

from paceline.training.exchange import buckets
from paceline.training.group import WorkerGroup

SLACK_BITS = {torch.int32: 2, torch.int64: 16}  # how much a gradient may grow from one step to the next
SMALLEST = -60  # exponent; keeps scale and its inverse within float32, and makes a first step learn its scale


class FixedPointExchange:
    """For each step: `begin`, `cell_done` after each cell of the share (`last_cell` before the last one), `total`."""

    def __init__(
        self, parameters: Sequence[torch.nn.Parameter], group: WorkerGroup, num_cells: int, dtype: torch.dtype
    ) -> None:
        self._parameters, self._group, self._dtype = parameters, group, dtype
        self._slack = SLACK_BITS[dtype]
        self._bits = torch.iinfo(dtype).bits - 2 - math.ceil(math.log2(num_cells))  # of one cell's largest value
        self._exponents = [SMALLEST] * len(parameters)
        self._buckets = list(buckets(parameters))
        self._bucket_of = {i: at for at, indices in enumerate(self._buckets) for i in indices}
        self._flat = [torch.zeros(sum(parameters[i].numel() for i in held), dtype=dtype) for held in self._buckets]
        self._sums: dict[int, torch.Tensor] = {}
        for flat, held in zip(self._flat, self._buckets, strict=True):
            parts = flat.split([parameters[i].numel() for i in held])
            self._sums |= {i: part.view(parameters[i].shape) for i, part in zip(held, parts, strict=True)}
        for i, parameter in enumerate(parameters):
            parameter.register_post_accumulate_grad_hook(partial(self._arrived, i))

    def begin(self, first: int) -> None:
        """first: the share's first cell."""
        self._first, self._early = first, False
        self._sent: list[Any] = []
        self._await_all()

    def _await_all(self) -> None:
        self._awaited = [set(held) for held in self._buckets]
        self.maxima = torch.zeros(len(self._parameters))  # of the cell under way, for each parameter

    def last_cell(self, cell: int) -> None:
        """The next backward is this share's last: what it completes may leave at once."""
        self._last, self._early = cell, self._group.world > 1

    def cell_done(self, cell: int) -> torch.Tensor:
        """The cell's largest gradient of each parameter; call after each cell's backward, in order."""
        self._early = False
        for at in range(len(self._sent), len(self._buckets)):
            self._take(at, cell)
        maxima = self.maxima
        self._await_all()
        return maxima

    def _arrived(self, index: int, _parameter: torch.nn.Parameter) -> None:
        self._awaited[self._bucket_of[index]].discard(index)
        while self._early and len(self._sent) < len(self._buckets) and not self._awaited[len(self._sent)]:
            self._take(len(self._sent), self._last)
            self._send()

    def _take(self, at: int, cell: int) -> None:
        """Add a bucket's gradients of one cell to its sums, as integers."""
        held = self._buckets[at]
        gradients = [self._parameters[i].grad for i in held]
        for i, gradient in zip(held, gradients, strict=True):
            low, high = torch.aminmax(gradient)
            self.maxima[i] = torch.maximum(-low, high)
            self._parameters[i].grad = None
        torch._foreach_mul_(gradients, [2.0 ** (self._bits - self._exponents[i]) for i in held])
        torch._foreach_round_(gradients)
        for i, gradient in zip(held, gradients, strict=True):
            if cell == self._first:
                self._sums[i].copy_(gradient)
            else:
                self._sums[i].add_(gradient.to(self._dtype))

    def _send(self) -> None:
        self._sent.append(self._group.peers.allreduce([self._flat[len(self._sent)]]))

    def send_rest(self) -> None:
        """All of this worker's cells are done."""
        while self._group.world > 1 and len(self._sent) < len(self._buckets):
            self._send()

    def total(self, maxima: torch.Tensor) -> list[torch.Tensor] | None:
        """The gradients of the whole batch, or None where the step must be done again, under the scale now learnt.

        maxima: what `cell_done` gave for all cells of all workers, shape (cells, parameters).
        """
        for work in self._sent:
            self._group.wait(work)
        largest, used = maxima.amax(0).tolist(), self._exponents
        if not all(map(math.isfinite, largest)):
            raise ArithmeticError("a gradient is not finite")
        self._exponents = [max(SMALLEST, math.frexp(value)[1] + self._slack) for value in largest]
        if any(value > 2.0**exponent for value, exponent in zip(largest, used, strict=True)):
            return None
        result = [self._sums[i].to(torch.float32) for i in range(len(used))]
        torch._foreach_mul_(result, [2.0 ** (exponent - self._bits) for exponent in used])
        return result
