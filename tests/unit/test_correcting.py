"""A running job whose measured times change who trains it: the machine's part, driven without a cluster."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import paceline as pl
from paceline.master.commands import Command, Record, Send, StopWorkers
from paceline.master.correcting import A_WHILE_S, SETTLED_ROUNDS
from paceline.master.events import Answer, Event, Lost, Planned, Recruited, ScaleRequested
from paceline.master.job import Job
from paceline.master.machine import step
from paceline.master.newcomers import next_worker
from paceline.master.states import Running
from paceline.measured import Calibration
from paceline.messages.from_worker import Pace, PeerLost, Ready, Trained, WorkerHello
from paceline.messages.to_worker import TrainRound
from paceline.plan import Node
from paceline.shares import split_evenly
from paceline.spec import Resources

from builders import node, plan_of, submission

CELLS, REST = 8, 0.2  # what else a worker does in a step takes a fifth of a cell's time
PARAMETERS = 250_000
ENDLESS = 1_000_000


class Driven:
    """A job of `workers` workers, one on each of nodes n0, n1 …, and what its machine commands.

    cell_s: by node id. exchange_s: by the number of members. Each round takes its own time of the clock `now`.
    """

    def __init__(
        self,
        workers: int,
        cell_s: dict[str, float],
        exchange_s: Callable[[int], float] = lambda _: 0.0,
        most_workers: int | None = None,
        noise: random.Random | None = None,
        **options: Any,
    ) -> None:
        sent = submission(
            val=False, batch_size=CELLS, microbatches=CELLS, eval_every=ENDLESS,
            **{"stop": pl.MaxSteps(100_000), **options},
        )  # fmt: skip
        self.now, self.cell_s, self.exchange_s, self._noise = 0.0, cell_s, exchange_s, noise
        self.nodes = [node(name) for name in cell_s]
        self.records: list[Record] = []
        self.stopped: set[int] = set()
        self._orders: dict[int, TrainRound] = {}
        self.job = Job("job", sent)
        plan = plan_of(split_evenly(CELLS, workers), most_workers=most_workers or workers)
        self.feed(Planned(plan, nodes=tuple(self.nodes)))
        for rank in range(workers):
            self.build(rank)

    @property
    def state(self) -> Running:
        assert isinstance(self.job.state, Running), self.job.state
        return self.job.state

    @property
    def nodes_of_members(self) -> list[str]:
        return [self.state.workers[rank].placement.node_id for rank in self.state.members]

    def feed(self, event: Event) -> list[Command]:
        self.job, commands = step(self.job, event, self.now)
        for command in commands:
            if isinstance(command, Send) and isinstance(command.message, TrainRound):
                self._orders[command.rank] = command.message
            if isinstance(command, Record):
                self.records.append(command)
            if isinstance(command, StopWorkers):
                self.stopped |= set(command.ranks or ())
        return commands

    def build(self, rank: int) -> None:
        self.feed(Answer(1, rank, WorkerHello(address="a")))
        ready = Ready(fingerprint="f", train_samples=8000, parameters=PARAMETERS, store_port=1)
        self.feed(Answer(1, rank, ready))

    def round(self) -> None:
        """All members answer what they were asked, as their nodes' speeds have it."""
        state, orders = self.state, dict(self._orders)
        works = {}
        for rank in state.members:
            first, end = state.workers[rank].placement.share
            factor = self._noise.uniform(0.95, 1.05) if self._noise else 1.0
            cell_s = self.cell_s[state.workers[rank].placement.node_id] * factor
            works[rank] = (end - first) * cell_s, REST * cell_s
        step_s = max(map(sum, works.values())) + self.exchange_s(len(works))
        steps = orders[state.members[0]].to_step - orders[state.members[0]].from_step
        self.now += steps * step_s
        for rank, (work, rest) in works.items():
            first, end = state.workers[rank].placement.share
            pace = Pace(
                steps=steps, cells=steps * (end - first), seconds=steps * step_s, busy_s=steps * work,
                waited_s=steps * (step_s - work - rest),
            )  # fmt: skip
            order = orders[rank]
            losses = (1.0,) * steps
            answer = Trained(
                from_step=order.from_step, step=order.to_step, losses=losses, seconds=steps * step_s, pace=pace
            )
            self.feed(Answer(1, rank, answer))

    def rounds(self, number: int) -> None:
        for _ in range(number):
            self.round()

    def recruit(self) -> str | None:
        """What the controller does whenever the job could use more workers; the node that was taken, if any."""
        if not self.job.wanted:
            return None
        held = {worker.placement.node_id for worker in self.state.workers.values()}
        free = [n.model_copy(update={"free_cores": 0}) if n.id in held else n for n in self.nodes]
        found = next_worker(self.job, free, self.now)
        if found is None:
            return None
        rank = self.state.next_rank
        self.feed(Recruited(1, found.placement, found.node, found.cell_s, found.decision))
        self.build(rank)
        return found.node.id

    def told(self, kind: str) -> list[dict[str, Any]]:
        return [record.data for record in self.records if record.kind == kind]


