"""The job machine: whatever happens, and in whatever order, a job's life keeps its promises."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import paceline as pl
from paceline.errors import NonFinite, UserCodeError
from paceline.master.commands import (
    Command,
    Commit,
    Discard,
    Enqueue,
    Quarantine,
    Record,
    RollBack,
    Send,
    SetTimer,
    StartWorkers,
    StopWorkers,
)
from paceline.master.committed import Checkpoint, Training
from paceline.master.events import (
    Answer,
    AttemptEnded,
    CancelRequested,
    Event,
    Late,
    Lost,
    NodeDraining,
    Planned,
    Preempted,
    Recruited,
    ScaleRequested,
    Tick,
    Unplaced,
)
from paceline.master.job import Job
from paceline.master.lives import next_plan
from paceline.master.machine import resumed, step
from paceline.master.orders import waiting_for
from paceline.master.states import (
    TERMINAL,
    Cancelled,
    Failed,
    Queued,
    Recovering,
    Running,
    Starting,
    Succeeded,
    Waiting,
)
from paceline.measured import Measured
from paceline.messages.from_worker import (
    Beat,
    Checked,
    CheckpointWritten,
    Copied,
    Evaluated,
    Evidence,
    FromWorker,
    ModelFile,
    Pace,
    PeerLost,
    Ready,
    Saved,
    Suspected,
    Trained,
    Unloadable,
    Warned,
    WorkerFailed,
    WorkerHello,
)
from paceline.messages.message import CheckpointRef
from paceline.messages.to_worker import CheckRound, CopyOrder, EvaluateRound, Group, SaveRound, TrainRound
from paceline.plan import Placement, Plan, Sharding
from paceline.shares import split_evenly
from paceline.spec import Facts, Submission
from paceline.stop import must_end, step_bound

from builders import GIB, node, plan_of, submission
from simulated import Curves, SimulatedCluster, expected, grid_of


def simulated(**changes: Any) -> Submission:
    """A job as the simulated workers evaluate it."""
    return submission(**{"values": ("val_accuracy",), "batch_size": 4, **changes})


FLAT = Curves(losses=[1.0], val_losses=[1.0], accuracies=[0.5])

# ---- whole jobs, in any weather ----

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
    return simulated(
        stop=draw(conditions),
        microbatches=draw(st.sampled_from([2, 4])),
        drop_last=draw(st.booleans()),
        keep=draw(st.sampled_from(["last", "best:val_loss", "best:val_accuracy"])),
        eval_every=draw(st.none() | st.integers(1, 7)),
        checkpoint_every=draw(st.none() | st.integers(1, 7)),
    )


def weather(seed: int) -> dict[str, Any]:
    """Deaths, hangs, broken connections, and people who change their minds."""
    chance = random.Random(seed)

    def some(most: int, what: Callable[[], Any]) -> list[Any]:
        return [what() for _ in range(chance.randint(0, most))]

    return {
        "seed": seed,
        "places": chance.randint(2, 5),
        "workers": chance.randint(1, 2),
        "kills": some(3, lambda: chance.randint(0, 60)),
        "hangs": some(1, lambda: chance.randint(0, 60)),
        "killed_at": some(3, lambda: chance.uniform(0, 60)),
        "cut_at": some(2, lambda: chance.uniform(0, 30)),
        "rotten": some(2, lambda: chance.randint(0, 5)),
        "asked_at": some(4, lambda: (chance.uniform(0, 30), chance.choice([None, None, 1, 2, 3, 4]))),
        "preempted_at": some(3, lambda: chance.uniform(0, 40)),
        "probes": chance.randint(0, 2),
    }


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
def test_on_a_perfect_cluster_neither_rounds_nor_workers_change_what_a_job_comes_to(
    sent: Submission, shown: Curves, seed: int, workers: int
) -> None:
    cluster = SimulatedCluster(sent, shown, seed, places=workers, workers=workers)
    cluster.run()
    check(cluster, sent, shown)
    assert cluster.roll_backs == []
    assert cluster.job.attempt == 1


@settings(max_examples=250)
@given(jobs(), curves, st.integers(0, 2**32))
def test_deaths_hangs_cuts_scaling_and_draining_do_not_change_it_either(
    sent: Submission, shown: Curves, seed: int
) -> None:
    cluster = SimulatedCluster(sent, shown, **weather(seed))
    cluster.run()
    if isinstance(cluster.job.state, Failed):
        assert "3 attempts in a row" in cluster.job.state.error["fact"]
    else:
        check(cluster, sent, shown)


@settings(max_examples=100)
@given(jobs(), curves, st.integers(0, 2**32))
def test_without_a_death_no_step_is_ever_trained_twice(sent: Submission, shown: Curves, seed: int) -> None:
    calm = {**weather(seed), "kills": (), "hangs": (), "killed_at": (), "rotten": ()}
    cluster = SimulatedCluster(sent, shown, **calm)
    cluster.run()
    check(cluster, sent, shown)
    assert cluster.roll_backs == []


def test_the_model_of_the_best_evaluation_is_delivered_and_not_the_last() -> None:
    sent = simulated(stop=pl.MaxEpochs(4), keep="best:val_loss", eval_every=2)
    shown = Curves(losses=[1.0], val_losses=[0.9, 0.9, 0.5, 0.9, 0.3, 0.9, 0.7], accuracies=[0.0])
    cluster = SimulatedCluster(sent, shown)
    cluster.run()
    assert isinstance(cluster.job.state, Succeeded)
    assert cluster.job.state.delivery.digest == "model after 4"
    assert cluster.job.state.delivery.step == 4
    assert cluster.job.training.step == 20


def test_a_preempted_job_leaves_by_a_checkpoint_of_its_last_commit_and_loses_no_step() -> None:
    sent = simulated(stop=pl.MaxSteps(40), keep="best:val_loss", eval_every=7, checkpoint_every=100)
    shown = Curves(losses=[1.0, 0.5], val_losses=[0.9, 0.2, 0.7], accuracies=[0.0])
    cluster = SimulatedCluster(sent, shown, workers=2, places=2, preempted_at=[8.0, 20.0], seconds_per_step=0.5)
    cluster.run()
    check(cluster, sent, shown)
    kinds = [record.kind for record in cluster.records if record.kind in ("preempted", "checkpoint", "attempt_lost")]
    assert kinds == ["preempted", "checkpoint"] * 2
    assert cluster.job.attempt == 3
    assert cluster.roll_backs == []
    waited = [r.data["reason"] for r in cluster.records if r.kind == "state" and r.data["state"] == "WAITING"]
    assert waited == ["preempted by job-2"] * 2


# ---- failures that must end a job, or must not ----


def test_a_step_that_kills_every_worker_ends_the_job_after_three_attempts_and_says_where() -> None:
    sent = simulated(stop=pl.MaxSteps(40), checkpoint_every=5)
    cluster = SimulatedCluster(sent, FLAT, deadly_step=12, seconds_per_step=0.5)
    cluster.run()
    assert isinstance(cluster.job.state, Failed)
    error = cluster.job.state.error
    assert error["code"] == "job_failed"
    assert "3 attempts in a row got no further than step 12" in error["fact"]
    assert "killed by signal 9" in error["fact"]
    assert error["remedy"]
    assert cluster.job.attempt == 4  # the first one got to step 12


def test_attempts_that_get_further_each_time_never_add_up_to_a_failure() -> None:
    sent = simulated(stop=pl.MaxSteps(40), checkpoint_every=5, eval_every=40)
    kills = [9 + 9 * n for n in range(5)]  # each attempt ends a few orders after the last one's checkpoint
    cluster = SimulatedCluster(sent, FLAT, kills=kills, seconds_per_step=0.5)
    cluster.run()
    assert isinstance(cluster.job.state, Succeeded)
    assert cluster.job.attempt == 6


def test_a_drained_worker_hands_its_state_over_before_it_goes() -> None:
    sent = simulated(stop=pl.MaxSteps(30))
    cluster = SimulatedCluster(sent, FLAT, places=2, asked_at=[(8.0, None)], seconds_per_step=0.5)
    cluster.run()
    assert isinstance(cluster.job.state, Succeeded)
    assert cluster.job.state.delivery.digest == "model after 30"
    kinds = [record.kind for record in cluster.records if record.kind.startswith(("draining", "worker_"))]
    assert kinds == ["draining", "worker_joined", "worker_released"]
    assert cluster.roll_backs == []


# ---- single events ----


def started(sent: Submission, workers: int = 1) -> Job:
    job, _ = step(Job("job", sent), Planned(plan_of(split_evenly(sent.options.microbatches, workers))), 0.0)
    return job


def ready(fingerprint: str = "f", samples: int = 18) -> Ready:
    return Ready(fingerprint=fingerprint, train_samples=samples, parameters=1, store_port=1)


def begun(sent: Submission, workers: int = 1, now: float = 0.0) -> tuple[Job, list[Command]]:
    """A job whose workers are all ready, and the first orders."""
    job, commands = started(sent, workers), []
    for rank in range(workers):
        job, _ = step(job, Answer(1, rank, WorkerHello(address="a")), now)
        job, commands = step(job, Answer(1, rank, ready()), now)
    return job, commands


def orders(commands: list[Command]) -> dict[int, Any]:
    return {c.rank: c.message for c in commands if isinstance(c, Send)}


NO_PACE = Pace(steps=0, cells=0, seconds=0.0, busy_s=0.0, waited_s=0.0)


def trained(order: TrainRound, cell_s: float | None = None, **changes: Any) -> Trained:
    """cell_s: seconds for a microbatch, where the round measured it."""
    steps = order.to_step - order.from_step
    fields = {"from_step": order.from_step, "step": order.to_step, "losses": (1.0,) * steps, "seconds": 0.1}
    measured = 0 if cell_s is None else steps
    pace = Pace(steps=measured, cells=measured, seconds=0.1 * measured, busy_s=measured * (cell_s or 0.0), waited_s=0.0)
    return Trained(**{**fields, "pace": pace, **changes})


@pytest.mark.parametrize("when", ["starting", "running"])
def test_a_users_error_ends_the_job_at_once_with_that_very_error(when: str) -> None:
    sent = submission(batch_size=4)
    error = UserCodeError("your code raised KeyError: 'x'", "Its traceback follows.", traceback="line 3").to_json()
    job = started(sent, 2) if when == "starting" else begun(sent, 2)[0]
    job, commands = step(job, Answer(1, 1, WorkerFailed(error=error)), 1.0)
    assert job.state == Failed(error)
    assert StopWorkers(1) in commands
    assert Record("state", {"state": "FAILED", "attempt": 1, "error": error}) in commands


# ---- steps that can't be right ----

FINE = Evidence(loss=0.5, norm=1e30, digest="aa")
NAN = Evidence(loss=float("nan"), norm=float("nan"), digest="bb")


def suspecting(suspects: tuple[int, ...], evidence: Evidence | None, workers: int = 2) -> tuple[Job, list[Command]]:
    """A job whose members all say, after one good step, that the next can't be right; and what is then ordered."""
    job, commands = begun(submission(batch_size=4, stop=pl.MaxSteps(30)), workers)
    job, commands = round_of(job, commands)
    at = orders(commands)[0].from_step
    for rank in range(workers):
        own = evidence if rank in suspects else None
        word = Suspected(from_step=at, step=at, losses=(), suspects=suspects, reason="gradient norm 1e30", evidence=own)
        job, commands = step(job, Answer(1, rank, word), 3.0)
    return job, commands


