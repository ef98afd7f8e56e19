"""The job machine: whatever happens, and in whatever order, a job's life keeps its promises."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import paceline as pl
from paceline.errors import UserCodeError
from paceline.master.states import Failed, Succeeded
from paceline.spec import Submission
from paceline.stop import must_end, step_bound

from builders import submission
from simulated import Curves, SimulatedCluster, expected, grid_of

FLAT = Curves(losses=[1.0], val_losses=[1.0], accuracies=[0.5])

leaf = st.one_of(
    st.integers(1, 3).map(pl.MaxEpochs),
    st.integers(1, 17).map(pl.MaxSteps),
    st.integers(0, 9).map(lambda bound: pl.Metric("val_loss", at_most=bound / 10)),
    st.integers(0, 9).map(lambda bound: pl.Metric("val_accuracy", at_least=bound / 10)),
    st.integers(1, 3).map(lambda n: pl.Patience("val_loss", n)),
)
conditions = st.recursive(
    leaf, lambda c: st.tuples(c, c, st.booleans()).map(lambda t: t[0] | t[1] if t[2] else t[0] & t[1]), max_leaves=4
).map(lambda stop: stop if must_end(stop) and step_bound(stop, 1) else stop | pl.MaxEpochs(3))
values = st.lists(st.integers(0, 10).map(lambda n: n / 10), min_size=1, max_size=7)
curves = st.builds(Curves, st.lists(st.floats(0.01, 9.0), min_size=1, max_size=7), values, values)


@st.composite
def jobs(draw: st.DrawFn) -> Submission:
    return submission(
        values=("val_accuracy",),
        stop=draw(conditions),
        batch_size=4,
        microbatches=draw(st.sampled_from([2, 4])),
        drop_last=draw(st.booleans()),
        keep=draw(st.sampled_from(["last", "best:val_loss", "best:val_accuracy"])),
        eval_every=draw(st.none() | st.integers(1, 7)),
        checkpoint_every=draw(st.none() | st.integers(1, 7)),
    )


def check(cluster: SimulatedCluster, sent: Submission, shown: Curves) -> None:
    """The job has come to what it must come to, and its ledger says the same."""
    job, due = cluster.job, expected(sent, shown)
    assert isinstance(job.state, Succeeded), job.state
    delivery = job.state.delivery
    assert delivery.stop_reason == due.reason
    assert job.training.step == due.step
    assert job.training.history == due.history
    assert (delivery.digest, delivery.step) == (f"model after {due.delivered}", due.delivered)
    assert delivery.reproducible
    steps = [(commit.from_step, commit.to_step) for commit in cluster.commits]
    assert [step for first, end in steps for step in range(first, end)] == list(range(due.step))
    grid = grid_of(sent)
    assert [c.samples for c in cluster.commits] == [grid.samples_seen(b) - grid.samples_seen(a) for a, b in steps]


@given(jobs(), curves, st.integers(0, 2**16), st.integers(1, 2))
def test_on_a_perfect_cluster_rounds_and_workers_change_nothing(
    sent: Submission, shown: Curves, seed: int, workers: int
) -> None:
    cluster = SimulatedCluster(sent, shown, seed, places=workers, workers=workers)
    cluster.run()
    check(cluster, sent, shown)
    assert cluster.roll_backs == []
    assert cluster.job.attempt == 1


times = st.floats(0.0, 60.0)


@settings(max_examples=200)
@given(
    jobs(),
    curves,
    st.fixed_dictionaries(
        {
            "seed": st.integers(0, 2**16),
            "places": st.integers(2, 5),
            "workers": st.integers(1, 2),
            "kills": st.lists(st.integers(0, 60), max_size=3),
            "hangs": st.lists(st.integers(0, 60), max_size=1),
            "killed_at": st.lists(times, max_size=3),
            "cut_at": st.lists(times, max_size=2),
            "asked_at": st.lists(st.tuples(times, st.none() | st.integers(1, 5)), max_size=3),
        }
    ),
)
def test_deaths_hangs_cuts_scaling_and_draining_change_nothing(sent: Submission, shown: Curves, weather: Any) -> None:
    cluster = SimulatedCluster(sent, shown, **weather)
    cluster.run()
    if isinstance(cluster.job.state, Failed):
        assert "attempts in a row" in cluster.job.state.error["fact"]
        return
    check(cluster, sent, shown)