def drops(driven: Driven) -> list[list[str]]:
    return [data["nodes"] for data in driven.told("corrected") if data["change"] == "drop"]


def test_a_job_that_exchanging_slows_down_goes_on_on_one_node_and_says_why() -> None:
    driven = Driven(3, {"n0": 0.01, "n1": 0.01, "n2": 0.02}, exchange_s=lambda members: 0.5 * (members > 1))
    driven.rounds(SETTLED_ROUNDS + 6)
    assert driven.nodes_of_members == ["n0"]
    [said] = driven.told("corrected")
    assert (said["change"], len(said["nodes"])) == ("drop", 2)
    assert said["step_s"] > 0.5 > said["predicted_step_s"]
    assert 0 < said["steps_to_go"] < 100_000
    assert said["saves_s"] > 2 * said["change_s"]
    assert f"over the {said['steps_to_go']} steps to go" in said["reason"]
    assert len(driven.stopped) == 2
    assert [data["rank"] for data in driven.told("worker_released")] == sorted(driven.stopped)


@pytest.mark.parametrize(
    ("stop", "rounds_on"), [(pl.MaxTime(1) | pl.MaxSteps(100_000), False), (pl.MaxTime(1) & pl.MaxSteps(100_000), True)]
)
def test_time_ends_a_job_only_where_its_stop_condition_says_so(stop: Any, rounds_on: bool) -> None:
    """What has a second to go is not worth a change; what trains on until its steps are done is."""
    driven = Driven(2, {"n0": 0.001, "n1": 0.001}, lambda members: 0.05 * (members - 1), stop=stop)
    driven.rounds(20)
    assert bool(drops(driven)) == rounds_on


def test_one_slow_round_moves_nobody() -> None:
    driven = Driven(2, {"n0": 0.05, "n1": 0.05})
    driven.rounds(SETTLED_ROUNDS + 4)
    driven.exchange_s = lambda members: 1.0 * (members > 1)
    driven.round()
    driven.exchange_s = lambda members: 0.0
    driven.rounds(20)
    assert driven.told("corrected") == []


def test_a_node_that_becomes_slow_is_named_once_with_the_numbers() -> None:
    driven = Driven(3, {"n0": 0.01, "n1": 0.01, "n2": 0.01})
    driven.rounds(10)
    assert driven.told("straggler") == []
    driven.cell_s["n2"] = 0.05
    driven.rounds(30)
    [said] = driven.told("straggler")
    assert (said["rank"], said["node"]) == (2, "n2")
    assert said["others_cell_s"] == pytest.approx(0.01)
    assert said["cell_s"] > 1.5 * said["others_cell_s"]
    assert 0 < said["costs_s"] < said["step_s"]
    assert "rank 2 on n2 takes" in said["reason"]
    driven.cell_s["n2"] = 0.01
    driven.rounds(200)
    driven.cell_s["n2"] = 0.05
    driven.rounds(30)
    assert len(driven.told("straggler")) == 2
    assert driven.told("corrected") == []  # it takes no share, and costs nothing