def checked(job: Job, by: int, evidence: Evidence, error: dict[str, Any] | None = None) -> tuple[Job, list[Command]]:
    assert isinstance(job.state, Running)
    order = job.state.order
    assert isinstance(order, CheckRound)
    answer = Checked(step=order.step, rank=order.rank, evidence=evidence, error=error)
    return step(job, Answer(1, by, answer), 4.0)


def test_another_member_computes_a_suspects_part_again() -> None:
    _, commands = suspecting((1,), FINE)
    assert {rank: (order.rank, order.checker) for rank, order in orders(commands).items()} == {0: (1, 0)}
    _, commands = suspecting((0,), FINE, workers=1)
    assert {rank: (order.rank, order.checker) for rank, order in orders(commands).items()} == {0: (0, 0)}


def test_the_same_bits_twice_are_trusted_however_large() -> None:
    job, _ = suspecting((1,), FINE)
    job, commands = checked(job, 0, FINE)
    assert {order.trusted_step for order in orders(commands).values()} == {job.training.step}
    assert [c.data["step"] for c in commands if isinstance(c, Record)] == [job.training.step]


def test_a_step_that_is_not_finite_twice_ends_the_job_by_the_layer_that_was_found() -> None:
    job, _ = suspecting((1,), NAN)
    named = NonFinite("layer 'head' at step 0", "Lower the learning rate.", step=0).to_json()
    job, _ = checked(job, 0, NAN, named)
    assert job.state == Failed(named)


def test_a_node_whose_part_comes_out_otherwise_is_put_in_quarantine_with_the_evidence() -> None:
    job, _ = suspecting((1,), NAN)
    job, commands = checked(job, 0, Evidence(loss=0.5, norm=2.0, digest="cc"))
    assert isinstance(job.state, Running)
    assert job.state.members == (0,)
    (record,) = (c.data for c in commands if isinstance(c, Record) and c.kind == "node_quarantined")
    assert (record["node"], record["reported"]["norm"], record["computed"]["norm"]) == ("n1", "nan", "2.0")
    assert [c.node_id for c in commands if isinstance(c, Quarantine)] == ["n1"]
    assert StopWorkers(1, (1,)) in commands
    assert orders(commands)[0].from_step == job.training.step


def test_a_lone_worker_that_computes_otherwise_the_second_time_is_given_up_with_its_node() -> None:
    job, _ = suspecting((0,), FINE, workers=1)
    job, commands = checked(job, 0, Evidence(loss=0.5, norm=2.0, digest="cc"))
    assert isinstance(job.state, Recovering)
    assert [c.node_id for c in commands if isinstance(c, Quarantine)] == ["n0"]


def test_a_suspect_that_is_lost_before_it_is_checked_leaves_the_others_to_do_the_step_again() -> None:
    job, _ = suspecting((1,), FINE)
    job, commands = step(job, Lost(1, 1, "killed"), 4.0)
    assert isinstance(orders(commands)[0], TrainRound)
    job, _ = suspecting((1,), FINE, workers=3)
    job, commands = step(job, Lost(1, 0, "killed"), 4.0)
    assert {rank: (order.rank, order.checker) for rank, order in orders(commands).items() if rank == 2} == {2: (1, 2)}


def test_a_sum_that_is_not_finite_of_parts_that_are_ends_the_job() -> None:
    job, _ = suspecting((), None)
    assert isinstance(job.state, Failed)
    assert (job.state.error["code"], bool(job.state.error["remedy"])) == ("non_finite", True)


def test_workers_that_built_different_data_end_the_job_with_the_nodes_and_their_prints() -> None:
    job = started(submission(batch_size=4), 2)
    job, _ = step(job, Answer(1, 0, ready("18:aa")), 1.0)
    job, commands = step(job, Answer(1, 1, ready("18:bb")), 1.0)
    assert isinstance(job.state, Failed)
    assert job.state.error["code"] == "data_mismatch"
    assert job.state.error["details"]["fingerprints"] == {"rank 0 on n0": "18:aa", "rank 1 on n1": "18:bb"}
    assert StopWorkers(1) in commands


def test_wall_time_makes_a_model_irreproducible_and_says_so() -> None:
    sent = simulated(stop=pl.MaxTime("10m") | pl.MaxEpochs(500))
    cluster = SimulatedCluster(sent, FLAT, seconds_per_step=1.0)
    cluster.run()
    assert isinstance(cluster.job.state, Succeeded)
    delivery = cluster.job.state.delivery
    assert not delivery.reproducible
    assert delivery.irreproducible_because is not None
    assert delivery.irreproducible_because.startswith(
        f"wall time ended the job (MaxTime(600s) at step {delivery.step},"
    )
    assert 600 <= cluster.job.elapsed_s < 610
    assert cluster.job.training.history[-1]["step"] == delivery.step


def test_a_job_that_its_steps_ended_in_time_is_reproducible() -> None:
    sent = simulated(stop=pl.MaxTime("10m") | pl.MaxSteps(9))
    cluster = SimulatedCluster(sent, FLAT)
    cluster.run()
    assert isinstance(cluster.job.state, Succeeded)
    assert (cluster.job.state.delivery.reproducible, cluster.job.state.delivery.irreproducible_because) == (True, None)


def test_a_user_who_allowed_other_hardware_is_told_that_the_model_is_not_reproducible() -> None:
    cluster = SimulatedCluster(simulated(stop=pl.MaxSteps(3), reproducible=False), FLAT)
    cluster.run()
    assert isinstance(cluster.job.state, Succeeded)
    assert cluster.job.state.delivery.irreproducible_because == "reproducible=False"


def test_time_counts_over_all_attempts_but_not_while_the_job_waits() -> None:
    sent = submission(stop=pl.MaxTime(30) | pl.MaxSteps(10_000), batch_size=4)
    job, _ = begun(sent, now=100.0)
    job, _ = step(job, Lost(1, 0, "killed"), 120.0)
    assert job.elapsed_s == 20.0
    job, _ = step(job, AttemptEnded(1), 500.0)
    job, _ = step(job, Planned(plan_of([(0, 4)])), 900.0)
    job, commands = step(job, Answer(2, 0, ready()), 1000.0)
    job, commands = step(job, Answer(2, 0, trained(orders(commands)[0])), 1009.0)
    assert isinstance(orders(commands)[0], TrainRound)
    job, commands = step(job, Answer(2, 0, trained(orders(commands)[0])), 1010.0)
    assert isinstance(orders(commands)[0], EvaluateRound)  # 20 + 10 seconds: it stops


@pytest.mark.parametrize("when", [Queued(), Waiting("for nodes"), Recovering("of a loss")])
def test_a_job_that_is_not_running_can_be_cancelled_too(when: Any) -> None:
    job, commands = step(replace(Job("job", submission()), attempt=2, state=when), CancelRequested(), 1.0)
    assert job.state == Cancelled()
    assert commands == [Record("state", {"state": "CANCELLED", "attempt": 2}), StopWorkers(2)]


def test_a_setup_that_never_ends_is_given_up_and_names_who_was_late() -> None:
    job, _ = step(started(submission(batch_size=4), 2), Answer(1, 0, ready()), 1.0)
    job, commands = step(job, Late(1, "setup"), 900.0)
    assert isinstance(job.state, Recovering)
    assert "rank 1 on n1" in job.state.reason
    assert "rank 0" not in job.state.reason
    assert StopWorkers(1) in commands


def beat(at: int, phase: str = "compute") -> Beat:
    return Beat(step=0, cells=at, phase=phase, stack="model.py:7 forward")


