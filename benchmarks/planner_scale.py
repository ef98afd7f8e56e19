"""How long a plan takes on a large cluster: 10,000 nodes, 1,000 queued jobs planned one after the other.

    python benchmarks/planner_scale.py [--repeats 5] [--nodes 10000] [--jobs 1000] [--results FOLDER]

Nothing is trained: the planner is a pure function, and gets a made cluster and made jobs, the same ones in each repeat.
There is no peer: who trains elsewhere names the nodes, so that nothing is decided.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
import tracemalloc
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
from _harness import RESULTS, Aim, Report, console, quantiles, record

import paceline as pl
from paceline.measured import Calibration, CellTime, Link, Measured, Profile
from paceline.plan import Device, Node, Plan
from paceline.planner.planner import plan_workers
from paceline.spec import Facts, TrainOptions

GIB = 2**30
BOUND_MS = 100.0
SIZES = (10, 100, 1000, 3000, 10_000)
CURVE_JOBS = 40
TRACED_JOBS = 20
KINDS = (  # hardware class, cores, memory, FLOP/s of a core, price an hour, GPUs
    ("cpu:old", 8, 32, 4e10, 0.2, 0), ("cpu:old", 16, 64, 4e10, 0.4, 0), ("cpu:mid", 8, 32, 7e10, 0.3, 0),
    ("cpu:mid", 32, 128, 7e10, 1.2, 0), ("cpu:new", 16, 64, 1.1e11, 0.9, 0), ("cpu:new", 64, 256, 1.1e11, 3.0, 0),
    ("cpu:arm", 4, 8, 5e10, 0.1, 0), ("gpu", 32, 256, 9e10, 9.0, 8),
)  # fmt: skip
MODELS = ((1e4, 2e4), (3e5, 6e5), (8e5, 1e7), (2e7, 5e8), (1e8, 2e10))  # parameters, FLOP of a sample's forward


@dataclass
class Queued:
    """A job that waits."""

    options: TrainOptions
    facts: Facts
    known: Measured


@dataclass
class Pass:
    """One pass over the queue. outcomes: what became of each job, to compare passes by. cpu_s: of this process."""

    seconds: list[float] = field(default_factory=list)
    cpu_s: list[float] = field(default_factory=list)
    outcomes: list[str] = field(default_factory=list)


def main() -> int:
    options = _options()
    report = Report("planner_scale", options.repeats)
    queue = jobs(options.jobs, cluster(options.nodes))
    passes = []
    for repeat in range(options.repeats):
        free, full = _pass(cluster(options.nodes), queue), _pass(_full(cluster(options.nodes)), queue)
        passes.append(free)
        _record(report, "a plan", free.seconds)
        _record(report, "a plan, processor time", free.cpu_s)
        _record(report, "a refusal of a full cluster", full.seconds)
        record(report.figures, "the whole queue", "s", sum(free.seconds))
        console.print(f"repeat {repeat + 1} of {options.repeats}: a plan took {_ms(free.seconds)}")
    _curve(report, queue, options)
    _memory(report, queue, options.nodes)
    median, worst = report.figures["a plan, median"], report.figures["a plan, worst"]
    report.aims = [
        Aim.at_most("a plan, median, ms", median.median, BOUND_MS),
        Aim.at_most("a plan, worst of a pass, ms", worst.median, BOUND_MS),
    ]
    report.equal_losses = all(made.outcomes == passes[0].outcomes for made in passes)
    placed = sum(outcome != "waits" and outcome != "refused" for outcome in passes[0].outcomes)
    report.notes += [
        "'equal losses' here: every pass decided the same for every job",
        f"of {options.jobs} jobs, {placed} were placed, {passes[0].outcomes.count('waits')} would wait, "
        f"{passes[0].outcomes.count('refused')} were refused by their own limits",
        "the worst is that of a pass; the figure's median is over passes",
    ]
    return report.finish(options.results)


def _pass(nodes: list[Node], queue: Sequence[Queued]) -> Pass:
    """Plan each job on what the ones before it have left."""
    made, at = Pass(), {node.id: i for i, node in enumerate(nodes)}
    for job in queue:
        started, began = time.perf_counter(), time.process_time()
        found = _planned(nodes, job)
        made.seconds.append(time.perf_counter() - started)
        made.cpu_s.append(time.process_time() - began)
        if isinstance(found, pl.Unplaceable):
            made.outcomes.append("waits" if found.details["busy"] else "refused")
            continue
        made.outcomes.append(" ".join(worker.node_id for worker in found.workers))
        for name in {worker.node_id for worker in found.workers}:
            nodes[at[name]] = _less(nodes[at[name]], found)
    return made


def _planned(nodes: Sequence[Node], job: Queued) -> Plan | pl.Unplaceable:
    try:
        return plan_workers(nodes, job.options, job.facts, known=job.known)
    except pl.Unplaceable as refusal:
        return refusal


def _less(node: Node, plan: Plan) -> Node:
    """What the plan leaves of the node."""
    mine = [worker for worker in plan.workers if worker.node_id == node.id]
    used = {int(worker.device.split(":")[1]) for worker in mine if ":" in worker.device}
    return node.model_copy(
        update={
            "free_cores": node.free_cores - len(mine) * plan.cores_per_worker,
            "free_memory": node.free_memory - len(mine) * plan.memory_per_worker,
            "free_devices": tuple(index for index in node.free_devices if index not in used),
        }
    )


def _full(nodes: Sequence[Node]) -> list[Node]:
    return [node.model_copy(update={"free_cores": 0, "free_devices": ()}) for node in nodes]


def cluster(number: int) -> list[Node]:
    """Eight kinds of nodes of five hardware classes; speeds, memory and load differ from node to node."""
    chance = random.Random(1)
    return [_node(at, KINDS[at % len(KINDS)], chance) for at in range(number)]


def _node(at: int, kind: tuple[str, int, int, float, float, int], chance: random.Random) -> Node:
    name, cores, memory, flop_per_s, price, gpus = kind
    busy = cores // 2 if chance.random() < 0.3 else 0
    speed = [Calibration(device="cpu", flop_per_s=flop_per_s * chance.uniform(0.97, 1.03), at=0.0)]
    speed += [Calibration(device="cuda", flop_per_s=2e13 * chance.uniform(0.98, 1.02), at=0.0)] if gpus else []
    return Node(
        id=f"node-{at:05}",
        name=f"node-{at:05}",
        address="10.0.0.1",
        is_master=at == 0,
        hardware_class=name,
        cores=cores,
        memory=memory * GIB - chance.randrange(GIB),
        free_cores=cores - busy,
        free_memory=(memory - memory // 4) * GIB - chance.randrange(GIB),
        devices=tuple(Device(kind="cuda", index=index) for index in range(gpus)),
        free_devices=tuple(range(gpus)),
        load=chance.random() * 0.5,
        speed=tuple(speed),
        price=price,
    )


def jobs(number: int, nodes: Sequence[Node]) -> list[Queued]:
    """Models from an MLP to 100 million parameters; half are profiled, a fifth have limits, some links are known."""
    chance = random.Random(2)
    links = tuple(_links(nodes, chance))
    return [_job(chance, links) for _ in range(number)]


def _links(nodes: Sequence[Node], chance: random.Random) -> list[Link]:
    names = [node.id for node in nodes]
    pairs = {tuple(sorted(chance.sample(names, 2))) for _ in range(min(2000, len(names) ** 2 // 4))}
    return [
        Link(ends=pair, latency_s=2e-4, bytes_per_s=chance.choice([1.2e8, 1.2e9, 3e9]), at=0.0)
        for pair in sorted(pairs)
    ]


def _job(chance: random.Random, links: tuple[Link, ...]) -> Queued:
    parameters, flop = chance.choice(MODELS)
    batch, cells = chance.choice([32, 64, 128, 256]), chance.choice([1, 2, 4, 8, 8, 8, 16, 32])
    limits: dict[str, Any] = {}
    if chance.random() < 0.2:
        limits = chance.choice(
            [
                {"resources": pl.Resources(max_cost=chance.choice([0.01, 1.0, 50.0]))},
                {"deadline": chance.choice([60.0, 3600.0, 86_400.0])},
                {"resources": pl.Resources(workers=min(cells, 4))},
                {"reproducible": False},
            ]
        )
    asked = TrainOptions(
        batch_size=batch,
        microbatches=cells,
        threads=chance.choice([1, 1, 2]),
        stop=pl.MaxEpochs(chance.choice([1, 10, 50])),
        **{"resources": pl.Resources(device=chance.choice(["auto", "cpu", "cpu", "cpu"])), **limits},
    )
    facts = Facts(
        parameters=int(parameters),
        parameter_bytes=int(4 * parameters),
        flop_per_sample=flop,
        train_samples=chance.choice([10_000, 100_000, 1_000_000]),
        val_samples=1000,
    )
    profiles = (_profile(facts, name) for name in ("cpu:old", "cpu:new", "cpu:mid"))
    return Queued(asked, facts, Measured(profiles=tuple(profiles) if chance.random() < 0.5 else (), links=links))


def _profile(facts: Facts, hardware_class: str) -> Profile:
    nbytes, flop = facts.parameter_bytes or 0, facts.flop_per_sample or 0.0
    return Profile(
        hardware_class=hardware_class,
        device="cpu",
        cells=tuple(CellTime(samples=size, seconds=1e-3 + 3 * flop * size / 2e10) for size in (1, 8, 64)),
        cell_samples=8,
        update_s=nbytes / 2e9,
        state_bytes=4 * nbytes,
        activation_bytes=nbytes // 2,
        worker_bytes=5 * nbytes,
        exchange_bytes=nbytes,
        build_s=0.5,
        flop_per_s=7e10,
        at=0.0,
    )


def _record(report: Report, name: str, seconds: Sequence[float]) -> None:
    found = quantiles(seconds)
    record(report.figures, f"{name}, median", "ms", 1000 * found["p50"])
    record(report.figures, f"{name}, p99", "ms", 1000 * found["p99"])
    record(report.figures, f"{name}, worst", "ms", 1000 * max(seconds))


def _curve(report: Report, queue: Sequence[Queued], options: argparse.Namespace) -> None:
    """Cost against the number of nodes: a figure for each, and a curve of characters."""
    sizes = [size for size in SIZES if size < options.nodes] + [options.nodes]
    for size in sizes:
        for _ in range(options.repeats):
            median_s = quantiles(_pass(cluster(size), queue[:CURVE_JOBS]).seconds)["p50"]
            record(report.figures, f"{size} nodes, median of {CURVE_JOBS} plans", "ms", 1000 * median_s)
    medians = [report.figures[f"{size} nodes, median of {CURVE_JOBS} plans"].median for size in sizes]
    console.print("a plan's milliseconds by the number of nodes:")
    for size, value in zip(sizes, medians, strict=True):
        console.print(f"{size:>7}  {'█' * max(1, round(60 * value / max(medians)))} {value:.1f}")


def _memory(report: Report, queue: Sequence[Queued], number: int) -> None:
    """What a plan takes beside the nodes, at its peak; and the process, with the nodes and the queue."""
    nodes = cluster(number)
    for job in queue[:TRACED_JOBS]:
        tracemalloc.start()
        _pass(nodes, [job])
        record(report.figures, "memory of a plan at its peak", "MiB", tracemalloc.get_traced_memory()[1] / 2**20)
        tracemalloc.stop()
    record(report.figures, "memory of the process", "MiB", psutil.Process().memory_info().rss / 2**20)


def _ms(seconds: Sequence[float]) -> str:
    found = quantiles(seconds)
    worst = f"{1000 * found['p99']:.1f} at p99, {1000 * max(seconds):.1f} at worst"
    return f"{1000 * found['p50']:.1f} ms in the median, {worst}"


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--nodes", type=int, default=10_000)
    parser.add_argument("--jobs", type=int, default=1000, help="that are queued")
    parser.add_argument("--results", type=Path, default=RESULTS, metavar="FOLDER", help="where to write the JSON file")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
