"""A sum of the cells' contributions whose order is fixed by the grid, never by who computed what.

The cells are the leaves of a binary tree: node (level, k) covers cells [k * 2**level, (k + 1) * 2**level), cut off
at the number of cells; a node without a right child is its left child. Each worker sums the largest tree nodes inside
its share, and the nodes are then joined along the same tree, so that every split of the cells gives the same bits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

T = TypeVar("T")
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


class TreeSum(Generic[T]):
    """Adds up the cells of one share, in order, holding at most one value a level.

    `add(into, other)` adds in place and returns the sum; it is the only arithmetic here.
    """

    def __init__(self, num_cells: int, add: Callable[[T, T], T]) -> None:
        self._num_cells = num_cells
        self._add = add
        self._stack: list[tuple[Block, T]] = []

    def push(self, block: Block, value: T) -> None:
        """Take the next block, joining it with its sibling wherever both are here."""
        self._stack.append((self._promote(block), value))
        while len(self._stack) > 1 and self._siblings():
            (level, k), right = self._stack.pop()
            _, left = self._stack.pop()
            self._stack.append((self._promote((level + 1, k >> 1)), self._add(left, right)))

    def partials(self) -> dict[Block, T]:
        """The sums so far, by tree node."""
        return dict(self._stack)

    def _promote(self, block: Block) -> Block:
        """A left child whose sibling lies past the last cell stands for its parent."""
        level, k = block
        while k and k % 2 == 0 and ((k + 1) << level) >= self._num_cells:
            level, k = level + 1, k >> 1
        return level, k

    def _siblings(self) -> bool:
        (level, k), (other_level, other) = self._stack[-1][0], self._stack[-2][0]
        return level == other_level and k % 2 == 1 and other == k - 1


def root_sum(partials: dict[Block, T], num_cells: int, add: Callable[[T, T], T]) -> T:
    """Join the tree nodes of all workers into the sum over all cells. Raises KeyError where a cell is missing."""
    joined: TreeSum[T] = TreeSum(num_cells, add)
    for block in sorted(partials, key=lambda b: b[1] << b[0]):
        joined.push(block, partials[block])
    final = joined.partials()
    level, k = next(iter(final), (0, 1))
    if len(final) != 1 or k != 0 or 1 << level < num_cells:
        raise KeyError(f"the blocks {sorted(partials)} do not cover {num_cells} cells")
    return final[level, k]
