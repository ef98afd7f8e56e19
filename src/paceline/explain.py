"""A plan as text for people, and as the document of `paceline plan --json`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from paceline.plan import Plan, Prediction

JOB_FIELDS = ("step_s", "finish_s", "memory_bytes", "traffic_bytes_per_step")
MORE_FIELDS = ("compute_s", "exchange_s", "hidden_s", "update_s", "start_s", "epoch_s", "cost", "uncertainty")
NAMED = 3  # nodes of one reason, in the text; --json has all


def duration(seconds: float | None) -> str:
    """`42 µs`, `420 ms`, `12.3 s`, `34 min`, `5.1 h`; `?` where it is not known."""
    if seconds is None:
        return "?"
    for unit, length in (("h", 3600.0), ("min", 60.0)):
        if seconds >= 2 * length:
            return f"{seconds / length:.3g} {unit}"
    if seconds >= 1:
        return f"{seconds:.3g} s"
    return f"{1000 * seconds:.3g} ms" if seconds >= 1e-3 or not seconds else f"{1e6 * seconds:.3g} µs"


def size(nbytes: float) -> str:
    """`12.3 MiB`, `4.0 GiB`."""
    for unit, length in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if nbytes >= length:
            return f"{nbytes / length:.1f} {unit}"
    return f"{nbytes:.0f} B"


def counted(count: int, word: str, ending: str = "s") -> str:
    """`1 worker`, `2 workers`."""
    return f"{count} {word}{ending if count != 1 else ''}"


def explained(plan: Plan) -> str:
    """Blocks of lines, in the order in which a reader asks."""
    blocks = [
        [f"{plan.mode}: {plan.summary}", *_waiting(plan)],
        _predicted(plan.predicted),
        _nodes(plan) if _is_as_planned(plan) else _workers(plan),
        _alternatives(plan),
        _titled("faster with", [f"  {line}" for line in plan.faster]),
        _reasons(plan),
    ]
    return "\n\n".join("\n".join(lines) for lines in blocks if lines)


def document(plan: Plan) -> dict[str, Any]:
    """Of plain JSON values."""
    waiting = plan.waiting.model_dump() if plan.waiting else {}
    return {
        "decision": {"answer": "queued" if waiting else "granted", **waiting, "summary": plan.summary},
        "chosen": {
            "mode": plan.mode,
            "nodes": _chosen(plan),
            "predicted": _fields(plan.predicted),
        },
        "alternatives": [
            {
                "mode": other.mode,
                "nodes": [{"name": name, "workers": workers} for name, workers in other.workers_on.items()],
                "predicted": _fields(other.predicted),
                "reason": other.reason,
            }
            for other in plan.alternatives
        ],
        "rejected": [{"node": name, "reason": r.reason} for r in plan.reasons if not r.taken for name in r.nodes],
        "faster": list(plan.faster),
    }


def _chosen(plan: Plan) -> list[dict[str, Any]]:
    """The nodes; of a plan without a prediction, such as a sharded one, an entry for each worker."""
    if plan.nodes:
        return [node.model_dump(mode="json", include={"name", "share", "predicted"}) for node in plan.nodes]
    return [{"name": w.node_name, "share": list(w.share), "predicted": None} for w in plan.workers]


def _fields(predicted: Prediction | None) -> dict[str, Any] | None:
    if predicted is None:
        return None
    found = predicted.model_dump(mode="json")
    return {name: found[name] for name in (*JOB_FIELDS, *MORE_FIELDS, "extrapolated", "doubts")}


def _waiting(plan: Plan) -> list[str]:
    if plan.waiting is None:
        return []
    start = plan.waiting.expected_start_s
    when = "when running jobs end" if start is None else f"in about {duration(start)}"
    return [f"queued: place {plan.waiting.place}, to start {when}"]


def _predicted(p: Prediction | None) -> list[str]:
    if p is None:
        return []
    parts = f"{duration(p.compute_s)} compute, {duration(p.exchange_s)} exchange"
    parts += f" ({duration(p.hidden_s)} of it under compute)" if p.hidden_s else ""
    parts += f", {duration(p.update_s)} update"
    lines = ["predicted", f"  step      {duration(p.step_s)} ± {p.uncertainty:.0%}: {parts}"]
    end = f"at most {duration(p.finish_s)}, of which {duration(p.start_s)} until the first step"
    lines.append(f"  finish    {end}" + (f"; an epoch takes {duration(p.epoch_s)}" if p.epoch_s else ""))
    lines.append(f"  traffic   {size(p.traffic_bytes_per_step)} a step")
    lines.append(f"  memory    {size(p.memory_bytes)} a worker")
    lines += [f"  cost      {p.cost:.4g}"] if p.cost else []
    return lines + [f"  doubt     {doubt}" for doubt in p.doubts]


def _is_as_planned(plan: Plan) -> bool:
    """Whether the workers are still those that the prediction was made for: a running job's come and go."""
    now: dict[str, int] = {}
    for worker in plan.workers:
        now[worker.node_name] = now.get(worker.node_name, 0) + 1
    return bool(plan.nodes) and now == {node.name: node.workers for node in plan.nodes}


