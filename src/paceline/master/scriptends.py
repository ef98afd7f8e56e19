"""How a script's attempt ends, and its job: all ranks are asked to end, what they wrote is fetched, their workers stop.

Pure functions, as all of `scripts`, which they belong to.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from paceline.errors import JobFailed
from paceline.master.commands import Command, Record, Send, SetTimer, StartWorkers, StopWorkers
from paceline.master.delivery import KeptFolder, Output
from paceline.master.ends import MAX_FRUITLESS_ATTEMPTS, state_record
from paceline.master.events import Answer, Event, Late, Lost
from paceline.master.members import named
from paceline.master.scriptstates import (
    CANCELLED,
    Begun,
    Ending,
    ScriptEnding,
    ScriptJob,
    ScriptOutcome,
    ScriptRunning,
    ScriptSaving,
    ScriptStarting,
)
from paceline.master.states import Cancelled, Failed, Recovering, Succeeded
from paceline.messages.from_worker import OutputSaved, ScriptEnded, WorkerFailed, WorkerHello
from paceline.messages.to_worker import EndScript, SaveOutput
from paceline.plan import Plan

OUTPUT = "output"
OUTPUT_BOUND_S = 3600.0
LEAVING = "leaving"
LEAVING_BOUND_S = 15.0  # more than a worker leaves to its script after SIGTERM
FRUITFUL_S = 60.0


# ---- all ranks are asked to end ----


def ask_to_end(job: ScriptJob, state: ScriptRunning, why: Ending, now: float) -> ScriptOutcome:
    """Their workers send SIGTERM, or SIGABRT where they hang, and SIGKILL some seconds later."""
    ending = ScriptEnding(state.plan, state.since, state.ended, state.gone, why=why)
    if not ending.live:
        return _all_ended(job, ending, now)
    asked = [Send(job.attempt, rank, EndScript(stacks=rank in why.hung)) for rank in ending.live]
    return replace(job, state=ending), [*asked, SetTimer(LEAVING_BOUND_S, Late(job.attempt, LEAVING))]


def ending(job: ScriptJob, state: ScriptEnding, event: Event, now: float) -> ScriptOutcome:
    """Until it has ended on every rank, or their time is up."""
    stops: list[Command] = []
    match event:
        case Answer(_, rank, ScriptEnded() as end):
            state = replace(state, ended={**state.ended, rank: end})
        case Lost(_, rank, _) | Answer(_, rank, WorkerFailed()):
            state = replace(state, gone=state.gone | {rank})
        case Late(_, waiting_for) if waiting_for == LEAVING:
            stops = [StopWorkers(job.attempt, state.live)]
            state = replace(state, gone=state.gone | {*state.live})
        case _:
            return job, []
    if state.live:
        return replace(job, state=state), []
    job, commands = _all_ended(job, state, now)
    return job, [*stops, *commands]


def _all_ended(job: ScriptJob, state: ScriptEnding, now: float) -> ScriptOutcome:
    why = state.why
    if why.then == "again":
        return recover(job, why.reason, now)
    if why.then != "restart":
        return save(job, state, why, now)
    restarts, bound = job.training.restarts, job.submission.options.max_restarts
    if restarts < bound:
        job = replace(job, fruitless=0, training=job.training.model_copy(update={"restarts": restarts + 1}))
        return recover(job, f"restart {restarts + 1} of {bound}: {why.reason}", now)
    return save(job, state, replace(why, then="fail", error=_with_stacks(state, why)), now)


def _with_stacks(state: ScriptEnding, why: Ending) -> dict[str, Any]:
    """The error, with what the ranks that hung have shown."""
    error = dict(why.error or {})
    if why.hung:
        shown = "\n".join(f"{named(state.plan.workers[rank])}:\n{_stack(state.ended.get(rank))}" for rank in why.hung)
        error["details"] = {**error.get("details", {}), "traceback": shown}
    return error


def _stack(end: ScriptEnded | None) -> str:
    """Or its traceback, where the end of another rank was quicker to make it fail."""
    if end is None or end.error is None:
        return "it showed no stack."
    return str(end.error.get("details", {}).get("traceback", ""))


# ---- what it wrote is fetched ----


def save(job: ScriptJob, state: Begun, why: Ending | None, now: float) -> ScriptOutcome:
    """From each node, by the first worker there that is alive. why: None where the script has succeeded."""
    asked = _first_of_each_node(state.plan, (p.rank for p in state.plan.workers if p.rank not in state.gone))
    saving = ScriptSaving(state.plan, state.since, state.ended, state.gone, why=why, asked=frozenset(asked))
    if not asked:
        return finish(job, saving, now)
    bound = SetTimer(OUTPUT_BOUND_S, Late(job.attempt, OUTPUT))
    return replace(job, state=saving), [*(_fetch(job, rank) for rank in asked), bound]


def _collect(job: ScriptJob, plan: Plan, why: Ending, now: float) -> ScriptOutcome:
    """As `save`, for a script whose workers are gone: by new ones, which hold no cores, on the nodes where it ran."""
    asked, attempt = _first_of_each_node(plan, (p.rank for p in plan.workers)), job.attempt + 1
    placements = tuple(plan.workers[rank].model_copy(update={"device": "cpu"}) for rank in asked)
    saving = ScriptSaving(plan, now, why=why, asked=frozenset(asked), anew=True)
    told = Record("saving", {"attempt": attempt, "nodes": [placement.node_name for placement in placements]})
    bound = SetTimer(OUTPUT_BOUND_S, Late(attempt, OUTPUT))
    return replace(job, attempt=attempt, state=saving), [told, StartWorkers(attempt, placements), bound]


def _first_of_each_node(plan: Plan, ranks: Iterable[int]) -> tuple[int, ...]:
    first: dict[str, int] = {}
    for rank in ranks:
        first.setdefault(plan.workers[rank].node_id, rank)
    return tuple(first.values())


def _fetch(job: ScriptJob, rank: int) -> Command:
    return Send(job.attempt, rank, SaveOutput(folder=job.submission.options.outputs))


def saving(job: ScriptJob, state: ScriptSaving, event: Event, now: float) -> ScriptOutcome:
    """Until every node's output is here, or can't be had."""
    match event:
        case Answer(_, rank, WorkerHello()) if state.anew:
            return job, [_fetch(job, rank)]
        case Answer(_, rank, OutputSaved() as saved) if rank in state.asked:
            state = replace(state, kept={**state.kept, rank: saved})
        case Answer(_, rank, WorkerFailed(error=error)):
            if state.why is None:
                return finish(job, replace(state, why=Ending("its output can't be kept", "fail", error)), now)
            state = replace(state, gone=state.gone | {rank})
        case Lost(_, rank, reason):
            return _saver_lost(job, replace(state, gone=state.gone | {rank}), rank, reason, now)
        case Late(_, waiting_for) if waiting_for == OUTPUT:
            late = f"its output did not arrive within {OUTPUT_BOUND_S:.0f} s"
            return lost(job, late, now) if state.why is None else finish(job, state, now)
        case _:
            return job, []
    return _saved(job, state, now)


def _saved(job: ScriptJob, state: ScriptSaving, now: float) -> ScriptOutcome:
    if state.asked - state.kept.keys() - state.gone:
        return replace(job, state=state), []
    return finish(job, state, now)


def _saver_lost(job: ScriptJob, state: ScriptSaving, rank: int, reason: str, now: float) -> ScriptOutcome:
    """Another worker of its node takes its place. Where none is left, a script that succeeded there runs again."""
    if rank not in state.asked or rank in state.kept:
        return replace(job, state=state), []
    others = [other for other in state.beside(rank) if other not in state.gone]
    if others and not state.anew:
        job = replace(job, state=replace(state, asked=state.asked | {others[0]}))
        return job, [_fetch(job, others[0])]
    if state.why is None and wrote(state, rank):
        return lost(replace(job, state=state), f"{named(state.plan.workers[rank])} is lost: {reason}", now)
    return _saved(job, state, now)


def wrote(state: Begun, rank: int) -> bool:
    """Whether the script has written into the output folder of this rank's node, as far as its ranks have ended."""
    return any(state.ended[other].wrote for other in state.beside(rank) if other in state.ended)


