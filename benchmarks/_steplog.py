"""What a step log says of a run under kills: its rate, how soon it went on, what it did twice. Pure functions.

Times are seconds of one clock. A step counts from 1: step n is done when the model has taken n of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Step:
    """A step that some worker completed, or the last of several that a master committed at once.

    at: when it was done. started: when its computation began (or its last microbatch, which serves as well), or when
    the first of those committed with it was ordered. samples: all that the model has consumed with it. loss: on what
    this worker saw of the step's batch.
    """

    at: float
    started: float
    step: int
    samples: int
    loss: float | None = None


def advances(steps: Iterable[Step]) -> list[Step]:
    """Those that brought the model further than ever before, in order of time: the others repeat what was done."""
    furthest, found = 0, []
    for step in sorted(steps, key=lambda s: s.at):
        if step.step > furthest:
            furthest = step.step
            found.append(step)
    return found


def rate(steps: Iterable[Step], start: float, end: float) -> float | None:
    """Samples per second from the first advance at or after `start` to the first one at or after `end`.

    Both ends lie on an advance, so that neither the size of a commit nor a pause at the end is lost or won.
    None where there is no advance after `end` yet.
    """
    ahead = advances(steps)
    first = next((step for step in ahead if step.at >= start), None)
    last = next((step for step in ahead if step.at >= end), None)
    if first is None or last is None or last.at <= first.at:
        return None
    return (last.samples - first.samples) / (last.at - first.at)


def recovery(steps: Sequence[Step], kill: float) -> float | None:
    """Seconds from a kill to the first advance that was computed after it; None where there is none yet.

    What was begun before the kill and done or committed after it shows no recovery.
    """
    before = furthest_begun(steps, kill)
    again = [step.at for step in steps if step.started >= kill and step.step > before]
    return min(again) - kill if again else None


def redone(steps: Sequence[Step], kill: float, next_kill: float | None = None) -> int:
    """Steps that were complete on some worker when the others went on, and that were computed again.

    The step that was under way at the kill, and complete nowhere, is not among them.
    """
    before = furthest_begun(steps, kill)
    after = [step.step for step in steps if kill <= step.started and (next_kill is None or step.started < next_kill)]
    return max(0, before + 1 - min(after)) if after else 0


def furthest_begun(steps: Iterable[Step], moment: float) -> int:
    """The furthest of the completed steps that were begun before the moment."""
    return max((step.step for step in steps if step.started < moment), default=0)


def commits(progress: Iterable[tuple[float, int, float, float]], batch: int) -> list[Step]:
    """A master's commits as steps. progress: (at, step, samples per second of its round, loss), in their order.

    The rate tells when the round was ordered, and so whether that was before a kill or after it.
    """
    found: list[Step] = []
    before = 0
    for at, step, samples_per_s, loss in progress:
        found.append(Step(at, at - (step - before) * batch / samples_per_s, step, step * batch, loss))
        before = step
    return found


def loss_gap(logs: Sequence[Sequence[Step]], until: Sequence[float]) -> float | None:
    """The largest relative difference of two contestants' mean losses over the steps that all of them wrote down.

    logs, until: a log for each contestant, and when its comparable part ends. A step's loss is the mean of its
    workers'. None where no step is in all of them.
    """
    means = [_losses(log, end) for log, end in zip(logs, until, strict=True)]
    common = set.intersection(*(set(mean) for mean in means)) if means else set()
    if not common:
        return None
    totals = [sum(mean[step] for step in common) for mean in means]
    return max(totals) / min(totals) - 1


def _losses(log: Iterable[Step], until: float) -> dict[int, float]:
    seen: dict[int, list[float]] = {}
    for step in log:
        if step.at < until and step.loss is not None:
            seen.setdefault(step.step, []).append(step.loss)
    return {step: sum(losses) / len(losses) for step, losses in seen.items()}
