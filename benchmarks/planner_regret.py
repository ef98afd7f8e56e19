"""How much slower is the plan that the master chooses than the best that could have been chosen? All are run for real.

    python benchmarks/planner_regret.py [--repeats 3] [--cases "cnn on four"] [--results FOLDER]

Clusters are emulated hosts: quotas of processor time and shaped links (as root, cgroups of version 1). In each repeat
of a case the master's own choice runs first, then every sensible choice of nodes, by name.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from _alternatives import CASES, CLUSTERS, MODELS, Case, Nodes, Outcome, alternatives, loss, optimizer, seconds_per_step
from _harness import RESULTS, Aim, Report, console, record

import paceline as pl
from paceline.testing.emulated import EmulatedCluster

SETTLE_S, MEASURE_S, LEAST_COMMITS = 3.0, 5.0, 4
TIMEOUT_S = 120.0
ENDLESS = 10**7
MEDIAN_AIM, WORST_AIM, SINGLE_AIM, PREDICTION_AIM = 0.05, 0.15, 0.05, 0.10


@dataclass
class Run:
    """One job, cancelled once its rate is known. plan: that it started by. shares: by node, at the end.

    losses: by step. corrections: of the plan, while the job ran.
    """

    plan: pl.Plan
    step_s: float = 0.0
    shares: dict[str, int] = field(default_factory=dict)
    losses: dict[int, float] = field(default_factory=dict)
    corrections: list[dict[str, Any]] = field(default_factory=list)

    @property
    def foreseen(self) -> list[tuple[float | None, float]]:
        """(predicted, measured) seconds a step, of the plan that it started by and of each that corrected it."""
        predicted = [None if self.plan.predicted is None else self.plan.predicted.step_s]
        predicted += [correction["predicted_step_s"] for correction in self.corrections]
        measured = [*(correction["step_s"] for correction in self.corrections), self.step_s]
        return list(zip(predicted, measured, strict=True))


def run(cluster: EmulatedCluster, case: Case, nodes: Nodes | None) -> Run:
    """Train on these nodes, each of them; None: as the master chooses. Raises TimeoutError."""
    model = MODELS[case.model]
    among = tuple(nodes or cluster.names)
    job = cluster.client.train(
        model.build(),
        model.data(),
        loss=loss,
        optimizer=optimizer,
        batch_size=model.batch,
        microbatches=model.microbatches,
        drop_last=True,
        stop=pl.MaxSteps(ENDLESS),
        eval_every=ENDLESS,
        resources=pl.Resources(nodes=among, workers=len(nodes) if nodes else None),
    )
    try:
        return _measured(job)
    finally:
        job.cancel()
        _until_free(cluster)


def _measured(job: pl.Job) -> Run:
    """Follow the job until its rate is known: some seconds after its first commit, and from enough commits."""
    commits: list[tuple[float, int]] = []
    found = Run(job.plan)
    deadline = time.monotonic() + TIMEOUT_S
    for event in job.events():
        if event.kind == "corrected":
            found.corrections.append(event.data)
        if event.kind == "progress":
            if not commits:
                found.plan = job.plan  # the one that it was submitted with was made before any probe
            commits.append((event.data["at"], event.data["step"]))
            found.losses[event.data["step"]] = event.data["loss"]
            enough = len([at for at, _ in commits if at - commits[0][0] >= SETTLE_S]) >= LEAST_COMMITS
            if enough and commits[-1][0] - commits[0][0] >= SETTLE_S + MEASURE_S:
                break
        if time.monotonic() > deadline:
            raise TimeoutError(f"not within {TIMEOUT_S:.0f} s: {LEAST_COMMITS} commits; there are {len(commits)}")
    found.shares = {worker.node_name: worker.share[1] - worker.share[0] for worker in job.plan.workers}
    found.step_s = seconds_per_step(commits, SETTLE_S) or 0.0
    if not found.step_s:
        raise RuntimeError(f"the job ended by itself: {job.info()['state']}, {job.info()['error']}")
    return found


def _until_measured(cluster: EmulatedCluster) -> None:
    """A cluster at rest knows its nodes' speed: each measures it at its join."""
    deadline = time.monotonic() + TIMEOUT_S
    while not all(node.speed for node in cluster.client.nodes() if node.name in cluster.names):
        if time.monotonic() > deadline:
            raise TimeoutError(f"not within {TIMEOUT_S:.0f} s: all nodes' speed is known")
        time.sleep(0.1)


def _until_free(cluster: EmulatedCluster) -> None:
    """The next run must find every node idle."""
    deadline = time.monotonic() + TIMEOUT_S
    while any(node.free_cores < node.cores for node in cluster.client.nodes()):
        if time.monotonic() > deadline:
            raise TimeoutError(f"not within {TIMEOUT_S:.0f} s: all nodes are free")
        time.sleep(0.05)


