"""Where a script's ranks run: a pure function, like the plan of a training job."""

from __future__ import annotations

from collections.abc import Sequence

from paceline.plan import Node, Plan
from paceline.planner.planner import plan_workers
from paceline.script import ScriptOptions
from paceline.spec import Facts, TrainOptions
from paceline.stop import MaxSteps


def plan_script(nodes: Sequence[Node], options: ScriptOptions) -> Plan:
    """Places for all ranks at once, those of a node in a row. Raises Unplaceable, as `plan_workers` does.

    What a script computes is not known: it gets as many workers as were asked for, on nodes of any hardware class.
    """
    ranks = options.workers
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
    order = list(dict.fromkeys(worker.node_id for worker in plan.workers))
    by_node = sorted(plan.workers, key=lambda worker: order.index(worker.node_id))
    workers = tuple(
        worker.model_copy(update={"rank": rank, "share": (rank, rank + 1)}) for rank, worker in enumerate(by_node)
    )
    asked = "as asked for" if options.resources.workers else "as no more were asked for"
    summary = f"{ranks} rank{'' if ranks == 1 else 's'} on {len(order)} node{'' if len(order) == 1 else 's'}, {asked}"
    return plan.model_copy(update={"mode": "script", "workers": workers, "summary": summary, "most_workers": ranks})