def test_a_slow_worker_that_makes_progress_is_never_lost() -> None:
    job, _ = begun(submission(batch_size=4), 2)
    for second in range(1, 2000):
        for rank in (0, 1):
            job, _ = step(job, Answer(1, rank, beat(at=second // 60)), float(second))
        job, commands = step(job, Tick(1), float(second))
        assert commands == [SetTimer(1.0, Tick(1))]


def test_waiting_for_data_that_keep_coming_is_no_hang() -> None:
    job, _ = begun(submission(batch_size=4), 2)
    for second in range(1, 500):
        for rank in (0, 1):
            coming = Beat(step=0, cells=0, carried=second * 10**6, phase="data", stack="")
            job, _ = step(job, Answer(1, rank, coming), float(second))
        job, commands = step(job, Tick(1), float(second))
        assert commands == [SetTimer(1.0, Tick(1))]


@pytest.mark.parametrize(("phase", "heard"), [("compute", True), ("compute", False), ("exchange", False)])
def test_a_hung_worker_is_ended_and_named_with_where_it_was_and_the_others_go_on(phase: str, heard: bool) -> None:
    job, _ = begun(submission(batch_size=4), 2)
    commands: list[Command] = []
    for second in range(1, 200):
        job, _ = step(job, Answer(1, 0, beat(second)), float(second))
        if heard or second == 1:
            job, _ = step(job, Answer(1, 1, beat(0, phase)), float(second))
        job, commands = step(job, Tick(1), float(second))
        if StopWorkers(1, (1,)) in commands:
            break
    lost = next(c.data["reason"] for c in commands if isinstance(c, Record) and c.kind == "worker_lost")
    assert "rank 1 on n1" in lost
    assert "model.py:7 forward" in lost
    assert isinstance(job.state, Running)
    assert job.state.members == (0,)


def test_waiting_for_others_is_no_hang() -> None:
    job, _ = begun(submission(batch_size=4), 2)
    for second in range(1, 150):
        job, _ = step(job, Answer(1, 0, beat(0, "exchange")), float(second))
        job, _ = step(job, Answer(1, 1, beat(second)), float(second))
        job, commands = step(job, Tick(1), float(second))
        assert commands == [SetTimer(1.0, Tick(1))]


def evaluating(measured_s: float | None = None) -> Job:
    """Two workers asked at 100 s for an evaluation, the first, or the one after one that took this long."""
    job, commands = begun(submission(batch_size=4, stop=pl.MaxSteps(30), eval_every=4), 2)
    for seconds in (measured_s, None):
        while not isinstance(orders(commands)[0], EvaluateRound):
            order = orders(commands)[0]
            job, _ = step(job, Answer(1, 0, trained(order)), 100.0)
            job, commands = step(job, Answer(1, 1, trained(order)), 100.0)
        if seconds is None:
            return job
        done = Evaluated(step=4, first_cell=0, rows=((10.0, 5.0),), seconds=seconds)
        job, _ = step(job, Answer(1, 0, done), 100.0)
        job, commands = step(job, Answer(1, 1, done.model_copy(update={"rows": (), "seconds": 0.1})), 100.0)
    raise AssertionError("unreachable")


def stands_still(job: Job, phase: str, bound_s: int, silent: bool = False) -> tuple[int | None, str]:
    """(after how many seconds without a sign rank 1 is given up, or None, and why)."""
    job, _ = step(job, Tick(1), 100.0)
    for second in range(1, bound_s):
        for rank in (0,) if silent else (0, 1):
            beats = Beat(step=0, cells=second if rank == 0 else 0, phase=phase, stack="metric.py:3 compute")
            job, _ = step(job, Answer(1, rank, beats), 100.0 + second)
        job, commands = step(job, Tick(1), 100.0 + second)
        for command in commands:
            if isinstance(command, Record) and command.kind == "worker_lost":
                return second, command.data["reason"]
    return None, ""


@pytest.mark.parametrize(("measured_s", "bound_s"), [(None, 120), (0.1, 30), (15.0, 300)])
def test_an_evaluation_may_stand_still_for_long_by_its_own_measure(measured_s: float | None, bound_s: int) -> None:
    second, why = stands_still(evaluating(measured_s), "evaluation", bound_s=500)
    assert second is not None
    assert bound_s < second <= bound_s + 2
    assert f"no progress in evaluation for more than {bound_s} s; last seen at metric.py:3 compute" in why


def test_silence_in_an_evaluation_is_told_as_soon_as_in_a_step() -> None:
    second, why = stands_still(evaluating(15.0), "evaluation", bound_s=500, silent=True)
    assert (second, "has not been heard for more than 10 s" in why) == (11, True)


def test_a_member_that_waits_for_its_former_checkpoint_is_not_taken_for_one_that_hangs() -> None:
    job, commands = begun(submission(batch_size=4, stop=pl.MaxSteps(30), val=False), 2)
    for _ in range(3):
        order = orders(commands)[0]
        job, _ = step(job, Answer(1, 0, trained(order)), 100.0)
        job, commands = step(job, Answer(1, 1, trained(order)), 100.0)
    assert stands_still(job, "checkpoint", bound_s=700)[0] == 602
    assert stands_still(job, "step", bound_s=700)[0] == 12


def test_an_answer_that_comes_twice_counts_once() -> None:
    sent = submission(batch_size=4, stop=pl.MaxSteps(30))
    job, commands = begun(sent)
    first = Answer(1, 0, trained(orders(commands)[0]))
    job, commands = step(job, first, 1.0)
    assert step(job, first, 2.0) == (job, [])
    job, commands = step(job, Answer(1, 0, trained(orders(commands)[0])), 3.0)
    assert step(job, first, 4.0) == (job, [])
    assert next(c for c in commands if isinstance(c, Commit)).from_step == 1


def test_survivors_go_on_from_the_furthest_step_that_one_of_them_completed() -> None:
    job, commands = begun(submission(batch_size=4, stop=pl.MaxSteps(30)), 3)
    order = orders(commands)[0]
    assert (order.from_step, order.to_step) == (0, 1)
    job, commands = step(job, Lost(1, 2, "killed"), 1.0)
    assert {rank: type(message).__name__ for rank, message in orders(commands).items()} == {0: "GiveUp", 1: "GiveUp"}
    job, _ = step(job, Answer(1, 0, PeerLost(step=0, losses=(), reason="closed")), 2.0)
    job, commands = step(job, Answer(1, 1, trained(order)), 2.0)
    assert Commit(1, 0, 1, 4) in commands
    again = orders(commands)[0]
    assert (again.from_step, again.behind, again.source) == (1, (0,), 1)
    assert again.group.members == (0, 1)
    assert again.group.key != order.group.key
    assert [cell for share in again.group.shares for cell in range(*share)] == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("cell_s", "shares"),
    [((0.1, 0.1025), ((0, 4), (4, 8))), ((0.1025, 0.1), ((0, 4), (4, 8))), ((0.1, 0.3), ((0, 6), (6, 8)))],
)
def test_shares_change_only_for_speeds_that_promise_a_clear_gain_and_the_group_stays(
    cell_s: tuple[float, float], shares: tuple[tuple[int, int], ...]
) -> None:
    groups = groups_of_rounds([cell_s] * 8)
    assert groups[-1].shares == shares
    assert len({group.key for group in groups}) == 1


def test_a_round_in_which_nothing_was_measured_moves_no_shares() -> None:
    assert {group.shares for group in groups_of_rounds([None, *[(0.1, 0.1)] * 7])} == {((0, 4), (4, 8))}


def groups_of_rounds(cell_s: Sequence[tuple[float, float] | None]) -> list[Group]:
    """The group of each round of a job on two workers, which take so many seconds for a cell in that round."""
    job, commands = started(submission(batch_size=8, stop=pl.MaxSteps(300)), 2), []
    for rank in (0, 1):
        job, _ = step(job, Answer(1, rank, WorkerHello(address="a")), 0.0)
        job, commands = step(job, Answer(1, rank, ready(samples=8000)), 0.0)
    groups = []
    for turn, measured in enumerate(cell_s):
        given = orders(commands)
        groups.append(given[0].group)
        for rank, order in given.items():
            seconds = 0.4 * (order.to_step - order.from_step)
            answer = trained(order, measured[rank] if measured else None, seconds=seconds)
            job, commands = step(job, Answer(1, rank, answer), turn + 1.0)
    return groups


def test_a_new_group_begins_with_a_round_of_one_step_and_then_lengthens_it() -> None:
    def lengths(job: Job, commands: list[Command], rounds: int) -> tuple[Job, list[Command], list[int]]:
        found = []
        for _ in range(rounds):
            given = orders(commands)
            found += [order.to_step - order.from_step for rank, order in given.items() if rank == 0]
            for rank, order in given.items():
                job, commands = step(job, Answer(1, rank, trained(order)), 1.0)
        return job, commands, found

    job, commands = begun(submission(batch_size=4, stop=pl.MaxSteps(900), val=False, eval_every=900), 2)
    job, commands, alone = lengths(job, commands, 2)
    assert alone == [1, 5]  # of 0.1 s
    job, _ = step(job, Lost(1, 1, "killed"), 2.0)
    torn = PeerLost(step=job.training.step, losses=(), reason="closed")
    job, commands = step(job, Answer(1, 0, torn), 2.0)
    assert lengths(job, commands, 2)[2] == [1, 5]


def test_a_restarted_master_resumes_at_the_checkpoint_and_fences_the_old_attempt_off() -> None:
    sent = submission(batch_size=4)
    training = Training(train_samples=18, step=4)
    checkpoint = Checkpoint(ref=CheckpointRef(step=4, blob="4/None", nbytes=1), training=training)
    job, commands = resumed("job", sent, attempt=3, elapsed_s=7.0, checkpoints=(checkpoint,))
    assert (job.state_name, job.training, job.elapsed_s) == ("WAITING", training, 7.0)
    assert RollBack(4) in commands
    assert step(job, Answer(3, 0, ready()), 1.0) == (job, [])
    job, commands = step(job, Planned(plan_of([(0, 4)])), 1.0)
    assert [c.attempt for c in commands if isinstance(c, StartWorkers)] == [4]
    job, commands = step(job, Answer(4, 0, WorkerHello(address="a")), 1.0)
    assert orders(commands)[0].checkpoint == checkpoint.ref


def test_a_new_job_that_a_restarted_master_finds_is_queued_from_its_first_step() -> None:
    job, commands = resumed("job", submission(), attempt=0, elapsed_s=0.0, checkpoints=())
    assert (job.state, job.training) == (Queued(), Training())
    assert RollBack(0) in commands


def test_the_first_attempts_hardware_class_stays_with_the_job_whatever_becomes_of_it() -> None:
    job, _ = begun(submission(batch_size=4))
    job, _ = step(job, Lost(1, 0, "killed"), 1.0)
    job, _ = step(job, AttemptEnded(1), 2.0)
    other = plan_of([(0, 4)]).model_copy(update={"hardware_class": "cpu:OLD"})
    job, _ = step(job, Planned(other), 3.0)
    assert (job.attempt, job.hardware_class) == (2, "cpu:AVX2")
    again, _ = resumed("job", job.submission, 2, 0.0, (), hardware_class=job.hardware_class)
    assert again.hardware_class == "cpu:AVX2"


def test_a_job_that_waits_says_once_what_it_waits_for() -> None:
    job, _ = resumed("job", submission(), 1, 0.0, ())
    error = pl.Unplaceable("its hardware class is gone.", "Add a node.").to_json()
    job, commands = step(job, Unplaced(error), 1.0)
    assert job.state == Waiting("its hardware class is gone.")
    told = {"state": "WAITING", "attempt": 1, "reason": "its hardware class is gone."}
    assert commands == [Record("state", told), Record("warning", error)]
    assert step(job, Unplaced(error), 2.0) == (job, [])


def test_another_member_saves_where_the_first_dies_over_it() -> None:
    job, commands = begun(submission(batch_size=4, stop=pl.MaxSteps(1), val=False), 2)
    order = orders(commands)[0]
    for rank in (0, 1):
        job, commands = step(job, Answer(1, rank, trained(order)), 1.0)
    assert {rank: type(message) for rank, message in orders(commands).items()} == {0: SaveRound}
    job, commands = step(job, Lost(1, 0, "killed"), 2.0)
    assert orders(commands)[1] == SaveRound(step=1, which="last")
    job, _ = step(job, Answer(1, 1, Saved(step=1, blob="b", nbytes=1, digest="sha256:1")), 3.0)
    assert isinstance(job.state, Succeeded)


def test_another_member_saves_where_the_first_falls_silent_over_it() -> None:
    job, commands = begun(submission(batch_size=4, stop=pl.MaxSteps(1), val=False), 2)
    order = orders(commands)[0]
    for rank in (0, 1):
        job, commands = step(job, Answer(1, rank, trained(order)), 1.0)
    for second in range(2, 5000):  # an upload may take long: as long as bytes arrive, it is left alone
        sent = Beat(step=0, cells=0, carried=second // 60 * 10**6, phase="idle", stack="")
        job, _ = step(job, Answer(1, 0, sent), float(second))
        job, commands = step(job, Tick(1), float(second))
        assert commands == [SetTimer(1.0, Tick(1))]
    for second in range(5000, 5200):
        job, commands = step(job, Tick(1), float(second))
        if len(commands) > 1:
            break
    assert StopWorkers(1, (0,)) in commands
    assert orders(commands)[1] == SaveRound(step=1, which="last")


def test_while_the_master_stands_still_nobody_hangs_and_who_is_silent_afterwards_does() -> None:
    job, _ = begun(submission(batch_size=4), 2)
    for rank in (0, 1):
        job, _ = step(job, Answer(1, rank, beat(1)), 1.0)
    job, _ = step(job, Tick(1), 1.0)
    job, commands = step(job, Tick(1), 1000.0)  # its disk was full; what the workers said meanwhile is still unread
    assert commands == [SetTimer(1.0, Tick(1))]
    for second in range(1001, 1200):
        job, _ = step(job, Answer(1, 0, beat(second)), float(second))
        job, commands = step(job, Tick(1), float(second))
        if StopWorkers(1, (1,)) in commands:
            break
    assert StopWorkers(1, (1,)) in commands
    assert isinstance(job.state, Running)
    assert job.state.members == (0,)


@pytest.mark.parametrize(("took_s", "next_after_s"), [(0.1, 30), (2.0, 100), (60.0, 300)])
def test_checkpoints_that_take_long_are_made_as_much_more_seldom(took_s: float, next_after_s: float) -> None:
    job, commands = begun(submission(batch_size=4, stop=pl.MaxSteps(10**4), eval_every=10**4))
    job, commands = round_of(job, commands, now=40.0)
    at = orders(commands)[0].from_step
    assert orders(commands)[0].checkpoint
    written = CheckpointWritten(checkpoint=CheckpointRef(step=at, blob="b", nbytes=1))
    job, _ = step(job, Answer(1, 0, written), 40.0 + took_s)
    job, commands = round_of(job, commands, now=39.9 + next_after_s)
    assert not orders(commands)[0].checkpoint
    job, commands = round_of(job, commands, now=40.1 + next_after_s)
    assert orders(commands)[0].checkpoint


def test_a_checkpoint_that_a_torn_round_may_not_have_written_is_asked_for_again() -> None:
    job, commands = begun(submission(batch_size=4, stop=pl.MaxSteps(30), checkpoint_every=1), 3)
    job, commands = round_of(job, commands)
    assert orders(commands)[0].checkpoint
    job, _ = step(job, Lost(1, 2, "killed"), 2.0)
    for rank in (0, 1):
        job, commands = step(job, Answer(1, rank, PeerLost(step=1, losses=(), reason="closed")), 3.0)
    assert (orders(commands)[0].from_step, orders(commands)[0].checkpoint) == (1, True)


def test_checkpoints_go_on_when_their_writer_was_released_before_it_was_done() -> None:
    job, commands = begun(submission(batch_size=4, stop=pl.MaxSteps(30), checkpoint_every=1), 2)
    job, commands = round_of(job, commands)
    assert orders(commands)[0].checkpoint
    job, _ = step(job, NodeDraining("n0"), 2.0)
    job, commands = round_of(job, commands)
    assert StopWorkers(1, (0,)) in commands
    assert (list(orders(commands)), orders(commands)[1].checkpoint) == ([1], True)


def test_one_that_joins_copies_a_members_state_whatever_was_published_since_it_was_set_up() -> None:
    """A checkpoint at the very step at which it joins is none that it has loaded."""
    job, commands = begun(submission(batch_size=4, stop=pl.MaxSteps(30), checkpoint_every=1), 2)
    running_now = replace(job.state, target=3)  # type: ignore[type-var]
    job, _ = step(replace(job, state=running_now), Recruited(1, plan_of([(0, 4)]).workers[0]), 1.0)
    job, setup = step(job, Answer(1, 2, WorkerHello(address="a")), 1.0)
    assert orders(setup)[2].checkpoint is None
    job, commands = round_of(job, commands)
    ref = CheckpointRef(step=1, blob="b", nbytes=1)
    job, _ = step(job, Answer(1, 0, CheckpointWritten(checkpoint=ref)), 2.0)
    assert job.checkpoint is not None
    job, _ = step(job, Answer(1, 2, ready()), 2.0)
    for rank in (0, 1):
        job, commands = step(job, Answer(1, rank, PeerLost(step=1, losses=(), reason="closed")), 3.0)
    job, commands = step(job, Late(1, timer_of(commands)), 6.0)
    order = orders(commands)[2]
    assert (order.from_step, order.group.members, order.behind, order.source) == (1, (0, 1, 2), (2,), 0)


def torn(job: Job, steps: int = 0, dies: bool = False) -> tuple[Job, list[Command]]:
    """All members lose each other after so many steps of their round; where one dies, another joins in its place."""
    state = job.state
    assert isinstance(state, Running)
    assert isinstance(state.order, TrainRound)
    at, commands = state.order.from_step, []
    if dies:
        job, _ = step(job, Lost(1, state.members[-1], "signal 9"), 2.0)
        job, rank = recruited(job)
        job, _ = step(job, Answer(1, rank, ready()), 2.0)
    for rank in state.members:
        lost = PeerLost(step=at + steps, losses=(1.0,) * steps, reason="connection reset")
        job, commands = step(job, Answer(1, rank, lost), 2.0)
    if not dies:
        job, commands = step(job, Late(1, timer_of(commands)), 5.0)
    return job, commands


def test_rounds_that_are_torn_again_and_again_without_a_death_end_the_attempt() -> None:
    job = wanting(2)
    for _ in range(4):
        job, commands = torn(job)
        assert isinstance(orders(commands)[0], TrainRound)
    job, commands = torn(job)
    assert job.state == Recovering("the workers lost each other 5 times in a row; the last: connection reset")
    assert StopWorkers(1) in commands


def test_torn_rounds_with_a_step_or_a_death_between_them_do_not_add_up() -> None:
    job = wanting(2)
    for round_number in range(20):
        job, commands = torn(job, steps=1) if round_number % 5 == 4 else torn(job)
        assert isinstance(orders(commands)[0], TrainRound)
    for _ in range(4):
        job, _ = torn(job)
    for _ in range(6):
        job, _ = torn(job, dies=True)
    assert isinstance(job.state, Running)


@settings(max_examples=60)
@given(jobs(), st.integers(0, 2**16), st.integers(2, 4))
def test_workers_that_can_never_reach_each_other_end_the_job_with_that_reason(
    sent: Submission, seed: int, workers: int
) -> None:
    cluster = SimulatedCluster(sent, FLAT, seed, places=workers, workers=2, cut_off=True)
    cluster.run()
    assert isinstance(cluster.job.state, Failed)
    fact = cluster.job.state.error["fact"]
    assert "3 attempts in a row got no further than step 0" in fact
    assert "the workers lost each other 5 times in a row" in fact
    assert cluster.commits == []


# ---- checkpoints ----


def kept(*steps: int) -> tuple[Checkpoint, ...]:
    """Checkpoints of these steps, newest first."""
    return tuple(
        Checkpoint(ref=CheckpointRef(step=at, blob=f"at {at}", nbytes=1), training=Training(step=at)) for at in steps
    )


def loading(checkpoints: tuple[Checkpoint, ...], fruitless: int = 0) -> Job:
    """A job whose two workers are told to start from the newest of these checkpoints."""
    sent = submission(batch_size=4, stop=pl.MaxSteps(30))
    job, _ = resumed("job", sent, attempt=3, elapsed_s=0.0, checkpoints=checkpoints)
    job, _ = step(replace(job, fruitless=fruitless), Planned(plan_of([(0, 2), (2, 4)])), 1.0)
    for rank in (0, 1):
        job, _ = step(job, Answer(4, rank, WorkerHello(address="a")), 1.0)
    return job


@pytest.mark.parametrize(("checkpoints", "again"), [(kept(8, 4), 4), (kept(8), 0)])
def test_a_checkpoint_that_can_not_be_loaded_is_recorded_and_the_one_before_it_taken(
    checkpoints: tuple[Checkpoint, ...], again: int
) -> None:
    job, commands = step(loading(checkpoints), Answer(4, 1, Unloadable(step=8, reason="other bytes")), 2.0)
    assert Record("checkpoint_lost", {"step": 8, "reason": "other bytes", "resumes_from": again}) in commands
    assert Discard(("at 8",), damaged=True) in commands  # or the same bytes, written again, would count as here
    assert StopWorkers(4) in commands
    assert step(job, Answer(4, 0, Unloadable(step=8, reason="other bytes")), 2.5) == (job, [])
    job, commands = step(job, AttemptEnded(4), 3.0)
    assert RollBack(again) in commands
    assert (job.training.step, job.checkpoints) == (again, checkpoints[1:])
    job, _ = step(job, Planned(plan_of([(0, 4)])), 4.0)
    _, commands = step(job, Answer(5, 0, WorkerHello(address="a")), 4.0)
    assert orders(commands)[0].checkpoint == (checkpoints[1].ref if again else None)


def test_a_lost_checkpoint_is_no_fruitless_attempt_of_the_workers() -> None:
    job, _ = step(loading(kept(8, 4), fruitless=2), Answer(4, 1, Unloadable(step=8, reason="other bytes")), 2.0)
    assert (job.state_name, job.fruitless) == ("RECOVERING", 2)


def test_the_newest_two_checkpoints_are_kept_and_older_ones_thrown_away() -> None:
    job, commands = begun(submission(batch_size=4, stop=pl.MaxSteps(30), checkpoint_every=1, eval_every=30))
    thrown: list[Command] = []
    for at in range(1, 5):
        job, commands = round_of(job, commands)
        assert orders(commands)[0].checkpoint
        ref = CheckpointRef(step=at, blob=f"at {at}", nbytes=1)
        job, after = step(job, Answer(1, 0, CheckpointWritten(checkpoint=ref)), 2.0)
        thrown += [command for command in after if isinstance(command, Discard)]
    assert [checkpoint.ref.step for checkpoint in job.checkpoints] == [4, 3]
    assert [checkpoint.training.step for checkpoint in job.checkpoints] == [4, 3]
    assert thrown == [Discard(("at 1",)), Discard(("at 2",))]


@pytest.mark.parametrize("how", ["cancelled", "failed", "succeeded"])
def test_a_job_that_has_ended_needs_no_checkpoints(how: str) -> None:
    job, commands = begun(submission(batch_size=4, stop=pl.MaxSteps(1), val=False))
    job = replace(job, checkpoints=kept(8, 4))
    if how == "cancelled":
        job, commands = step(job, CancelRequested(), 1.0)
    elif how == "failed":
        job, commands = step(job, Answer(1, 0, WorkerFailed(error={"code": "user_code", "fact": "f"})), 1.0)
    else:
        job, commands = round_of(job, commands)
        job, commands = step(job, Answer(1, 0, Saved(step=1, blob="b", nbytes=1, digest="sha256:1")), 3.0)
    assert job.state_name == how.upper()
    assert Discard(("at 8", "at 4")) in commands


@settings(max_examples=100)
@given(jobs(), curves, st.integers(0, 2**32), st.sets(st.integers(0, 6)))
def test_whichever_checkpoints_rot_a_job_comes_to_the_same_end_from_the_ones_before(
    sent: Submission, shown: Curves, seed: int, rotten: set[int]
) -> None:
    chance = random.Random(seed)
    deaths = [chance.uniform(0, 60) for _ in range(3)]
    cluster = SimulatedCluster(sent, shown, seed, places=2, workers=1, killed_at=deaths, rotten=tuple(rotten))
    cluster.run()
    if isinstance(cluster.job.state, Failed):
        assert "3 attempts in a row" in cluster.job.state.error["fact"]
    else:
        check(cluster, sent, shown)


# ---- workers that come and go ----


def recruited(job: Job, now: float = 1.0, node: str = "x") -> tuple[Job, int]:
    """The job with one more worker that builds, and its rank."""
    place = Placement(rank=0, node_id=node, node_name=node, device="cpu", share=(0, 0))
    job, commands = step(job, Recruited(1, place), now)
    return job, next(c.placements[0].rank for c in commands if isinstance(c, StartWorkers))


def wanting(workers: int, members: int = 2) -> Job:
    """A running job that wants this many workers."""
    job, _ = begun(submission(batch_size=4, stop=pl.MaxSteps(30)), members)
    job, _ = step(job, ScaleRequested(workers), 1.0)
    return job


def stopped(commands: list[Command]) -> set[int]:
    return {rank for c in commands if isinstance(c, StopWorkers) for rank in c.ranks or ()}


def test_a_node_without_room_costs_a_start_an_attempt_and_not_the_job() -> None:
    job = started(submission(batch_size=4))
    error = pl.DiskFull("no room to write x in /nodes: 0 bytes are free.").to_json()
    job, _ = step(job, Answer(1, 0, WorkerFailed(error=error)), 1.0)
    assert isinstance(job.state, Recovering)
    assert job.state.reason == "rank 0 on n0: no room to write x in /nodes: 0 bytes are free."


def test_one_that_hangs_while_it_builds_is_stopped_and_named_and_another_is_sought() -> None:
    job, rank = recruited(wanting(3))
    assert job.wanted == 0
    job, commands = step(job, Late(1, f"setup of rank {rank}"), 901.0)
    lost = next(c.data["reason"] for c in commands if isinstance(c, Record) and c.kind == "worker_lost")
    assert lost == "rank 2 on x is lost before it joined: it did not become ready within 900 s"
    assert stopped(commands) == {rank}
    assert Enqueue() in commands
    assert job.wanted == 1
    assert step(job, Lost(1, rank, "signal 9"), 902.0) == (job, [])


def test_the_bound_of_one_that_became_ready_in_time_changes_nothing() -> None:
    job, rank = recruited(wanting(3))
    job, _ = step(job, Answer(1, rank, WorkerHello(address="a")), 2.0)
    job, _ = step(job, Answer(1, rank, ready()), 3.0)
    assert step(job, Late(1, f"setup of rank {rank}"), 901.0) == (job, [])


def test_an_error_of_one_that_joins_costs_the_join_and_not_the_job_and_is_on_record() -> None:
    job, rank = recruited(wanting(3))
    before = job
    job, _ = step(job, Answer(1, rank, WorkerHello(address="a")), 2.0)
    error = pl.DiskFull("the disk of this node is full.", "Free some space.").to_json()
    job, commands = step(job, Answer(1, rank, WorkerFailed(error=error)), 3.0)
    assert isinstance(job.state, Running)
    assert isinstance(before.state, Running)
    assert (job.state.members, job.state.order) == (before.state.members, before.state.order)
    assert stopped(commands) == {rank}
    (lost,) = [c.data for c in commands if isinstance(c, Record)]
    assert lost["error"] == error
    assert lost["reason"] == "rank 2 on x is lost before it joined: the disk of this node is full."
    assert (job.wanted, Enqueue() in commands) == (1, True)
    assert step(job, Lost(1, rank, "signal 9"), 4.0) == (job, [])


def test_one_that_joins_with_other_data_costs_the_join_and_is_named_with_both_prints() -> None:
    job, rank = recruited(wanting(3))
    job, _ = step(job, Answer(1, rank, WorkerHello(address="a")), 2.0)
    job, commands = step(job, Answer(1, rank, ready("18:bb")), 3.0)
    assert isinstance(job.state, Running)
    assert stopped(commands) == {rank}
    (lost,) = [c.data for c in commands if isinstance(c, Record)]
    assert lost["error"]["code"] == "data_mismatch"
    assert lost["error"]["details"]["fingerprints"][f"rank {rank} on x"] == "18:bb"


@pytest.mark.parametrize("how", ["late", "dead", "failed"])
def test_after_three_that_never_joined_the_next_is_sought_only_after_a_pause(how: str) -> None:
    job, commands = wanting(3), []
    for _ in range(3):
        assert job.wanted == 1
        job, rank = recruited(job)
        failed = WorkerFailed(error=UserCodeError("your code raised OSError", "See it.").to_json())
        events: dict[str, Event] = {
            "late": Late(1, f"setup of rank {rank}"),
            "dead": Lost(1, rank, "signal 9"),
            "failed": Answer(1, rank, failed),
        }
        job, commands = step(job, events[how], 2.0)
    assert job.wanted == 0
    (pause,) = [c for c in commands if isinstance(c, SetTimer)]
    assert pause.seconds == 600.0
    job, commands = step(job, pause.event, 602.0)
    assert (job.wanted, commands) == (1, [Enqueue()])


def test_a_user_who_scales_or_one_that_joins_ends_the_count_of_failed_joins() -> None:
    job = wanting(3)
    for _ in range(3):
        job, rank = recruited(job)
        job, _ = step(job, Lost(1, rank, "signal 9"), 2.0)
    assert job.wanted == 0
    job, _ = step(job, ScaleRequested(4), 3.0)
    assert job.wanted == 2
    job, rank = recruited(job)
    job, _ = step(job, Answer(1, rank, ready()), 4.0)
    for _ in range(2):
        job, rank = recruited(job)
        job, _ = step(job, Lost(1, rank, "signal 9"), 5.0)
    assert job.wanted == 1


def test_scaling_down_drops_first_those_that_build_then_those_that_are_ready_then_members() -> None:
    job, ready_one = recruited(wanting(4))
    job, building = recruited(job)
    job, _ = step(job, Answer(1, ready_one, WorkerHello(address="a")), 2.0)
    job, _ = step(job, Answer(1, ready_one, ready()), 2.0)
    for workers, stops, leaving in ((4, set(), set()), (3, {building}, set()), (2, {building, ready_one}, set()), (1, {building, ready_one}, {1})):  # fmt: skip
        after, commands = step(job, ScaleRequested(workers), 3.0)
        assert isinstance(after.state, Running)
        assert stopped(commands) == stops
        assert after.state.leaving == leaving
        assert (after.state.target, after.wanted) == (workers, 0)
        released = {c.data["rank"] for c in commands if isinstance(c, Record) and c.kind == "worker_released"}
        assert released == stops
        assert step(after, Answer(1, building, ready()), 4.0)[0].state.workers.keys() == (  # type: ignore[union-attr]
            {0, 1, ready_one, building} - stops
        )


def test_a_drained_node_loses_those_that_are_still_building_at_once() -> None:
    job, rank = recruited(wanting(3), node="leaves")
    job, commands = step(job, NodeDraining("leaves"), 2.0)
    assert stopped(commands) == {rank}
    assert job.wanted == 1
    assert step(job, NodeDraining("leaves"), 3.0) == (job, [])


def test_a_node_drained_during_the_start_is_left_as_soon_as_others_train() -> None:
    job = started(submission(batch_size=4, stop=pl.MaxSteps(30)), 2)
    job, commands = step(job, NodeDraining("n1"), 0.5)
    assert commands == [Record("draining", {"node": "n1", "ranks": [1]})]
    assert step(job, NodeDraining("n1"), 0.6) == step(job, NodeDraining("other"), 0.6) == (job, [])
    for rank in (0, 1):
        job, commands = step(job, Answer(1, rank, ready()), 1.0)
    assert stopped(commands) == {1}
    assert orders(commands)[0].group.members == (0,)


@pytest.mark.parametrize("when", [Queued(), Waiting("for nodes"), Recovering("of a loss")])
def test_a_wish_for_workers_is_kept_while_the_job_does_not_run(when: Any) -> None:
    job, commands = step(replace(Job("job", submission()), state=when), ScaleRequested(3), 1.0)
    assert (job.wish, job.state) == (3, when)
    assert commands == [Record("scaled", {"workers": 3}), Enqueue()]


@pytest.mark.parametrize(("wish", "members", "wanted"), [(1, 1, 0), (2, 2, 0), (3, 2, 1), (9, 2, 2)])
def test_a_wish_during_the_start_decides_who_trains_the_first_step(wish: int, members: int, wanted: int) -> None:
    job = started(submission(batch_size=4, stop=pl.MaxSteps(30)), 2)
    job, _ = step(job, ScaleRequested(wish), 0.5)
    commands: list[Command] = []
    for rank in (0, 1):
        job, commands = step(job, Answer(1, rank, ready()), 1.0)
    assert len(orders(commands)) == members
    assert (Enqueue() in commands, job.wanted) == (wanted > 0, wanted)


def test_a_wish_outlives_the_attempt_and_the_master() -> None:
    job = wanting(3)
    for rank in (0, 1):
        job, _ = step(job, Lost(1, rank, "killed"), 2.0)
    job, _ = step(job, AttemptEnded(1), 3.0)
    assert (job.state_name, job.wish) == ("WAITING", 3)
    again, _ = resumed("job", job.submission, 1, 0.0, (), job.wish)
    assert again.wish == 3


def test_a_job_scaled_during_its_start_trains_with_that_many_and_again_in_the_next_attempt() -> None:
    sent = simulated(stop=pl.MaxSteps(40), microbatches=4, checkpoint_every=2)
    cluster = SimulatedCluster(sent, FLAT, places=3, asked_at=[(0.0, 3)], killed_at=[20.0] * 3, seconds_per_step=1.0)
    cluster.run()
    check(cluster, sent, FLAT)
    assert cluster.job.attempt == 2
    assert cluster.started[:3] == [(1, 0), (1, 1), (1, 2)]
    assert [rank for attempt, rank in cluster.started if attempt == 2][:3] == [0, 1, 2]


def round_of(job: Job, commands: list[Command], now: float = 1.0) -> tuple[Job, list[Command]]:
    """All members train the round that these commands ordered."""
    for rank, order in orders(commands).items():
        job, commands = step(job, Answer(1, rank, trained(order)), now)
    return job, commands


def timer_of(commands: list[Command]) -> str:
    return next(c.event.waiting_for for c in commands if isinstance(c, SetTimer) and isinstance(c.event, Late))


# ---- any events, in any order ----


class Watched:
    """A job under events of any kind, whose promises are checked after each."""

    def __init__(self, sent: Submission) -> None:
        self.job = Job("job", sent)
        self.now = 0.0
        self.alive: set[tuple[int, int]] = set()
        self.committed: list[tuple[int, int]] = []
        self.timers: list[Event] = []
        self.asked: list[tuple[int, Any]] = []

    def feed(self, event: Event) -> None:
        before = self.job
        self.now += 0.25
        after, commands = step(before, event, self.now)
        assert step(before, event, self.now) == (after, commands), "not a function of its arguments"
        if isinstance(before.state, TERMINAL):
            assert (after, commands) == (before, []), "an end that is not one"
        if getattr(event, "attempt", before.attempt) != before.attempt:
            assert (after, commands) == (before, []), "a word of another attempt"
        assert before.attempt <= after.attempt <= before.attempt + 1
        if isinstance(event, Lost):
            self.alive.discard((event.attempt, event.rank))
        if isinstance(event, AttemptEnded):
            self.alive = {(attempt, rank) for attempt, rank in self.alive if attempt != event.attempt}
        for command in commands:
            self._check(command, after)
        if isinstance(after.state, Failed):
            assert after.state.error["code"]
            assert after.state.error["fact"]
        if isinstance(after.state, TERMINAL) and not isinstance(before.state, TERMINAL) and before.attempt:
            assert StopWorkers(before.attempt) in commands, "workers of a job that is over"
        self.job = after
        self._check_state()

    def _check(self, command: Command, after: Job) -> None:
        match command:
            case StartWorkers(attempt, placements):
                assert attempt == after.attempt
                assert not [a for a, _ in self.alive if a < attempt], "a new attempt beside an old one's workers"
                fresh = {(attempt, placement.rank) for placement in placements}
                assert not fresh & self.alive
                self.alive |= fresh
            case Send(attempt, rank, message):
                assert attempt == after.attempt
                assert isinstance(after.state, Starting | Running)
                self.asked.append((rank, message))
            case SetTimer(_, event):
                self.timers.append(event)
            case Commit(attempt, first, end):
                assert attempt == after.attempt
                assert first == (self.committed[-1][1] if self.committed else 0), "a gap, or a step twice"
                assert end > first
                self.committed.append((first, end))
            case RollBack(at):
                self.committed = [(first, end) for first, end in self.committed if first < at]
                assert (self.committed[-1][1] if self.committed else 0) == at, "a roll-back into a commit"

    def _check_state(self) -> None:
        """What is committed is what the ledger says, and no wait is without a bound."""
        job = self.job
        if not isinstance(job.state, (Recovering, *TERMINAL)):
            assert job.training.step == (self.committed[-1][1] if self.committed else 0)
        if isinstance(job.state, Starting):
            assert Late(job.attempt, "setup") in self.timers
        if isinstance(job.state, Running):
            assert Tick(job.attempt) in self.timers
            assert job.state.members
            assert len(set(job.state.members)) == len(job.state.members) <= job.state.plan.microbatches
            assert set(job.state.members) <= set(job.state.workers)
            self._check_order(job.state)

    def _check_order(self, state: Running) -> None:
        """Whoever is waited for is there, and was asked."""
        asked = {rank for rank, message in self.asked if message is state.order}
        waited_for = asked & set(state.members) - set(state.answers)
        assert waited_for or (self.graced(state) and not state.lost) or self.writes(state), "a wait for nobody"
        if not isinstance(state.order, SaveRound):
            assert set(state.members) <= asked

    def graced(self, state: Running) -> bool:
        """Whether all have answered, some of them that they lost each other, and a timer will go on from there."""
        torn = any(isinstance(answer, PeerLost) for answer in state.answers.values())
        return torn and Late(self.job.attempt, f"peer lost in {waiting_for(state)}") in self.timers

    def writes(self, state: Running) -> bool:
        """Whether all have answered but the checkpoint by which the job leaves, and a timer bounds the wait for it."""
        return state.pending is not None and Late(self.job.attempt, waiting_for(state)) in self.timers

    def apt(self, rank: int) -> FromWorker:
        """What this worker would say next, if all went well."""
        state = self.job.state
        if isinstance(state, Starting | Running) and rank in state.building:
            return ready() if state.building[rank][1] else WorkerHello(address="a")
        match state.order if isinstance(state, Running) else None:
            case TrainRound(from_step=at) if isinstance(state, Running) and rank in state.answers:
                return written(at)
            case TrainRound() as order:
                return trained(order)
            case EvaluateRound(step=at, group=group):
                rows = ((10.0, 5.0),) if rank == group.members[0] else ()
                return Evaluated(step=at, first_cell=0, rows=rows, seconds=0.1)
            case SaveRound(step=at):
                return Saved(step=at, blob="b", nbytes=1, digest="sha256:1")
        return Beat(step=0, cells=0, phase="idle", stack="")

    def other(self, kind: int) -> FromWorker:
        """What a worker might say at any time."""
        at = self.job.training.step
        losses = (
            (1.0,)
            if kind % 2 and isinstance(self.job.state, Running) and isinstance(self.job.state.order, TrainRound)
            else ()
        )
        messages: list[FromWorker] = [
            PeerLost(step=at + len(losses), losses=losses, reason="closed"),
            CheckpointWritten(checkpoint=CheckpointRef(step=at, blob="b", nbytes=1)),
            Unloadable(step=at, reason="other bytes"),
            Warned(error={"code": "disk_full", "fact": "f"}),
            Saved(step=at, blob="b", nbytes=1, digest="sha256:1"),
            Evaluated(step=at + 1, first_cell=0, rows=(), seconds=0.1),
            Trained(from_step=at + 1, step=at + 2, losses=(1.0,), seconds=0.1, pace=NO_PACE),
            WorkerHello(address="a"),
            Beat(step=at, cells=kind, phase="compute", stack="s"),
            WorkerFailed(error=UserCodeError("your code raised", "See it.").to_json()),
        ]
        return messages[kind % len(messages)]

    def some_rank(self, number: int) -> int:
        state = self.job.state
        known = [*state.building, *state.workers] if isinstance(state, Starting | Running) else [0]
        return sorted(known)[number % len(known)]


@st.composite
def actions(draw: st.DrawFn) -> Callable[[Watched], Event | None]:
    """How to make the next event, from what the job is at then. Most of them let it go on."""
    kind = draw(st.sampled_from(["apt"] * 12 + ["plan"] * 2 + ["other"] * 3 + ["stale", "lost", "ended", "tick", "timer", "recruit", "ask", "cancel"]))  # fmt: skip
    number = draw(st.integers(0, 40))
    placement = Placement(rank=0, node_id="x", node_name="x", device="cpu", share=(0, 0))

    def make(watched: Watched) -> Event | None:
        attempt, rank = watched.job.attempt, watched.some_rank(number)
        match kind:
            case "apt":
                return Answer(attempt, rank, watched.apt(rank))
            case "plan":
                return Planned(plan_of(split_evenly(4, number % 3 + 1), most_workers=3))
            case "other":
                return Answer(attempt, rank, watched.other(number))
            case "stale":
                return [
                    Answer(attempt - 1, rank, watched.apt(rank)),
                    Lost(attempt - 1, rank, "late"),
                    Tick(attempt - 1),
                ][number % 3]
            case "lost":
                return Lost(attempt, rank, "killed")
            case "ended":  # the cluster says so only once it is true
                return None if isinstance(watched.job.state, Starting | Running) else AttemptEnded(attempt)
            case "tick":
                return Tick(attempt)
            case "timer":
                return watched.timers[number % len(watched.timers)] if watched.timers else None
            case "recruit":
                return Recruited(attempt, placement)
            case "ask":
                return [
                    NodeDraining(f"n{number % 3}"),
                    ScaleRequested(number % 5 + 1),
                    Preempted(attempt, "job-2", "preempted by job-2"),
                ][number % 3]
        return CancelRequested() if number < 4 else None

    return make


@settings(max_examples=300)
@given(st.lists(actions(), min_size=20, max_size=120), st.booleans(), st.sampled_from([None, 2]))
def test_whatever_happens_in_whatever_order_the_promises_hold(
    script: list[Callable[[Watched], Event | None]], val: bool, every: int | None
) -> None:
    watched = Watched(submission(val=val, stop=pl.MaxSteps(8), batch_size=4, eval_every=every, checkpoint_every=every))
    for make in script:
        event = make(watched)
        if event is not None:
            watched.feed(event)


# ---- preemption ----


def preempted(job: Job, now: float = 5.0) -> tuple[Job, list[Command]]:
    return step(job, Preempted(1, "job-2", "preempted by job-2 of priority 5"), now)


def leaving(workers: int = 1) -> tuple[Job, TrainRound]:
    """A job that has trained one step, was preempted, and is asked for the checkpoint by which it leaves."""
    job, commands = begun(submission(batch_size=4, stop=pl.MaxSteps(50)), workers)
    job, commands = preempted(job)
    assert [c.data["for"] for c in commands if isinstance(c, Record)] == ["job-2"]
    first = present_order(job)
    for rank in range(workers):
        job, _ = step(job, Answer(1, rank, trained(first)), 6.0)
    return job, present_order(job)


def present_order(job: Job) -> TrainRound:
    assert isinstance(job.state, Running)
    assert isinstance(job.state.order, TrainRound)
    return job.state.order


def written(step_: int) -> CheckpointWritten:
    return CheckpointWritten(checkpoint=CheckpointRef(step=step_, blob="b" * 64, nbytes=1))


def test_the_round_under_way_is_committed_before_a_preempted_job_leaves() -> None:
    job, order = leaving()
    assert (order.from_step, order.to_step, order.checkpoint) == (1, 1, True)
    assert job.training.step == 1
    job, commands = step(job, Answer(1, 0, trained(order)), 7.0)
    assert commands == []  # it is not written yet
    job, commands = step(job, Answer(1, 0, written(1)), 8.0)
    assert job.state == Recovering("preempted by job-2 of priority 5")
    assert StopWorkers(1) in commands
    job, commands = step(job, AttemptEnded(1), 9.0)
    assert job.state == Waiting("preempted by job-2 of priority 5")
    assert not any(isinstance(c, RollBack) for c in commands)
    assert (job.checkpoint and job.checkpoint.ref.step, job.training.step, job.fruitless) == (1, 1, 0)


def test_a_checkpoint_that_comes_before_a_slow_members_answer_is_waited_with() -> None:
    job, order = leaving(workers=2)
    job, _ = step(job, Answer(1, 0, trained(order)), 7.0)
    job, _ = step(job, Answer(1, 0, written(1)), 8.0)
    assert isinstance(job.state, Running)
    job, _ = step(job, Answer(1, 1, trained(order)), 9.0)
    assert isinstance(job.state, Recovering)


def test_where_the_writer_dies_another_member_writes_the_checkpoint() -> None:
    job, order = leaving(workers=2)
    job, _ = step(job, Answer(1, 1, trained(order)), 7.0)
    job, commands = step(job, Lost(1, 0, "killed"), 8.0)
    again = orders(commands)[1]
    assert (again.group.members, again.from_step, again.to_step, again.checkpoint) == ((1,), 1, 1, True)
    job, _ = step(job, Answer(1, 1, trained(again)), 9.0)
    job, _ = step(job, Answer(1, 1, written(1)), 9.0)
    assert isinstance(job.state, Recovering)
    assert job.checkpoint is not None


def test_where_the_only_worker_dies_the_job_goes_back_to_what_it_has() -> None:
    job, _ = leaving()
    job, _ = step(job, Lost(1, 0, "killed"), 8.0)
    job, commands = step(job, AttemptEnded(1), 9.0)
    assert isinstance(job.state, Waiting)
    assert RollBack(0) in commands


def test_a_checkpoint_that_can_not_be_stored_leaves_the_job_at_work() -> None:
    job, order = leaving()
    job, _ = step(job, Answer(1, 0, trained(order)), 7.0)
    job, commands = step(job, Answer(1, 0, Warned(error={"code": "disk_full", "fact": "no room"})), 8.0)
    assert present_order(job).to_step > 1
    assert [c.kind for c in commands if isinstance(c, Record)] == ["warning"]


def test_a_checkpoint_that_is_never_written_costs_the_attempt_and_names_the_wait() -> None:
    job, order = leaving()
    job, _ = step(job, Answer(1, 0, trained(order)), 7.0)
    assert isinstance(job.state, Running)
    job, _ = step(job, Late(1, waiting_for(job.state)), 700.0)
    assert isinstance(job.state, Recovering)
    assert "training steps 1 to 1" in job.state.reason


def test_a_job_that_has_committed_nothing_leaves_at_once_and_one_that_is_done_does_not() -> None:
    job, commands = begun(submission(batch_size=4, stop=pl.MaxSteps(1)))
    job, _ = preempted(job)
    done, commands = step(job, Answer(1, 0, trained(orders(commands)[0])), 6.0)
    assert isinstance(orders(commands)[0], EvaluateRound)
    assert isinstance(done.state, Running)
    unstarted, commands = begun(submission(batch_size=4, stop=pl.MaxSteps(50)), 2)
    unstarted, _ = preempted(unstarted)
    for rank in (0, 1):
        torn = PeerLost(step=0, losses=(), reason="connection closed")
        unstarted, _ = step(unstarted, Answer(1, rank, torn), 6.0)
    unstarted, _ = step(unstarted, Late(1, "peer lost in training steps 0 to 1 of group 1"), 10.0)
    assert unstarted.state == Recovering("preempted by job-2 of priority 5")


def test_a_preemption_of_an_earlier_attempt_or_a_second_one_changes_nothing() -> None:
    job, _ = begun(submission(batch_size=4))
    assert step(job, Preempted(0, "job-2", "late"), 5.0) == (job, [])
    job, _ = preempted(job)
    assert preempted(job) == (job, [])
    assert job.wanted == 0


# ---- sharded ----


def sharded_plan(workers: int) -> Plan:
    shares = split_evenly(4, workers)
    return plan_of(shares).model_copy(update={"mode": "sharded", "sharding": Sharding(microbatches=4)})


def sharded_job(workers: int = 2, **changes: Any) -> tuple[Job, list[Command]]:
    sent = submission(batch_size=4, sync="sharded", **changes)
    job, _ = step(Job(id="job", submission=sent), Planned(sharded_plan(workers)), 0.0)
    for rank in range(workers):
        job, commands = step(job, Answer(1, rank, WorkerHello(address="a")), 0.0)
        assert orders(commands)[rank].sharding == Sharding(microbatches=4)
        job, commands = step(job, Answer(1, rank, ready()), 0.0)
    return job, commands


def test_a_lost_worker_ends_a_sharded_attempt_which_goes_on_from_its_checkpoint() -> None:
    job, commands = sharded_job(checkpoint_every=1)
    job, commands = round_of(job, commands)
    ref = CheckpointRef(step=1, blob="manifest", nbytes=3, files=("a", "b"))
    assert orders(commands)[1].checkpoint
    job, _ = step(job, Answer(1, 0, CheckpointWritten(checkpoint=ref)), 1.0)
    job, _ = round_of(job, commands)
    job, commands = step(job, Lost(1, 1, "killed"), 2.0)
    assert isinstance(job.state, Recovering)
    assert StopWorkers(1) in commands
    job, commands = step(job, AttemptEnded(1), 3.0)
    assert (job.state_name, job.training.step) == ("WAITING", 1)
    job, _ = step(job, Planned(sharded_plan(3)), 4.0)
    job, commands = step(job, Answer(2, 2, WorkerHello(address="a")), 4.0)
    assert orders(commands)[2].checkpoint == ref


def copying_job() -> tuple[Job, list[Command]]:
    """A job whose shards are copied, at the round after its first step."""
    sent = submission(batch_size=4, sync="sharded", stop=pl.MaxSteps(50), val=False)
    sharding = Sharding(microbatches=4, copy_bytes=12)
    job, _ = step(Job(id="job", submission=sent), Planned(sharded_plan(3).model_copy(update={"sharding": sharding})), 0)
    for rank in range(3):
        job, _ = step(job, Answer(1, rank, WorkerHello(address="a")), 0.0)
        job, commands = step(job, Answer(1, rank, ready()), 0.0)
    return round_of(job, commands, now=2.0)


def test_copies_count_once_all_members_have_said_so_and_go_to_the_next_node() -> None:
    job, commands = copying_job()
    assert {rank: order.copy_shards for rank, order in orders(commands).items()} == {
        rank: CopyOrder(to=(1, 2, 0)) for rank in range(3)
    }
    for rank in range(3):
        assert job.copies is None
        job, _ = step(job, Answer(1, rank, Copied(step=1, seconds=0.1)), 2.0)
    assert job.copies is not None
    assert (job.copies.step, job.copies.nodes) == (1, {"n0": 4, "n1": 4, "n2": 4})
    job, commands = round_of(job, commands, now=9.0)
    assert orders(commands)[0].copy_shards == CopyOrder(to=(1, 2, 0), kept=1)


def test_a_lost_worker_costs_the_steps_since_the_copies_and_without_them_those_since_the_checkpoint() -> None:
    job, commands = copying_job()
    for rank in range(3):
        job, _ = step(job, Answer(1, rank, Copied(step=1, seconds=0.1)), 2.0)
    job, _ = round_of(job, commands, now=2.5)
    assert job.training.step > 1
    job, _ = step(job, Lost(1, 1, "killed"), 3.0)
    job, commands = step(job, AttemptEnded(1), 3.0)
    assert RollBack(1) in commands
    job, _ = step(job, Planned(sharded_plan(2)), 4.0)
    for rank in range(2):
        job, commands = step(job, Answer(2, rank, WorkerHello(address="a")), 4.0)
        assert (orders(commands)[rank].copies, orders(commands)[rank].checkpoint) == (1, None)
        job, commands = step(job, Answer(2, rank, ready()), 4.0)
    assert orders(commands)[0].from_step == 1
    job, _ = step(job, Answer(2, 0, Unloadable(step=1, reason="a neighbour is gone too")), 5.0)
    job, commands = step(job, AttemptEnded(2), 5.0)
    assert RollBack(0) in commands
    assert (job.copies, job.training.step) == (None, 0)


def test_a_checkpoint_that_is_newer_than_the_copies_is_what_counts() -> None:
    job, commands = copying_job()
    for rank in range(3):
        job, _ = step(job, Answer(1, rank, Copied(step=1, seconds=0.1)), 2.0)
    job, commands = round_of(job, commands, now=40.0)
    assert orders(commands)[0].checkpoint
    at = orders(commands)[0].from_step
    assert orders(commands)[0].copy_shards is None
    job, _ = step(job, Answer(1, 0, CheckpointWritten(checkpoint=CheckpointRef(step=at, blob="b", nbytes=1))), 41.0)
    assert job.copies is None
    assert job.restored.step == at


def test_copies_that_fail_cost_a_warning_and_are_not_tried_again_in_the_attempt() -> None:
    job, commands = copying_job()
    error = {"fact": "no room", "remedy": "", "code": "disk_full"}
    job, told = step(job, Answer(1, 2, Copied(step=1, seconds=0.0, error=error)), 2.0)
    assert told == [Record("warning", error)]
    job, commands = round_of(job, commands, now=9.0)
    assert orders(commands)[0].copy_shards is None


def test_a_job_whose_survivors_cannot_hold_the_model_waits_and_says_so_with_the_numbers() -> None:
    job, _ = sharded_job()
    job, _ = step(job, Lost(1, 1, "its node is gone"), 1.0)
    job, _ = step(job, AttemptEnded(1), 1.0)
    sent = job.submission.model_copy(
        update={"facts": Facts(parameters=GIB, parameter_bytes=4 * GIB, unit_bytes=GIB // 8)}
    )
    job = replace(job, submission=sent)
    survivors = [node("n0")]
    with pytest.raises(pl.Unplaceable) as refused:
        next_plan(survivors, job, Measured())
    assert "sharded" in refused.value.details  # the scheduler tells such a job
    job, commands = step(job, Unplaced(refused.value.to_json()), 2.0)
    assert isinstance(job.state, Waiting)
    assert "16.0 GiB of parameters, gradients and optimizer" in job.state.reason
    assert "the largest has 8.0 GiB" in job.state.reason
    assert [c.data["reason"] for c in commands if isinstance(c, Record) and c.kind == "state"] == [job.state.reason]
    plan = next_plan([node("n0"), node("n1"), node("n2")], job, Measured())
    job, commands = step(job, Planned(plan), 3.0)
    assert job.state_name == "STARTING"


def test_workers_of_a_sharded_attempt_that_lose_each_other_end_it_though_none_is_gone() -> None:
    job, _ = sharded_job()
    job, commands = step(job, Answer(1, 0, PeerLost(step=0, losses=(), reason="closed")), 1.0)
    assert isinstance(job.state, Running)
    job, commands = step(job, Late(1, timer_of(commands)), 4.0)
    assert isinstance(job.state, Recovering)
    assert "closed" in job.state.reason


def test_a_sharded_attempt_ends_for_other_workers_and_for_a_node_that_is_given_back() -> None:
    for event in (ScaleRequested(3), NodeDraining("n1")):
        job, _ = sharded_job()
        job, commands = step(job, event, 1.0)
        assert isinstance(job.state, Recovering)
        assert StopWorkers(1) in commands
    job, _ = sharded_job()
    assert step(job, NodeDraining("elsewhere"), 1.0)[0].state == job.state


def test_a_preempted_sharded_job_leaves_by_a_checkpoint_that_all_members_write() -> None:
    job, commands = sharded_job(stop=pl.MaxSteps(50))
    job, _ = preempted(job)
    job, commands = round_of(job, commands)
    given = orders(commands)
    assert set(given) == {0, 1}
    assert all((order.from_step, order.to_step, order.checkpoint) == (1, 1, True) for order in given.values())
    for rank in (0, 1):
        job, _ = step(job, Answer(1, rank, trained(given[rank])), 7.0)
    assert isinstance(job.state, Running)
    job, commands = step(job, Answer(1, 0, written(1)), 8.0)
    assert job.state == Recovering("preempted by job-2 of priority 5")
    assert (job.checkpoint and job.checkpoint.ref.step, job.fruitless) == (1, 0)


def test_all_members_lend_their_shards_to_the_save_and_the_first_ones_answer_is_delivered() -> None:
    job, commands = sharded_job(stop=pl.MaxSteps(1), val=False)
    job, commands = round_of(job, commands)
    given = orders(commands)
    assert set(given) == {0, 1}
    assert all(order.group == job.state.group for order in given.values())  # type: ignore[union-attr]
    job, _ = step(job, Answer(1, 1, Saved(step=1)), 2.0)
    files = (ModelFile(name="model-00001-of-00001.safetensors", blob="f", nbytes=9),)
    saved = Saved(step=1, blob="index", nbytes=9, digest="sha256:1", files=files)
    job, _ = step(job, Answer(1, 0, saved), 3.0)
    assert isinstance(job.state, Succeeded)
    assert (job.state.delivery.blob, job.state.delivery.files) == ("index", files)
    assert not job.state.delivery.reproducible


def test_a_shard_that_cannot_be_loaded_sends_the_job_to_the_checkpoint_before() -> None:
    refs = [CheckpointRef(step=at, blob=f"at {at}", nbytes=1, files=(f"shard {at}",)) for at in (8, 4)]
    sent = submission(batch_size=4, sync="sharded", stop=pl.MaxSteps(30))
    checkpoints = tuple(Checkpoint(ref=ref, training=Training(step=ref.step)) for ref in refs)
    job, _ = resumed("job", sent, 0, 0.0, checkpoints)
    job, _ = step(job, Planned(sharded_plan(2)), 0.0)
    for rank in (0, 1):
        job, _ = step(job, Answer(1, rank, WorkerHello(address="a")), 0.0)
        job, _ = step(job, Answer(1, rank, ready()), 0.0)
    job, commands = step(job, Answer(1, 1, Unloadable(step=8, reason="damaged")), 1.0)
    assert Discard(("at 8", "shard 8"), damaged=True) in commands
    assert [checkpoint.ref.step for checkpoint in job.checkpoints] == [4]
