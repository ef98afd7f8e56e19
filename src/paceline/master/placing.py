"""What the queue asks of single jobs: their plan on what is free, how long they last, what their quota forbids."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from paceline.errors import Forbidden, Unplaceable
from paceline.master.lives import AnyJob, AnySubmission, next_plan
from paceline.master.scriptstates import ScriptJob
from paceline.measured import Measured
from paceline.plan import Node, Plan
from paceline.planner.queue import workers_left
from paceline.planner.timeline import Fit, Place
from paceline.settings import Quota
from paceline.stop import step_bound, time_bound


def planner_of(jobs: Mapping[str, AnyJob], known: Mapping[str, Measured], now: float) -> Place:
    """How the queue asks for a job's plan. known: of each job, what plans build on."""

    def place(job_id: str, nodes: Sequence[Node], most: int | None = None) -> Fit:
        job = jobs[job_id]
        plan = next_plan(nodes, job, known[job_id])
        if isinstance(job, ScriptJob):
            return Fit(plan, None)  # its number of ranks is the user's word, its length nobody's
        is_open = job.wish is not None or job.submission.options.resources.workers is None
        if most is not None and len(plan.workers) > most and is_open:
            plan = next_plan(nodes, job, known[job_id], most)
            plan = plan.model_copy(update={"summary": f"{most} worker(s): the user's quota leaves no more"})
        return Fit(plan, seconds_left(job, now, plan))

    return place


def seconds_left(job: AnyJob, now: float, plan: Plan | None = None) -> float | None:
    """Until the job ends at the latest, by its stop condition and its steps so far; None where nothing tells.

    plan: whose prediction counts before the first step.
    """
    if isinstance(job, ScriptJob):
        return None
    stop, options, training = job.submission.options.stop, job.submission.options, job.training
    trained_s = job.trained_s(now)
    seconds = time_bound(stop)
    bounds = [] if seconds is None else [seconds - trained_s]
    if training.step and training.train_samples:
        grid = options.grid(training.train_samples)
        last = step_bound(stop, grid.steps_per_epoch)
        bounds += [] if last is None else [(last - training.step) * trained_s / training.step]
    elif plan is not None and plan.predicted is not None and plan.predicted.finish_s is not None:
        bounds.append(plan.predicted.finish_s - trained_s)
    return max(0.0, min(bounds)) if bounds else None


def check_quota(submission: AnySubmission, user: str, quota: Quota) -> None:
    """Raise Forbidden or Unplaceable for what the user's quota will never allow."""
    options = submission.options
    if quota.priority is not None and options.priority > quota.priority:
        raise Forbidden(
            f"priority={options.priority} was asked for, and {user} may ask for {quota.priority} at most.",
            f"Set priority={quota.priority} or less, or ask the master's admin.",
        )
    asked = options.resources.workers or 1
    most, _ = workers_left(quota, (), options.threads)
    if quota.jobs == 0 or (most is not None and most < asked):
        raise Unplaceable(
            f"the job needs {asked} worker(s) with {options.threads} core(s) each, and the quota of {user} is "
            f"{_told(quota)}.",
            f"Ask for at most {most} workers." if most else "Ask the master's admin for a larger quota.",
            busy=False,
        )


def _told(quota: Quota) -> str:
    return ", ".join(f"{count} {name}" for name, count in quota.model_dump(exclude_none=True).items())
