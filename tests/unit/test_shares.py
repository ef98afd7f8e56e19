"""Shares: nearly as fast as any, and of few nodes of the summation tree."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import combinations_with_replacement

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paceline.shares import Share, num_nodes, slowest, split_by_speed, split_evenly

SPEEDS = st.lists(st.floats(0.01, 10.0), min_size=1, max_size=4)


def from_sizes(sizes: Sequence[int]) -> list[Share]:
    ends = [sum(sizes[: at + 1]) for at in range(len(sizes))]
    return list(zip([0, *ends], ends, strict=False))


def every_split(num_cells: int, workers: int) -> Iterator[list[Share]]:
    for cuts in combinations_with_replacement(range(num_cells + 1), workers - 1):
        edges = (0, *cuts, num_cells)
        yield list(zip(edges, edges[1:], strict=False))


def cell_by_cell(num_cells: int, cell_s: Sequence[float]) -> list[Share]:
    """The split of the best time that knows nothing of the tree."""
    sizes = [0] * len(cell_s)
    for _ in range(num_cells):
        sizes[min(range(len(sizes)), key=lambda at: (sizes[at] + 1) * cell_s[at])] += 1
    return from_sizes(sizes)


def nodes(shares: Sequence[Share]) -> list[int]:
    return [num_nodes(share, shares[-1][1]) for share in shares]


@given(st.integers(1, 10), SPEEDS)
def test_of_the_splits_within_five_percent_of_the_quickest_it_has_the_fewest_nodes(
    num_cells: int, cell_s: list[float]
) -> None:
    """Whoever finishes a cell before the quickest split ends has one at least."""
    splits = list(every_split(num_cells, len(cell_s)))
    best = min(slowest(shares, cell_s) for shares in splits)
    found = split_by_speed(num_cells, cell_s)
    assert slowest(found, cell_s) <= 1.05 * best * (1 + 1e-6)
    for shares in splits:
        sizes = [end - first for first, end in shares]
        if slowest(shares, cell_s) <= 1.05 * best and all(sizes[at] or s >= best for at, s in enumerate(cell_s)):
            assert sum(nodes(found)) <= sum(nodes(shares))


@given(st.integers(1, 70), st.lists(st.floats(0.01, 10.0), min_size=1, max_size=8))
def test_it_has_no_more_nodes_than_the_split_that_gives_each_cell_to_who_is_first(
    num_cells: int, cell_s: list[float]
) -> None:
    assert sum(nodes(split_by_speed(num_cells, cell_s))) <= sum(nodes(cell_by_cell(num_cells, cell_s)))


@given(st.integers(1, 70), st.lists(st.none() | st.floats(0.01, 10.0), min_size=1, max_size=12))
def test_the_shares_cover_every_cell_once_in_the_workers_order(num_cells: int, cell_s: list[float | None]) -> None:
    shares = split_by_speed(num_cells, cell_s)
    assert len(shares) == len(cell_s)
    assert [cell for share in shares for cell in range(*share)] == list(range(num_cells))


@given(st.integers(1, 12), st.integers(0, 60))
def test_workers_of_equal_speed_all_get_a_cell_where_there_are_enough(workers: int, more: int) -> None:
    assert all(first < end for first, end in split_evenly(workers + more, workers))


@pytest.mark.parametrize(
    ("workers", "num_cells"), [(1, 8), (2, 8), (4, 8), (8, 8), (5, 8), (2, 2), (4, 4), (3, 12), (7, 28)]
)
def test_equal_workers_send_one_partial_sum_each(workers: int, num_cells: int) -> None:
    assert nodes(split_evenly(num_cells, workers)) == [1] * workers


def test_thousands_of_cells_are_split_as_well() -> None:
    assert nodes(split_evenly(4096, 8)) == [1] * 8
    cell_s = [1.0, 1.3, 2.1]
    shares = split_by_speed(5000, cell_s)
    assert sum(nodes(shares)) < sum(nodes(cell_by_cell(5000, cell_s)))
    assert slowest(shares, cell_s) <= 1.05 * slowest(cell_by_cell(5000, cell_s), cell_s)


def test_three_equal_workers_of_eight_cells_send_five() -> None:
    assert sum(nodes(split_evenly(8, 3))) == 5


@pytest.mark.parametrize(
    ("num_cells", "sizes", "sums"), [(28, [16, 4, 4, 4], [1, 1, 1, 1]), (16, [10, 2, 2, 2], [2, 1, 1, 1])]
)
def test_a_worker_of_four_times_the_speed_gets_the_best_share(
    num_cells: int, sizes: list[int], sums: list[int]
) -> None:
    shares = split_by_speed(num_cells, [1.0, 4.0, 4.0, 4.0])
    assert shares == from_sizes(sizes)
    assert nodes(shares) == sums


def test_nearly_equal_speeds_do_not_cut_the_tree_in_odd_places() -> None:
    assert split_by_speed(64, [1.0, 1.06]) == [(0, 32), (32, 64)]


def test_a_worker_that_would_hold_all_others_up_gets_nothing() -> None:
    assert split_by_speed(8, [1.0, 1.0, 50.0]) == [(0, 4), (4, 8), (8, 8)]


def test_a_worker_of_unknown_speed_counts_as_the_others_mean() -> None:
    assert split_by_speed(8, [2.0, None]) == [(0, 4), (4, 8)]
