"""Predicted against measured memory of a training worker, on ten models from an MLP to transformers.

    python benchmarks/planner_memory.py [--repeats 3] [--only NAME]… [--results FOLDER]

Predicted: by the probe that runs before a job is planned, for a lone worker and for one of two. Measured: what a worker
of a job of the same kind grew by over a bare worker, at its most, while it trained and wrote checkpoints; memory that
no file backs, as the system counts it. The data is random: memory depends on shapes alone.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import psutil
import torch
from _harness import RESULTS, Aim, Report, console, record
from torch import nn
from torch.nn.functional import cross_entropy, mse_loss

import paceline as pl
from paceline.planner.predict import EXCHANGE_COPIES

MOST_ERROR = 0.15
CHECKPOINTS, CHECKPOINT_S = 3, 1.0
SAMPLE_EVERY_S = 0.005
LONG = pl.MaxSteps(10**9)

adamw = partial(torch.optim.AdamW, lr=1e-4)
sgd = partial(torch.optim.SGD, lr=1e-3)
momentum = partial(torch.optim.SGD, lr=1e-3, momentum=0.9)


# ---- the models ----


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(64, 384, num_layers=2, batch_first=True)
        self.head = nn.Linear(384, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.lstm(x)[0][:, -1])


class Recommender(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.users, self.items = nn.Embedding(400_000, 32), nn.Embedding(200_000, 32)
        self.top = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 1))

    def forward(self, pairs: torch.Tensor) -> torch.Tensor:
        return self.top(torch.cat([self.users(pairs[:, 0]), self.items(pairs[:, 1])], 1)).squeeze(1)


class Encoder(nn.Module):
    def __init__(self, width: int, layers: int) -> None:
        super().__init__()
        self.embed = nn.Linear(16, width)
        layer = nn.TransformerEncoderLayer(width, 4, 4 * width, dropout=0.1, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.head = nn.Linear(width, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.encoder(self.embed(x)).mean(1))


class Decoder(nn.Module):
    """A small language model: causal attention, one embedding at both ends."""

    def __init__(self, vocabulary: int, width: int, layers: int, length: int) -> None:
        super().__init__()
        self.embed, self.place = nn.Embedding(vocabulary, width), nn.Embedding(length, width)
        layer = nn.TransformerEncoderLayer(width, 6, 4 * width, dropout=0.0, batch_first=True, norm_first=True)
        self.body = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.head = nn.Linear(width, vocabulary, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        mask = nn.Transformer.generate_square_subsequent_mask(tokens.shape[1])
        hidden = self.embed(tokens) + self.place(torch.arange(tokens.shape[1]))
        return self.head(self.body(hidden, mask=mask, is_causal=True))


def next_token_loss(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return cross_entropy(outputs.flatten(0, 1), targets.flatten())


class Block(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1), nn.BatchNorm2d(channels), nn.ReLU(),
            nn.Conv2d(channels, channels, 3, padding=1), nn.BatchNorm2d(channels),
        )  # fmt: skip

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(x + self.body(x))


def dense(*widths: int) -> nn.Module:
    layers: list[nn.Module] = []
    for before, after in pairwise(widths):
        layers += [nn.Linear(before, after), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def cnn() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(32, 64, 3, padding=1), nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Dropout(0.2), nn.Linear(64 * 64, 512), nn.ReLU(), nn.Linear(512, 10),
    )  # fmt: skip


def resnet() -> nn.Module:
    stem = [nn.Conv2d(3, 64, 3, padding=1), nn.BatchNorm2d(64), nn.ReLU()]
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10)]
    return nn.Sequential(*stem, *[Block(64) for _ in range(4)], *head)


def autoencoder() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 64, 3, stride=2, padding=1), nn.ReLU(), nn.Conv2d(64, 128, 3, stride=2, padding=1), nn.ReLU(),
        nn.Flatten(), nn.Linear(128 * 64, 256), nn.Linear(256, 128 * 64), nn.Unflatten(1, (128, 8, 8)),
        nn.ConvTranspose2d(128, 64, 4, stride=2, padding=1), nn.ReLU(),
        nn.ConvTranspose2d(64, 3, 4, stride=2, padding=1),
    )  # fmt: skip


# ---- their data ----


def classes(*shape: int, samples: int = 2048) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(samples, *shape), torch.randint(0, 10, (samples,))


def images_twice() -> tuple[torch.Tensor, torch.Tensor]:
    x = torch.randn(1024, 3, 32, 32)
    return x, x.clone()


def ratings() -> tuple[torch.Tensor, torch.Tensor]:
    pairs = torch.stack([torch.randint(0, 400_000, (8192,)), torch.randint(0, 200_000, (8192,))], 1)
    return pairs, torch.rand(8192)


def tokens() -> tuple[torch.Tensor, torch.Tensor]:
    text = torch.randint(0, 8000, (1024, 129))
    return text[:, :-1].contiguous(), text[:, 1:].contiguous()


@dataclass(frozen=True)
class Case:
    """model, data: built when the case is run. fields: of the spec, beyond the usual ones."""

    model: Callable[[], nn.Module]
    data: Callable[[], Any]
    optimizer: Any = adamw
    batch_size: int = 64
    fields: dict[str, Any] = field(default_factory=dict)

    def spec(self, **changes: Any) -> pl.TrainSpec:
        torch.manual_seed(0)
        usual = {"loss": cross_entropy, "microbatches": 4, "stop": LONG, "eval_every": 10**6}
        made = {"model": self.model(), "train_data": self.data(), "optimizer": self.optimizer}
        return pl.TrainSpec(**{**usual, **made, "batch_size": self.batch_size, **self.fields, **changes})


CASES: dict[str, Case] = {
    "mlp": Case(partial(dense, 784, 512, 512, 10), partial(classes, 784), momentum),
    "wide mlp": Case(partial(dense, 784, 3072, 3072, 10), partial(classes, 784)),
    "deep mlp": Case(partial(dense, 256, *[768] * 16, 10), partial(classes, 256), sgd, 256),
    "cnn": Case(cnn, partial(classes, 3, 32, 32), momentum, 256),
    "resnet": Case(resnet, partial(classes, 3, 32, 32, samples=512), adamw, 64),
    "autoencoder": Case(autoencoder, images_twice, adamw, 128, {"loss": mse_loss}),
    "lstm": Case(Recurrent, partial(classes, 48, 64), adamw, 128),
    "recommender": Case(Recommender, ratings, adamw, 1024, {"loss": mse_loss}),
    "encoder": Case(partial(Encoder, 256, 4), partial(classes, 64, 16), adamw, 64),
    "decoder": Case(
        partial(Decoder, 8000, 384, 4, 128), tokens, adamw, 16, {"loss": next_token_loss, "precision": "bf16-mixed"}
    ),
}


# ---- measuring ----


def sleeping_data(data: Any) -> Any:
    time.sleep(1.5)
    return torch.utils.data.TensorDataset(*data)


def own_bytes(pid: int) -> int:
    """Memory of a process that no file backs."""
    _, resident, shared, *_ = Path(f"/proc/{pid}/statm").read_text().split()
    return (int(resident) - int(shared)) * os.sysconf("SC_PAGE_SIZE")


def bare_worker(client: pl.Client) -> int:
    """What a worker that has built nothing has more than the server that it was forked from."""
    data = classes(8, samples=64)
    sleeps = Case(partial(dense, 8, 10), lambda: partial(sleeping_data, data), sgd, 8)
    job = client.submit(sleeps.spec(resources=pl.Resources(workers=1)))
    pid = wait_for(lambda: next((w["pid"] for w in job.workers() if w["pid"]), None))
    time.sleep(1.0)
    extra = own_bytes(pid) - own_bytes(psutil.Process(pid).ppid())
    job.cancel()
    ended(job)
    return extra


def predicted(client: pl.Client, case: Case) -> dict[str, Any]:
    """The "probed" row of a job of this kind; {"missed": why} where its probe is given up, as on too slow a machine."""
    job = client.submit(case.spec())
    found = wait_for(lambda: next((e for e in job.events_so_far() if e.kind in ("probed", "probe_missed")), None))
    job.cancel()
    ended(job)
    return dict(found.data) if found.kind == "probed" else {"missed": str(found.data)}


def measured(client: pl.Client, case: Case, row: dict[str, Any], bare: int, workers: int = 1) -> int:
    """What a worker grew by at its most, from its start until it has written checkpoints, one about each second."""
    step_s = 4 * row["cells"][-1]["seconds"] + row["update_s"]
    every = max(2, round(CHECKPOINT_S / step_s))
    job = client.submit(case.spec(resources=pl.Resources(workers=workers), checkpoint_every=every))
    pid = wait_for(lambda: next((w["pid"] for w in job.workers() if w["pid"]), None))
    before = own_bytes(psutil.Process(pid).ppid()) + bare
    most, until = 0, None
    while until is None or time.monotonic() < until:
        most = max(most, own_bytes(pid))
        time.sleep(SAMPLE_EVERY_S)
        written = sum(event.kind == "checkpoint" for event in job.events_so_far())
        until = time.monotonic() + CHECKPOINT_S / 2 if until is None and written >= CHECKPOINTS else until
    job.cancel()
    ended(job)
    return most - before


def wait_for(found: Callable[[], Any], within_s: float = 120.0) -> Any:
    deadline = time.monotonic() + within_s
    while (value := found()) is None:
        if time.monotonic() > deadline:
            raise SystemExit(f"not within {within_s} s")
        time.sleep(0.01)
    return value


def ended(job: pl.Job) -> None:
    wait_for(lambda: None if job.workers() else True)


def main() -> int:
    options = _options()
    report = Report("planner_memory", options.repeats)
    with pl.Client(local=True, agents=2, cores=2) as client:
        wait_for(lambda: True if len(client.nodes()) == 2 else None)
        bare = bare_worker(client)
        report.notes.append(f"a bare worker has {bare / 2**20:.1f} MiB more than its fork server")
        for name in options.only or CASES:
            _case(report, client, name, bare, options.repeats)
    for workers in ("alone", "of two"):
        errors = {name: abs(case["error"][workers]) for name, case in report.details.items()}
        worst = max(errors, key=lambda name: errors[name])
        report.aims += [
            Aim.at_most(f"largest error for a worker {workers} ({worst})", errors[worst], MOST_ERROR),
            Aim.at_most(f"median error for a worker {workers}", statistics.median(errors.values()), MOST_ERROR),
        ]
    report.equal_losses = True
    report.notes.append("no losses are compared: predicted and measured are one and the same job")
    return report.finish(options.results)


def _case(report: Report, client: pl.Client, name: str, bare: int, repeats: int) -> None:
    row = predicted(client, CASES[name])
    if "missed" in row:
        report.notes.append(f"{name} is left out: {row['missed']}")
        return
    probed = {"alone": row["worker_bytes"], "of two": row["worker_bytes"] + EXCHANGE_COPIES * row["exchange_bytes"]}
    errors: dict[str, float] = {}
    for workers, (kind, foretold) in enumerate(probed.items(), start=1):
        record(report.figures, f"{name} {kind}, predicted", "MiB", foretold / 2**20)
        for _ in range(repeats if workers == 1 else 1):
            grown = measured(client, CASES[name], row, bare, workers)
            record(report.figures, f"{name} {kind}, measured", "MiB", grown / 2**20)
        found = report.figures[f"{name} {kind}, measured"].median
        errors[kind] = foretold / 2**20 / found - 1
        console.print(f"{name} {kind}: predicted {foretold / 2**20:.1f}, measured {found:.1f} MiB: {errors[kind]:+.1%}")
    report.details[name] = {"probed": row, "error": errors}


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--only", action="append", default=[], choices=list(CASES))
    parser.add_argument("--results", type=Path, default=RESULTS, metavar="FOLDER", help="where to write the JSON file")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
