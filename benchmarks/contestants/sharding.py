"""The work of sharded.py: a transformer of 12.7 million parameters, whose layers are the units, on made-up text."""

from __future__ import annotations

from functools import partial

import torch
from torch import nn
from torch.nn.functional import cross_entropy

BATCH, STEPS, WARM_UP_STEPS, WIDTH, LAYERS, LETTERS, LENGTH = 32, 60, 8, 512, 4, 64, 32

optimizer = partial(torch.optim.AdamW, lr=1e-4)
loss = cross_entropy


def data() -> tuple[torch.Tensor, torch.Tensor]:
    """2,000 lines of 32 of 64 letters, (n, 32); the target is which letter comes after the line."""
    made = torch.Generator().manual_seed(0)
    texts = torch.randint(0, LETTERS, (2_000, LENGTH + 1), generator=made)
    texts[:, -1] = (texts[:, 0] + texts[:, -2]) % LETTERS
    return texts[:, :-1].contiguous(), texts[:, -1].contiguous()


class Transformer(nn.Module):
    """No dropout, whose random numbers the peer would draw in another order."""

    def __init__(self, width: int = WIDTH, layers: int = LAYERS) -> None:
        super().__init__()
        self.letters = nn.Embedding(LETTERS, width)
        self.places = nn.Embedding(LENGTH, width)
        layer = nn.TransformerEncoderLayer(width, 8, 4 * width, dropout=0.0, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.head = nn.Linear(width, LETTERS)

    def forward(self, letters: torch.Tensor) -> torch.Tensor:
        places = torch.arange(letters.shape[1], device=letters.device)
        return self.head(self.encoder(self.letters(letters) + self.places(places))[:, -1])


def model() -> nn.Module:
    torch.manual_seed(0)
    return Transformer()
