"""The planner: all of a job's workers at once on nodes that hold them, with a reason for every node."""

from __future__ import annotations

import re
from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import paceline as pl
from paceline.plan import Device, Node, Plan
from paceline.planner.growth import one_more
from paceline.planner.planner import plan_workers
from paceline.planner.predict import BASE_BYTES, EXCHANGE_COPIES
from paceline.planner.rooms import MASTER_BYTES, when_idle
from paceline.spec import Facts, TrainOptions

from builders import GIB, node, options

LARGE = Facts(parameters=1_000_000, parameter_bytes=4_000_000, flop_per_sample=2e9)  # worth many workers
SMALL = Facts(parameters=1000, parameter_bytes=4000)


def placed(nodes: list[Node], facts: Facts = LARGE, **changes: Any) -> Plan:
    return plan_workers(nodes, options(**changes), facts)


def refused(nodes: list[Node], facts: Facts = LARGE, **changes: Any) -> pl.Unplaceable:
    with pytest.raises(pl.Unplaceable) as caught:
        placed(nodes, facts, **changes)
    assert caught.value.remedy
    assert re.search(r"\d", caught.value.fact)
    return caught.value


def reasons(plan: Plan) -> dict[str, str]:
    """By node."""
    return {name: reason.reason for reason in plan.reasons for name in reason.nodes}


def taken(plan: Plan) -> set[str]:
    return {name for reason in plan.reasons if reason.taken for name in reason.nodes}


def decided(nodes: list[Node], wish: TrainOptions, facts: Facts = LARGE) -> Plan | pl.Unplaceable:
    """The plan, or the refusal."""
    try:
        return plan_workers(nodes, wish, facts)
    except pl.Unplaceable as refusal:
        return refusal


@st.composite
def clusters(draw: st.DrawFn) -> list[Node]:
    made = []
    for at in range(draw(st.integers(0, 5))):
        cores, memory = draw(st.integers(1, 16)), draw(st.integers(1, 32)) * GIB // 2
        kind = draw(st.sampled_from([None, None, "cuda", "mps"]))
        most = {None: 0, "mps": 1, "cuda": 3}[kind]
        devices = tuple(Device(kind=kind, index=at) for at in range(draw(st.integers(min(1, most), most))))
        free = tuple(d.index for d in devices if draw(st.booleans()))
        made.append(
            node(
                f"n{at}",
                is_master=at == 0 and draw(st.booleans()),
                hardware_class=draw(st.sampled_from(["cpu:A", "cpu:B"])),
                draining=draw(st.integers(0, 5)) == 0,
                cores=cores,
                memory=memory,
                free_cores=draw(st.integers(-1, cores)),
                free_memory=draw(st.integers(0, memory)),
                devices=devices,
                free_devices=free,
            )
        )
    return made


wishes = st.builds(
    lambda workers, device, memory, names, threads, microbatches, reproducible: options(
        batch_size=64, microbatches=microbatches, threads=threads, reproducible=reproducible,
        resources=pl.Resources(workers=workers, device=device, memory=memory, nodes=names),
    ),
    st.none() | st.integers(1, 12),
    st.sampled_from(["auto", "auto", "cpu", "cuda"]),
    st.none() | st.integers(1, 8 * GIB),
    st.none() | st.lists(st.sampled_from(["n0", "n1", "n2", "n9"]), min_size=1, max_size=2, unique=True).map(tuple),
    st.integers(1, 4),
    st.integers(1, 16),
    st.booleans(),
)  # fmt: skip


