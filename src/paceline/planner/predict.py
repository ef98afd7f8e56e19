"""What a choice of workers would take: seconds, bytes and money, with how far it can be believed. Pure arithmetic."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

from paceline.measured import kind_of_device
from paceline.plan import Node, Prediction
from paceline.planner.exchange import Exchange, exchange
from paceline.planner.network import Network
from paceline.planner.profiles import Costs, Workload, costs
from paceline.shares import Share, num_nodes, split_by_speed
from paceline.stop import MaxTime, StopCondition, bound_of, leaves, step_bound

# A process with torch, before any model, what it has in use of torch's files included; of accelerators', not measured.
BASE_BYTES = {"cpu": 256 * 2**20, "cuda": 400 * 2**20, "mps": 400 * 2**20}
# Of the gradients, beside a lone worker's: what leaves, what comes, the sum, and gloo's copy of it, less the one that a
# smaller share adds up to, and two that the heap loses, where they come and go in turns with a backward's.
EXCHANGE_COPIES = 5
FORM_S = 0.2  # that workers take to find each other, when there are several
BACKWARD_PART = 2 / 3  # of a microbatch's time
FORWARD_PART = 1 / 3
LOOPBACK_UNCERTAIN, LINK_UNCERTAIN, UNKNOWN_LINK_UNCERTAIN = 0.3, 0.2, 1.0  # of an exchange's time, relative
TIMED = 0.1  # of microbatches that training has timed


@dataclass(frozen=True)
class Slot:
    """Room for one worker. device: "cpu", "cuda:0", "mps"."""

    node: Node
    device: str

    @property
    def kind(self) -> str:
        return kind_of_device(self.device)


@dataclass(frozen=True)
class Crew:
    """Workers in rank order with their costs.

    cell_s: each one's seconds for a microbatch beside the others of its node; timed: as training has shown them.
    update_s: the longest of them.
    """

    slots: Sequence[Slot]
    costs: Sequence[Costs]
    cell_s: Sequence[float]
    update_s: float
    timed: bool = False

    @property
    def hosts(self) -> list[Node]:
        return [slot.node for slot in self.slots]

    @property
    def pace(self) -> dict[str, float]:
        """By node, how many times slower than usual its cores are."""
        return {slot.node.id: cost.pace for slot, cost in zip(self.slots, self.costs, strict=True)}


@dataclass(frozen=True)
class Times:
    """Of one step. hidden_s: what of the exchange goes on under the computing."""

    compute_s: float
    exchange: Exchange
    hidden_s: float
    update_s: float

    @property
    def step_s(self) -> float:
        return self.compute_s + self.exchange.seconds - self.hidden_s + self.update_s


def crew_of(work: Workload, slots: Sequence[Slot]) -> Crew:
    each = [costs(work, slot.node, slot.kind) for slot in slots]
    crowd = Counter([slot.node.id for slot in slots])
    slower = {slot.node.id: slowdown(work, slot.node, crowd[slot.node.id]) for slot in slots}
    paces = [slower[slot.node.id] for slot in slots]
    update_s = max([cost.update_s * pace for cost, pace in zip(each, paces, strict=True)])
    return Crew(slots, each, [cost.cell_s * pace for cost, pace in zip(each, paces, strict=True)], update_s)


def predict(
    work: Workload, slots: Sequence[Slot], shares: Sequence[Share], cell_s: Sequence[float] | None = None
) -> Prediction:
    """What the job would take on these workers, in rank order, with these shares of the full grid.

    cell_s: each worker's measured seconds for a microbatch, where training has shown them; predicted if left out.
    """
    crew = crew_of(work, slots)
    return predict_crew(work, crew if cell_s is None else replace(crew, cell_s=cell_s, timed=True), shares)


def predict_crew(work: Workload, crew: Crew, shares: Sequence[Share]) -> Prediction:
    """The same, for workers whose costs are worked out."""
    exchanged = _exchange(work, crew, shares)
    taking_part = [(end - first, s) for (first, end), s in zip(shares, crew.cell_s, strict=True) if end > first]
    compute_s = max([cells * s for cells, s in taking_part])
    hidden_s = min(exchanged.early_s, BACKWARD_PART * min([s for _, s in taking_part]))
    memory_bytes = max([worker_bytes(work, cost, len(crew.slots)) for cost in crew.costs])
    return prediction(work, crew, Times(compute_s, exchanged, hidden_s, crew.update_s), memory_bytes)


def prediction(work: Workload, crew: Crew, times: Times, memory_bytes: int) -> Prediction:
    """For steps that take so long, by workers that each hold so many bytes."""
    several = len(crew.slots) > 1
    start_s = max([cost.profile.build_s for cost in crew.costs]) + (FORM_S if several else 0.0)
    paced_s = times.step_s + _evaluation_s(work, crew.cell_s)
    trains_s = _bound_s(work.options.stop, work.grid.steps_per_epoch if work.grid else None, paced_s)
    finish_s = None if trains_s is None else start_s + trains_s
    uncertainty, doubts = _doubts(crew, times.exchange, times.step_s, work.network)
    return Prediction(
        step_s=times.step_s,
        compute_s=times.compute_s,
        exchange_s=times.exchange.seconds,
        hidden_s=times.hidden_s,
        update_s=times.update_s,
        memory_bytes=memory_bytes,
        traffic_bytes_per_step=round(times.exchange.bytes),
        start_s=start_s,
        epoch_s=work.grid.steps_per_epoch * paced_s if work.grid else None,
        finish_s=finish_s,
        by_time=any(isinstance(leaf, MaxTime) and leaf.seconds == trains_s for leaf in leaves(work.options.stop)),
        cost=_cost(crew.slots, finish_s),
        uncertainty=uncertainty,
        extrapolated=bool(doubts),
        doubts=doubts,
    )


def sent_by_each(work: Workload, crew: Crew, shares: Sequence[Share]) -> tuple[float, ...]:
    """Bytes that each worker sends in a step."""
    return _exchange(work, crew, shares).sent


def best_shares(work: Workload, slots: Sequence[Slot]) -> list[Share]:
    """Shares by predicted speed; a worker that would only be waited for gets none."""
    return split_by_speed(work.options.microbatches, crew_of(work, slots).cell_s)


def worker_bytes(work: Workload, cost: Costs, workers: int) -> int:
    """Bytes that one of so many workers needs at its peak, the process itself included."""
    profile = cost.profile
    cell = profile.activation_bytes * (work.cell_samples / max(1, profile.cell_samples) - 1)
    exchanged = EXCHANGE_COPIES * profile.exchange_bytes if workers > 1 else 0
    return BASE_BYTES[profile.device] + max(0, round(profile.worker_bytes + cell)) + exchanged


def slowdown(work: Workload, node: Node, workers: int) -> float:
    """How much longer each of so many workers takes than one alone on an idle node."""
    return max(1.0, (workers * work.options.threads + node.load) / max(1, node.cores))


def _exchange(work: Workload, crew: Crew, shares: Sequence[Share]) -> Exchange:
    if len(crew.slots) == 1:
        return Exchange()
    cells = work.options.microbatches
    gradient_bytes = max([cost.profile.exchange_bytes for cost in crew.costs])
    tree_nodes = [num_nodes(share, cells) for share in shares]
    return exchange(crew.hosts, tree_nodes, gradient_bytes, work.options.threads, work.network, crew.pace)


def _evaluation_s(work: Workload, seconds: Sequence[float]) -> float:
    """Of the evaluations, for each step: the validation samples are spread evenly, one forward each."""
    samples = work.facts.val_samples or 0
    every = work.options.eval_every or (work.grid.steps_per_epoch if work.grid else None)
    if not samples or not every:
        return 0.0
    return samples / len(seconds) * max(seconds) / work.cell_samples * FORWARD_PART / every


def _bound_s(stop: StopCondition, steps_per_epoch: int | None, paced_s: float) -> float | None:
    """Seconds of training by which the condition must have fired; metrics and patience never count as met."""

    def of_leaf(leaf: StopCondition) -> float | None:
        if isinstance(leaf, MaxTime):
            return leaf.seconds
        steps = step_bound(leaf, steps_per_epoch or 1)
        unknown = steps is None or (steps_per_epoch is None and leaf.kind == "max_epochs")
        return None if unknown or steps is None else steps * paced_s

    return bound_of(stop, of_leaf)


def _cost(slots: Sequence[Slot], finish_s: float | None) -> float | None:
    """Of all the nodes, whole, for that time."""
    an_hour = math.fsum({slot.node.id: slot.node.price for slot in slots}.values())
    return 0.0 if not an_hour else None if finish_s is None else an_hour * finish_s / 3600


def _doubts(crew: Crew, exchanged: Exchange, step_s: float, network: Network) -> tuple[float, tuple[str, ...]]:
    """(relative uncertainty of the step's time, what was not measured)."""
    least_known = max(crew.costs, key=lambda cost: cost.uncertainty)
    of_compute, of_exchange = least_known.uncertainty, LINK_UNCERTAIN if exchanged.on_links else LOOPBACK_UNCERTAIN
    doubts = dict.fromkeys(cost.doubt for cost in crew.costs if cost.doubt)
    if crew.timed:
        of_compute, doubts = min(TIMED, of_compute), {}
    if exchanged.unknown:
        of_exchange = UNKNOWN_LINK_UNCERTAIN
        doubts[f"{exchanged.unknown} links not measured, taken as {network.told_usual}"] = None
    if doubts:
        of_exchange = max(of_exchange, of_compute)  # where the times are guessed, so are the bytes
    exchanging = min(1.0, exchanged.seconds / step_s) if step_s else 0.0
    return exchanging * of_exchange + (1 - exchanging) * of_compute, tuple(doubts)
