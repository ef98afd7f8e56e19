"""The grid: which samples each step and each cell consumes, whatever the workers are."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from paceline.grid import (
    CELL_FLOP,
    CELL_FLOP_PER_PARAMETER,
    MOST_COST,
    Grid,
    ShardOrder,
    default_microbatches,
    derive_seed,
    epoch_order,
    scaled_share,
)
from paceline.shares import split_evenly

ORDER_OF_10 = [0, 7, 3, 8, 4, 5, 1, 9, 2, 6]
ORDER_OF_10_IN_SHARDS = [4, 8, 9, 7, 3, 5, 6, 1, 0, 2]
SEED_OF_ORDER = 3471081512423777433


@st.composite
def grids(draw: st.DrawFn) -> Grid:
    """A grid as a valid spec makes it: the batch fits the data, and no microbatch is empty."""
    samples = draw(st.integers(1, 120))
    batch = draw(st.integers(1, samples))
    return Grid(samples, batch, draw(st.integers(1, batch)), draw(st.booleans()), draw(st.integers(0, 3)))


def cells(grid: Grid, step: int) -> list[list[int]]:
    return [grid.cell_samples(step, cell).tolist() for cell in range(grid.num_cells(step))]


def epoch_samples(grid: Grid, epoch: int) -> list[int]:
    first = epoch * grid.steps_per_epoch
    return [i for step in range(first, first + grid.steps_per_epoch) for cell in cells(grid, step) for i in cell]


@given(grids(), st.integers(0, 3))
def test_an_epoch_consumes_every_sample_once_and_drop_last_leaves_less_than_a_batch(grid: Grid, epoch: int) -> None:
    taken = Counter(epoch_samples(grid, epoch))
    assert set(taken.values()) == {1}
    assert len(taken) == grid.samples_per_epoch
    assert set(taken) <= set(range(grid.num_samples))
    left = grid.num_samples - len(taken)
    assert left == (grid.num_samples % grid.batch_size if grid.drop_last else 0)


@given(grids(), st.integers(0, 200))
def test_the_cells_partition_the_batch_in_the_order_of_the_epoch(grid: Grid, step: int) -> None:
    epoch, start = grid.locate(step)
    batch = epoch_order(grid.num_samples, grid.seed, epoch)[start : start + grid.batch_len(step)]
    parts = cells(grid, step)
    assert [i for part in parts for i in part] == batch.tolist()
    assert all(0 < len(part) <= grid.cell_size for part in parts)
    assert all(len(part) == grid.cell_size for part in parts[:-1])
    assert [len(part) for part in parts] == [grid.cell_len(step, cell) for cell in range(len(parts))]


@given(grids(), st.integers(0, 60))
def test_samples_seen_is_the_sum_of_the_batches(grid: Grid, steps: int) -> None:
    assert grid.samples_seen(steps) == sum(grid.batch_len(step) for step in range(steps))


@given(grids(), st.integers(0, 200))
def test_a_batch_is_whole_but_for_the_last_of_an_epoch(grid: Grid, step: int) -> None:
    is_last = step % grid.steps_per_epoch == grid.steps_per_epoch - 1
    assert grid.batch_len(step) == grid.batch_size or (is_last and not grid.drop_last)
    assert 0 < grid.batch_len(step) <= grid.batch_size


@given(st.integers(1, 64), st.integers(1, 64), st.data())
def test_shares_partition_every_batch_however_short(full: int, workers: int, data: st.DataObject) -> None:
    shares = split_evenly(full, workers)
    num_cells = data.draw(st.integers(1, full))
    scaled = [scaled_share(share, num_cells, full) for share in shares]
    assert [cell for first, end in scaled for cell in range(first, end)] == list(range(num_cells))


def test_epochs_have_orders_of_their_own_and_seeds_too() -> None:
    orders = [epoch_order(50, seed, epoch).tolist() for seed in (0, 1) for epoch in (0, 1)]
    assert all(sorted(order) == list(range(50)) for order in orders)
    assert len({tuple(order) for order in orders}) == 4


def test_the_order_is_the_same_on_every_machine() -> None:
    """Golden values: another numpy or platform that gives others would change every digest."""
    assert epoch_order(10, 0, 0).tolist() == ORDER_OF_10
    assert derive_seed(0, "order", 0) == SEED_OF_ORDER


# ---- data in shards ----


@st.composite
def shard_orders(draw: st.DrawFn) -> ShardOrder:
    lengths = draw(st.lists(st.integers(0, 12), min_size=1, max_size=12).filter(any))
    return ShardOrder(tuple(lengths), draw(st.integers(1, 5)))


@given(shard_orders(), st.integers(0, 3), st.integers(0, 3), st.data())
def test_an_epoch_in_shards_consumes_every_sample_once_however_it_is_cut(
    order: ShardOrder, seed: int, epoch: int, data: st.DataObject
) -> None:
    samples = sum(order.lengths)
    cuts = sorted({0, samples, *data.draw(st.lists(st.integers(0, samples), max_size=5))})
    parts = [order.samples(seed, epoch, first, end).tolist() for first, end in zip(cuts, cuts[1:], strict=False)]
    whole = order.samples(seed, epoch, 0, samples).tolist()
    assert [index for part in parts for index in part] == whole
    assert sorted(whole) == list(range(samples))


@given(shard_orders(), st.integers(0, 3), st.integers(0, 3))
def test_no_more_shards_than_a_window_are_in_use_at_once(order: ShardOrder, seed: int, epoch: int) -> None:
    holders = np.searchsorted(order.starts, order.samples(seed, epoch, 0, sum(order.lengths)), side="right") - 1
    at = 0
    for window in range(order.windows):
        shards = order.shards(seed, epoch, window)
        assert len(shards) <= order.window
        assert all(order.window_of(seed, epoch, int(shard)) == window for shard in shards)
        taken = sum(order.lengths[shard] for shard in shards)
        assert set(holders[at : at + taken].tolist()) == {shard for shard in shards if order.lengths[shard]}
        at += taken


@given(shard_orders(), st.integers(0, 3), st.integers(0, 3))
def test_after_an_epochs_last_window_comes_the_next_epochs_first(order: ShardOrder, seed: int, epoch: int) -> None:
    following = order.shards(seed, epoch, order.windows)
    assert following.tolist() == order.shards(seed, epoch + 1, 0).tolist()


def test_a_grid_of_data_in_shards_takes_their_order_on_every_machine() -> None:
    order = ShardOrder((3, 4, 3), 2)
    grid = Grid(10, 4, 2, False, 0, order)
    assert epoch_samples(grid, 0) == order.samples(0, 0, 0, 10).tolist() == ORDER_OF_10_IN_SHARDS
    assert epoch_samples(grid, 1) == order.samples(0, 1, 0, 10).tolist() != ORDER_OF_10_IN_SHARDS
    assert grid.cell_samples(0, 0).dtype == np.int64


def test_seeds_of_different_purposes_differ_and_fit_63_bits() -> None:
    paths = [(seed, what, n) for seed in range(4) for what in ("order", "cell", "sample") for n in range(50)]
    seeds = [derive_seed(*path) for path in paths]
    assert len(set(seeds)) == len(paths)
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert derive_seed(1, 23) != derive_seed(12, 3)


def test_a_cell_is_named_by_indices_of_64_bits() -> None:
    assert Grid(10, 4, 2, False, 0).cell_samples(0, 0).dtype == np.int64


@pytest.mark.parametrize(
    ("batch", "flop", "parameters", "microbatches"),
    [
        (64, 9_287_680, 824_458, 2),  # the models of benchmarks/overhead.py
        (64, 25_190_400, 417_088, 4),
        (256, 537_600, 269_322, 1),
        (64, 1e9, 10**6, 8),
        (3, 1e9, 10**6, 2),
        (64, None, 10**6, 8),
        (3, None, None, 3),
    ],
)
def test_a_batch_is_cut_by_default_as_often_as_costs_little(
    batch: int, flop: float | None, parameters: int | None, microbatches: int
) -> None:
    assert default_microbatches(batch, flop, parameters) == microbatches


@given(st.integers(1, 10**4), st.floats(0, 1e12), st.integers(0, 10**8))
def test_the_default_stays_within_its_bounds_and_grows_with_the_work(batch: int, flop: float, parameters: int) -> None:
    chosen = default_microbatches(batch, flop, parameters)
    assert chosen in (1, 2, 4, 8)
    assert chosen <= batch
    assert chosen <= default_microbatches(2 * batch, flop, parameters)
    assert chosen <= default_microbatches(batch, 2 * flop, parameters)
    assert (chosen - 1) * (CELL_FLOP + CELL_FLOP_PER_PARAMETER * parameters) <= MOST_COST * 3 * flop * batch