@given(clusters(), wishes, st.sampled_from([LARGE, SMALL, Facts()]))
def test_a_plan_fits_its_nodes_and_a_refusal_says_what_to_change(
    nodes: list[Node], wish: TrainOptions, facts: Facts
) -> None:
    plan = decided(nodes, wish, facts)
    if isinstance(plan, pl.Unplaceable):
        assert plan.remedy
        assert isinstance(plan.details["busy"], bool)
        return
    assert plan == plan_workers(nodes, wish, facts), "the same input, another plan"
    by_id = {n.id: n for n in nodes}
    used = Counter(worker.node_id for worker in plan.workers)
    for node_id, workers in used.items():
        home = by_id[node_id]
        kept_back = MASTER_BYTES if home.is_master else 0
        assert not home.draining
        assert workers * wish.threads <= home.free_cores
        assert workers * plan.memory_per_worker <= home.free_memory - kept_back
        assert wish.resources.nodes is None or home.name in wish.resources.nodes
        on_devices = [worker.device for worker in plan.workers if worker.node_id == node_id and worker.device != "cpu"]
        assert len(set(on_devices)) == len(on_devices), "two workers on one device"
        free = {
            f"{d.kind}:{d.index}" if d.kind == "cuda" else d.kind for d in home.devices if d.index in home.free_devices
        }
        assert set(on_devices) <= free
    assert len({worker.device.split(":")[0] for worker in plan.workers}) == 1
    assert [worker.rank for worker in plan.workers] == list(range(len(plan.workers)))
    assert wish.resources.workers in (None, len(plan.workers))
    assert [cell for w in plan.workers for cell in range(*w.share)] == list(range(wish.microbatches))
    assert all(first < end for first, end in (worker.share for worker in plan.workers)), "a worker without work"
    assert reasons(plan).keys() == {n.name for n in nodes}
    assert taken(plan) == {n.name for n in nodes if n.id in used}
    assert all(reasons(plan).values())
    if wish.reproducible:
        assert {by_id[node_id].hardware_class for node_id in used} == {plan.hardware_class}


@given(clusters(), wishes)
def test_a_refusal_is_called_busy_exactly_where_the_idle_cluster_would_take_the_job(
    nodes: list[Node], wish: TrainOptions
) -> None:
    now, later = decided(nodes, wish), decided(when_idle(nodes), wish)
    if isinstance(now, pl.Unplaceable):
        assert now.details["busy"] is isinstance(later, Plan)
    if isinstance(later, pl.Unplaceable):
        assert later.details["busy"] is False


@given(clusters(), wishes, st.randoms(use_true_random=False))
def test_the_order_in_which_nodes_are_listed_does_not_matter(
    nodes: list[Node], wish: TrainOptions, chance: Any
) -> None:
    shuffled = list(nodes)
    chance.shuffle(shuffled)
    one, other = decided(nodes, wish), decided(shuffled, wish)
    assert (one.workers if isinstance(one, Plan) else one.details) == (
        other.workers if isinstance(other, Plan) else other.details
    )


def test_all_workers_are_placed_or_none() -> None:
    assert len(placed([node("a"), node("b")], resources=pl.Resources(workers=8)).workers) == 8
    error = refused([node("a"), node("b", free_cores=3)], resources=pl.Resources(workers=8))
    assert error.details["busy"] is True
    assert "8 worker(s)" in error.fact
    assert "room for 7 now and 8 on idle nodes" in error.fact


def test_what_no_node_ever_has_is_refused_with_what_the_best_one_has_and_a_remedy() -> None:
    error = refused([node("small"), node("big", cores=6)], resources=pl.Resources(workers=2, memory="9GiB"))
    assert error.details["busy"] is False
    assert "9.0 GiB each" in error.fact
    assert "big, has 6 of 6 cores free, 8.0 GiB of 8.0 GiB memory free" in error.fact
    assert error.details["counter"] == {"resources": {"memory": 8 * GIB}}
    fewer = refused([node("a", cores=3)], resources=pl.Resources(workers=5))
    assert "pl.Resources(workers=3)" in fewer.remedy
    assert "threads=4" in refused([node("a")], threads=5).remedy
    assert "device='cpu'" in refused([node("a")], resources=pl.Resources(device="cuda")).remedy


def test_a_remedy_that_names_a_number_of_workers_works() -> None:
    nodes = [node("a", cores=3), node("b", cores=2)]
    number = int(re.search(r"workers=(\d+)", refused(nodes, resources=pl.Resources(workers=8)).remedy)[1])  # type: ignore[index]
    assert len(placed(nodes, resources=pl.Resources(workers=number)).workers) == number == 5


def test_an_empty_cluster_is_told_as_such() -> None:
    error = refused([])
    assert "no nodes" in error.fact
    assert "paceline join" in error.remedy


