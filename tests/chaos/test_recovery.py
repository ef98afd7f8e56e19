"""Faults while others are being dealt with: in a recovery, a join, a drain, a checkpoint, the final save."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import paceline as pl
from paceline.testing.faults import Fault, FaultPlan
from paceline.testing.sabotage import Sabotage

from helpers import wait_until
from points import at, built, job_of, slow

MS = 0.001
EndsWell = Callable[[pl.Job], pl.Result]
Inflict = Callable[[FaultPlan, pl.Job], list[Fault]]
Sabotages = Callable[..., Sabotage]


def two_faults(first: tuple[str, Sabotage], second: tuple[str, Sabotage], held: Path) -> Any:
    """Builds a held model with a fault at each of two points."""

    def build() -> Any:
        model = built(*first, held_by=str(held))
        second_point, fault = second
        if second_point == "build":
            fault()
        elif second_point == "copy_out":
            model.register_state_dict_pre_hook(fault)
        else:
            model.register_load_state_dict_pre_hook(fault)
        return model

    return build


@pytest.mark.parametrize("workers", [3, *slow(2)])
@pytest.mark.parametrize("point", ["build", "copy_in", "copy_out"])
def test_a_second_kill_while_the_first_is_replaced(
    cluster: pl.Client, ends_well: EndsWell, sabotage: Sabotages, held: Path, point: str, workers: int
) -> None:
    first = sabotage(at_pass=20)
    # the first replacement dies in its builder or as it takes the state in; or the survivor that gives it the state
    second = sabotage(spared=workers if point == "build" else 0)
    model = two_faults(("forward", first), (point, second), held)
    job = cluster.submit(job_of(workers, model=model, keep="last", stop=pl.MaxEpochs(5)))
    wait_until(lambda: [first.struck(), second.struck()] == [1, 1])
    held.unlink()
    ends_well(job)


@pytest.mark.parametrize("delay_ms", slow(0.5, 1, 2, 3, 5, 8, 12))
@pytest.mark.parametrize("point", ["copy_in", "copy_out"])
def test_a_kill_soon_after_a_copy_has_begun(
    cluster: pl.Client, ends_well: EndsWell, sabotage: Sabotages, held: Path, point: str, delay_ms: float
) -> None:
    first, second = sabotage(at_pass=20), sabotage(delay_s=delay_ms * MS)
    model = two_faults(("forward", first), (point, second), held)
    job = cluster.submit(job_of(3, model=model, keep="last"))
    wait_until(lambda: second.struck() == 1)
    held.unlink()
    ends_well(job)


@pytest.mark.parametrize("point", ["copy_out", "forward", *slow("build", "copy_in")])
def test_a_kill_while_two_workers_join(
    cluster: pl.Client, ends_well: EndsWell, sabotage: Sabotages, inflict: Inflict, held: Path, point: str
) -> None:
    """The joiner in its builder, as it takes the state in, or in its first cell; or who gives it the state."""
    fault = sabotage(spared={"build": 1, "forward": 1}.get(point, 0))
    job = cluster.submit(job_of(1, keep="last", stop=pl.MaxEpochs(5), **at(point, fault, held_by=str(held))))
    inflict(FaultPlan().scale(3, at_step=3), job)
    wait_until(lambda: fault.struck() == 1)
    held.unlink()
    ends_well(job)


@pytest.mark.parametrize("rank", [1, *slow(0, 2)])
def test_a_kill_while_workers_are_drained(cluster: pl.Client, ends_well: EndsWell, inflict: Inflict, rank: int) -> None:
    """Of one that stays, or of one that was about to go, which may be quicker than its end."""
    for _ in range(5):
        job = cluster.submit(job_of(3))
        hit = inflict(FaultPlan().scale(1, at_step=20).kill(rank), job)
        ends_well(job)
        if [fault.kind for fault in hit] == ["scale", "kill"]:
            return
    raise AssertionError("five times nobody was there to be killed")


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("delay_ms", [2, *slow(0, 0.5, 1, 3, 5, 7, 10, 15, 20, 30)])
def test_a_kill_while_a_checkpoint_is_written(
    cluster: pl.Client, ends_well: EndsWell, sabotage: Sabotages, workers: int, delay_ms: float
) -> None:
    fault = sabotage(at_pass=3, delay_s=delay_ms * MS)
    job = cluster.submit(job_of(workers, keep="last", checkpoint_every=10, **at("copy_out", fault)))
    ends_well(job)
    assert fault.struck() == 1
    if workers == 1:
        assert job.info()["attempt"] == 2


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("delay_ms", [3, *slow(0, 0.5, 1, 2, 5, 8, 12, 20)])
def test_a_kill_while_the_model_is_saved(
    cluster: pl.Client, ends_well: EndsWell, sabotage: Sabotages, workers: int, delay_ms: float
) -> None:
    fault = sabotage(delay_s=delay_ms * MS, times=min(2, workers))
    job = cluster.submit(job_of(workers, keep="last", checkpoint_every=1000, **at("copy_out", fault)))
    ends_well(job)
    assert fault.struck() >= 1
