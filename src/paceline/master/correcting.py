"""What measured times change in a running job: stragglers are named, who slows it down goes, who would help may come.

Pure functions; the decisions are the planner's (`planner/reconsider.py`). A number of workers that the user asked for
stays; the names of nodes that may be used bound who can come. A node that was let go is asked again after a while,
each time a longer one, or at once where the job turned out to be faster with it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from paceline.master.commands import Command, Record
from paceline.master.job import Job
from paceline.master.members import smoothed
from paceline.master.shown import Shown
from paceline.master.states import Running
from paceline.messages.from_worker import Trained
from paceline.plan import NodeReason
from paceline.planner.predict import Slot
from paceline.planner.profiles import Workload
from paceline.planner.reconsider import Add, Course, Drop, Member, Straggler, reconsider, stragglers
from paceline.stop import MaxTime, StopCondition, bound_of, step_bound

NAMED_ROUNDS, SETTLED_ROUNDS = 2, 4  # of the same members and shares, before a straggler is named, or a member goes
AGREED_ROUNDS = 3  # in a row that find the same members too many: one slow round is no reason
A_WHILE_S = 60.0  # doubled each time
MOST_DOUBLINGS = 6
BYTES_OF_A_PARAMETER = 4  # its gradient's, in float32


def observe(state: Running, answers: Mapping[int, Trained], now: float) -> Running:
    """Note what a committed round has shown of the group; the workers' own times are in `state.workers`."""
    shown = state.shown
    workers = [state.workers[rank] for rank in answers]
    nodes = {worker.placement.node_id: worker.cell_s for worker in workers if worker.cell_s}
    shown = replace(shown, node_cell_s={**shown.node_cell_s, **nodes})
    if state.rounds == 1:
        shown = replace(shown, first_s=max(answer.seconds for answer in answers.values()))
    paces = [answer.pace for answer in answers.values() if answer.pace.steps]
    if len(paces) == len(state.members):
        step_s = max(pace.seconds / pace.steps for pace in paces)
        exchange_s = min(pace.waited_s / pace.steps for pace in paces)
        shown = replace(
            shown,
            step_s=smoothed(shown.step_s, step_s),
            exchange_s=smoothed(shown.exchange_s if shown.rounds else None, exchange_s),
            rounds=shown.rounds + 1,
        )
    if shown.step_s is not None and shown.rounds >= SETTLED_ROUNDS:
        choice = tuple(sorted(state.workers[rank].placement.node_id for rank in state.members))
        shown = replace(shown, measured={**shown.measured, choice: (shown.step_s, now + _a_while_s(shown))})
    return replace(state, shown=shown)


def _a_while_s(shown: Shown) -> float:
    """How long what was found out counts: longer each time that it had to be found out again."""
    return float(A_WHILE_S * 2 ** min(shown.drops, MOST_DOUBLINGS))


def correct(job: Job, state: Running, now: float) -> tuple[Running, list[Command]]:
    """At a round's end: name stragglers, and let those go without whom the job is predicted to end sooner."""
    course = course_of(job, state, now, NAMED_ROUNDS)
    if course is None or state.leaving or state.stopping:
        return state, []
    slow = stragglers(course, state.shown.stragglers)
    named = state.shown.stragglers
    told: list[Command] = [Record("straggler", _straggling(one)) for one in slow if one.member.rank not in named]
    state = replace(state, shown=replace(state.shown, stragglers=frozenset(one.member.rank for one in slow)))
    if is_fixed(job) or state.shown.rounds < SETTLED_ROUNDS:
        return state, told
    decision, shown = reconsider(course), state.shown
    against = decision.ranks if isinstance(decision, Drop) else ()
    shown = replace(shown, against=against, agreed=shown.agreed + 1 if against == shown.against else 1)
    state = replace(state, shown=shown)
    if isinstance(decision, Drop) and shown.agreed >= AGREED_ROUNDS:
        left = [member for member in course.members if member.rank in decision.ranks]
        told.append(record_of(decision, [member.node.name for member in left]))
        state = _let_go(state, left, decision, now)
    return state, told


def is_fixed(job: Job) -> bool:
    """Whether the user said how many workers are to train."""
    return job.wish is not None or job.submission.options.resources.workers is not None