def test_a_member_whose_exchanges_cost_more_than_its_share_gains_is_let_go() -> None:
    driven = Driven(3, {"n0": 0.01, "n1": 0.01, "n2": 0.01}, exchange_s=lambda members: 0.01 * (members - 1))
    driven.rounds(10)
    assert drops(driven) == []
    driven.cell_s["n2"] = 0.5
    driven.rounds(40)
    assert drops(driven) == [["n2"]]
    assert driven.nodes_of_members == ["n0", "n1"]


@pytest.mark.parametrize("by", ["resources", "scale"])
def test_a_number_of_workers_that_the_user_asked_for_stays_and_the_straggler_is_still_named(by: str) -> None:
    asked: dict[str, Any] = {"resources": Resources(workers=2)} if by == "resources" else {}
    driven = Driven(2, {"n0": 0.01, "n1": 0.1}, exchange_s=lambda members: 1.0 * (members > 1), **asked)
    if by == "scale":
        driven.feed(ScaleRequested(2))
    driven.rounds(60)
    assert driven.told("corrected") == []
    assert driven.nodes_of_members == ["n0", "n1"]
    assert [data["node"] for data in driven.told("straggler")] == ["n1"]


def test_one_that_was_let_go_is_asked_again_after_one_minute_then_two_then_four() -> None:
    driven = Driven(2, {"n0": 0.05, "n1": 0.05}, exchange_s=lambda members: 1.0 * (members > 1))
    times: list[float] = []
    while len(times) < 4:
        driven.round()
        if driven.recruit() is not None:
            times.append(driven.now)
    waits = [later - earlier for earlier, later in zip([0.0, *times], times, strict=False)]
    for doublings, waited in enumerate(waits):
        assert 60 * 2**doublings < waited < 60 * 2**doublings + 60  # and some rounds until it is let go


def test_one_without_whom_the_job_turned_out_slower_comes_back_at_once_and_then_stays() -> None:
    driven = Driven(2, {"n0": 0.05, "n1": 0.08}, exchange_s=lambda members: 0.3 * (members > 1))
    driven.rounds(SETTLED_ROUNDS + 8)
    assert drops(driven) == [["n1"]]
    driven.cell_s["n0"] = 0.1  # as a lone worker may be, whose data then no longer fit into its cache
    driven.rounds(SETTLED_ROUNDS + 10)
    assert driven.now < A_WHILE_S
    assert driven.recruit() == "n1"
    driven.cell_s["n0"] = 0.05
    driven.rounds(20)
    assert driven.now < A_WHILE_S
    assert driven.nodes_of_members == ["n0", "n1"]
    assert [data["change"] for data in driven.told("corrected")] == ["drop", "add"]


def test_a_free_node_is_taken_where_it_makes_the_job_faster_and_the_record_says_by_how_much() -> None:
    driven = Driven(1, {"n0": 0.05, "n1": 0.05}, exchange_s=lambda members: 0.01 * (members > 1), most_workers=2)
    driven.rounds(SETTLED_ROUNDS - 1)
    assert driven.recruit() is None
    driven.rounds(3)
    assert driven.recruit() == "n1"
    [said] = driven.told("corrected")
    assert (said["change"], said["nodes"]) == ("add", ["n1"])
    assert said["predicted_step_s"] < said["step_s"]
    driven.rounds(SETTLED_ROUNDS + 4)
    assert driven.nodes_of_members == ["n0", "n1"]
    assert drops(driven) == []


def test_a_free_node_that_is_calibrated_far_slower_is_not_taken() -> None:
    driven = Driven(1, {"n0": 0.05, "n1": 0.05}, exchange_s=lambda members: 0.01, most_workers=2)
    speeds = {"n0": 1e10, "n1": 5e8}
    driven.nodes = [calibrated(n, speeds[n.id]) for n in driven.nodes]
    driven.job = replace(driven.job, nodes={n.id: n for n in driven.nodes})
    driven.rounds(20)
    assert driven.recruit() is None
    driven.nodes = [calibrated(n, 1e10) for n in driven.nodes]  # its agent was started again, on a quiet machine
    assert driven.recruit() == "n1"


def calibrated(one: Node, flop_per_s: float) -> Node:
    return one.model_copy(update={"speed": (Calibration(device="cpu", flop_per_s=flop_per_s, at=0.0),)})


