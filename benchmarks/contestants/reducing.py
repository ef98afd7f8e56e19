"""`python reducing.py METHOD WORKERS`: the CNN of steady.py, its gradients summed by `tree`, `int64`, `int32` or `ddp`.

The workers are plain processes on this machine, without a master. Last line: `{samples_per_s, bytes_per_step,
mean_loss, digest, redone, error}`; rate and bytes without the warm-up; digest: of the trained parameters; error: of one
step's gradients against the same in float64, see `error_of_a_step`.
"""

import hashlib
import json
import multiprocessing
import os
import sys
import time
from typing import Any

import steady
import sums
import torch
import torch.distributed as dist
from traffic import loopback_bytes

STEPS = 100  # with the warm-up
WORK = steady.WORKLOADS["cnn"]


def error_of_a_step(gradients: sums.Sum, data: sums.Data) -> dict[str, float]:
    """Of the second batch, at the first weights; the first batch serves the integers to learn their scale.

    whole: relative, of the gradient's norm; element: the median over elements that are not zero, relative to each.
    """
    gradients.gradients(0)
    _, found = gradients.gradients(1)
    reference = sums.Cells(WORK.model().double(), data, WORK.batch, steady.MICROBATCHES)
    for cell in range(steady.MICROBATCHES):
        reference.backward(1, cell, torch.float64)
    exact = torch.cat([parameter.grad.flatten() for parameter in reference.model.parameters()])
    off = torch.cat([gradient.flatten().double() for gradient in found]) - exact
    each = (off.abs() / exact.abs())[exact != 0]
    return {"whole": float(off.norm() / exact.norm()), "element": float(each.median())}


def train(method: str, data: sums.Data, place: int, world: int, port: int) -> tuple[dict[str, Any], Any]:
    """(what was measured, what held the process group)."""
    torch.set_num_threads(1)
    model = WORK.model()
    optimizer = steady.optimizer(model.parameters())
    gradients = sums.make(method, model, data, WORK.batch, place, world, port)
    error = error_of_a_step(gradients, data)
    started, before, losses = time.perf_counter(), 0, []
    for step in range(STEPS):
        if step == steady.WARM_UP_STEPS:
            started, before = time.perf_counter(), loopback_bytes()
        loss, found = gradients.gradients(step)
        losses.append(loss)
        for parameter, gradient in zip(model.parameters(), found, strict=True):
            parameter.grad = gradient
        optimizer.step()
        optimizer.zero_grad()
    seconds, sent = time.perf_counter() - started, loopback_bytes() - before
    mean = torch.tensor([sum(losses) / len(losses)])
    if method == "ddp":
        dist.all_reduce(mean)
        mean /= world
        dist.destroy_process_group()
    digest = hashlib.sha256(b"".join(p.detach().numpy().tobytes() for p in model.parameters())).hexdigest()
    steps = STEPS - steady.WARM_UP_STEPS
    rates = {"samples_per_s": steps * WORK.batch / seconds, "bytes_per_step": sent / steps}
    found = {**rates, "mean_loss": mean.item(), "digest": digest, "redone": gradients.redone, "error": error}
    return found, gradients


def worker(method: str, data: sums.Data, place: int, world: int, ports: Any, results: Any) -> None:
    found, _held = train(method, data, place, world, ports.get())
    results.put((place, found))
    os._exit(0)  # the end of a gloo group joins its threads, and hung there once


def main(method: str, world: int) -> int:
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    data = WORK.data()
    forking = multiprocessing.get_context("fork")  # before the store's threads are there
    ports, results = forking.SimpleQueue(), forking.SimpleQueue()
    places = range(world)
    workers = [forking.Process(target=worker, args=(method, data, place, world, ports, results)) for place in places]
    for process in workers:
        process.start()
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    for _ in workers:
        ports.put(store.port)
    for process in workers:
        process.join()
    if any(process.exitcode for process in workers):
        return 1
    found = dict(results.get() for _ in workers)
    if len({result["digest"] for result in found.values()}) > 1:
        print("the workers hold different models", file=sys.stderr)
        return 1
    print(json.dumps(found[0]))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], int(sys.argv[2])))
