"""Fashion-MNIST: a CNN with batch-norm on 60,000 images, on as many workers as the master finds worth it.

Data: the four canonical idx files, from Debian (`apt-get install dataset-fashion-mnist`) or from a folder of yours
that FASHION_MNIST names: {train,t10k}-{images-idx3,labels-idx1}-ubyte.gz. The images travel as bytes and become
floats in the model, which makes the upload four times smaller.
Expected: at least 90% accuracy on the 10,000 test images, in about 2 minutes on two cores.

    python examples/fashion_mnist.py          # an embedded master on this machine, or the one at PACELINE_URL
    paceline train examples/fashion_mnist.py  # the master of `paceline login`
"""

import gzip
import math
import os
import sys
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import nn

import paceline as pl

EXPECTED_ACCURACY = 0.90
FOLDER = Path(os.environ.get("FASHION_MNIST") or "/usr/share/datasets/fashion-mnist")


def load(part):
    """(images, labels) of "train" or "t10k": uint8 of shape (n, 1, 28, 28), and (n,)."""
    files = [FOLDER / f"{part}-{kind}-ubyte.gz" for kind in ("images-idx3", "labels-idx1")]
    if not all(file.exists() for file in files):
        raise FileNotFoundError(
            f"no Fashion-MNIST in {FOLDER}: `apt-get install dataset-fashion-mnist`, or set FASHION_MNIST to a folder "
            f"with its four .gz files"
        )
    images, labels = (bytearray(gzip.decompress(file.read_bytes())) for file in files)  # torch wants it writable
    pixels = np.frombuffer(images, np.uint8, offset=16)  # behind the idx format's header
    return pixels.reshape(-1, 1, 28, 28), np.frombuffer(labels, np.uint8, offset=8)


class Cnn(nn.Module):
    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(block(1, 16), block(16, 32), nn.Flatten())
        self.head = nn.Sequential(nn.Linear(32 * 7 * 7, 128), nn.ReLU(), nn.Dropout(0.3), nn.Linear(128, 10))

    def forward(self, images):
        return self.head(self.features(images / 255 - 0.286))


def block(inputs, outputs):
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU(), nn.MaxPool2d(2))


def accuracy(outputs, targets):
    return (outputs.argmax(1) == targets).float().mean()


def cosine(samples_seen, total_samples):
    """Down from 1 to 0 along half a cosine."""
    return (1 + math.cos(math.pi * samples_seen / total_samples)) / 2


torch.manual_seed(0)
spec = pl.TrainSpec(
    name="fashion-mnist",
    model=Cnn(),
    train_data=load("train"),
    val_data=load("t10k"),
    loss=nn.functional.cross_entropy,
    optimizer=partial(torch.optim.AdamW, lr=2e-3),
    lr_schedule=cosine,
    batch_size=256,
    metrics={"accuracy": accuracy},
    stop=pl.MaxEpochs(5),
    seed=0,
)

if __name__ == "__main__":
    with pl.Client(local="PACELINE_URL" not in os.environ) as client:
        job = client.submit(spec)
        job.watch()
        result = job.result()
        print(job.plan.explain())
    reached = result.history[-1]["val_accuracy"]
    print(f"{result.train_seconds:.0f} s; model {result.digest}, reproducible: {result.reproducible}")
    print(f"test accuracy {reached:.2%}, expected at least {EXPECTED_ACCURACY:.0%}")
    sys.exit(reached < EXPECTED_ACCURACY)
