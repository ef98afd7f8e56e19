"""Probes: where one is wanted, what the machine makes of its answer or its loss, and what is learned. All pure."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import paceline as pl
from paceline.errors import DiskFull, UserCodeError
from paceline.master.commands import Command, Enqueue, Learn, Record, Send, StartWorkers, StopWorkers
from paceline.master.events import (
    Answer,
    AttemptEnded,
    CancelRequested,
    Event,
    Late,
    Lost,
    Planned,
    ProbeWanted,
    Refused,
)
from paceline.master.job import Job
from paceline.master.machine import resumed, step
from paceline.master.probing import foreseen, next_event
from paceline.master.profiles import kind_of, learn, too_large, with_memory
from paceline.master.states import Cancelled, Failed, Planning, ProbePlace, Queued
from paceline.measured import CellTime, Measured, Profile
from paceline.messages.from_worker import Pace, Probed, Ready, Saved, Trained, WorkerFailed, WorkerHello
from paceline.messages.to_worker import ProbeSetup
from paceline.plan import Node
from paceline.planner.planner import plan_workers
from paceline.spec import Facts, Submission

from builders import GIB, node, plan_of, profile_of, submission

# ---- whether a probe is wanted ----

HEAVY = Facts(parameters=10**6, parameter_bytes=4 * 10**6, flop_per_sample=1e7, train_samples=50_000)


def sent(facts: Facts = HEAVY, **changes: Any) -> Submission:
    fields = {"batch_size": 64, "stop": pl.MaxEpochs(5), "val": False, **changes}
    return submission(**fields).model_copy(update={"facts": facts})


def decided(job: Submission, nodes: list[Node], *profiles: Profile) -> Planned | ProbeWanted:
    known = Measured(profiles=profiles)
    plan = plan_workers(nodes, job.options, job.facts, known=known)
    return next_event(Job("job", job), plan, nodes, known)


def why_not(job: Submission, nodes: list[Node], *profiles: Profile) -> str:
    event = decided(job, nodes, *profiles)
    assert isinstance(event, Planned), event
    return event.plan.summary.rsplit("; ", 1)[-1]


def test_one_node_of_each_class_with_room_is_probed_within_the_memory_that_it_has() -> None:
    nodes = [
        node("a", hardware_class="old", is_master=True, memory=4 * GIB),
        node("b", hardware_class="new", cores=8),
        node("c", hardware_class="new"),
        node("d", hardware_class="full", free_cores=0),
    ]
    event = decided(sent(), nodes)
    assert isinstance(event, ProbeWanted)
    assert [(p.hardware_class, p.placement.node_id, p.placement.rank) for p in event.places] == [
        ("new", "b", 0),
        ("old", "a", 1),
    ]
    assert [GIB < place.memory < free for place, free in zip(event.places, (8 * GIB, 4 * GIB), strict=True)] == [
        True
    ] * 2


def test_a_job_of_a_kind_that_was_measured_on_all_its_classes_is_not_probed_again() -> None:
    nodes = [node("a"), node("b", hardware_class="other")]
    here = profile_of()
    assert isinstance(decided(sent(), nodes, here), ProbeWanted)
    assert why_not(sent(), nodes, here, profile_of(hardware_class="other")) == "measured before, in a job of this kind"
    assert isinstance(decided(sent(), [node("a")], profile_of(cells=())), ProbeWanted)


@pytest.mark.parametrize(
    ("changes", "nodes", "reason"),
    [
        (
            {"stop": pl.MaxSteps(3)},
            [node("a"), node("b", hardware_class="new")],
            "s of work in all, where a probe takes 2 s",
        ),
        ({"resources": pl.Resources(workers=2)}, [node("a"), node("b")], "the number of workers was asked for"),
        ({"microbatches": 1}, [node("a"), node("b")], "one microbatch"),
        ({}, [node("a", cores=1)], "there is one place for it"),
    ],
)
def test_no_probe_where_it_changes_nothing_or_can_not_pay_and_the_plan_says_why(
    changes: dict[str, Any], nodes: list[Node], reason: str
) -> None:
    assert reason in why_not(sent(**changes), nodes)


@pytest.mark.parametrize(
    ("changes", "nodes"),
    [
        ({}, [node("a")]),
        ({"resources": pl.Resources(workers=2)}, [node("a"), node("b", hardware_class="new")]),
        ({"microbatches": 1}, [node("a"), node("b", hardware_class="new")]),
        ({"facts": Facts(train_samples=100), "stop": pl.MaxSteps(3)}, [node("a")]),
    ],
    ids=["how many workers", "which class, workers fixed", "which class, one worker", "a model that nobody has seen"],
)
def test_a_probe_is_wanted_where_it_can_change_the_plan(changes: dict[str, Any], nodes: list[Node]) -> None:
    assert isinstance(decided(sent(**changes), nodes), ProbeWanted)


def test_a_model_near_the_memory_there_is_is_probed_however_short_its_job() -> None:
    large = HEAVY.model_copy(update={"parameter_bytes": 150 * 2**20})
    job = sent(large, stop=pl.MaxSteps(3), resources=pl.Resources(workers=1))
    assert isinstance(decided(job, [node("a", memory=3 * GIB)]), ProbeWanted)
    assert isinstance(decided(job, [node("a", memory=64 * GIB)]), Planned)


def test_workers_of_one_node_are_probed_where_all_of_them_come_near_its_memory() -> None:
    job = sent(
        HEAVY.model_copy(update={"parameter_bytes": 50 * 2**20}),
        stop=pl.MaxSteps(3),
        resources=pl.Resources(workers=3),
    )
    assert isinstance(decided(job, [node("a", memory=3 * GIB)]), ProbeWanted)
    assert isinstance(decided(job, [node(name, memory=3 * GIB, cores=1) for name in "abc"]), Planned)


def test_a_plan_that_is_only_shown_says_that_nothing_was_measured() -> None:
    nodes = [node("a")]
    plan = plan_workers(nodes, sent().options, HEAVY)
    assert "not probed yet" in foreseen(sent(), plan, nodes, Measured()).summary
    assert "measured before" in foreseen(sent(), plan, nodes, Measured(profiles=(profile_of(),))).summary


# ---- what the machine makes of it ----

PLACES = tuple(
    ProbePlace(placement, f"class {placement.rank}", memory=GIB, flop_per_s=1e9)
    for placement in plan_of([(0, 4), (4, 8)]).workers
)
PLAN = plan_of([(0, 2), (2, 4), (4, 6), (6, 8)])


def planning() -> tuple[Job, list[Command]]:
    return step(Job("job", submission()), ProbeWanted(PLAN, PLACES), 0.0)


def probed(rank: int, **changes: Any) -> Answer:
    return Answer(0, rank, Probed(profile=profile_of(hardware_class=f"class {rank}", **changes), seconds=1.2))


def played(job: Job, *events: Event) -> tuple[Job, list[Command]]:
    commands: list[Command] = []
    for event in events:
        job, more = step(job, event, 1.0)
        commands += more
    return job, commands


def test_probes_are_workers_of_attempt_0_and_the_plans_other_places_are_held() -> None:
    job, commands = planning()
    assert [c.placements for c in commands if isinstance(c, StartWorkers) if c.attempt == 0] == [
        tuple(place.placement for place in PLACES)
    ]
    assert isinstance(job.state, Planning)
    assert [placement.node_id for placement in job.state.held] == ["n2", "n3"]
    job, commands = step(job, Answer(0, 1, WorkerHello(address="a")), 1.0)
    (send,) = commands
    assert isinstance(send, Send)
    assert isinstance(send.message, ProbeSetup)
    assert (send.message.memory, send.message.hardware_class) == (GIB, "class 1")


def test_a_job_goes_back_to_the_queue_when_its_last_probe_has_ended_and_is_not_probed_again() -> None:
    job, _ = planning()
    job, commands = played(job, probed(0), probed(1))
    assert [c.profile.hardware_class for c in commands if isinstance(c, Learn)] == ["class 0", "class 1"]
    assert {c.profile.flop_per_s for c in commands if isinstance(c, Learn)} == {1e9}
    assert [c.ranks for c in commands if isinstance(c, StopWorkers)] == [(0,), (1,)]
    rows = [c.data for c in commands if isinstance(c, Record) and c.kind == "probed"]
    assert [(row["node"], row["fits"], row["worker_bytes"]) for row in rows] == [
        ("n0", True, 50 * 2**20),
        ("n1", True, 50 * 2**20),
    ]
    assert isinstance(job.state, Planning)  # its processes may still be there, and their places taken
    job, commands = played(job, Lost(0, 0, "signal 9"), Lost(0, 1, "signal 9"), AttemptEnded(0))
    assert (job.state, job.probed, Enqueue() in commands) == (
        Queued(), "probed on n0 in 1.2 s; probed on n1 in 1.2 s", True,
    )  # fmt: skip
    assert step(job, ProbeWanted(PLAN, PLACES), 2.0) == (job, [])
    job, _ = step(job, Planned(PLAN), 2.0)
    assert (job.state_name, job.attempt) == ("STARTING", 1)


@pytest.mark.parametrize(
    ("event", "how"),
    [
        (Lost(0, 1, "signal 9"), "was lost: signal 9"),
        (Late(0, "probe"), "took over 60 s"),
        (
            Answer(0, 1, WorkerFailed(error=DiskFull("the disk of n1 is full.").to_json())),
            "failed: the disk of n1 is full.",
        ),
    ],
)
def test_a_probe_that_its_node_fails_costs_its_numbers_and_not_the_job(event: Event, how: str) -> None:
    job, _ = planning()
    job, commands = played(job, probed(0), event, AttemptEnded(0))
    assert job.state == Queued()
    assert job.probed is not None
    assert job.probed.endswith(f"not probed: the probe on n1 {how}")
    assert [c.data["reason"] for c in commands if isinstance(c, Record) and c.kind == "probe_missed"]
    event = next_event(job, PLAN, [node("n0")], Measured())
    assert isinstance(event, Planned)
    assert how in event.plan.summary


def test_an_exception_of_the_users_code_in_a_probe_ends_the_job_with_it() -> None:
    job, _ = planning()
    error = UserCodeError("your code raised KeyError: 'x'", "Its traceback follows.", traceback="line 3").to_json()
    job, commands = step(job, Answer(0, 1, WorkerFailed(error=error)), 1.0)
    assert job.state == Failed(error)
    assert StopWorkers(0) in commands


def test_a_job_cancelled_while_it_is_probed_leaves_no_probe() -> None:
    job, commands = step(planning()[0], CancelRequested(), 1.0)
    assert job.state == Cancelled()
    assert StopWorkers(0) in commands


def test_a_refused_job_has_failed_with_the_planners_numbers() -> None:
    error = pl.Unplaceable("it needs 40 GiB.", "Add a larger node.").to_json()
    job, _ = step(Job("job", submission(), probed="probed on n0, where it does not fit"), Refused(error), 1.0)
    assert job.state == Failed(error)


events_of_probes = st.one_of(
    st.integers(0, 2).map(probed),
    st.integers(0, 2).map(lambda rank: Lost(0, rank, "signal 9")),
    st.integers(0, 2).map(lambda rank: Answer(0, rank, WorkerHello(address="a"))),
    st.sampled_from([AttemptEnded(0), Late(0, "probe"), Late(0, "setup"), ProbeWanted(PLAN, PLACES), Planned(PLAN)]),
)


@given(st.lists(events_of_probes, max_size=30))
def test_whatever_probes_say_and_however_late_a_job_is_probed_once_and_then_starts(events: list[Event]) -> None:
    job, commands = played(Job("job", submission()), *events)
    starts = [c.attempt for c in commands if isinstance(c, StartWorkers)]
    assert starts in ([], [0], [1], [0, 1])
    if isinstance(job.state, Planning):
        job, _ = played(job, Late(0, "probe"), AttemptEnded(0))
        assert job.probed is not None
    if job.state_name == "QUEUED":
        job, _ = step(job, Planned(PLAN), 2.0)
    assert (job.state_name, job.attempt) == ("STARTING", 1)
    assert played(job, *events) == (job, [])  # all of them are of a dead attempt, or of a state that is over


def test_a_later_attempt_is_not_probed_also_under_the_next_master() -> None:
    job, _ = resumed("job", sent(), attempt=1, elapsed_s=1.0, checkpoints=())
    assert isinstance(next_event(job, PLAN, [node("n0")], Measured()), Planned)
    assert step(job, ProbeWanted(PLAN, PLACES), 1.0) == (job, [])


# ---- what is learned ----


def test_a_kind_of_job_is_what_decides_its_costs() -> None:
    same = sent()
    assert kind_of(same) == kind_of(sent(stop=pl.MaxSteps(7), seed=3, name="b", priority=2))
    seen = HEAVY.model_copy(update={"fingerprint": "f" * 64})
    again = replace_program(sent(seen), "9" * 64)
    assert kind_of(sent(seen)) == kind_of(again)
    others = [
        sent(batch_size=32), sent(microbatches=4), sent(threads=2), sent(precision="bf16-mixed"),
        sent(clip_grad_norm=1.0), sent(seen), replace_program(same, "9" * 64),
    ]  # fmt: skip
    assert len({kind_of(other) for other in [same, *others]}) == len(others) + 1


def replace_program(job: Submission, pickle: str) -> Submission:
    return job.model_copy(update={"program": job.program.model_copy(update={"pickle": pickle})})


def test_real_training_outweighs_the_probe_and_changes_all_sizes_alike() -> None:
    cells = (CellTime(samples=2, seconds=0.01), CellTime(samples=8, seconds=0.04))
    first = profile_of(cells=cells, update_s=0.002)
    few, many = learn(first, 0.08, 0.004, 1), learn(first, 0.08, 0.004, 10_000)
    assert 0.04 < few.cells[1].seconds < 0.045 < 0.079 < many.cells[1].seconds <= 0.08
    assert many.cells[1].seconds / many.cells[0].seconds == pytest.approx(4.0)
    assert (many.steps, round(many.update_s, 3)) == (10_000, 0.004)


@given(st.floats(1e-4, 10), st.floats(0, 1), st.lists(st.integers(1, 500), min_size=1, max_size=20))
def test_a_pace_that_stays_is_kept_and_reached(cell_s: float, rest_s: float, rounds: list[int]) -> None:
    profile = profile_of()
    for steps in [*rounds, 20_000, 20_000]:
        profile = learn(profile, cell_s, rest_s, steps)
    assert profile.cells[-1].seconds == pytest.approx(cell_s, rel=0.02, abs=1e-5)
    assert profile.update_s == pytest.approx(rest_s, rel=0.02, abs=1e-4)


def trained_once(known: Measured) -> Learn:
    """What is learned from a job of one step of two microbatches, which took 0.1 s each."""
    fields = {"batch_size": 4, "microbatches": 2, "stop": pl.MaxSteps(1), "val": False}
    job, _ = step(Job("job", submission(**fields)), Planned(plan_of([(0, 2)]), known), 0.0)
    job, _ = step(job, Answer(1, 0, Ready(fingerprint="f", train_samples=18, parameters=1, store_port=1)), 1.0)
    pace = Pace(steps=1, cells=2, seconds=0.2, busy_s=0.2, waited_s=0.0)
    done = Trained(from_step=0, step=1, losses=(1.0,), seconds=0.2, pace=pace)
    job, _ = step(job, Answer(1, 0, done), 2.0)
    job, commands = step(job, Answer(1, 0, Saved(step=1, blob="b", nbytes=1, digest="d")), 3.0)
    assert job.state_name == "SUCCEEDED"
    (learned,) = [c for c in commands if isinstance(c, Learn)]
    assert learned.kind == kind_of(job.submission)
    return learned


def test_training_refines_the_profile_that_the_job_was_planned_by() -> None:
    first = profile_of(cells=(CellTime(samples=2, seconds=0.5),), update_s=0.0)
    refined = trained_once(Measured(profiles=(first,))).profile
    assert 0.1 < refined.cells[0].seconds < 0.5
    assert (refined.steps, refined.probed) == (1, True)


def test_training_that_no_probe_preceded_tells_its_times_and_a_choice_is_still_probed() -> None:
    seen = trained_once(Measured()).profile
    assert [(cell.samples, round(cell.seconds, 3)) for cell in seen.cells] == [(2, 0.1)]
    assert (seen.steps, seen.probed) == (1, False)
    here = seen.model_copy(update={"hardware_class": node("a").hardware_class})
    assert isinstance(decided(sent(), [node("a"), node("b")], here), ProbeWanted)
    assert isinstance(decided(sent(), [node("a"), node("b")], here.model_copy(update={"probed": True})), Planned)


def test_what_did_not_fit_asks_for_its_memory_until_something_is_known_to_hold_it() -> None:
    lacking = profile_of(cells=(), worker_bytes=40 * GIB)
    options = with_memory(sent().options, [lacking])
    assert options.resources.memory is not None
    assert 40 * GIB < options.resources.memory < 41 * GIB
    with pytest.raises(pl.Unplaceable, match=r"40\.2 GiB"):
        plan_workers([node("a")], options, HEAVY)
    assert too_large([lacking, profile_of(hardware_class="larger")]) == 0
    assert with_memory(sent().options, []) == sent().options
