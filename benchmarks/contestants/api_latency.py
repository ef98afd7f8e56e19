"""`python api_latency.py`: how long the API takes to answer, idle and while the master's own node trains.

Last line: `{"workers": n, "idle": {path: [seconds, …]}, "training": {…}}`.
"""

import json
import time

import steady

import paceline as pl

PATHS = ("version", "jobs")
REQUESTS = 400
PAUSE_S = 0.01


def ask(client: pl.Client) -> dict[str, list[float]]:
    """One request at a time, over a connection that stays open, as a dashboard would."""
    seconds: dict[str, list[float]] = {path: [] for path in PATHS}
    for _ in range(REQUESTS):
        for path in PATHS:
            started = time.perf_counter()
            client.get(f"/{path}")
            seconds[path].append(time.perf_counter() - started)
            time.sleep(PAUSE_S)
    return seconds


def train(client: pl.Client, steps: int) -> pl.Job:
    """The CNN in batches that are worth every core; the master chooses how many it takes."""
    work = steady.WORKLOADS["cnn"]
    return client.train(
        work.model(),
        work.data(),
        loss=steady.loss,
        optimizer=steady.optimizer,
        batch_size=256,
        microbatches=steady.MICROBATCHES,
        stop=pl.MaxSteps(steps),
    )


if __name__ == "__main__":
    with pl.Client(local=True) as client:
        train(client, steps=2).result()  # warms the master, and leaves it a job to list
        idle = ask(client)
        job = train(client, steps=10**6)
        next(event for event in job.events() if event.kind == "progress")
        training = ask(client)
        workers = len(job.plan.workers)
        job.cancel()
    print(json.dumps({"workers": workers, "idle": idle, "training": training}))
