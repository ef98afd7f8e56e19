"""`python paceline_train.py WORKERS SEED MODEL_FILE`: a whole script that trains with an embedded master."""

import sys

import ten_steps
import torch

import paceline as pl

workers, seed, path = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]

if __name__ == "__main__":
    with pl.Client(local=True, cores=max(2, workers)) as client:
        job = client.train(
            ten_steps.model(),
            ten_steps.data(seed),
            loss=ten_steps.loss,
            optimizer=ten_steps.optimizer,
            batch_size=ten_steps.BATCH,
            microbatches=ten_steps.MICROBATCHES,
            stop=pl.MaxSteps(ten_steps.STEPS),
            resources=pl.Resources(workers=workers),
        )
        torch.save(job.result().state_dict, path)
