"""Steps that can't be right: who is at fault, the node or the data. Pure functions.

All members suspect the same step and the same members. Another one computes a suspect's part again (a lone one its
own): the same bits mean that data or model made them, and if they are not finite, the job ends with their names; others
mean that the node computes wrongly, and it is put in quarantine with the evidence.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

from paceline.errors import NonFinite
from paceline.master import members
from paceline.master.commands import Command, Enqueue, Quarantine, Record, StopWorkers
from paceline.master.ends import end, recover
from paceline.master.job import Job, Outcome
from paceline.master.states import Failed, Running
from paceline.messages.from_worker import Checked, Evidence, Suspected
from paceline.messages.to_worker import CheckRound

ROUNDING = 1e-3  # of the norm, between hardware classes


def suspicion_of(state: Running) -> Suspected | None:
    """The word of a suspect that is still here, or that of anyone where nobody is suspected."""
    words = {rank: a for rank, a in state.answers.items() if isinstance(a, Suspected)}
    own = [word for rank, word in words.items() if rank in word.suspects]
    return next(iter(own or [word for word in words.values() if not word.suspects]), None)


def order_check(state: Running, suspected: Suspected) -> CheckRound | None:
    """Who is to compute whose part again; None where the suspect is gone."""
    suspect = next((rank for rank in suspected.suspects if rank in state.members), None)
    if suspect is None:
        return None
    others = [r for r in state.members if r != suspect and state.workers[r].step == suspected.step]
    return CheckRound(group=state.group, step=suspected.step, rank=suspect, checker=next(iter(others), suspect))


def unnamed(job: Job, suspected: Suspected, now: float) -> Outcome:
    """The sum is wrong and none of its parts is: there is nobody to ask."""
    fact = f"training became non-finite after step {suspected.step}: {suspected.reason}, from parts that are finite."
    return end(job, Failed(NonFinite(fact, "Lower the learning rate or set clip_grad_norm=1.0.").to_json()), now)


def judge(job: Job, state: Running, suspected: Suspected, checked: Checked, now: float) -> Outcome:
    """What follows from the second computation; where the job then runs, the step is to be done again."""
    reported = suspected.evidence
    assert reported is not None
    if not _agree(reported, checked.evidence, job.submission.options.reproducible):
        return _quarantine(job, state, suspected, checked, now)
    if checked.error is not None:
        return end(job, Failed(checked.error), now)
    if not _finite(checked.evidence):
        return unnamed(job, suspected, now)
    record = Record("gradient_confirmed", {"step": suspected.step, "reason": suspected.reason})
    return replace(job, state=replace(state, suspected=None, trusted_step=suspected.step)), [record]


def _agree(reported: Evidence, checked: Evidence, reproducible: bool) -> bool:
    if not _finite(reported) and not _finite(checked):
        return True
    near = math.isclose(reported.norm, checked.norm, rel_tol=ROUNDING)
    return reported.digest == checked.digest or (near and not reproducible)


def _finite(evidence: Evidence) -> bool:
    return math.isfinite(evidence.loss) and math.isfinite(evidence.norm)


def _quarantine(job: Job, state: Running, suspected: Suspected, checked: Checked, now: float) -> Outcome:
    placement = state.workers[checked.rank].placement
    reason = (
        f"{members.named(placement)} computed step {suspected.step} wrongly: {suspected.reason}; "
        f"a second computation gave the norm {checked.evidence.norm:g}"
    )
    ready, building = members.on_node(state, placement.node_id)
    there = (*sorted(ready), *sorted(building))
    for rank in there:
        state = members.drop(state, rank, reason)
    state = replace(state, suspected=None)
    commands: list[Command] = [
        Record("node_quarantined", _evidence(placement.node_name, suspected, checked, reason)),
        Quarantine(placement.node_id, reason),
        StopWorkers(job.attempt, there),
        Enqueue(),
    ]
    job = replace(job, state=state)
    if state.members:
        return job, commands
    job, more = recover(job, reason, now)
    return job, [*commands, *more]


def _evidence(node: str, suspected: Suspected, checked: Checked, reason: str) -> dict[str, Any]:
    assert suspected.evidence is not None
    reported, computed = suspected.evidence.model_dump(mode="json"), checked.evidence.model_dump(mode="json")
    return {
        "node": node, "rank": checked.rank, "step": suspected.step, "reason": reason,
        "reported": _as_text(reported), "computed": _as_text(computed),
    }  # fmt: skip


def _as_text(values: dict[str, Any]) -> dict[str, str]:
    """JSON has no NaN."""
    return {name: str(value) for name, value in values.items()}
