"""Who gets nodes, and when: the policy's promises, on random clusters and queues, with the real planner."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import takewhile
from math import inf
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from paceline.errors import Unplaceable
from paceline.plan import Node
from paceline.planner.planner import plan_workers
from paceline.planner.queue import (
    Decision,
    Policy,
    Preempt,
    Quota,
    RunningJob,
    Start,
    Wait,
    WaitingJob,
    charged,
    decide,
    ranked,
)
from paceline.planner.resources import Hold, cores_of, give, holds_of, take
from paceline.planner.timeline import Fit
from paceline.spec import Resources

from builders import GIB, node, options, submission

FACTS = submission().facts


@dataclass(frozen=True)
class Asked:
    """A job as the tests ask for it. workers: None leaves their number to the planner. seconds: predicted, if known."""

    id: str
    workers: int | None = 1
    seconds: float | None = 100.0
    priority: int = 0
    user: str = "ann"
    waited_s: float = 0.0

    @property
    def waiting(self) -> WaitingJob:
        return WaitingJob(self.id, self.user, self.priority, self.waited_s)


@dataclass(frozen=True)
class Planner:
    """Places these jobs by the product's planner, and counts how often it is asked."""

    jobs: dict[str, Asked]

    def __call__(self, job_id: str, nodes: Sequence[Node], most: int | None = None) -> Fit:
        asked = self.jobs[job_id]
        wants = options(batch_size=64, microbatches=64, resources=Resources(workers=asked.workers))
        big = FACTS.model_copy(update={"flop_per_sample": 1e9})  # worth splitting: it takes all that is free
        plan = plan_workers(nodes, wants, big if asked.workers is None else FACTS)
        if most is not None and asked.workers is None and len(plan.workers) > most:
            plan = plan_workers(nodes, wants, big, wish=most)
        return Fit(plan, asked.seconds)


@dataclass
class Scene:
    """nodes: idle ones; what runs is taken from them. policy: without preemption unless a test lets jobs run long."""

    nodes: tuple[Node, ...]
    waiting: list[Asked]
    running: list[RunningJob] = field(default_factory=list)
    policy: Policy = field(default_factory=Policy)
    usage: dict[str, float] = field(default_factory=dict)

    def free(self) -> tuple[Node, ...]:
        return take(self.nodes, [hold for job in self.running for hold in job.holds])

    def decide(self, waiting: Sequence[Asked] | None = None) -> list[Decision]:
        jobs = self.waiting if waiting is None else waiting
        planner = Planner({job.id: job for job in jobs})
        return decide([job.waiting for job in jobs], self.running, self.free(), self.usage, self.policy, planner)

    def waits(self) -> dict[str, Wait]:
        return {d.job: d for d in self.decide() if isinstance(d, Wait)}

    def started(self) -> list[str]:
        return [d.job for d in self.decide() if isinstance(d, Start)]

    def preempted(self) -> list[str]:
        return [d.job for d in self.decide() if isinstance(d, Preempt)]


