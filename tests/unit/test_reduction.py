"""The sum over cells: one expression tree, whoever computed which cells."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paceline.shares import split_evenly
from paceline.training.reduction import TreeSum, root_sum
from paceline.tree import Block, blocks


def joined(left: str, right: str) -> str:
    """An addition that keeps its own shape: `(a+b)`."""
    return f"({left}+{right})"


def partials(first: int, end: int, num_cells: int) -> dict[Block, str]:
    """What a worker with the share [first, end) holds when its cells are done, each written as its number."""
    tree: TreeSum[str] = TreeSum(num_cells, joined)
    for cell in range(first, end):
        tree.push((0, cell), str(cell))
    return tree.partials()


def expression(shares: list[tuple[int, int]], num_cells: int) -> str:
    """The whole sum as these shares compute it."""
    everyone: dict[Block, str] = {}
    for first, end in shares:
        everyone |= partials(first, end, num_cells)
    return root_sum(everyone, num_cells, joined)


@st.composite
def partitions(draw: st.DrawFn) -> tuple[int, list[tuple[int, int]]]:
    """A number of cells, and contiguous shares of them, some of which may be empty."""
    num_cells = draw(st.integers(1, 70))
    cuts = sorted(draw(st.lists(st.integers(0, num_cells), max_size=8)))
    edges = [0, *cuts, num_cells]
    return num_cells, list(zip(edges, edges[1:], strict=False))


def test_the_tree_of_five_cells_is_this_one() -> None:
    assert expression([(0, 5)], 5) == "(((0+1)+(2+3))+4)"


def test_the_tree_of_eight_cells_is_balanced() -> None:
    assert expression([(0, 8)], 8) == "(((0+1)+(2+3))+((4+5)+(6+7)))"


@given(partitions())
def test_every_partition_of_the_cells_makes_the_same_expression(case: tuple[int, list[tuple[int, int]]]) -> None:
    num_cells, shares = case
    whole = expression([(0, num_cells)], num_cells)
    assert expression(shares, num_cells) == whole
    assert [int(n) for n in whole.replace("(", "").replace(")", "").split("+")] == list(range(num_cells))


@given(st.integers(1, 70), st.integers(1, 12))
def test_the_shares_that_the_planner_makes_give_it_too(num_cells: int, workers: int) -> None:
    assert expression(split_evenly(num_cells, workers), num_cells) == expression([(0, num_cells)], num_cells)


@given(partitions())
def test_blocks_name_the_very_nodes_that_a_worker_holds(case: tuple[int, list[tuple[int, int]]]) -> None:
    num_cells, shares = case
    for first, end in shares:
        assert list(blocks(first, end, num_cells)) == list(partials(first, end, num_cells))


@given(st.integers(1, 70), st.data())
def test_a_missing_cell_is_no_sum(num_cells: int, data: st.DataObject) -> None:
    missing = data.draw(st.integers(0, num_cells - 1))
    rest = {(0, cell): str(cell) for cell in range(num_cells) if cell != missing}
    with pytest.raises(KeyError):
        root_sum(rest, num_cells, joined)


@pytest.mark.parametrize("missing", [0, 3, 7])
def test_a_missing_block_is_no_sum(missing: int) -> None:
    held = {(0, cell): str(cell) for cell in range(8) if cell != missing}
    with pytest.raises(KeyError, match="8 cells"):
        root_sum(held, 8, joined)


def test_floats_of_every_partition_have_the_same_bits() -> None:
    values = [0.1 * 3**cell for cell in range(13)]

    def total(shares: list[tuple[int, int]]) -> float:
        held: dict[Block, float] = {}
        for first, end in shares:
            tree: TreeSum[float] = TreeSum(13, lambda a, b: a + b)
            for cell in range(first, end):
                tree.push((0, cell), values[cell])
            held |= tree.partials()
        return root_sum(held, 13, lambda a, b: a + b)

    assert len({total(split_evenly(13, workers)).hex() for workers in range(1, 14)}) == 1


def test_a_worker_holds_at_most_one_value_a_level() -> None:
    tree: TreeSum[str] = TreeSum(64, joined)
    held = []
    for cell in range(64):
        tree.push((0, cell), str(cell))
        held.append(len(tree.partials()))
    assert max(held) == 6
    assert held[-1] == 1


def test_pairs_may_be_summed_before_they_are_pushed() -> None:
    """As the accumulator does, in `.grad` itself."""
    tree: TreeSum[str] = TreeSum(5, joined)
    tree.push((1, 0), "(0+1)")
    tree.push((1, 1), "(2+3)")
    tree.push((0, 4), "4")
    assert list(tree.partials().values()) == ["(((0+1)+(2+3))+4)"]