def test_names_of_nodes_that_are_not_here_are_answered_with_those_that_are() -> None:
    error = refused([node("a"), node("b")], resources=pl.Resources(nodes=("c",)))
    assert "no node may take it: a: not among the nodes asked for (c); b: not among" in error.fact
    assert error.details["counter"] == {"resources": {"nodes": None}}


def test_a_node_that_is_being_given_back_takes_no_worker_and_is_not_waited_for() -> None:
    leaving = node("leaving", cores=16, free_cores=0, draining=True)
    plan = placed([leaving, node("a")], resources=pl.Resources(workers=2))
    assert taken(plan) == {"a"}
    assert reasons(plan)["leaving"] == "is being given back"
    assert refused([leaving, node("a")], resources=pl.Resources(workers=8)).details["busy"] is False
    assert refused([leaving]).details["busy"] is False


def test_more_workers_than_microbatches_are_refused_by_both_numbers() -> None:
    error = refused([node("a", cores=16)], batch_size=64, resources=pl.Resources(workers=9))
    assert "9 workers were asked for, and a batch has 8 microbatches" in error.fact


def test_workers_that_a_chosen_number_of_microbatches_rules_out_are_refused_with_its_reason_and_the_remedy() -> None:
    facts = Facts(parameters=1000, parameter_bytes=4000, flop_per_sample=2000, chose_microbatches=True)
    error = refused([node("a")], facts, batch_size=64, microbatches=1, resources=pl.Resources(workers=2))
    assert "a batch has 1 microbatch: a sample is about 2e+03 FLOP" in error.fact
    assert "cutting 64 of them further would cost more than 5%" in error.fact
    assert error.remedy is not None
    assert "at most 1 worker, or set microbatches=2" in error.remedy


def test_nodes_that_were_not_asked_for_stay_out_and_their_devices_do_not_count() -> None:
    gpu = node("gpu", devices=(Device(kind="cuda"),), free_devices=(0,))
    plan = placed([node("a"), gpu], resources=pl.Resources(nodes=("a",), workers=1))
    assert [(w.node_name, w.device) for w in plan.workers] == [("a", "cpu")]
    assert reasons(plan)["gpu"] == "not among the nodes asked for (a)"


def test_accelerators_are_taken_where_there_are_some() -> None:
    gpu = node("gpu", devices=(Device(kind="cuda", index=0), Device(kind="cuda", index=1)), free_devices=(1,))
    plan = placed([node("a", cores=32), gpu])
    assert [(w.node_name, w.device) for w in plan.workers] == [("gpu", "cuda:1")]


def test_one_hardware_class_trains_unless_the_user_allows_others() -> None:
    nodes = [node("a", cores=3), node("b", hardware_class="cpu:OLD", cores=2)]
    plan = placed(nodes)
    assert {w.node_name for w in plan.workers} == {"a"}
    assert reasons(plan)["b"].startswith("hardware class cpu:OLD computes other bits than cpu:AVX2; on its nodes alone")
    assert {w.node_name for w in placed(nodes, reproducible=False).workers} == {"a", "b"}


def test_a_busy_class_that_could_hold_the_job_is_waited_for_though_another_has_more_room_now() -> None:
    nodes = [node("large", cores=8, free_cores=1), node("small", hardware_class="cpu:OLD", cores=2)]
    assert refused(nodes, resources=pl.Resources(workers=4)).details["busy"] is True


def test_a_class_that_holds_the_job_now_goes_before_a_larger_one_that_is_busy() -> None:
    nodes = [node("large", cores=8, free_cores=1), node("small", hardware_class="cpu:OLD", cores=2)]
    assert {w.node_name for w in placed(nodes, resources=pl.Resources(workers=2)).workers} == {"small"}


def test_a_small_model_takes_one_worker_and_the_plan_says_why() -> None:
    plan = placed([node("a"), node("b")], SMALL)
    assert len(plan.workers) == 1
    assert "1.9e+05 FLOP" in plan.summary
    assert taken(plan) == {"a"}
    assert re.search(r"not needed: with it the job would take [\d.]+ m?s", reasons(plan)["b"])
    unknown = placed([node("a")], Facts())
    assert unknown.predicted is not None
    assert "the model's size is not known before it is built, and no probe has run" in unknown.predicted.doubts