def course_of(job: Job, state: Running, now: float, rounds: int = SETTLED_ROUNDS) -> Course | None:
    """What the planner judges by; None while fewer rounds are measured with the present members and shares."""
    if not state.plan.elastic:
        return None
    shown, workers = state.shown, [state.workers[rank] for rank in state.members]
    if shown.rounds < rounds or shown.step_s is None or shown.first_s is None:
        return None
    members = tuple(
        Member(rank, Slot(job.nodes[place.node_id], place.device), worker.cell_s, worker.rest_s)
        for rank, worker in zip(state.members, workers, strict=True)
        if (place := worker.placement).node_id in job.nodes and worker.cell_s and worker.rest_s is not None
    )
    if len(members) < len(workers):
        return None
    size = {"parameters": state.parameters, "parameter_bytes": BYTES_OF_A_PARAMETER * state.parameters}
    return Course(
        work=Workload(job.submission.options, job.submission.facts.model_copy(update=size), job.known),
        members=members,
        step_s=shown.step_s,
        exchange_s=shown.exchange_s,
        change_s=max(0.0, shown.first_s - shown.step_s),
        steps_to_go=_steps_to_go(job, state, shown.step_s, now),
        measured={choice: step_s for choice, (step_s, until) in shown.measured.items() if now < until},
    )


def _steps_to_go(job: Job, state: Running, step_s: float, now: float) -> float:
    """To the known bound, by steps or by time; convergence is not foreseen."""
    trained_s = job.trained_s(now)

    def of_leaf(leaf: StopCondition) -> float | None:
        if isinstance(leaf, MaxTime):
            return (leaf.seconds - trained_s) / step_s
        step = step_bound(leaf, state.grid.steps_per_epoch)
        return None if step is None else step - job.training.step

    bound = bound_of(job.submission.options.stop, of_leaf)
    return math.inf if bound is None else max(0.0, bound)


def _let_go(state: Running, left: Sequence[Member], decision: Drop, now: float) -> Running:
    """They leave as soon as they can be spared. What was measured on their nodes is not held against these later."""
    shown, nodes = state.shown, {member.node.id for member in left}
    until = now + _a_while_s(shown)
    shown = replace(
        shown,
        drops=shown.drops + 1,
        set_aside={**shown.set_aside, **dict.fromkeys(nodes, until)},
        node_cell_s={node_id: cell_s for node_id, cell_s in shown.node_cell_s.items() if node_id not in nodes},
        enough=len(state.members) - len(left),
    )
    gone = tuple(sorted({member.node.name for member in left} - _names(state, decision.ranks)))
    others = [
        reason.model_copy(update={"nodes": tuple(name for name in reason.nodes if name not in gone)})
        for reason in state.plan.reasons
    ]
    own = [NodeReason(nodes=gone, taken=False, reason=decision.reason)] if gone else []
    plan = state.plan.model_copy(update={"reasons": (*(reason for reason in others if reason.nodes), *own)})
    return replace(state, leaving=state.leaving | set(decision.ranks), plan=plan, shown=shown)


def _names(state: Running, without: Sequence[int]) -> set[str]:
    """The nodes of all members but these."""
    return {state.workers[rank].placement.node_name for rank in state.members if rank not in without}


def record_of(decision: Drop | Add, nodes: Sequence[str]) -> Record:
    """Why the members change, in numbers."""
    gain = decision.gain
    data = {
        "change": "drop" if isinstance(decision, Drop) else "add",
        "nodes": sorted(nodes),
        "step_s": gain.step_s,
        "predicted_step_s": gain.predicted_step_s,
        "change_s": gain.change_s,
        "steps_to_go": round(gain.steps_to_go),
        "saves_s": gain.saves_s,
        "reason": decision.reason,
    }
    return Record("corrected", data)


def _straggling(one: Straggler) -> dict[str, Any]:
    return {
        "rank": one.member.rank,
        "node": one.member.node.name,
        "cell_s": one.member.cell_s,
        "others_cell_s": one.others_cell_s,
        "costs_s": one.costs_s,
        "step_s": one.step_s,
        "reason": one.reason,
    }
