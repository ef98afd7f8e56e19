"""Which members hang: silent ones, and those that stand still in their own work. Pure functions.

A slow healthy worker must never be ended: each kind of work has a bound of its own, from its own measured time. A
worker's beats come from a thread of their own whatever its work, so that their absence is told sooner.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from paceline.master.members import FIRST_ROUNDS, asked
from paceline.master.states import Running
from paceline.messages.to_worker import EvaluateRound, SaveRound

TICK_S = 1.0  # so often hangs are looked for
FACTOR = 20.0
STEP_LEAST_S = 10.0
EVALUATION_LEAST_S = 30.0
FIRST_BOUND_S = 120.0  # while nothing is measured
CHECKPOINT_BOUND_S = SAVE_BOUND_S = 600.0
BUILDING_BOUND_S = 900.0


def hung(state: Running, now: float) -> Mapping[int, str]:
    """Members to be given up, with what is known of them."""
    if state.order is None:
        return {}
    silence = FIRST_BOUND_S if isinstance(state.order, SaveRound) else step_bound(state)
    found: dict[int, str] = {}
    for rank in asked(state):  # the others rest
        worker = state.workers.get(rank)
        if worker is None or rank in state.answers:
            continue
        still = still_bound(state, worker.phase)
        at = f"last seen at {worker.stack or 'an unknown place'}"
        if now - max(worker.beat_at, state.ordered_at) > silence:
            found[rank] = f"it has not been heard for more than {silence:.0f} s; {at}"
        elif now - max(worker.moved_at, state.ordered_at) > still:
            doing = worker.phase or "its work"
            found[rank] = f"it has made no progress in {doing} for more than {still:.0f} s; {at}"
    return found


def overslept(looked_at: float, now: float) -> float:
    """Seconds that this master missed since it last looked: its disk was full, or it was stopped.

    What workers said meanwhile is still to be read.
    """
    return max(0.0, now - looked_at - 2 * TICK_S)


def still_bound(state: Running, phase: str) -> float:
    """How long a member may make no progress in what it does."""
    if phase == "exchange":  # who waits for others is not at fault
        return math.inf
    if isinstance(state.order, SaveRound):
        return SAVE_BOUND_S
    if phase == "building":  # a sharded worker makes its shard, or reads it, once the group is known
        return BUILDING_BOUND_S
    if isinstance(state.order, EvaluateRound):
        return evaluation_bound(state)
    if phase == "checkpoint":  # it waits for the upload of the one before, which has bounds of its own
        return CHECKPOINT_BOUND_S
    return step_bound(state)


def step_bound(state: Running) -> float:
    """From the measured step time; longer in a group's first rounds, which hold first steps and copies of state."""
    if state.step_s is None or state.rounds < FIRST_ROUNDS:
        return FIRST_BOUND_S
    return max(STEP_LEAST_S, FACTOR * state.step_s)


def evaluation_bound(state: Running) -> float:
    """From the longest evaluation so far: a metric may take all of its time in one call, without a sign."""
    if state.evaluation_s is None:
        return FIRST_BOUND_S
    return max(EVALUATION_LEAST_S, FACTOR * state.evaluation_s)
