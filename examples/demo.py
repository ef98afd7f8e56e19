"""What `make demo` runs: an embedded master with two workers trains the digits model; the last line is JSON."""

from __future__ import annotations

import json
import time
from pathlib import Path

from digits import spec

import paceline as pl

WORKERS = 2
MODEL = Path("paceline-demo") / "digits.safetensors"


def main() -> None:
    started = time.monotonic()
    with pl.Client(local=True, cores=WORKERS) as client:
        wishes = {"microbatches": 8, "resources": pl.Resources(workers=WORKERS)}
        job = client.submit(spec.model_copy(update=wishes))
        print(job.plan.explain(), end="\n\n")
        job.watch()
        result = job.result()
        job.fetch(MODEL)
        state = job.state
    accuracy = result.metrics["val_accuracy"]
    print(f"stopped   {result.stop_reason}")
    print(f"accuracy  {accuracy:.4f} on held-out digits")
    print(f"digest    {result.digest}")
    print(f"model     {MODEL.resolve()}")
    print(
        json.dumps(
            {
                "state": state,
                "val_accuracy": accuracy,
                "digest": result.digest,
                "model": str(MODEL.resolve()),
                "workers": len(result.plan.workers),
                "seconds": round(time.monotonic() - started, 2),
            }
        )
    )


if __name__ == "__main__":
    main()