# ---- the end ----


def lost(job: ScriptJob, reason: str, now: float) -> ScriptOutcome:
    """Start anew without counting it; but not for ever where no attempt gets anywhere."""
    state = job.state
    if isinstance(state, Begun) and now - state.since >= FRUITFUL_S:
        job = replace(job, fruitless=0)
    why = Ending(reason, "again")
    if job.fruitless >= MAX_FRUITLESS_ATTEMPTS:
        error = JobFailed(
            f"{job.fruitless} attempts in a row lost a worker within {FRUITFUL_S:.0f} s, and got no further than step "
            f"{job.training.step}; the last: {reason}.",
            "See `paceline logs` for what the script printed; a worker that the system killed may lack memory.",
        )
        why = Ending(reason, "fail", error.to_json())
    match state:
        case ScriptRunning():
            return ask_to_end(job, state, why, now)
        case ScriptSaving() if why.then == "fail":
            return finish(job, replace(state, why=why), now)
    return recover(job, reason, now) if why.then == "again" else conclude(job, why, now)


def cancel(job: ScriptJob, now: float) -> ScriptOutcome:
    """What runs may save first, and what it wrote is kept. A second time, while that is fetched, ends it at once."""
    job = replace(job, training=job.training.model_copy(update={"cancelled": True}))
    match job.state:
        case ScriptRunning() as running:
            job, commands = ask_to_end(job, running, CANCELLED, now)
        case ScriptEnding() as ends:
            job, commands = replace(job, state=replace(ends, why=CANCELLED)), []
        case ScriptSaving() as saves:
            job, commands = finish(job, replace(saves, why=saves.why or CANCELLED), now)
        case _:
            job, commands = conclude(job, CANCELLED, now)
    return job, [Record("cancelling"), *commands]