def test_a_lost_worker_is_replaced_at_once_whatever_is_measured() -> None:
    driven = Driven(2, {"n0": 0.05, "n1": 0.05, "n2": 0.05})
    driven.rounds(2)
    driven.feed(Lost(1, 1, "killed"))
    assert driven.recruit() in ("n1", "n2")
    assert driven.told("corrected") == []


def test_a_newcomers_first_share_is_by_its_nodes_calibrated_speed() -> None:
    driven = Driven(2, {"n0": 0.05, "n1": 0.05, "n2": 0.15}, resources=Resources(workers=2))
    speeds = {"n0": 3e9, "n1": 3e9, "n2": 1e9}
    driven.nodes = [calibrated(n, speeds[n.id]) for n in driven.nodes]
    driven.job = replace(driven.job, nodes={n.id: n for n in driven.nodes})
    driven.rounds(3)
    driven.nodes = [n for n in driven.nodes if n.id != "n1"]
    driven.feed(Lost(1, 1, "killed"))
    assert driven.recruit() == "n2"
    driven.feed(Answer(1, 0, PeerLost(step=driven.job.training.step, losses=(), reason="closed")))
    assert driven.state.group.shares == ((0, 6), (6, 8))


def shares_of(driven: Driven) -> Sequence[tuple[int, int]]:
    return driven.state.group.shares


def test_shares_change_within_the_group_that_is_formed() -> None:
    driven = Driven(2, {"n0": 0.01, "n1": 0.01})
    driven.rounds(5)
    key, before = driven.state.group.key, shares_of(driven)
    driven.cell_s["n1"] = 0.03
    driven.rounds(20)
    assert (before, shares_of(driven)) == (((0, 4), (4, 8)), ((0, 6), (6, 8)))
    assert driven.state.group.key == key


def test_a_worker_that_had_become_too_slow_for_any_share_is_tried_again_some_day() -> None:
    driven = Driven(2, {"n0": 0.01, "n1": 0.01}, resources=Resources(workers=2))
    driven.rounds(5)
    driven.cell_s["n1"] = 0.5
    driven.rounds(20)
    assert shares_of(driven) == ((0, 8), (8, 8))
    driven.cell_s["n1"] = 0.01
    driven.rounds(400)
    assert shares_of(driven) == ((0, 4), (4, 8))


def test_the_first_shares_are_as_planned() -> None:
    plan = plan_of([(0, 6), (6, 8)], most_workers=2)
    job, _ = step(Job("job", submission(batch_size=8, microbatches=8)), Planned(plan), 0.0)
    for rank in range(2):
        job, _ = step(job, Answer(1, rank, WorkerHello(address="a")), 0.0)
        ready = Ready(fingerprint="f", train_samples=800, parameters=1, store_port=1)
        job, _ = step(job, Answer(1, rank, ready), 0.0)
    assert isinstance(job.state, Running)
    assert job.state.group.shares == ((0, 6), (6, 8))


@settings(max_examples=12, deadline=None)
@given(
    st.lists(st.floats(0.005, 0.2), min_size=1, max_size=4),
    st.lists(st.floats(0.0, 0.5), min_size=4, max_size=4),
    st.integers(0, 2**32),
)
def test_whatever_exchanges_take_members_change_ever_more_seldom_and_somebody_always_trains(
    cell_s: list[float], exchange_s: list[float], seed: int
) -> None:
    nodes = {f"n{at}": seconds for at, seconds in enumerate(cell_s)}
    costs = [0.0, *exchange_s]
    driven = Driven(
        len(nodes), nodes, exchange_s=lambda members: costs[members - 1], noise=random.Random(seed),
        stop=pl.MaxSteps(10**9),
    )  # fmt: skip
    changed_at = []
    for _ in range(200):
        before = len(driven.told("corrected"))
        driven.round()
        driven.recruit()
        assert driven.state.members
        changed_at += [driven.now] * (len(driven.told("corrected")) - before)
    # a node is tried at once, after 60 s, 120 s … : each of them adds a drop and an addition in twice the time
    doublings = (driven.now / A_WHILE_S + 1).__ceil__().bit_length()
    assert len(changed_at) <= 2 * len(nodes) * (1 + doublings)
