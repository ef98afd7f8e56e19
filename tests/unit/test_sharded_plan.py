"""Where a sharded model trains: as few workers as its memory takes, and refusals with numbers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import paceline as pl
from paceline.client.submission import prepare
from paceline.master.committed import Copies, Training
from paceline.master.events import Planned
from paceline.master.job import Job
from paceline.master.lives import next_plan
from paceline.master.probing import next_event
from paceline.master.profiles import plan_by
from paceline.measured import CellTime, Measured, Profile
from paceline.plan import Plan
from paceline.planner.copies import GENERATIONS, copy_bytes, neighbours
from paceline.planner.planner import plan_workers
from paceline.planner.rooms import MASTER_BYTES
from paceline.planner.sharded import decided, plan_sharded
from paceline.spec import Facts, Submission

from builders import GIB, node, options, submission


def facts(gib: float, units: int = 16, **more: Any) -> Facts:
    nbytes = int(gib * GIB)
    return Facts(parameters=nbytes // 4, parameter_bytes=nbytes, unit_bytes=nbytes // units, **more)


def measured(activation_gib: float, cell_samples: int) -> Measured:
    profile = Profile(
        hardware_class="cpu:AVX2", device="cpu", cells=(CellTime(samples=cell_samples, seconds=1.0),),
        cell_samples=cell_samples, update_s=0.1, state_bytes=GIB, activation_bytes=int(activation_gib * GIB),
        recomputed_bytes=int(activation_gib * GIB) // 8, worker_bytes=GIB, exchange_bytes=GIB, build_s=1.0, at=1.0,
    )  # fmt: skip
    return Measured(profiles=(profile,))


def placed(nodes: list[Any], known: Facts, wish: int | None = None, **changes: Any) -> Plan:
    return plan_workers(nodes, options(sync="sharded", **changes), known, wish)


def test_a_model_larger_than_a_node_takes_as_many_as_hold_it_and_no_more() -> None:
    nodes = [node(f"n{at}", memory=4 * GIB) for at in range(6)]
    plan = placed(nodes, facts(2.5))  # 10 GiB with gradients and Adam's state, on nodes of 4
    assert plan.mode == "sharded"
    assert len({worker.node_id for worker in plan.workers}) == len(plan.workers) == 4
    assert "10.0 GiB" in plan.summary
    assert [(reason.taken, len(reason.nodes)) for reason in plan.reasons] == [(True, 4), (False, 2)]
    assert plan.memory_per_worker <= 4 * GIB


def test_one_node_that_cannot_hold_it_is_refused_with_the_number_of_nodes_that_could() -> None:
    with pytest.raises(pl.Unplaceable, match=r"10.0 GiB .* 4 of 4.0 GiB would hold it") as refused:
        placed([node("n0", memory=4 * GIB)], facts(2.5))
    assert refused.value.details["busy"] is False


def test_a_job_waits_where_the_nodes_are_only_busy() -> None:
    nodes = [node(f"n{at}", memory=4 * GIB, free_memory=GIB) for at in range(4)]
    with pytest.raises(pl.Unplaceable) as refused:
        placed(nodes, facts(2.5))
    assert refused.value.details["busy"] is True


def test_a_builder_of_unknown_size_is_refused() -> None:
    with pytest.raises(pl.Unplaceable, match="size is not known"):
        placed([node("n0")], Facts())


def test_the_ladder_is_climbed_only_as_far_as_memory_needs() -> None:
    nodes = [node(f"n{at}", memory=4 * GIB) for at in range(4)]
    wish = options(sync="sharded", batch_size=16, microbatches=4)

    def found(activation_gib: float) -> Any:
        return plan_sharded(nodes, wish, facts(2.5), known=measured(activation_gib, cell_samples=4)).sharding

    assert (found(0.1).microbatches, found(0.1).recompute) == (4, False)
    assert (found(0.8).microbatches, found(0.8).recompute) == (8, False)
    assert (found(4.0).microbatches, found(4.0).recompute) == (16, True)
    with pytest.raises(pl.Unplaceable):
        found(100.0)


def test_every_worker_has_a_microbatch_where_the_spec_leaves_their_number_out() -> None:
    nodes = [node(f"n{at}") for at in range(3)]
    chosen = facts(0.001, chose_microbatches=True)
    plan = placed(nodes, chosen, batch_size=12, microbatches=6, resources=pl.Resources(workers=3))
    assert [end - first for first, end in (worker.share for worker in plan.workers)] == [1, 1, 1]
    assert plan.sharding is not None
    assert plan.sharding.microbatches == plan.microbatches == 3


@given(
    st.lists(st.tuples(st.integers(1, 8), st.integers(1, 32)), min_size=1, max_size=6),
    st.floats(0.01, 20),
    st.integers(1, 64),
    st.integers(1, 32),
)
def test_no_node_is_given_more_than_it_has(
    sizes: list[tuple[int, int]], gib: float, batch_size: int, units: int
) -> None:
    nodes = [
        node(f"n{at}", cores=cores, memory=memory * GIB // 2, is_master=at == 0)
        for at, (cores, memory) in enumerate(sizes)
    ]
    try:
        plan = placed(nodes, facts(gib, units), batch_size=batch_size, microbatches=batch_size)
    except pl.Unplaceable:
        return
    for found in nodes:
        there = sum(worker.node_id == found.id for worker in plan.workers)
        kept_back = MASTER_BYTES if found.is_master else 0
        assert there <= found.free_cores
        assert there == 0 or there * plan.memory_per_worker <= found.free_memory - kept_back
    assert [worker.rank for worker in plan.workers] == list(range(len(plan.workers)))
    assert plan.workers[0].share[0] == 0
    assert plan.workers[-1].share[1] == plan.microbatches


def sent(gib: float, **changes: Any) -> Submission:
    known = facts(gib)
    return submission(**changes).model_copy(update={"facts": known})


def test_what_fits_on_no_node_is_sharded_where_that_is_left_to_the_master() -> None:
    nodes = [node(f"n{at}", memory=4 * GIB) for at in range(4)]
    assert decided(nodes, sent(2.5)).options.sync == "sharded"
    assert decided(nodes, sent(0.1)).options.sync == "auto"
    assert decided(nodes, sent(2.5, sync="exact")).options.sync == "exact"
    assert decided(nodes, sent(100)).options.sync == "auto"


def test_a_builders_size_is_told_without_memory_so_that_auto_can_turn_to_sharded() -> None:
    made: list[torch.nn.Module] = []

    def large() -> torch.nn.Module:
        made.append(torch.nn.Sequential(*(torch.nn.Linear(2**13, 2**13, bias=False) for _ in range(10))))
        return made[-1]

    def asked(model: Any, sync: str = "auto") -> Submission:
        sent = prepare(
            pl.TrainSpec(
                model=model, train_data=(torch.zeros(32, 4), torch.zeros(32)), loss=torch.nn.functional.mse_loss,
                optimizer=torch.optim.AdamW, stop=pl.MaxSteps(1), sync=sync,
            )
        ).submission  # fmt: skip
        assert isinstance(sent, Submission)
        return sent

    nodes = [node(f"n{at}", memory=4 * GIB) for at in range(6)]
    drawn = torch.random.get_rng_state()
    found = asked(large)
    assert torch.equal(drawn, torch.random.get_rng_state())
    assert all(parameter.is_meta for parameter in made[0].parameters())
    assert found.facts.parameter_bytes == 10 * 4 * 2**26
    assert decided(nodes, found).options.sync == "sharded"
    assert asked(large, "exact").facts.parameter_bytes is None
    for unknown in (lambda: 1 / 0, lambda: "no module"):
        assert asked(unknown).facts.parameter_bytes is None
        assert decided(nodes, asked(unknown)).options.sync == "auto"


def test_a_sharded_plan_tells_its_workers_and_what_a_step_is_expected_to_take() -> None:
    plan = placed([node(f"n{at}", memory=4 * GIB) for at in range(4)], facts(2.5))
    text = plan.explain()
    assert text.startswith("sharded: parameters, gradients and optimizer take 10.0 GiB")
    assert all(worker.node_name in text for worker in plan.workers)
    assert "none was measured" in text
    chosen = plan.document()["chosen"]
    assert chosen["mode"] == "sharded"
    assert [entry["name"] for entry in chosen["nodes"]] == [worker.node_name for worker in plan.workers]
    assert plan.predicted is not None
    passes = plan.sharding.microbatches // 4 if plan.sharding else 0
    assert plan.predicted.traffic_bytes_per_step == 3 * passes * 3 * int(2.5 * GIB)  # three rings, each to 3 others
    assert plan.predicted.memory_bytes <= plan.memory_per_worker


def test_a_model_that_fits_on_no_node_is_not_probed_before_it_is_sharded() -> None:
    nodes = [node(f"n{at}", memory=4 * GIB) for at in range(4)]
    cut = decided(nodes, sent(2.5))
    event = next_event(Job(id="job", submission=cut), plan_by(Measured(), nodes, cut), nodes, Measured())
    assert isinstance(event, Planned)
    assert "not probed: a probe would build the whole model" in event.plan.summary


def test_what_a_probe_found_the_whole_model_to_take_does_not_bind_its_shards() -> None:
    nodes = [node(f"n{at}", memory=4 * GIB) for at in range(4)]
    whole = measured(0.1, cell_samples=4).profiles[0].model_copy(update={"cells": (), "worker_bytes": 30 * GIB})
    plan = plan_by(Measured(profiles=(whole,)), nodes, decided(nodes, sent(2.5)))
    assert plan.memory_per_worker < 4 * GIB


def test_a_deadline_and_a_cost_are_kept_by_the_prediction_or_refused_with_its_numbers() -> None:
    nodes = [node(f"n{at}", memory=4 * GIB, price=2.0) for at in range(8)]
    known, ends = facts(2.5, train_samples=1000), {"stop": pl.MaxSteps(100)}
    fewest = placed(nodes, known, **ends).predicted
    assert fewest is not None
    assert fewest.finish_s is not None
    assert fewest.cost == pytest.approx(4 * 2.0 * fewest.finish_s / 3600)
    assert placed(nodes, known, **ends, deadline=fewest.finish_s + 1).predicted == fewest
    quicker = placed(nodes, known, **ends, deadline=fewest.finish_s - 1)
    assert len(quicker.workers) == 8
    with pytest.raises(pl.Unplaceable, match=r"predicted to take .* its deadline is 1 s") as refused:
        placed(nodes, known, **ends, deadline=1.0)
    assert refused.value.details["busy"] is False
    with pytest.raises(pl.Unplaceable, match=r"it costs .*, and max_cost is 0\.001"):
        placed(nodes, known, **ends, resources=pl.Resources(max_cost=0.001))
    assert decided(nodes, sent(2.5, deadline=3600.0 * 24 * 365)).options.sync == "sharded"


def test_a_limit_that_idle_nodes_would_keep_lets_the_job_wait() -> None:
    free = [node(f"n{at}", memory=4 * GIB) for at in range(4)]
    busy = [node(f"n{at}", memory=4 * GIB, free_memory=GIB) for at in range(4, 8)]
    known, ends = facts(2.5, train_samples=1000), {"stop": pl.MaxSteps(100)}
    fewest = placed(free, known, **ends).predicted
    assert fewest is not None
    assert fewest.finish_s is not None
    with pytest.raises(pl.Unplaceable, match="its deadline") as refused:
        placed([*free, *busy], known, **ends, deadline=fewest.finish_s - 1)
    assert refused.value.details["busy"] is True


@given(st.floats(0.1, 2.0), st.integers(1, 64), st.integers(2, 8))
def test_what_sharding_adds_to_a_step_is_traffic_alone(gib: float, units: int, workers: int) -> None:
    nodes = [node(f"n{at}", memory=64 * GIB) for at in range(8)]
    known = facts(gib, units)
    one, many = (placed(nodes, known, resources=pl.Resources(workers=n)).predicted for n in (1, workers))
    assert one is not None
    assert many is not None
    assert (one.traffic_bytes_per_step, one.exchange_s, many.hidden_s) == (0, 0.0, 0.0)
    assert many.compute_s <= one.compute_s
    assert many.step_s == pytest.approx(many.compute_s + many.exchange_s + many.update_s)


# ---- copies of shards ----


def test_copies_are_counted_and_made_only_where_every_chosen_node_has_room_for_them() -> None:
    """10 GiB of state are 7.5 GiB without gradients: 2.5 a shard, on its own node and its neighbour's, in three
    generations."""

    def planned(memory: int, tmpfs: int) -> Plan:
        nodes = [node(f"n{at}", memory=memory * GIB, tmpfs=(tmpfs if at == 1 else 64) * GIB) for at in range(3)]
        return placed(nodes, facts(2.5), resources=pl.Resources(workers=3))

    without, roomy = planned(5, 64), planned(24, 64)
    assert roomy.sharding is not None
    assert roomy.sharding.copy_bytes == 15 * GIB
    assert roomy.memory_per_worker - roomy.sharding.heap_bytes == without.memory_per_worker + 15 * GIB
    assert "15.0 GiB of it hold copies of shards" in roomy.summary
    for plan, why in ((without, "15.0 GiB on n0, which has"), (planned(24, 8), "whose file system in memory has 8.0")):
        assert plan.sharding is not None
        assert plan.sharding.copy_bytes == 0
        assert why in plan.summary
        assert len(plan.workers) == 3


def test_a_workers_heap_keeps_memory_only_where_every_chosen_node_has_room_for_its_holes() -> None:
    """10 GiB of state: a third for each worker, and half as much for holes."""

    def planned(room: int, asked: int | None = None) -> Plan:
        nodes = [node(f"n{at}", memory=room * GIB, tmpfs=0) for at in range(3)]
        return placed(nodes, facts(2.5), resources=pl.Resources(workers=3, memory=asked))

    tight, roomy = planned(5), planned(7)
    assert roomy.memory_per_worker - tight.memory_per_worker == 10 * GIB // 6
    for plan, holes in ((tight, 0), (roomy, 10 * GIB // 6), (planned(7, asked=5 * GIB), 0)):
        assert plan.sharding is not None
        assert plan.sharding.heap_bytes == holes
    asked = planned(7, asked=tight.memory_per_worker + 10 * GIB // 6)
    assert asked.sharding is not None
    assert (asked.memory_per_worker, asked.sharding.heap_bytes) == (roomy.memory_per_worker, 10 * GIB // 6)


@given(st.lists(st.sampled_from("abcd"), min_size=1, max_size=8))
def test_the_loss_of_any_one_node_leaves_each_shard_on_another(nodes: list[str]) -> None:
    to = neighbours(nodes)
    for place, node_id in enumerate(nodes):
        assert (nodes[to[place]] != node_id) == (len(set(nodes)) > 1)


@given(st.lists(st.sampled_from("abcd"), min_size=1, max_size=8), st.integers(1, 10**6))
def test_the_copies_of_a_node_fit_into_what_is_counted_for_its_workers(nodes: list[str], stored: int) -> None:
    counted, shard = copy_bytes(nodes, stored), -(-stored // len(nodes))
    for node_id in nodes:
        files = {(place, where) for place, to in enumerate(neighbours(nodes)) for where in (nodes[place], nodes[to])}
        held = sum(where == node_id for _, where in files)
        assert GENERATIONS * held * shard <= counted * nodes.count(node_id)


def test_the_next_attempt_takes_nodes_that_keep_copies_and_counts_these_as_free() -> None:
    nodes = [
        node(f"n{at}", memory=16 * GIB, free_memory=(8 if at > 1 else 16) * GIB, tmpfs=64 * GIB) for at in range(5)
    ]
    sent = submission(sync="sharded", resources=pl.Resources(workers=3)).model_copy(update={"facts": facts(2.5)})
    copies = Copies(step=7, training=Training(step=7), nodes={"n2": 5 * GIB, "n3": 5 * GIB, "gone": 5 * GIB})
    plan = next_plan(nodes, Job(id="job", submission=sent, copies=copies), Measured())
    assert {"n2", "n3"} < {worker.node_id for worker in plan.workers}
    assert plan.sharding is not None
