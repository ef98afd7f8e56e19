"""A sum of the cells' contributions whose order is fixed by the grid, never by who computed what.

The cells are the leaves of a binary tree (`tree.py`). Each worker sums the largest tree nodes inside its share, and
the nodes are then joined along the same tree, so that every split of the cells gives the same bits.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

from paceline.tree import Block

T = TypeVar("T")


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