def _workers(plan: Plan) -> list[str]:
    if plan.mode == "script":  # whose ranks have no shares of a grid
        return _table(("rank", "node", "device"), [(str(w.rank), w.node_name, w.device) for w in plan.workers])
    rows = [(str(w.rank), w.node_name, w.device, f"{w.share[0]}..{w.share[1] - 1}") for w in plan.workers]
    table = _table(("rank", "node", "device", f"microbatches of {plan.microbatches}"), rows)
    began = sum(node.workers for node in plan.nodes)
    return [f"its newest workers; what is predicted is of the {began} that it began with", *table] if began else table


def _nodes(plan: Plan) -> list[str]:
    rows = []
    for node in plan.nodes:
        first, end = node.share
        rows.append(
            (
                node.name,
                f"{node.workers} on {_devices(plan, node.name)}",
                f"{first}..{end - 1}" if end > first else "none",
                f"{node.workers * plan.cores_per_worker} of {node.cores}",
                f"{size(node.predicted.memory_bytes)} of {size(node.memory)}",
                duration(node.predicted.step_s),
                f"{size(node.predicted.traffic_bytes_per_step)}",
            )
        )
    columns = ("node", "workers", f"microbatches of {plan.microbatches}", "cores", "memory", "computes", "sends a step")
    return _table(columns, rows)


def _devices(plan: Plan, node: str) -> str:
    found = [worker.device for worker in plan.workers if worker.node_name == node]
    return ", ".join(dict.fromkeys(found))


def _alternatives(plan: Plan) -> list[str]:
    rows = [
        (
            ", ".join(f"{number} on {name}" for name, number in list(other.workers_on.items())[:4])
            + (" …" if len(other.workers_on) > 4 else ""),
            duration(other.predicted.step_s),
            duration(other.predicted.finish_s),
            other.reason,
        )
        for other in plan.alternatives
    ]
    return _table(("instead", "step", "finish", "why not"), rows) if rows else []


def _reasons(plan: Plan) -> list[str]:
    taken, others = [r for r in plan.reasons if r.taken], [r for r in plan.reasons if not r.taken]
    lines = [f"  {'+' if r.taken else '-'} {_named(r.nodes):<20}{r.reason}" for r in (*taken, *others)]
    return _titled("nodes", lines)


def _named(nodes: Sequence[str]) -> str:
    shown = ", ".join(nodes[:NAMED])
    return f"{shown} and {len(nodes) - NAMED} more  " if len(nodes) > NAMED else f"{shown}  "


def _titled(title: str, lines: Sequence[str]) -> list[str]:
    return [title, *lines] if lines else []


def _table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    cells = [list(columns), *map(list, rows)]
    widths = [max(len(row[at]) for row in cells) for at in range(len(columns))]
    rows_of_cells = (zip(row, widths, strict=True) for row in cells)
    return ["  " + "  ".join(cell.ljust(width) for cell, width in row).rstrip() for row in rows_of_cells]
