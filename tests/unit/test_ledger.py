"""The ledger's summary: every sample of an epoch once, whatever failed."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from paceline.grid import Grid
from paceline.master.ledger import per_epoch


def rounds(cuts: list[int], steps: int) -> list[tuple[int, int]]:
    """[0, steps) cut into rounds at these steps."""
    edges = sorted({0, steps, *(cut % steps for cut in cuts)})
    return list(zip(edges, edges[1:], strict=False))


@given(st.integers(1, 60), st.data())
def test_contiguous_commits_consume_every_sample_of_each_epoch_once(samples: int, data: st.DataObject) -> None:
    grid = Grid(samples, data.draw(st.integers(1, samples)), 1, data.draw(st.booleans()), 0)
    epochs = data.draw(st.integers(1, 4))
    commits = rounds(data.draw(st.lists(st.integers(0, 200), max_size=5)), epochs * grid.steps_per_epoch)
    whole = grid.samples_per_epoch
    assert per_epoch(commits, grid) == [
        {"epoch": epoch, "expected": whole, "committed": whole, "twice": 0} for epoch in range(epochs)
    ]


def test_a_gap_shows_as_samples_that_were_not_committed() -> None:
    grid = Grid(num_samples=10, batch_size=4, microbatches=2, drop_last=False, seed=0)
    assert per_epoch([(0, 1), (2, 3)], grid) == [{"epoch": 0, "expected": 10, "committed": 6, "twice": 0}]


def test_steps_that_were_committed_twice_are_counted_as_such() -> None:
    grid = Grid(num_samples=10, batch_size=4, microbatches=2, drop_last=False, seed=0)
    assert per_epoch([(0, 2), (1, 4)], grid) == [
        {"epoch": 0, "expected": 10, "committed": 10, "twice": 4},
        {"epoch": 1, "expected": 10, "committed": 4, "twice": 0},
    ]


def test_an_epoch_that_was_stopped_inside_says_how_far_it_got() -> None:
    grid = Grid(num_samples=10, batch_size=4, microbatches=2, drop_last=True, seed=0)
    assert per_epoch([(0, 3)], grid) == [
        {"epoch": 0, "expected": 8, "committed": 8, "twice": 0},
        {"epoch": 1, "expected": 8, "committed": 4, "twice": 0},
    ]


def test_no_commits_are_no_epochs() -> None:
    assert per_epoch([], Grid(10, 4, 2, False, 0)) == []
