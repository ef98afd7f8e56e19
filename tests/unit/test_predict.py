"""What a plan predicts: interpolation, exchange, memory, the bound of the stop condition, and how sure it is."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import paceline as pl
from paceline.measured import Calibration, CellTime, Link, Measured, Profile
from paceline.plan import Node, Prediction
from paceline.planner.network import GIGABIT
from paceline.planner.predict import BASE_BYTES, EXCHANGE_COPIES, FORM_S, Slot, best_shares, predict
from paceline.planner.profiles import Workload, cell_seconds
from paceline.spec import Facts

from builders import node, options

MIB = 2**20


def profile(**changes: Any) -> Profile:
    """A model that takes 10 ms for a microbatch of 8 samples, and 5 ms for the update; 4 MiB of gradients."""
    fields: dict[str, Any] = {
        "hardware_class": "cpu:AVX2",
        "device": "cpu",
        "cells": (CellTime(samples=4, seconds=0.006), CellTime(samples=8, seconds=0.01)),
        "cell_samples": 8,
        "update_s": 0.005,
        "state_bytes": 16 * MIB,
        "activation_bytes": 2 * MIB,
        "worker_bytes": 24 * MIB,
        "exchange_bytes": 4 * MIB,
        "build_s": 0.5,
        "at": 0.0,
        **changes,
    }
    return Profile(**fields)


def work(known: Measured | None = None, facts: Facts | None = None, **changes: Any) -> Workload:
    """64 samples a step in 8 microbatches; 640 samples, so ten steps an epoch."""
    asked = options(**{"batch_size": 64, "stop": pl.MaxEpochs(3), **changes})
    return Workload(asked, facts or Facts(train_samples=640), known or Measured(profiles=(profile(),)))


def on(nodes: list[Node]) -> list[Slot]:
    return [Slot(n, "cpu") for n in nodes]


def predicted(job: Workload, nodes: list[Node]) -> Prediction:
    slots = on(nodes)
    return predict(job, slots, best_shares(job, slots))


def link(a: str, b: str, bytes_per_s: float = 1e7, latency_s: float = 0.0) -> Link:
    return Link(ends=(a, b), latency_s=latency_s, bytes_per_s=bytes_per_s, at=0.0)


# ---- one worker ----


def test_a_lone_workers_step_is_its_microbatches_and_the_update() -> None:
    p = predicted(work(), [node("a")])
    assert p.step_s == pytest.approx(8 * 0.01 + 0.005)
    assert (p.exchange_s, p.hidden_s, p.traffic_bytes_per_step, p.cost) == (0, 0, 0, 0)
    assert p.epoch_s == pytest.approx(10 * p.step_s)
    assert p.finish_s == pytest.approx(0.5 + 30 * p.step_s)
    assert (p.extrapolated, p.doubts) == (False, ())


def test_evaluations_count_in_the_epoch() -> None:
    facts = Facts(train_samples=640, val_samples=240)
    without, with_them = predicted(work(), [node("a")]), predicted(work(facts=facts), [node("a")])
    assert with_them.epoch_s == pytest.approx((without.epoch_s or 0) + 240 * 0.01 / 8 / 3)


CELLS = (CellTime(samples=4, seconds=0.006), CellTime(samples=8, seconds=0.01), CellTime(samples=32, seconds=0.022))


@pytest.mark.parametrize(
    ("samples", "seconds", "inside"),
    [(4, 0.006, True), (6, 0.008, True), (8, 0.01, True), (20, 0.016, True), (64, 0.038, False), (2, 0.004, False)],
)
def test_times_lie_on_straight_lines_between_the_measured_sizes_and_beyond(
    samples: int, seconds: float, inside: bool
) -> None:
    found = cell_seconds(CELLS, samples)
    assert found == (pytest.approx(seconds), inside)


@given(st.integers(1, 4096), st.integers(1, 4096))
def test_a_larger_microbatch_is_never_predicted_to_be_quicker(one: int, other: int) -> None:
    small, large = sorted((one, other))
    assert 0 < cell_seconds(CELLS, small)[0] <= cell_seconds(CELLS, large)[0]


def test_what_was_not_measured_is_said_and_is_less_certain() -> None:
    inside = predicted(work(), [node("a")])
    outside = predicted(work(microbatches=2), [node("a")])
    assert outside.extrapolated
    assert outside.doubts == ("microbatches of 32 samples, where 4 to 8 were measured",)
    assert outside.uncertainty > inside.uncertainty
    refined = predicted(work(Measured(profiles=(profile(steps=100),))), [node("a")])
    assert refined.uncertainty < inside.uncertainty


def test_a_slower_node_of_the_class_takes_longer_in_proportion() -> None:
    job = work(Measured(profiles=(profile(flop_per_s=1e11),)))
    slow = node("slow", speed=(Calibration(device="cpu", flop_per_s=0.5e11, at=0.0),))
    assert predicted(job, [slow]).compute_s == pytest.approx(0.16, rel=0.06)


def test_another_class_is_carried_over_by_speed_and_said_to_be() -> None:
    job = work(Measured(profiles=(profile(hardware_class="cpu:OLD", flop_per_s=1e11),)))
    quick = node("quick", speed=(Calibration(device="cpu", flop_per_s=2e11, at=0.0),))
    p = predicted(job, [quick])
    assert p.compute_s == pytest.approx(0.04, rel=0.06)
    assert p.doubts == ("measured on cpu:OLD, carried over to cpu:AVX2 by the nodes' speeds",)


def test_a_model_that_was_never_measured_is_estimated_from_its_operations_within_a_factor_of_two() -> None:
    facts = Facts(parameters=1000, parameter_bytes=4000, flop_per_sample=1e9, train_samples=640)
    p = predicted(work(Measured(), facts), [node("a")])
    assert p.compute_s == pytest.approx(3 * 1e9 * 64 / 3e10, rel=0.01)
    assert p.uncertainty == 1.0
    assert p.doubts == ("estimated from 1e+09 FLOP a sample and a usual speed: no probe has run",)


def test_others_at_work_on_a_node_slow_it_down() -> None:
    assert predicted(work(), [node("a", load=7.0)]).compute_s == pytest.approx(2 * 0.08)
    assert predicted(work(), [node("a", load=3.0)]).compute_s == pytest.approx(0.08)  # there is a core left


# ---- several workers ----


def test_a_narrow_link_bounds_the_exchange() -> None:
    """Two workers send half of 4 MiB each way twice: 4 MiB each way over 10 MB/s."""
    known = Measured(profiles=(profile(),), links=(link("a", "b"),))
    p = predicted(work(known), [node("a"), node("b")])
    assert p.exchange_s == pytest.approx(4 * MIB / 1e7, rel=0.01)
    assert p.hidden_s == pytest.approx(0.01 * 2 / 3)  # as long as the last microbatch's backward
    assert p.step_s == pytest.approx(4 * 0.01 + 0.005 + p.exchange_s - p.hidden_s)
    assert p.start_s == 0.5 + FORM_S
    assert p.traffic_bytes_per_step == 8 * MIB


def test_latency_counts_for_each_bucket_in_turn() -> None:
    near = Measured(profiles=(profile(),), links=(link("a", "b", 1e9),))
    far = Measured(profiles=(profile(),), links=(link("a", "b", 1e9, 0.05),))
    delays = [predicted(work(known), [node("a"), node("b")]).exchange_s for known in (near, far)]
    assert delays[1] - delays[0] == pytest.approx(0.05 * 5)  # four buckets, two at once, two hops each; and the losses


def test_a_link_that_was_never_measured_counts_as_a_slow_one_and_is_said_to_be_unknown() -> None:
    p = predicted(work(), [node("a"), node("b")])
    assert p.exchange_s > 4 * MIB / GIGABIT.bytes_per_s
    assert p.doubts == ("1 links not measured, taken as 800 Mbit/s with 0.5 ms, a usual network",)


def test_a_link_that_was_never_measured_counts_as_the_known_ones_do_in_the_median() -> None:
    links = (
        link("b", "c", 2e7),
        link("c", "d", 1e7),
        link("b", "d", 9e9),
        link("c", "e", 1.0).model_copy(update={"failure": "down"}),
    )
    p = predicted(work(Measured(profiles=(profile(),), links=links)), [node("a"), node("b")])
    assert p.exchange_s > 4 * MIB / 2.1e7
    assert p.doubts[-1].startswith("1 links not measured, taken as 160 Mbit/s")


def test_unequal_nodes_get_unequal_shares() -> None:
    job = work(Measured(profiles=(profile(flop_per_s=1e11),), links=(link("fast", "slow", 1e9),)))
    fast, slow = (
        node(n, speed=(Calibration(device="cpu", flop_per_s=s, at=0.0),)) for n, s in (("fast", 3e11), ("slow", 1e11))
    )
    assert best_shares(job, on([fast, slow])) == [(0, 6), (6, 8)]


def test_workers_that_training_has_timed_are_predicted_by_that() -> None:
    job, slots = work(), on([node("a"), node("a")])
    p = predict(job, slots, [(0, 4), (4, 8)], cell_s=[0.02, 0.01])
    assert p.compute_s == pytest.approx(4 * 0.02)


# ---- memory, money, time ----


def test_memory_is_the_workers_own_and_what_an_exchange_holds() -> None:
    alone, gang = predicted(work(), [node("a")]), predicted(work(), [node("a"), node("a")])
    assert alone.memory_bytes == BASE_BYTES["cpu"] + 24 * MIB
    assert gang.memory_bytes == alone.memory_bytes + EXCHANGE_COPIES * 4 * MIB
    coarse = predicted(work(microbatches=2), [node("a")])
    assert coarse.memory_bytes == alone.memory_bytes + 3 * 2 * MIB  # activations of four times the samples


def test_a_node_costs_its_price_for_the_whole_time_however_many_workers_it_has() -> None:
    p = predicted(work(), [node("a", price=3.6), node("a", price=3.6), node("b", price=7.2)])
    assert p.cost == pytest.approx((3.6 + 7.2) * (p.finish_s or 0) / 3600)


@pytest.mark.parametrize(
    ("stop", "trains_s"),
    [
        (pl.MaxSteps(20), 20 * 0.085),
        (pl.MaxEpochs(1), 10 * 0.085),
        (pl.MaxTime(60), 60),
        (pl.MaxEpochs(1000) | pl.MaxTime(60), 60),
        (pl.MaxEpochs(1) & pl.MaxTime(60), 60),
        (pl.MaxEpochs(2) | pl.Metric("loss", at_most=0.1) | pl.Patience("loss", 1), 20 * 0.085),
    ],
)
def test_a_job_is_bounded_by_its_stop_condition_and_a_metric_never_ends_it_early(stop: Any, trains_s: float) -> None:
    assert predicted(work(stop=stop), [node("a")]).finish_s == pytest.approx(0.5 + trains_s)


def test_an_end_that_depends_on_data_which_only_the_nodes_know_is_not_invented() -> None:
    p = predicted(work(facts=Facts()), [node("a", price=1.0)])
    assert (p.epoch_s, p.finish_s, p.cost) == (None, None, None)
    assert predicted(work(facts=Facts(), stop=pl.MaxSteps(2)), [node("a")]).finish_s == pytest.approx(0.5 + 2 * 0.085)
