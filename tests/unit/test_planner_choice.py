"""What the planner chooses where speeds, links, prices and limits differ: properties, and cases with known answers."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import paceline as pl
from paceline.measured import Calibration, CellTime, Link, Measured, Profile
from paceline.plan import Device, Node, Plan, Prediction, Waiting
from paceline.planner.growth import one_more
from paceline.planner.planner import plan_or_wait, plan_workers
from paceline.planner.predict import Slot, best_shares, predict
from paceline.planner.profiles import Workload
from paceline.planner.rooms import when_idle
from paceline.planner.speeds import with_speeds
from paceline.spec import Facts, TrainOptions

from builders import GIB, node, options

MIB = 2**20
FACTS = Facts(parameters=1_000_000, parameter_bytes=4 * MIB, flop_per_sample=1e7, train_samples=6400)
NAMES = ("a", "b", "c", "d", "e")


def profile(hardware_class: str = "cpu:AVX2", cell_s: float = 0.02, **changes: Any) -> Profile:
    """8 samples a microbatch in so many seconds."""
    fields: dict[str, Any] = {
        "hardware_class": hardware_class,
        "device": "cpu",
        "cells": (CellTime(samples=8, seconds=cell_s),),
        "cell_samples": 8,
        "update_s": 0.002,
        "state_bytes": 16 * MIB,
        "activation_bytes": MIB,
        "worker_bytes": 24 * MIB,
        "exchange_bytes": 4 * MIB,
        "build_s": 0.5,
        "flop_per_s": 1e11,
        "at": 0.0,
        **changes,
    }
    return Profile(**fields)


def link(a: str, b: str, bytes_per_s: float = 1e9, latency_s: float = 1e-4) -> Link:
    return Link(ends=(a, b), latency_s=latency_s, bytes_per_s=bytes_per_s, at=0.0)


def quick(name: str, times: float = 1.0, **changes: Any) -> Node:
    """A node of one core that is so many times as fast as the one that measured."""
    speed = (Calibration(device="cpu", flop_per_s=times * 1e11, at=0.0),)
    return node(name, **{"cores": 1, "speed": speed, **changes})


def asked(**changes: Any) -> TrainOptions:
    return options(**{"batch_size": 64, "stop": pl.MaxEpochs(1), **changes})


def planned(nodes: list[Node], wish: TrainOptions | None = None, links: tuple[Link, ...] = (), **known: Any) -> Plan:
    return plan_workers(nodes, wish or asked(), FACTS, known=Measured(profiles=(profile(**known),), links=links))


def told(plan: Plan) -> Prediction:
    assert plan.predicted is not None
    return plan.predicted


def why(plan: Plan, name: str) -> str:
    return next(reason.reason for reason in plan.reasons if name in reason.nodes)


# ---- properties ----


@st.composite
def clusters(draw: st.DrawFn) -> list[Node]:
    return [
        node(
            name,
            is_master=name == "a" and draw(st.booleans()),
            hardware_class=draw(st.sampled_from(["cpu:AVX2", "cpu:AVX2", "cpu:OLD"])),
            cores=(cores := draw(st.integers(1, 6))),
            free_cores=draw(st.integers(0, cores)),
            load=draw(st.sampled_from([0.0, 0.0, 3.0])),
            price=draw(st.sampled_from([0.0, 1.0, 5.0])),
            speed=tuple(
                Calibration(device="cpu", flop_per_s=flop, at=0.0)
                for flop in draw(st.lists(st.sampled_from([3e10, 1e11, 3e11]), max_size=1))
            ),
        )
        for name in NAMES[: draw(st.integers(1, 5))]
    ]


measured = st.builds(
    Measured,
    profiles=st.lists(
        st.builds(
            profile,
            st.sampled_from(["cpu:AVX2", "cpu:OLD"]),
            st.sampled_from([1e-4, 1e-2, 1.0]),
            exchange_bytes=st.sampled_from([4096, 4 * MIB, 400 * MIB]),
        ),
        max_size=2,
        unique_by=lambda p: p.hardware_class,
    ).map(tuple),
    links=st.lists(
        st.builds(
            lambda pair, rate, latency: link(*sorted(pair), rate, latency),
            st.lists(st.sampled_from(NAMES), min_size=2, max_size=2, unique=True),
            st.sampled_from([1e6, 1e8, 1e10]),
            st.sampled_from([1e-5, 1e-2]),
        ),
        max_size=6,
        unique_by=lambda found: found.ends,
    ).map(tuple),
)

wishes = st.builds(
    lambda cells, workers, reproducible, deadline, max_cost, stop: asked(
        microbatches=cells, reproducible=reproducible, deadline=deadline, stop=stop,
        resources=pl.Resources(workers=workers, max_cost=max_cost),
    ),
    st.sampled_from([1, 2, 6, 8, 16]),
    st.none() | st.none() | st.integers(1, 8),
    st.booleans(),
    st.none() | st.sampled_from([1.0, 30.0, 1000.0]),
    st.none() | st.sampled_from([0.0, 0.01, 1.0]),
    st.sampled_from([pl.MaxEpochs(1), pl.MaxSteps(5), pl.MaxTime(20), pl.MaxEpochs(9) | pl.MaxTime(20)]),
)  # fmt: skip


def decided(nodes: list[Node], wish: TrainOptions, known: Measured) -> Plan | pl.Unplaceable:
    """The plan, or the refusal."""
    try:
        return plan_workers(nodes, wish, FACTS, known=known)
    except pl.Unplaceable as refusal:
        return refusal


@settings(max_examples=200)
@given(clusters(), measured, wishes)
def test_no_node_of_a_plan_makes_the_job_slower_by_the_plans_own_prediction(
    nodes: list[Node], known: Measured, wish: TrainOptions
) -> None:
    nodes = list(with_speeds(nodes))
    plan = decided(nodes, wish, known)
    if isinstance(plan, pl.Unplaceable):
        assert plan.remedy
        return
    work, by_id = Workload(wish, FACTS, known), {n.id: n for n in nodes}
    slots = [Slot(by_id[worker.node_id], worker.device) for worker in plan.workers]
    shares = [worker.share for worker in plan.workers]
    assert [cell for first, end in shares for cell in range(first, end)] == list(range(wish.microbatches))
    assert predict(work, slots, shares) == plan.predicted
    assert wish.deadline is None or (told(plan).finish_s or 0.0) <= wish.deadline
    assert wish.resources.max_cost is None or (told(plan).cost or 0.0) <= wish.resources.max_cost
    assert {name for reason in plan.reasons for name in reason.nodes} == {n.name for n in nodes}
    if wish.resources.workers is not None:
        return
    assert all(first < end for first, end in shares), "a worker without work"
    for name in {slot.node.id for slot in slots} if len({slot.node.id for slot in slots}) > 1 else ():
        others = [slot for slot in slots if slot.node.id != name]
        without = predict(work, others, best_shares(work, others))
        assert (without.time_s, without.step_s) >= (told(plan).time_s, told(plan).step_s), f"slower with {name}"


@example(
    [node("a", cores=1, free_cores=0, load=3.0)],  # 1.6300000000000001 s: a rounded 1.63 would be refused again
    Measured(profiles=(profile(cell_s=0.0001, exchange_bytes=4096),)),
    asked(microbatches=6, reproducible=False, deadline=1.0, stop=pl.MaxEpochs(1)),
)
@given(clusters(), measured, wishes)
def test_what_a_refusal_offers_instead_fits_the_idle_cluster(
    nodes: list[Node], known: Measured, wish: TrainOptions
) -> None:
    refusal = decided(nodes, wish, known)
    if isinstance(refusal, Plan):
        return
    assert json.loads(json.dumps(refusal.to_json()))["details"] == refusal.details
    if "counter" in refusal.details:
        offered = dict(refusal.details["counter"])
        resources = wish.resources.model_copy(update=offered.pop("resources", {}))
        changed = TrainOptions(**{**wish.model_dump(), **offered, "resources": resources.model_dump()})
        assert isinstance(decided(when_idle(nodes), changed, known), Plan)
    elif not refusal.details["busy"]:
        assert isinstance(decided(when_idle(nodes), wish.model_copy(update={"deadline": None}), known), pl.Unplaceable)


@given(clusters(), measured, wishes, st.randoms(use_true_random=False))
def test_the_same_nodes_in_another_order_give_the_same_plan(
    nodes: list[Node], known: Measured, wish: TrainOptions, chance: Any
) -> None:
    shuffled = list(nodes)
    chance.shuffle(shuffled)
    one, other = decided(nodes, wish, known), decided(shuffled, wish, known)
    assert (one if isinstance(one, Plan) else one.to_json()) == (other if isinstance(other, Plan) else other.to_json())


def test_a_node_that_filled_up_since_the_last_plan_is_told_from_its_equals() -> None:
    nodes = [quick("a"), quick("b")]
    planned(nodes)
    plan = planned([nodes[0].model_copy(update={"free_cores": 0}), nodes[1]])
    assert [worker.node_name for worker in plan.workers] == ["b"]
    assert why(plan, "a").startswith("no place for a worker")


# ---- speed and links ----


def test_a_slow_node_is_left_out_with_the_times_with_and_without_it() -> None:
    plan = planned([quick("fast"), quick("slow", 0.01)], links=(link("fast", "slow"),))
    assert [worker.node_name for worker in plan.workers] == ["fast"]
    times = re.fullmatch(
        r"not needed: with it the job would take ([\d.]+) s \(\d+ ms a step\), "
        r"without it ([\d.]+) s \(162 ms a step\): longer",
        why(plan, "slow"),
    )
    assert times is not None
    assert float(times[1]) > float(times[2]) == 16.7


@given(st.floats(3e7, 2e8))
def test_a_second_worker_is_taken_only_where_it_saves_2_percent(bytes_per_s: float) -> None:
    nodes, links = [quick("a"), quick("b")], (link("a", "b", bytes_per_s),)
    work = Workload(asked(), FACTS, Measured(profiles=(profile(),), links=links))
    slots = [Slot(n, "cpu") for n in nodes]
    one, two = (predict(work, slots[:n], best_shares(work, slots[:n])).time_s for n in (1, 2))
    assert len(planned(nodes, links=links).workers) == (2 if two < 0.98 * one else 1)


def test_unequal_nodes_share_the_batch_by_speed() -> None:
    plan = planned([quick("a", 3.0), quick("b")], links=(link("a", "b"),), cell_s=0.2)
    assert {worker.node_name: worker.share[1] - worker.share[0] for worker in plan.workers} == {"a": 6, "b": 2}


def test_a_node_behind_a_narrow_link_is_left_out_and_a_near_one_taken() -> None:
    nodes = [quick("a"), quick("far"), quick("near")]
    plan = planned(nodes, links=(link("a", "far", 1e6), link("a", "near"), link("far", "near", 1e6)))
    assert {worker.node_name for worker in plan.workers} == {"a", "near"}
    assert "with it the job would take" in why(plan, "far")


def test_nodes_that_can_not_reach_each_other_do_not_train_together() -> None:
    plan = planned([quick("a"), quick("b")], links=(link("a", "b", 0.0),), cell_s=10.0)
    assert len(plan.workers) == 1


def test_what_would_be_faster_is_told_in_numbers() -> None:
    nodes = [quick("a"), quick("b"), quick("old", hardware_class="cpu:OLD")]
    hints = planned(nodes, links=(link("a", "b", 2e8), link("a", "old", 2e8), link("b", "old", 2e8)), cell_s=0.1).faster
    more, links, mixed = hints
    assert re.fullmatch(r"one more node like a \(cpu:AVX2, 1 core\): .* s \(.* ms a step\) instead of .*", more)
    assert links.startswith("links of ten times the rate between its nodes: ")
    assert mixed.startswith("reproducible=False, on cpu:AVX2, cpu:OLD together: ")


def test_a_short_job_stays_on_one_worker_though_a_step_would_be_quicker_on_two() -> None:
    nodes = [node("a", cores=2)]
    assert len(planned(nodes, asked(stop=pl.MaxSteps(2))).workers) == 1
    assert len(planned(nodes, asked(stop=pl.MaxSteps(200))).workers) == 2


def test_a_job_that_only_time_ends_gets_the_quickest_steps() -> None:
    assert len(planned([node("a", cores=4)], asked(stop=pl.MaxTime(60))).workers) == 4


def test_a_model_that_was_measured_to_be_quicker_on_a_processor_leaves_the_accelerator_alone() -> None:
    gpu = quick("gpu", devices=(Device(kind="cuda"),), free_devices=(0,))
    small = (profile(cell_s=0.001), profile(cell_s=0.003, device="cuda"))
    large = (profile(cell_s=0.1), profile(cell_s=0.003, device="cuda"))
    devices = [
        plan_workers([gpu], asked(), FACTS, known=Measured(profiles=p)).workers[0].device for p in (small, large)
    ]
    assert devices == ["cpu", "cuda:0"]


# ---- limits ----


def test_a_deadline_that_is_missed_is_refused_with_the_time_that_would_do() -> None:
    with pytest.raises(pl.Unplaceable) as caught:
        planned([quick("a")], asked(deadline=10.0))
    assert "the job is predicted to take 16.7 s (162 ms a step) at best" in caught.value.fact
    assert "its deadline is 10 s" in caught.value.fact
    counter = caught.value.details["counter"]
    assert planned([quick("a")], asked(**counter)).workers
    assert f"deadline={counter['deadline']}" in caught.value.remedy


def test_a_dear_node_is_left_out_where_it_would_cost_too_much() -> None:
    nodes = [quick("cheap", price=1.0), quick("dear", price=100.0)]
    links = (link("cheap", "dear"),)
    free = planned(nodes, links=links)
    assert {worker.node_name for worker in free.workers} == {"cheap", "dear"}
    budget = (told(free).cost or 0.0) / 10
    plan = planned(nodes, asked(resources=pl.Resources(max_cost=budget)), links=links)
    assert [worker.node_name for worker in plan.workers] == ["cheap"]
    assert "with it the job would cost" in why(plan, "dear")


def test_a_cost_that_no_node_keeps_is_refused_with_the_one_that_would_do() -> None:
    with pytest.raises(pl.Unplaceable) as caught:
        planned([quick("a", price=3.0)], asked(resources=pl.Resources(max_cost=0.001)))
    assert "it costs 0.01392 at least, and max_cost is 0.001" in caught.value.fact
    assert caught.value.details["counter"] == {"resources": {"max_cost": 0.014}}


def test_a_model_that_fits_no_node_is_refused_with_both_amounts() -> None:
    with pytest.raises(pl.Unplaceable) as caught:
        planned([quick("a", memory=GIB)], worker_bytes=4 * GIB)
    assert "1 worker(s) with 1 core(s) and 4.3 GiB each on cpu" in caught.value.fact
    assert "The best node, a, has 1 of 1 cores free, 1.0 GiB of 1.0 GiB memory free" in caught.value.fact
    assert "a node with 4.3 GiB" in caught.value.remedy
    assert caught.value.details["busy"] is False


def test_a_model_that_fits_but_for_an_exchange_trains_on_one_worker() -> None:
    plan = planned([node("a", memory=GIB), node("b", memory=GIB)], worker_bytes=500 * MIB, exchange_bytes=100 * MIB)
    assert len(plan.workers) == 1
    assert "too small for an exchange" in why(plan, "b")


# ---- what is shown ----


def test_the_document_has_the_decision_the_alternatives_and_a_reason_for_each_node_left_out() -> None:
    old = quick("old", 0.5, hardware_class="cpu:OLD")
    nodes = [quick("a", cores=2), quick("slow", 0.01), old]
    found = json.loads(json.dumps(planned(nodes).document()))
    assert set(found) == {"decision", "chosen", "alternatives", "rejected", "faster"}
    assert set(found["chosen"]) == {"mode", "nodes", "predicted"}
    (chosen,) = found["chosen"]["nodes"]
    assert (chosen["name"], chosen["share"], set(chosen)) == ("a", [0, 8], {"name", "share", "predicted"})
    for predicted in (chosen["predicted"], found["chosen"]["predicted"], found["alternatives"][0]["predicted"]):
        assert predicted.keys() >= {"step_s", "finish_s", "memory_bytes", "traffic_bytes_per_step"}
    assert {rejected["node"]: bool(rejected["reason"]) for rejected in found["rejected"]} == {"slow": True, "old": True}
    one = next(other for other in found["alternatives"] if other["nodes"] == [{"name": "a", "workers": 1}])
    assert one["predicted"]["finish_s"] > found["chosen"]["predicted"]["finish_s"]
    assert one["reason"].endswith("times the time")


def test_a_job_that_must_wait_is_planned_for_the_idle_cluster_with_its_place() -> None:
    busy = [node("a", free_cores=0)]
    plan = plan_or_wait(busy, asked(), FACTS, Waiting(place=3, expected_start_s=90.0))
    assert plan.waiting is not None
    assert (plan.waiting.place, plan.document()["decision"]["answer"]) == (3, "queued")
    assert "queued: place 3, to start in about 90 s" in plan.explain()
    assert plan_or_wait(when_idle(busy), asked(), FACTS, None).waiting is None
    with pytest.raises(pl.Unplaceable):
        plan_or_wait(busy, asked(), FACTS, None)
    with pytest.raises(pl.Unplaceable):
        plan_or_wait(busy, asked(threads=9), FACTS, Waiting(place=2))


def test_a_plan_of_an_earlier_version_without_predictions_is_still_shown() -> None:
    plan = planned([node("a", cores=2)])
    stored = {k: v for k, v in plan.model_dump(mode="json").items() if k not in ("predicted", "nodes")}
    stored["reasons"] = [{"node": "a", "taken": True, "reason": "takes 2 of 2 places"}]
    old = Plan.model_validate(stored)
    assert old.reasons[0].nodes == ("a",)
    assert "a" in old.explain()
    assert old.document()["chosen"]["predicted"] is None


# ---- growth ----


def test_a_running_job_gets_one_more_worker_only_where_a_step_becomes_shorter() -> None:
    known = Measured(profiles=(profile(),), links=(link("a", "far", 1e6), link("a", "near"), link("far", "near", 1e6)))
    running = plan_workers([quick("a")], asked(), FACTS, known=known)
    held = quick("a", free_cores=0)
    assert one_more([held, quick("far"), quick("near")], running, asked(), FACTS, known).node_name == "near"
    with pytest.raises(pl.Unplaceable) as caught:
        one_more([held, quick("far")], running, asked(), FACTS, known)
    assert "one more worker, on far, would make a step take" in caught.value.fact
    assert one_more([held, quick("far")], running, asked(), FACTS, known, wish=2).node_name == "far"


def test_a_step_that_only_several_more_workers_make_shorter_does_not_keep_the_first_out() -> None:
    """Eight microbatches on five workers take as long as on four; on eight they take half."""
    running = planned([node("a", cores=4)])
    assert (len(running.workers), running.most_workers) == (4, 8)
    cluster = [node("a", cores=8, free_cores=4)]
    assert one_more(cluster, running, asked(), FACTS, Measured(profiles=(profile(),))).node_name == "a"
