"""`python paceline_warm.py ENGINE`: submissions to a warm master. Last line: `{"1": {seconds, loss}, "2": …}`."""

import json
import sys
import time
from typing import Any

import ten_steps

import paceline as pl

CORES = 2


def submit_to_model(client: pl.Client, workers: int, seed: int) -> dict[str, float]:
    model, data = ten_steps.model(), ten_steps.data(seed)
    started = time.perf_counter()
    job = client.train(
        model,
        data,
        loss=ten_steps.loss,
        optimizer=ten_steps.optimizer,
        batch_size=ten_steps.BATCH,
        microbatches=ten_steps.MICROBATCHES,
        stop=pl.MaxSteps(ten_steps.STEPS),
        resources=pl.Resources(workers=workers),
    )
    state = job.result().state_dict
    return {"seconds": time.perf_counter() - started, "loss": ten_steps.loss_of(state, seed)}


def wait_idle(client: pl.Client) -> None:
    """A former job's workers may still be leaving."""
    deadline = time.monotonic() + 60
    while sum(node.free_cores for node in client.nodes()) < CORES:
        if time.monotonic() > deadline:
            raise SystemExit(f"the cluster has no {CORES} free cores after 60 s: {client.nodes()}")
        time.sleep(0.05)


def measure(client: pl.Client) -> dict[str, Any]:
    wait_idle(client)
    submit_to_model(client, 1, seed=0)  # warms the master; its data is nobody else's
    measured = {}
    for workers in (1, 2):
        wait_idle(client)
        measured[str(workers)] = submit_to_model(client, workers, seed=workers)
    return measured


def main(engine: str) -> dict[str, Any]:
    try:
        client = pl.Client(local=True, engine=engine, cores=CORES if engine == "local" else None)
    except pl.PacelineError as error:
        return {"unavailable": f"{type(error).__name__}: {error}"}
    with client:
        return measure(client)


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1])))
