"""Where a script's ranks run: a pure function, like the plan of a training job."""

from __future__ import annotations

from collections.abc import Sequence

from paceline.errors import Unplaceable
from paceline.explain import counted
from paceline.plan import Node, Plan
from paceline.planner.planner import plan_workers
from paceline.script import ScriptOptions
from paceline.spec import Facts, TrainOptions
from paceline.stop import MaxSteps


def plan_script(nodes: Sequence[Node], options: ScriptOptions, former: Sequence[str] = ()) -> Plan:
    """Places for all ranks at once, those of a node in a row. Raises Unplaceable, as `plan_workers` does.

    What a script computes is not known: it gets as many workers as were asked for, or as there is room for down to
    `min_workers`, on nodes of any hardware class. former: the nodes of the attempt before, that of rank 0 first. What
    the script wrote lies there, so that they are taken again, in their order, where there is room.
    """
    least = options.min_workers or options.workers
    found = [_fitting(some, options) for some in ([node for node in nodes if node.id in former], nodes)]
    most = max(found, key=lambda plan: len(plan.workers) if plan else 0)
    if most is None or len(most.workers) < least:
        most = plan_workers(nodes, _asked(options, least), Facts())  # this tells why not
    return _as_script(most, options, former)


def _fitting(nodes: Sequence[Node], options: ScriptOptions) -> Plan | None:
    """As many of the ranks as fit on these nodes; None where not one does."""
    try:
        return plan_workers(nodes, _asked(options, options.workers), Facts(), wish=options.workers)
    except Unplaceable:
        return None


def _asked(options: ScriptOptions, ranks: int) -> TrainOptions:
    return TrainOptions(
        batch_size=ranks,
        microbatches=ranks,
        threads=options.threads,
        stop=MaxSteps(steps=1),
        resources=options.resources.model_copy(update={"workers": ranks}),
        reproducible=False,
        priority=options.priority,
    )


def _as_script(plan: Plan, options: ScriptOptions, former: Sequence[str]) -> Plan:
    ranks = len(plan.workers)
    taken = dict.fromkeys(worker.node_id for worker in plan.workers)
    order = sorted(taken, key=lambda name: former.index(name) if name in former else len(former))
    by_node = sorted(plan.workers, key=lambda worker: order.index(worker.node_id))
    workers = tuple(
        worker.model_copy(update={"rank": rank, "share": (rank, rank + 1)}) for rank, worker in enumerate(by_node)
    )
    return plan.model_copy(
        update={
            "mode": "script",
            "workers": workers,
            "summary": f"{counted(ranks, 'rank')} on {counted(len(order), 'node')}, {_why(options, ranks)}",
            "most_workers": ranks,
            # what a step would take is not known of a script
            **{"predicted": None, "nodes": (), "alternatives": (), "faster": ()},
        }
    )


def _why(options: ScriptOptions, ranks: int) -> str:
    if options.resources.workers is None:
        return "as no more were asked for"
    return "as asked for" if ranks == options.workers else f"of the {options.workers} asked for: no more are free"
