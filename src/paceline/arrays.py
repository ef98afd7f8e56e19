"""Data given as arrays: equal-length columns, the targets last. Made by the client, opened in workers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Arrays:
    """columns: numpy arrays or torch tensors of equal length along dimension 0; a sample is one row of each."""

    columns: tuple[Any, ...]

    def __len__(self) -> int:
        return len(self.columns[0])

    def __getitem__(self, index: int) -> tuple[Any, ...]:
        return tuple(column[index] for column in self.columns)