def conclude(job: ScriptJob, why: Ending, now: float) -> ScriptOutcome:
    """End a job whose script runs nowhere now. Where it did before, what it wrote there is fetched first."""
    plan = job.ran
    if plan is None:
        return end(job, _verdict(why), now)
    if isinstance(job.state, Recovering):
        return replace(job, over=why), []
    if isinstance(job.state, ScriptStarting):
        job, commands = recover(job, why.reason, now)
        return replace(job, over=why), commands
    return _collect(job, plan, why, now)


def recover(job: ScriptJob, reason: str, now: float) -> ScriptOutcome:
    """The attempt is over; what comes next waits until the last of its workers is gone."""
    job = replace(_stop_clock(job, now), state=Recovering(reason))
    return job, [Record("attempt_lost", {"reason": reason}), state_record(job), StopWorkers(job.attempt)]


def finish(job: ScriptJob, state: ScriptSaving, now: float) -> ScriptOutcome:
    """With what has been fetched."""
    output = _output(job, state)
    job = replace(job, state=state)
    if state.why is None:
        return end(job, Succeeded(output), now)
    return end(job, _verdict(state.why, output if state.kept else None), now)


def _verdict(why: Ending, output: Output | None = None) -> Failed | Cancelled:
    return Cancelled(output) if why.then == "cancel" else Failed(why.error or {}, output)


def _output(job: ScriptJob, state: ScriptSaving) -> Output:
    """The ranks of a node have the same folder."""
    nodes = {state.plan.workers[rank].node_id: saved for rank, saved in state.kept.items()}
    saved = [nodes.get(placement.node_id) for placement in state.plan.workers]
    folders = tuple(KeptFolder(blob=s.blob, nbytes=s.nbytes) if s and s.blob else None for s in saved)
    ends = [state.ended.get(placement.rank) for placement in state.plan.workers]
    ran = f"it ended on all {len(ends)} ranks" if len(ends) > 1 else "it ended"
    return Output(
        blob=folders[0].blob if folders[0] else "",
        nbytes=folders[0].nbytes if folders[0] else 0,
        folder=job.submission.options.outputs,
        folders=folders,
        returned=tuple(end.returned if end else None for end in ends),
        stop_reason=state.why.reason if state.why else ran,
    )


def end(job: ScriptJob, state: Succeeded | Failed | Cancelled, now: float) -> ScriptOutcome:
    """The job is over; no worker of it stays."""
    stops: list[Command] = [StopWorkers(job.attempt)] if job.attempt else []
    job = replace(_stop_clock(job, now), state=state)
    return job, [state_record(job), *stops]


def _stop_clock(job: ScriptJob, now: float) -> ScriptJob:
    if isinstance(job.state, Begun) and not (isinstance(job.state, ScriptSaving) and job.state.anew):
        return replace(job, elapsed_s=job.elapsed_s + now - job.state.since)
    return job
