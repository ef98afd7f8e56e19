"""Where a script's ranks run: a pure function, like the plan of a training job."""

from __future__ import annotations

from collections.abc import Sequence

from paceline.errors import Unplaceable
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
    known = [node for node in nodes if node.id in former]
    for ranks in range(options.workers, least - 1, -1):
        for candidates in (known, nodes):
            try:
                return _plan(candidates, options, ranks, former)
            except Unplaceable as refusal:
                refused = refusal
    raise refused


def _plan(nodes: Sequence[Node], options: ScriptOptions, ranks: int, former: Sequence[str]) -> Plan:
    wanted = TrainOptions(
        batch_size=ranks,
        microbatches=ranks,
        threads=options.threads,
        stop=MaxSteps(steps=1),
        resources=options.resources.model_copy(update={"workers": ranks}),
        reproducible=False,
        priority=options.priority,
    )
    plan = plan_workers(nodes, wanted, Facts())
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
            "summary": f"{_counted(ranks, 'rank')} on {_counted(len(order), 'node')}, {_why(options, ranks)}",
            "most_workers": ranks,
            # what a step would take is not known of a script
            **{"predicted": None, "nodes": (), "alternatives": (), "faster": ()},
        }
    )


def _why(options: ScriptOptions, ranks: int) -> str:
    if options.resources.workers is None:
        return "as no more were asked for"
    return "as asked for" if ranks == options.workers else f"of the {options.workers} asked for: no more are free"


def _counted(count: int, word: str) -> str:
    return f"{count} {word}{'' if count == 1 else 's'}"
