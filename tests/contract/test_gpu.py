"""The same code path on an accelerator; skipped, with the reason, where there is none."""

from __future__ import annotations

from functools import partial

import pytest
import torch

import paceline as pl

from workloads import Cnn, Transformer, spec

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device on this machine"),
]


def test_a_job_on_the_gpu_repeats_to_the_bit(client: pl.Client) -> None:
    on_gpu = pl.Resources(workers=1, device="cuda")
    results = [client.submit(spec(Cnn, resources=on_gpu)).result(timeout=120) for _ in range(2)]
    assert results[0].digest == results[1].digest
    assert results[0].plan.workers[0].device.startswith("cuda")
    assert results[0].metrics["val_accuracy"] > 0.5


def test_a_sharded_job_trains_on_the_gpu(client: pl.Client) -> None:
    on_gpu = pl.Resources(workers=1, device="cuda")
    result = client.submit(spec(partial(Transformer, 192), sync="sharded", resources=on_gpu)).result(timeout=120)
    assert result.plan.workers[0].device.startswith("cuda")
    assert result.metrics["val_accuracy"] > 0.5


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="two workers on GPUs take two CUDA devices")
def test_two_gpus_give_the_digest_of_one(client: pl.Client) -> None:
    digests = {
        client.submit(spec(Cnn, resources=pl.Resources(workers=workers, device="cuda"))).result(timeout=120).digest
        for workers in (1, 2)
    }
    assert len(digests) == 1
