"""What a choice of workers would take: seconds, bytes and money, with how far it can be believed. Pure arithmetic."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from paceline.plan import Node, Prediction
from paceline.planner.exchange import UNKNOWN_LINK, Exchange, exchange
from paceline.planner.profiles import Costs, Workload, costs
from paceline.shares import Share, num_nodes, split_by_speed
from paceline.stop import AllOf, AnyOf, MaxTime, StopCondition, step_bound

WORKER_BASE_BYTES = 400 * 2**20  # a process with torch, before any model
EXCHANGE_COPIES = 3  # of the gradients, in an exchange: what leaves, what comes, and the sum
FORM_S = 0.2  # that workers take to find each other, when there are several
BACKWARD_PART = 2 / 3  # of a microbatch's time
FORWARD_PART = 1 / 3
LOOPBACK_UNCERTAIN, LINK_UNCERTAIN, UNKNOWN_LINK_UNCERTAIN = 0.3, 0.2, 1.0  # of an exchange's time, relative


@dataclass(frozen=True)
class Slot:
    """Room for one worker. device: "cpu", "cuda:0", "mps"."""

    node: Node
    device: str

    @property
    def kind(self) -> str:
        return self.device.split(":")[0]


def predict(
    work: Workload, slots: Sequence[Slot], shares: Sequence[Share], cell_s: Sequence[float] | None = None
) -> Prediction:
    """What the job would take on these workers, in rank order, with these shares of the full grid.

    cell_s: each worker's measured seconds for a microbatch, where training has shown them; predicted if left out.
    """
    each = [costs(work, slot.node, slot.kind) for slot in slots]
    seconds = cell_s or _contended(work, slots, each)
    exchanged = _exchange(work, slots, shares, each)
    taking_part = [(end - first, s) for (first, end), s in zip(shares, seconds, strict=True) if end > first]
    compute_s = max(cells * s for cells, s in taking_part)
    window_s = BACKWARD_PART * min(s for _, s in taking_part)
    hidden_s = min(exchanged.early_s, window_s)
    update_s = max(cost.update_s for cost in each)
    step_s = compute_s + exchanged.seconds - hidden_s + update_s
    start_s = max(cost.profile.build_s for cost in each) + (FORM_S if len(slots) > 1 else 0.0)
    paced_s = step_s + _evaluation_s(work, seconds)
    finish_s = _finish_s(work, start_s, paced_s)
    uncertainty, doubts = _doubts(each, exchanged, cell_s is not None, step_s)
    return Prediction(
        step_s=step_s,
        compute_s=compute_s,
        exchange_s=exchanged.seconds,
        hidden_s=hidden_s,
        update_s=update_s,
        memory_bytes=max(worker_bytes(work, cost, len(slots)) for cost in each),
        traffic_bytes_per_step=round(exchanged.bytes),
        start_s=start_s,
        epoch_s=work.grid.steps_per_epoch * paced_s if work.grid else None,
        finish_s=finish_s,
        cost=_cost(slots, finish_s),
        uncertainty=uncertainty,
        extrapolated=bool(doubts),
        doubts=doubts,
    )


def sent_by_each(work: Workload, slots: Sequence[Slot], shares: Sequence[Share]) -> tuple[float, ...]:
    """Bytes that each worker sends in a step."""
    return _exchange(work, slots, shares, [costs(work, slot.node, slot.kind) for slot in slots]).sent


def predicted_cell_s(work: Workload, slots: Sequence[Slot]) -> list[float]:
    """Seconds that each worker takes for a microbatch, with the others on its node at work."""
    return _contended(work, slots, [costs(work, slot.node, slot.kind) for slot in slots])


def best_shares(work: Workload, slots: Sequence[Slot]) -> list[Share]:
    """Shares by predicted speed; a worker that would only be waited for gets none."""
    return split_by_speed(work.options.microbatches, predicted_cell_s(work, slots))


def worker_bytes(work: Workload, cost: Costs, workers: int) -> int:
    """Bytes that one of so many workers needs at its peak, the process itself included."""
    profile = cost.profile
    cell = profile.activation_bytes * (work.cell_samples / max(1, profile.cell_samples) - 1)
    exchanged = EXCHANGE_COPIES * profile.exchange_bytes if workers > 1 else 0
    return WORKER_BASE_BYTES + max(0, round(profile.worker_bytes + cell)) + exchanged


def _contended(work: Workload, slots: Sequence[Slot], each: Sequence[Costs]) -> list[float]:
    """Workers of one node share its cores, with each other and with what else runs there."""
    crowd = Counter(slot.node.id for slot in slots)
    return [cost.cell_s * slowdown(work, slot.node, crowd[slot.node.id]) for slot, cost in zip(slots, each, strict=True)]


def slowdown(work: Workload, node: Node, workers: int) -> float:
    """How much longer each of so many workers takes than one alone on an idle node."""
    others = max(0.0, node.load - max(0, node.cores - node.free_cores))  # load that is no job's of this master
    return max(1.0, (workers * work.options.threads + others) / max(1, node.cores))


def _exchange(work: Workload, slots: Sequence[Slot], shares: Sequence[Share], each: Sequence[Costs]) -> Exchange:
    cells = work.options.microbatches
    gradient_bytes = max(cost.profile.exchange_bytes for cost in each)
    tree_nodes = [num_nodes(share, cells) for share in shares]
    return exchange([slot.node for slot in slots], tree_nodes, gradient_bytes, work.options.threads, work.links)


def _evaluation_s(work: Workload, seconds: Sequence[float]) -> float:
    """Of the evaluations, for each step: the validation samples are spread evenly, one forward each."""
    samples = work.facts.val_samples or 0
    every = work.options.eval_every or (work.grid.steps_per_epoch if work.grid else None)
    if not samples or not every:
        return 0.0
    return samples / len(seconds) * max(seconds) / work.cell_samples * FORWARD_PART / every


def _finish_s(work: Workload, start_s: float, paced_s: float) -> float | None:
    bound_s = _bound_s(work.options.stop, work.grid.steps_per_epoch if work.grid else None, paced_s)
    return None if bound_s is None else start_s + bound_s


def _bound_s(stop: StopCondition, steps_per_epoch: int | None, paced_s: float) -> float | None:
    """Seconds of training by which the condition must have fired; metrics and patience never count as met."""
    if isinstance(stop, AnyOf | AllOf):
        bounds = [_bound_s(part, steps_per_epoch, paced_s) for part in stop.conditions]
        known = [bound for bound in bounds if bound is not None]
        if isinstance(stop, AnyOf):
            return min(known, default=None)
        return max(known) if len(known) == len(bounds) else None
    if isinstance(stop, MaxTime):
        return stop.seconds
    steps = step_bound(stop, steps_per_epoch or 1)
    unknown = steps is None or (steps_per_epoch is None and stop.kind == "max_epochs")
    return None if unknown or steps is None else steps * paced_s


def _cost(slots: Sequence[Slot], finish_s: float | None) -> float | None:
    """Of all the nodes, whole, for that time."""
    an_hour = math.fsum({slot.node.id: slot.node.price for slot in slots}.values())
    return 0.0 if not an_hour else None if finish_s is None else an_hour * finish_s / 3600


def _doubts(
    each: Sequence[Costs], exchanged: Exchange, timed: bool, step_s: float
) -> tuple[float, tuple[str, ...]]:
    """(relative uncertainty of the step's time, what was not measured)."""
    least_known = max(each, key=lambda cost: cost.uncertainty)
    of_compute = min(0.1, least_known.uncertainty) if timed else least_known.uncertainty
    of_exchange = LINK_UNCERTAIN if exchanged.on_links else LOOPBACK_UNCERTAIN
    doubts = dict.fromkeys(cost.doubt for cost in each if cost.doubt and not timed)
    if exchanged.unknown:
        of_exchange = UNKNOWN_LINK_UNCERTAIN
        rate, latency = UNKNOWN_LINK.bytes_per_s * 8 / 1e6, UNKNOWN_LINK.latency_s * 1e3
        doubts[f"{exchanged.unknown} links not measured, taken as {rate:.0f} Mbit/s with {latency:g} ms"] = None
    of_exchange = max(of_exchange, of_compute if not timed and least_known.doubt else 0.0)  # its bytes are guessed too
    exchanging = min(1.0, exchanged.seconds / step_s) if step_s else 0.0
    return exchanging * of_exchange + (1 - exchanging) * of_compute, tuple(doubts)
