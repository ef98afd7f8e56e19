"""`python paceline_faulty.py FOLDER EVERY`: a job that goes on until this process ends; its events in FOLDER/events."""

import json
import sys
from functools import partial
from pathlib import Path

import faulty
import steady

import paceline as pl

ENDLESS = 10**9

if __name__ == "__main__":
    folder, every = sys.argv[1], int(sys.argv[2])
    with pl.Client(local=True, cores=faulty.WORKERS) as client, (Path(folder) / "events").open("w") as events:
        job = client.train(
            faulty.work.model(),
            faulty.work.data(),
            loss=faulty.loss,
            optimizer=partial(faulty.LoggedAdamW, folder=folder),
            batch_size=faulty.work.batch,
            microbatches=steady.MICROBATCHES,
            drop_last=True,
            checkpoint_every=every,
            stop=pl.MaxSteps(ENDLESS),
            resources=pl.Resources(workers=faulty.WORKERS),
        )
        for event in job.events():
            events.write(json.dumps({"kind": event.kind, **event.data}) + "\n")
            events.flush()
    raise SystemExit("the job has ended")