def test_the_plan_says_how_many_microbatches_there_are_and_why() -> None:
    told = Facts(parameters=1000, parameter_bytes=4000, flop_per_sample=9.3e6, chose_microbatches=True)
    sizes = {"batch_size": 64, "microbatches": 2}
    assert "2 microbatches: a sample is about 9.3e+06 FLOP" in placed([node("a")], told, **sizes).explain()
    whole = placed([node("a")], told, batch_size=64).summary
    assert "8 microbatches: a sample is about 9.3e+06 FLOP, so that cutting costs little" in whole
    given = placed([node("a")], told.model_copy(update={"chose_microbatches": False}), **sizes)
    assert given.summary.endswith("; 2 microbatches")
    unknown = placed([node("a")], Facts(chose_microbatches=True), batch_size=64)
    assert "8 microbatches, as many as by default" in unknown.summary


def test_counted_operations_go_before_the_bound_from_the_parameters() -> None:
    convolutions = Facts(parameters=1000, parameter_bytes=4000, flop_per_sample=10e6)
    embeddings = Facts(parameters=10_000_000, parameter_bytes=40_000_000, flop_per_sample=1e4)
    sizes: dict[str, Any] = {"batch_size": 64, "microbatches": 2, "stop": pl.MaxSteps(1000)}
    assert len(placed([node("a")], convolutions, **sizes).workers) == 2
    assert len(placed([node("a")], embeddings, **sizes).workers) == 1


def test_a_large_model_takes_every_free_place_up_to_its_microbatches() -> None:
    assert len(placed([node("a"), node("b", free_cores=1)], microbatches=5, batch_size=30).workers) == 5
    assert len(placed([node("a", cores=64, memory=64 * GIB)]).workers) == 8


@pytest.mark.parametrize(("wish", "workers"), [(1, 1), (3, 3), (6, 6), (7, 6), (20, 6)])
def test_a_job_that_was_scaled_gets_as_many_of_those_workers_as_fit_now(wish: int, workers: int) -> None:
    """Whatever its spec asked for: the user has changed their mind since."""
    nodes = [node("a"), node("b", free_cores=2)]
    for asked in ({}, {"resources": pl.Resources(workers=2)}):
        plan = plan_workers(nodes, options(batch_size=64, **asked), SMALL, wish)
        assert len(plan.workers) == workers
        assert plan.most_workers == min(wish, 8)
        assert f"{workers} of the {wish} workers" in plan.summary


def test_a_job_that_was_scaled_waits_only_where_not_even_one_worker_fits() -> None:
    with pytest.raises(pl.Unplaceable) as caught:
        plan_workers([node("a", free_cores=0)], options(), SMALL, 3)
    assert caught.value.details["busy"]


def test_few_nodes_are_filled_rather_than_many_touched() -> None:
    nodes = [node("a", cores=2), node("b", cores=4), node("c", cores=3)]
    plan = placed(nodes, resources=pl.Resources(workers=5))
    assert {w.node_name for w in plan.workers} == {"b", "c"}


def test_the_masters_node_keeps_a_core_and_memory_for_the_master() -> None:
    assert len(placed([node("m", is_master=True)]).workers) == 3
    assert len(placed([node("m", is_master=True, cores=2)]).workers) == 2  # too small to keep one back
    tight = node("m", is_master=True, memory=MASTER_BYTES + placed([node("m")]).memory_per_worker)
    assert len(placed([tight]).workers) == 1


def test_memory_is_counted_from_the_models_parameters() -> None:
    assert placed([node("a")], Facts()).memory_per_worker == BASE_BYTES["cpu"]
    assert placed([node("a")]).memory_per_worker == BASE_BYTES["cpu"] + (7 + EXCHANGE_COPIES) * 4_000_000
    assert placed([node("a")], microbatches=1).memory_per_worker == BASE_BYTES["cpu"] + 7 * 4_000_000
    assert placed([node("a")], resources=pl.Resources(memory="1GiB")).memory_per_worker == GIB


