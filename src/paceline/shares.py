"""Who takes which of a step's cells: contiguous shares that finish together and send few partial sums.

A share that is one node of the summation tree sends one partial sum, another one several: with `nodes` of them in all,
an exchange moves (nodes / workers + 1) / 2 times the bytes of a ring all-reduce. The shares never change the result.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from heapq import heapify, heapreplace, nlargest
from itertools import accumulate, pairwise

from paceline.tree import blocks

Share = tuple[int, int]
SLOWER_FOR_FEWER_NODES = 0.05  # about what a measured speed is off by, so that it buys nothing to insist on less
ROUNDING = 1e-9
BOUNDARIES = 64  # tried for each worker: all of them up to about a thousand cells


def split_by_speed(num_cells: int, cell_s: Sequence[float | None]) -> list[Share]:
    """Shares [first, end) in the workers' order: the fewest tree nodes among those of nearly the best time.

    cell_s: each worker's seconds for a cell; None counts as the others' mean. "Nearly": the slowest takes at most
    `SLOWER_FOR_FEWER_NODES` longer than in the best split. Ties: the faster, then the earlier boundaries. Who would
    finish its first cell no earlier than the best split finishes may get none; all others get one at least.
    """
    return list(_split(num_cells, _known(cell_s)))


@lru_cache(maxsize=1024)  # a plan asks for the same split of like workers again and again
def _split(num_cells: int, seconds: tuple[float, ...]) -> tuple[Share, ...]:
    counts = quickest(num_cells, seconds)
    best = max(count * s for count, s in zip(counts, seconds, strict=True))
    least = [int(s < best) for s in seconds]
    most = [int(best * (1 + SLOWER_FOR_FEWER_NODES) / s * (1 + ROUNDING)) for s in seconds]
    reached: dict[int, tuple[int, float, tuple[int, ...]]] = {0: (0, 0.0, (0,))}  # by end: nodes, slowest, boundaries
    for at, (s, usual_end) in enumerate(zip(seconds, accumulate(counts), strict=True)):
        ends = range(max(0, num_cells - sum(most[at + 1 :])), num_cells - sum(least[at + 1 :]) + 1)
        following = {}
        for end in _worth_trying(ends, usual_end, num_cells):
            ways = [
                (nodes + num_nodes((first, end), num_cells), max(slow, (end - first) * s), (*cuts, end))
                for first, (nodes, slow, cuts) in reached.items()
                if least[at] <= end - first <= most[at]
            ]
            if ways:
                following[end] = min(ways)
        reached = following
    return tuple(pairwise(reached[num_cells][2]))


def split_evenly(num_cells: int, workers: int) -> list[Share]:
    """Shares of workers whose speeds count as equal."""
    return split_by_speed(num_cells, [None] * workers)


def slowest(shares: Sequence[Share], cell_s: Sequence[float]) -> float:
    """Seconds until the last of the workers has computed its share."""
    return max((end - first) * seconds for (first, end), seconds in zip(shares, cell_s, strict=True))


@lru_cache(maxsize=16384)
def num_nodes(share: Share, num_cells: int) -> int:
    """Partial sums that the worker with this share sends."""
    return sum(1 for _ in blocks(*share, num_cells))


def _worth_trying(ends: Sequence[int], usual: int, num_cells: int) -> set[int]:
    """All ends, or of very many those at the largest nodes, and the one that is always possible."""
    return {usual, *nlargest(BOUNDARIES, ends, key=lambda end: end & -end if 0 < end < num_cells else num_cells)}


def _known(cell_s: Sequence[float | None]) -> tuple[float, ...]:
    known = [seconds for seconds in cell_s if seconds]
    typical = sum(known) / len(known) if known else 1.0
    return tuple(seconds or typical for seconds in cell_s)


def quickest(num_cells: int, cell_s: Sequence[float]) -> list[int]:
    """Cells of each worker in a split of the best time: each cell in turn goes to who would finish it first."""
    even = num_cells / sum(1 / seconds for seconds in cell_s) * (1 - ROUNDING)  # whoever ends earlier has his cells
    counts = [int(even / seconds) for seconds in cell_s]
    ends = [((count + 1) * seconds, at) for at, (count, seconds) in enumerate(zip(counts, cell_s, strict=True))]
    heapify(ends)
    for _ in range(num_cells - sum(counts)):
        at = ends[0][1]
        counts[at] += 1
        heapreplace(ends, ((counts[at] + 1) * cell_s[at], at))
    return counts
