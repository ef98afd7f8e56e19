"""One line that says what was decided and why."""

from __future__ import annotations

from collections.abc import Sequence

from paceline.explain import counted, duration
from paceline.grid import DEFAULT_MICROBATCHES, MOST_COST
from paceline.planner.choose import Choice
from paceline.planner.profiles import Workload, step_flop
from paceline.planner.reasons import told
from paceline.planner.rooms import Room
from paceline.planner.search import Candidate


def summary(work: Workload, rooms: Sequence[Room], choice: Choice, best: Candidate, wish: int | None) -> str:
    """What was chosen, by which numbers, and how the batch is cut."""
    places = sum(room.now * len(room.nodes) for room in rooms if not room.excluded)
    return f"{_why(work, places, choice, best, wish)}; {grid(work)}"


def _why(work: Workload, places: int, choice: Choice, best: Candidate, wish: int | None) -> str:
    if wish is not None:
        return f"{best.workers} of the {wish} workers that the job was scaled to: {places} places are free"
    if work.options.resources.workers is not None:
        return f"{counted(best.workers, 'worker')}, as asked for"
    step = duration(best.predicted.step_s)
    if best.workers > 1:
        alone = next((c for c in choice.candidates if c.workers == 1), None)
        beside = f", {duration(alone.predicted.step_s)} on one of them" if alone else ""
        return f"{best.workers} of {places} free places: a step takes {step}{beside}"
    text = f"1 worker: {_size(work)}, and takes {step}"
    more = next((c for c in choice.candidates if c.workers > 1), None)
    return f"{text}; {told(best.predicted)}, and on {more.workers} workers {told(more.predicted)}" if more else text


def _size(work: Workload) -> str:
    flop = step_flop(work)
    return f"a step is about {flop:.2g} FLOP" if flop else "a step's work is not known before the model is built"


def grid(work: Workload) -> str:
    """How many microbatches a batch has, and why so many where the spec did not say."""
    options, facts = work.options, work.facts
    number = counted(options.microbatches, "microbatch", "es")
    if not facts.chose_microbatches:
        return number
    if facts.flop_per_sample is None:
        return f"{number}, as many as by default where a sample's operations are not known"
    sample = f"a sample is about {facts.flop_per_sample:.2g} FLOP"
    if 2 * options.microbatches > min(DEFAULT_MICROBATCHES, options.batch_size):
        return f"{number}: {sample}, so that cutting costs little"
    return f"{number}: {sample}, and cutting {options.batch_size} of them further would cost more than {MOST_COST:.0%}"
