"""What a sharded job would take, from what its passes take where they are not sharded. Pure arithmetic."""

from __future__ import annotations

from collections.abc import Sequence

from paceline.errors import Unplaceable
from paceline.plan import Prediction, Sharding
from paceline.planner.exchange import gathers
from paceline.planner.predict import FORWARD_PART, Slot, Times, crew_of, prediction
from paceline.planner.profiles import Workload
from paceline.planner.reasons import money
from paceline.planner.refusal import beyond
from paceline.spec import TrainOptions

UNTRIED = "times of sharded passes are worked out from unsharded ones: none was measured"
UNCERTAIN = 0.5  # on top of what the passes themselves are uncertain by, relative


def predict_sharded(
    work: Workload, slots: Sequence[Slot], sharding: Sharding, units: int, memory_bytes: int
) -> Prediction:
    """On these workers, with as many of the grid's cells each as the number allows. units: that are gathered in turn.

    On the CPU the gathers and the computing take turns. Between GPUs they go on at once, but for the first unit's.
    """
    options = work.options.model_copy(update={"microbatches": sharding.microbatches})
    cut = work.asked(options)
    crew, world = crew_of(cut, slots), len(slots)
    passes = -(-sharding.microbatches // world)
    pass_s = max(crew.cell_s) * (1 + FORWARD_PART if sharding.recompute else 1)
    parameter_bytes = work.facts.parameter_bytes or 0
    gathered = gathers(crew.hosts, parameter_bytes, passes, units, options.threads, work.network, crew.pace)
    hidden_s = min(gathered.early_s, passes * pass_s) if slots[0].kind == "cuda" else 0.0
    times = Times(passes * pass_s, gathered, hidden_s, crew.update_s / world)
    found = prediction(cut, crew, times, memory_bytes)
    doubts = (*found.doubts, UNTRIED)
    return found.model_copy(
        update={"uncertainty": found.uncertainty + UNCERTAIN, "extrapolated": True, "doubts": doubts}
    )


def over_limits(options: TrainOptions, best: Prediction, busy: bool) -> Unplaceable:
    """The refusal of a job whose memory there is, but not its time or money. busy: it would keep them on idle nodes."""
    fact = f"sharded, {beyond(options, best, money(best.cost))}"
    if busy:
        return Unplaceable(fact, "It waits until running jobs end.", busy=True)
    remedies = ["a later deadline="] if options.deadline is not None else []
    remedies += ["a higher max_cost="] if options.resources.max_cost is not None else []
    return Unplaceable(fact, f"Give it {' and '.join(remedies)}, or fewer steps in stop=.", busy=False)
