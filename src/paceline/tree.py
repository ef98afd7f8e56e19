"""The binary tree along which a step's cells are summed.

The cells are its leaves: node (level, k) covers cells [k * 2**level, (k + 1) * 2**level), cut off at the number of
cells; a node without a right child is its left child.
"""

from __future__ import annotations

from collections.abc import Iterator

Block = tuple[int, int]


def blocks(first: int, end: int, num_cells: int) -> Iterator[Block]:
    """The maximal tree nodes that cover exactly the cells [first, end)."""
    while first < end:
        level = 0
        while (
            1 << level < num_cells
            and _aligned(first, level + 1)
            and _end(level + 1, first >> (level + 1), num_cells) <= end
        ):
            level += 1
        yield level, first >> level
        first = _end(level, first >> level, num_cells)


def _aligned(first: int, level: int) -> bool:
    return first % (1 << level) == 0


def _end(level: int, k: int, num_cells: int) -> int:
    return min((k + 1) << level, num_cells)