def test_one_more_worker_is_placed_on_the_class_and_device_of_the_running_ones() -> None:
    nodes = [node("a", cores=1), node("b", hardware_class="cpu:OLD", cores=64)]
    plan = placed(nodes[:1])
    assert one_more([*nodes, node("c")], plan, options(), LARGE).node_name == "c"
    with pytest.raises(pl.Unplaceable):
        one_more([node("a", cores=1, free_cores=0), nodes[1]], plan, options(), LARGE)
    assert one_more([nodes[1]], plan, options(reproducible=False), LARGE).node_name == "b"


def test_the_explanation_shows_every_worker_and_every_node() -> None:
    text = placed([node("a", cores=2), node("b", hardware_class="cpu:OLD", cores=1)], batch_size=64).explain()
    lines = text.splitlines()
    assert lines[0].startswith("exact: 2 of 3 free places: a step takes")
    row = next(line for line in lines if line.startswith("  a  "))
    assert row.split()[:5] == ["a", "2", "on", "cpu", "0..7"]
    assert "2 of 2" in row
    assert "of 8.0 GiB" in row
    assert [line.split()[:2] for line in lines[-2:]] == [["+", "a"], ["-", "b"]]
    assert any("reproducible=False, on cpu:AVX2, cpu:OLD together" in line for line in lines)


def test_the_explanation_tells_the_workers_of_now_from_those_that_were_predicted() -> None:
    plan = placed([node("a", cores=2)])
    joined = plan.workers[0].model_copy(update={"rank": 2, "node_id": "b", "node_name": "b"})
    assert "newest workers" not in plan.explain()
    text = plan.model_copy(update={"workers": (*plan.workers, joined)}).explain()
    assert "its newest workers; what is predicted is of the 2 that it began with" in text
    assert any(line.split()[:2] == ["2", "b"] for line in text.splitlines())


# ---- jobs that have begun ----

BOTH = [node("old", hardware_class="cpu:OLD", cores=16), node("new", cores=2)]


def begun_on(hardware_class: str, nodes: list[Node], **changes: Any) -> Plan:
    return plan_workers(nodes, options(**changes), LARGE, hardware_class=hardware_class)


def test_a_job_goes_on_on_the_class_it_began_on_though_another_has_more_room() -> None:
    assert {w.node_name for w in placed(BOTH).workers} == {"old"}
    plan = begun_on("cpu:AVX2", BOTH)
    assert ({w.node_name for w in plan.workers}, plan.hardware_class) == ({"new"}, "cpu:AVX2")
    assert {w.node_name for w in begun_on("cpu:AVX2", BOTH, reproducible=False).workers} == {"old"}


def test_accelerators_of_another_class_do_not_count_for_a_job_that_began_without() -> None:
    gpu = node("gpu", hardware_class="cpu:AVX2/GPU", devices=(Device(kind="cuda"),), free_devices=(0,))
    assert [w.device for w in begun_on("cpu:AVX2", [gpu, node("a", cores=1)]).workers] == ["cpu"]


@pytest.mark.parametrize("nodes", [[], BOTH[:1], [BOTH[0], node("leaving", draining=True)]])
def test_a_job_whose_class_is_gone_waits_and_is_told_the_class_and_the_remedy(nodes: list[Node]) -> None:
    with pytest.raises(pl.Unplaceable) as caught:
        begun_on("cpu:AVX2", nodes)
    assert "the job began on hardware class cpu:AVX2, and no node of it may take the job" in caught.value.fact
    assert "a node of that class with `paceline join`" in caught.value.remedy
    assert (caught.value.details["busy"], caught.value.details["hardware_class"]) == (False, "cpu:AVX2")


def test_a_job_whose_class_is_busy_waits_for_it_as_for_any_room() -> None:
    with pytest.raises(pl.Unplaceable) as caught:
        begun_on("cpu:AVX2", [BOTH[0], node("new", free_cores=0)])
    assert caught.value.details == {"busy": True}
    assert "of the hardware class cpu:AVX2 that it began on" in caught.value.fact