def compare(cluster: EmulatedCluster, case: Case, outcome: Outcome, losses: dict[int, set[float]]) -> None:
    """One repeat of a case. losses: by step, of all runs of the case."""
    choices: Sequence[Nodes | None] = [None, *alternatives(CLUSTERS[case.cluster])]
    for nodes in choices:
        done = run(cluster, case, nodes)
        for step, value in done.losses.items():
            losses.setdefault(step, set()).add(value)
        if nodes is None:
            outcome.chosen.append(done.step_s)
            outcome.foreseen.append(done.foreseen)
            outcome.plans.append(_described(done))
        else:
            outcome.alternatives.setdefault(nodes, []).append(done.step_s)
        console.print(f"  {'+'.join(nodes or _nodes_of(done.plan)):<14}{'' if nodes else 'chosen '}{done.step_s:.4g} s")


def _nodes_of(plan: pl.Plan) -> list[str]:
    return sorted(worker.node_name for worker in plan.workers)


def _described(done: Run) -> dict[str, Any]:
    planned = {worker.node_name: worker.share[1] - worker.share[0] for worker in done.plan.workers}
    return {
        "planned": planned, "at_the_end": done.shares, "summary": done.plan.summary, "corrections": done.corrections
    }  # fmt: skip


def run_cluster(name: str, cases: Sequence[Case], repeats: int) -> list[tuple[Outcome, bool]]:
    """(what came out, whether all runs of the case had the same losses), for each case on this cluster."""
    outcomes = {case: Outcome(case) for case in cases}
    losses: dict[Case, dict[int, set[float]]] = {case: {} for case in cases}
    with EmulatedCluster(CLUSTERS[name]) as cluster:
        _until_measured(cluster)
        for repeat in range(repeats):
            for case in cases[repeat % len(cases) :] + cases[: repeat % len(cases)]:
                console.print(f"{case.name}, repeat {repeat + 1} of {repeats}")
                compare(cluster, case, outcomes[case], losses[case])
    return [(outcomes[case], all(len(values) == 1 for values in losses[case].values())) for case in cases]


def fill(report: Report, outcomes: Sequence[Outcome]) -> None:
    """Figures, aims, and every case with the worst first."""
    worst_first = sorted(outcomes, key=lambda outcome: -outcome.regret(outcome.best))
    for outcome in worst_first:
        for value in outcome.chosen:
            record(report.figures, f"{outcome.case.name}: as chosen", "s/step", value)
        for what, nodes in (("best", outcome.best), ("best single node", outcome.best_single)):
            for value in outcome.alternatives[nodes]:
                record(report.peers, f"{outcome.case.name}: {what} ({'+'.join(nodes)})", "s/step", value)
    beyond = [outcome.beyond_spread(outcome.best) for outcome in outcomes]
    single = [outcome.beyond_spread(outcome.best_single) for outcome in outcomes]
    errors = [error for outcome in outcomes if (error := outcome.prediction_error) is not None]
    complete = len(errors) == len(outcomes)
    report.aims = [
        Aim.at_most("median regret beyond the spread", statistics.median(beyond), MEDIAN_AIM),
        Aim.at_most("worst regret beyond the spread", max(beyond), WORST_AIM),
        Aim.at_most("slower than the best single node, worst, beyond the spread", max(single), SINGLE_AIM),
        Aim.at_most("error of the predicted step time, median",
                    statistics.median(errors) if complete else None, PREDICTION_AIM),
    ]  # fmt: skip
    report.details["cases"] = [outcome.to_json() for outcome in worst_first]


def main() -> int:
    options = _options()
    report, started = Report("planner_regret", options.repeats), time.monotonic()
    cases = [case for case in CASES if not options.cases or any(part in case.name for part in options.cases)]
    results = []
    for name in dict.fromkeys(case.cluster for case in cases):
        results += run_cluster(name, [case for case in cases if case.cluster == name], options.repeats)
    fill(report, [outcome for outcome, _ in results])
    unequal = [outcome.case.name for outcome, equal in results if not equal]
    report.equal_losses = not unequal
    report.notes.append(
        f"losses differ in {', '.join(unequal)}" if unequal else "all runs of a case have the same losses, bit for bit"
    )
    report.details["seconds"] = round(time.monotonic() - started)
    return report.finish(options.results)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--cases", nargs="+", metavar="TEXT", help="only cases whose name holds one of these")
    parser.add_argument("--results", type=Path, default=RESULTS, metavar="FOLDER", help="where to write the JSON file")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