def runs(job_id: str, places: dict[str, int], **changes: Any) -> RunningJob:
    """A job that holds so many cores of each node."""
    holds = tuple(Hold(name, 1, GIB // 4, "cpu") for name, cores in places.items() for _ in range(cores))
    fields = {"user": "ann", "priority": 0, "rank": 0.0, "ran_s": 1000.0, "left_s": 300.0, **changes}
    return RunningJob(id=job_id, holds=holds, **fields)


FOUR = (node("n0"),)
EIGHT = (node("n0"), node("n1"))
ONE = (node("n0", cores=8),)

# ---- anything, at random ----

seconds = st.none() | st.floats(1, 1000)


@st.composite
def scenes(draw: st.DrawFn) -> Scene:
    nodes = tuple(node(f"n{i}", cores=draw(st.integers(1, 6))) for i in range(draw(st.integers(1, 4))))
    running, free = [], {n.id: n.cores for n in nodes}
    for number in range(draw(st.integers(0, 5))):
        places = {name: draw(st.integers(0, left)) for name, left in free.items()}
        free = {name: left - places[name] for name, left in free.items()}
        priority = draw(st.integers(-1, 2))
        changes = {
            "priority": priority,
            "rank": priority + draw(st.floats(0, 2)),
            "ran_s": draw(st.floats(0, 200)),
            "left_s": draw(seconds),
            "user": draw(st.sampled_from(["ann", "bob"])),
            "leaves": draw(st.booleans()),
        }
        if any(places.values()):
            running.append(runs(f"running-{number}", places, **changes))
    waiting = [
        Asked(
            f"job-{number}",
            draw(st.none() | st.integers(1, 12)),
            draw(seconds),
            draw(st.integers(-1, 3)),
            draw(st.sampled_from(["ann", "bob", "cy"])),
            draw(st.floats(0, 3000)),
        )
        for number in range(draw(st.integers(1, 8)))
    ]
    most = st.none() | st.integers(0, 8)
    quotas = {"bob": Quota(cores=draw(most), workers=draw(most), jobs=draw(st.none() | st.integers(0, 3)))}
    usage = {"ann": draw(st.floats(0, 1e6)), "cy": draw(st.floats(0, 1e6))}
    policy = Policy(quotas=quotas, reserved=draw(st.integers(0, 4)), tried=draw(st.sampled_from([3, 100])))
    return Scene(nodes, waiting, running, policy, usage)


@given(scenes())
def test_no_node_is_over_capacity_and_no_gang_is_partial(scene: Scene) -> None:
    asked = {job.id: job for job in scene.waiting}
    held = [hold for job in scene.running for hold in job.holds]
    for start in [d for d in scene.decide() if isinstance(d, Start)]:
        held += holds_of(start.plan)
        assert len(start.plan.workers) == (asked[start.job].workers or len(start.plan.workers)) > 0
    for n in scene.nodes:
        mine = [hold for hold in held if hold.node_id == n.id]
        assert cores_of(mine) <= n.cores
        assert sum(hold.memory for hold in mine) <= n.memory


@given(scenes())
def test_every_waiting_job_gets_one_decision_with_its_reason_in_numbers_and_the_same_one_again(scene: Scene) -> None:
    decisions = scene.decide()
    told = [d.job for d in decisions if not isinstance(d, Preempt)]
    assert sorted(told) == sorted(job.id for job in scene.waiting)
    assert all(any(letter.isdigit() for letter in d.reason) for d in decisions)
    assert [d.place for d in decisions if isinstance(d, Wait)] == list(range(1, len(scene.waits()) + 1))
    again = replace_order(scene).decide()
    assert [(type(d), d.job, d.reason) for d in decisions] == [(type(d), d.job, d.reason) for d in again]


def replace_order(scene: Scene) -> Scene:
    """The same scene, told in another order."""
    return replace(scene, waiting=scene.waiting[::-1], running=scene.running[::-1])


@given(scenes())
def test_who_comes_behind_changes_nothing_for_those_ahead(scene: Scene) -> None:
    """Neither whether they start, nor where, nor by when: backfill delays nobody who has a reservation."""
    whole = [d for d in scene.decide() if not isinstance(d, Preempt)]
    order = [d.job for d in in_rank_order(scene, whole)]
    for count in range(1, len(order)):
        ahead = set(order[:count])
        alone = scene.decide([job for job in scene.waiting if job.id in ahead])
        kept = {d.job: d for d in whole if d.job in ahead}
        for d in alone:
            if isinstance(d, Start):
                assert kept[d.job].plan == d.plan  # type: ignore[union-attr]
            elif isinstance(d, Wait):
                assert kept[d.job].start_in_s == d.start_in_s  # type: ignore[union-attr]


def in_rank_order(scene: Scene, decisions: Sequence[Decision]) -> list[Decision]:
    waiting = [job.waiting for job in scene.waiting]
    ranks = ranked(waiting, scene.running, scene.usage, scene.policy)
    waited = {job.id: job.waited_s for job in waiting}
    return sorted(decisions, key=lambda d: (-ranks[d.job], -waited[d.job], d.job))


@given(scenes())
def test_only_lower_priority_that_ran_its_least_time_is_asked_to_leave_and_then_there_is_room(scene: Scene) -> None:
    asked = {job.id: job for job in scene.waiting}
    running = {job.id: job for job in scene.running}
    decisions = scene.decide()
    victims = [d for d in decisions if isinstance(d, Preempt)]
    for d in victims:
        victim, gains = running[d.job], asked[d.for_job]
        assert victim.priority < gains.priority
        assert victim.rank < gains.priority
        assert victim.ran_s >= scene.policy.min_run_s
        assert not victim.leaves
        assert not isinstance(next(e for e in decisions if e.job == d.for_job), Start)
    if victims:
        (gains,) = {d.for_job for d in victims}
        leaving = [job for job in scene.running if job.leaves or job.id in {d.job for d in victims}]
        looked_at_before = takewhile(lambda d: not isinstance(d, Preempt), decisions)
        before_it = [d for d in looked_at_before if isinstance(d, Start)]
        then = give(scene.free(), [hold for job in leaving for hold in job.holds])
        then = take(then, [hold for d in before_it for hold in holds_of(d.plan)])
        Planner(asked)(gains, then)  # it fits; and without any one of the victims it would not
        for spared in victims:
            with pytest.raises(Unplaceable):
                Planner(asked)(gains, take(then, running[spared.job].holds))


@given(scenes())
def test_no_user_gets_beyond_a_quota(scene: Scene) -> None:
    quota = scene.policy.quota("bob")
    users = {job.id: job.user for job in scene.waiting}
    before = [job.holds for job in scene.running if job.user == "bob"]
    started = [holds_of(d.plan) for d in scene.decide() if isinstance(d, Start) and users[d.job] == "bob"]
    if started:
        held = [*before, *started]
        assert quota.cores is None or sum(map(cores_of, held)) <= quota.cores
        assert quota.workers is None or sum(map(len, held)) <= quota.workers
        assert quota.jobs is None or len(before) + len(started) <= quota.jobs


# ---- whole queues, to their end ----


@dataclass
class Simulation:
    """Jobs come at their times, run for as long as predicted, and are preempted at once. told: first expected starts."""

    nodes: tuple[Node, ...]
    arrivals: list[tuple[float, Asked]]
    policy: Policy
    now: float = 0.0
    starts: dict[str, float] = field(default_factory=dict)
    told: dict[str, float] = field(default_factory=dict)

    def run(self) -> None:
        jobs = {job.id: job for _, job in self.arrivals}
        came = {job.id: at for at, job in self.arrivals}
        coming = sorted(self.arrivals, key=lambda arrival: arrival[0])
        waiting: dict[str, float] = {}
        left = {job.id: job.seconds or 0.0 for _, job in self.arrivals}
        running: dict[str, tuple[RunningJob, float]] = {}  # with the time of its end
        for _ in range(2000):
            while coming and coming[0][0] <= self.now:
                at, job = coming.pop(0)
                waiting[job.id] = at
            for job_id in [job_id for job_id, (_, end) in running.items() if end <= self.now]:
                del running[job_id]
            if self._pass(jobs, waiting, left, running):
                continue
            ahead = [at for at, _ in coming[:1]] + [end for _, end in running.values()]
            if not ahead:
                assert not waiting, f"{sorted(waiting)} never start"
                return
            # ranks change with time alone: look again now and then, as the master does
            self.now = min([*ahead, *([self.now + self.policy.min_run_s] if waiting else [])])
        raise AssertionError(f"no end in sight: {len(waiting)} wait, {came}")

    def _pass(
        self,
        jobs: dict[str, Asked],
        waiting: dict[str, float],
        left: dict[str, float],
        running: dict[str, tuple[RunningJob, float]],
    ) -> bool:
        """Whether somebody left, so that there is more to decide now."""
        left_anybody = False
        seen = [
            replace(job, left_s=end - self.now, ran_s=self.now - job.ran_s) for job, end in running.values()
        ]  # ran_s keeps the start in here
        free = take(self.nodes, [hold for job in seen for hold in job.holds])
        asked = [replace(jobs[job_id], waited_s=self.now - since).waiting for job_id, since in waiting.items()]
        planner = Planner({job_id: replace(job, seconds=left[job_id]) for job_id, job in jobs.items()})
        for d in decide(asked, seen, free, {}, self.policy, planner):
            match d:
                case Start(job_id, plan, rank, _):
                    del waiting[job_id]
                    self.starts[job_id] = self.now
                    job = RunningJob(job_id, jobs[job_id].user, jobs[job_id].priority, rank, holds_of(plan), self.now)
                    running[job_id] = (job, self.now + left[job_id])
                case Preempt(job_id):
                    _, end = running.pop(job_id)
                    left[job_id] = end - self.now
                    waiting[job_id], left_anybody = self.now, True
                case Wait(job_id, _, start_in_s) if start_in_s is not None:
                    self.told.setdefault(job_id, self.now + start_in_s)
        return left_anybody


@st.composite
def traces(draw: st.DrawFn, most_priority: int, spread_s: float, users: Sequence[str]) -> list[tuple[float, Asked]]:
    return [
        (
            draw(st.floats(0, spread_s)),
            Asked(
                f"job-{number}",
                draw(st.integers(1, 8)),
                draw(st.floats(1, 500)),
                draw(st.integers(0, most_priority)),
                draw(st.sampled_from(users)),
            ),
        )
        for number in range(draw(st.integers(1, 14)))
    ]


@settings(max_examples=25)
@given(traces(most_priority=3, spread_s=1000, users=["ann", "bob"]))
def test_every_job_starts_however_large_or_low_it_is(arrivals: list[tuple[float, Asked]]) -> None:
    simulation = Simulation(EIGHT, arrivals, Policy())
    simulation.run()
    assert len(simulation.starts) == len(arrivals)


ENDS_AT_ONCE = [("small", 1, 1.0), ("small too", 1, 1.0), ("large", 7, 1.0), ("beside", 1, 1.0), ("after", 2, 2.0)]


@settings(max_examples=25)
@example([(0.0, Asked(name, workers, seconds)) for name, workers, seconds in ENDS_AT_ONCE])
@given(traces(most_priority=0, spread_s=0, users=["ann"]))
def test_where_predictions_hold_nobody_of_one_user_starts_later_than_first_told(
    arrivals: list[tuple[float, Asked]],
) -> None:
    simulation = Simulation(EIGHT, arrivals, Policy(reserved=4))
    simulation.run()
    for job_id, told in simulation.told.items():
        assert simulation.starts[job_id] <= told + 1e-6


def test_a_large_job_is_not_starved_by_an_endless_stream_of_small_ones() -> None:
    small = [(10.0 * number, Asked(f"small-{number:03}", 2, 100.0)) for number in range(60)]
    simulation = Simulation(EIGHT, [*small, (5.0, Asked("large", 8, 100.0))], Policy())
    simulation.run()
    assert simulation.starts["large"] <= 5.0 + 100.0 + 1e-6


def test_a_low_job_gains_by_waiting_and_is_then_not_preempted_by_those_it_has_passed() -> None:
    high = [(100.0 * number, Asked(f"high-{number:03}", 4, 100.0, priority=2)) for number in range(60)]
    simulation = Simulation(FOUR, [*high, (1.0, Asked("low", 4, 500.0))], Policy(aging_s=600))
    simulation.run()
    assert simulation.starts["low"] <= 2 * 600 + 100 + 60
    later = [at for job_id, at in simulation.starts.items() if job_id != "low" and at > simulation.starts["low"]]
    assert min(later) >= simulation.starts["low"] + 500


# ---- single decisions ----


def test_a_small_job_that_ends_in_time_starts_before_a_large_one_that_must_wait() -> None:
    scene = Scene(EIGHT, [Asked("large", 8, waited_s=9), Asked("short", 4, 300)], [runs("old", {"n0": 4})])
    assert scene.started() == ["short"]
    assert scene.waits()["large"].start_in_s == 300
    assert "in 300 s at the latest, once old has ended" in scene.waits()["large"].reason


@pytest.mark.parametrize("seconds", [301.0, None])
def test_one_that_would_end_too_late_or_at_an_unknown_time_waits_behind_it(seconds: float | None) -> None:
    scene = Scene(EIGHT, [Asked("large", 8, waited_s=9), Asked("long", 4, seconds)], [runs("old", {"n0": 4})])
    assert scene.started() == []
    assert "large is to start in 300 s" in scene.waits()["long"].reason


def test_one_of_unknown_length_starts_on_places_that_the_reserved_job_does_not_need() -> None:
    scene = Scene(ONE, [Asked("six", 6, waited_s=9), Asked("two", 2, None, waited_s=1), Asked("more", 1, None)])
    scene.running = [runs("old", {"n0": 4})]
    assert scene.started() == ["two"]
    assert scene.waits()["six"].start_in_s == 300


def test_while_an_end_is_unknown_only_spare_places_are_given_away_and_no_start_is_invented() -> None:
    scene = Scene(ONE, [Asked("six", 6, waited_s=9), Asked("three", 3, 1.0), Asked("two", 2, 1.0)])
    scene.running = [runs("old", {"n0": 4}, left_s=None)]
    assert scene.started() == ["two"]
    assert scene.waits()["six"].start_in_s is None
    assert scene.waits()["three"].start_in_s is None


def test_one_that_fits_on_no_idle_cluster_holds_nobody_up() -> None:
    scene = Scene(FOUR, [Asked("huge", 40, waited_s=900), Asked("small", 4)])
    assert scene.started() == ["small"]
    refusal = scene.waits()["huge"].refusal
    assert refusal is not None
    assert refusal.details["busy"] is False


def test_the_cheapest_of_the_lowest_priority_are_asked_to_leave() -> None:
    scene = Scene(EIGHT, [Asked("urgent", 3, priority=5)])
    dear = runs("dear", {"n0": 3}, priority=1, rank=1.0)
    scene.running = [dear, runs("cheap", {"n0": 1, "n1": 2}), runs("small", {"n1": 2})]
    assert scene.preempted() == ["cheap"]  # the smaller one is asked only where it helps
    (victim,) = [d for d in scene.decide() if isinstance(d, Preempt)]
    assert "preempted by urgent of priority 5" in victim.reason
    assert scene.waits()["urgent"].start_in_s == 0


def test_nobody_is_preempted_for_one_that_starts_soon_anyhow_or_where_it_would_not_help() -> None:
    soon = Scene(FOUR, [Asked("urgent", 4, priority=5)], [runs("old", {"n0": 4}, left_s=30.0)])
    assert soon.preempted() == []
    useless = Scene(EIGHT, [Asked("urgent", 8, priority=5)])
    useless.running = [runs("low", {"n0": 4}), runs("equal", {"n1": 4}, priority=5, rank=5.0)]
    assert useless.preempted() == []


def test_of_equal_priorities_the_user_who_had_less_is_ahead_and_a_larger_share_counts_for_more() -> None:
    waiting = [Asked("of-ann", 4, user="ann", waited_s=1), Asked("of-bob", 4, user="bob")]
    usage = {"ann": 900.0, "bob": 100.0}
    assert Scene(FOUR, waiting, usage=usage).started() == ["of-bob"]
    assert Scene(FOUR, waiting, usage=usage, policy=Policy(shares={"ann": 99.0})).started() == ["of-ann"]
    assert Scene(FOUR, waiting).started() == ["of-ann"]


def test_a_higher_priority_is_ahead_of_a_fair_share_and_of_some_waiting() -> None:
    waiting = [Asked("low", 4, user="bob", waited_s=300), Asked("high", 4, user="ann", priority=2)]
    assert Scene(FOUR, waiting, usage={"ann": 1e6}).started() == ["high"]


def test_usage_fades_by_its_half_life_and_grows_by_what_is_held() -> None:
    assert charged({"ann": 800.0}, {"bob": 2.0}, 100.0, half_life_s=100.0) == {"ann": 400.0, "bob": 200.0}


def test_a_quota_holds_its_user_and_nobody_else_and_shrinks_what_is_open() -> None:
    policy = Policy(quotas={"ann": Quota(cores=3), "*": Quota(jobs=1)})
    waiting = [Asked("fixed", 4, waited_s=9), Asked("open", None, waited_s=8), Asked("of-bob", 4, user="bob")]
    scene = Scene(EIGHT, waiting, policy=policy)
    starts = {d.job: len(d.plan.workers) for d in scene.decide() if isinstance(d, Start)}
    assert starts == {"open": 3, "of-bob": 4}
    assert "4 workers with 4 cores, and the quota of ann has 0 of 3 cores in use" in scene.waits()["fixed"].reason
    again = Scene(EIGHT, [Asked("second", 1, user="bob")], [runs("first", {"n0": 1}, user="bob")], policy)
    assert again.started() == []
    assert "1 of 1 jobs" in again.waits()["second"].reason


def test_a_node_that_gets_no_more_workers_is_nobodys_hope() -> None:
    leaving = (node("n0"), node("n1", draining=True, free_cores=0))
    scene = Scene(leaving, [Asked("eight", 8, waited_s=9), Asked("four", 4, None)], [runs("old", {"n1": 4})])
    assert scene.started() == ["four"]
    assert scene.waits()["eight"].start_in_s is None


def test_devices_are_taken_and_given_back_with_their_workers() -> None:
    gpus = [{"kind": "cuda", "index": 0}, {"kind": "cuda", "index": 1}]
    idle = (node("n0", devices=gpus, free_devices=(0, 1)),)
    hold = Hold("n0", 1, GIB, "cuda:1")
    assert take(idle, [hold])[0].free_devices == (0,)
    assert take(idle, [hold])[0].free_cores == 3
    assert give(take(idle, [hold]), [hold]) == idle


def test_looking_at_a_long_queue_stays_bounded() -> None:
    waiting = [Asked(f"job-{number:04}", 4, inf) for number in range(500)]
    scene = Scene(FOUR, waiting, [runs("old", {"n0": 4})], Policy(tried=20, reserved=2))
    asked: list[str] = []
    planner = Planner({job.id: job for job in waiting})

    def counting(job_id: str, nodes: Sequence[Node], most: int | None = None) -> Fit:
        asked.append(job_id)
        return planner(job_id, nodes, most)

    decisions = decide([job.waiting for job in waiting], scene.running, scene.free(), {}, scene.policy, counting)
    assert len(decisions) == 500
    assert len(set(asked)) == 20
    assert len(asked) < 100
