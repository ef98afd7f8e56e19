"""What an evaluation found, and its entry in a job's history. Pure functions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from paceline.master.commands import Record
from paceline.master.job import Job
from paceline.master.states import Running
from paceline.messages.from_worker import Evaluated
from paceline.spec import Keep
from paceline.stop import improved


def means(names: tuple[str, ...], answers: Mapping[int, Evaluated]) -> dict[str, float]:
    """Sample-weighted means over the evaluation grid, summed in its order."""
    finals = {name: value for answer in answers.values() for name, value in answer.finals.items()}
    plain = [name for name in names if name != "loss" and name not in finals]
    sums = [0.0] * (1 + len(plain))
    for answer in sorted(answers.values(), key=lambda a: a.first_cell):
        for row in answer.rows:
            sums = [total + value for total, value in zip(sums, row, strict=True)]
    return {name: total / sums[0] for name, total in zip(plain, sums[1:], strict=True)} | finals


def noted(job: Job, state: Running, values: dict[str, float], now: float) -> tuple[Job, Record]:
    """The job with an evaluation in its history, and the row that tells of it."""
    training = job.training
    entry = {
        "step": float(training.step),
        "epoch": training.step / state.grid.steps_per_epoch,
        "samples": float(state.grid.samples_seen(training.step)),
        "loss": training.loss_sum / max(training.loss_samples, 1),
        **values,
    }
    keep = Keep.parse(job.submission.options.keep)
    changes: dict[str, Any] = {
        "evaluated_step": training.step,
        "history": (*training.history, entry),
        "loss_sum": 0.0,
        "loss_samples": 0,
    }
    if keep.metric is not None and improved(entry[keep.metric], training.best, keep.mode):
        changes |= {"best": entry[keep.metric], "best_step": training.step, "unmarked_best": True}
    job = replace(job, training=training.model_copy(update=changes))
    return job, Record("evaluated", {**entry, "seconds": job.trained_s(now)})
