"""Model and training state as safetensors plus JSON; nothing is pickled.

A checkpoint holds `model/<name>`, `best/<name>` where a best model is kept, and `optim/<parameter>/<key>`; scalars of
the optimizer lie in the file's JSON metadata.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save, save_file

from paceline.errors import InvalidSpec

Tensors = dict[str, torch.Tensor]


def model_tensors(model: torch.nn.Module) -> Tensors:
    """A copy on the CPU of the model's state, by name. Raises InvalidSpec for state that is no tensor."""
    state = tensors_only(model.state_dict())
    return {name: value.detach().cpu().clone(memory_format=torch.contiguous_format) for name, value in state.items()}


def tensors_only(state: dict[str, Any]) -> Tensors:
    """The same state dict. Raises InvalidSpec for state that is no tensor."""
    odd = [name for name, value in state.items() if not isinstance(value, torch.Tensor)]
    if odd:
        raise InvalidSpec(
            f"the model's state {odd[0]!r} is a {type(state[odd[0]]).__name__}, not a tensor.",
            "Keep it out of the state dict (get_extra_state), or make it a buffer.",
        )
    return state


def save_tensors(tensors: Tensors, path: Path, metadata: dict[str, str] | None = None) -> None:
    """Write a safetensors file. Raises OSError."""
    try:
        save_file(tensors, path, metadata=metadata)
    except SafetensorError as error:  # the system's errors among them, by their number
        number = re.search(r"os error (\d+)", str(error))
        if number is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1]))) from error


class Snapshot:
    """A copy on the CPU of all that training needs to go on. The next one is laid into the same memory."""

    def __init__(self) -> None:
        self._held: Tensors = {}

    def take(
        self, model: torch.nn.Module, optimizer: torch.optim.Optimizer, best: Tensors | None
    ) -> tuple[Tensors, dict[str, str]]:
        """(tensors, JSON metadata); the tensors hold until the next one is taken; the best model is not copied."""
        tensors = {f"model/{n}": self._copy(f"model/{n}", t) for n, t in tensors_only(model.state_dict()).items()}
        tensors |= {f"best/{name}": value for name, value in (best or {}).items()}
        state = optimizer.state_dict()
        scalars: dict[str, dict[str, Any]] = {}
        for index, entries in state["state"].items():
            for key, value in entries.items():
                if isinstance(value, torch.Tensor):
                    name = f"optim/{index}/{key}"
                    tensors[name] = self._copy(name, value)
                else:
                    scalars.setdefault(str(index), {})[key] = value
        try:
            meta = json.dumps({"groups": state["param_groups"], "scalars": scalars}, default=scalar_tensor)
        except TypeError as odd:
            raise InvalidSpec(
                f"the optimizer keeps state that can't be checkpointed: {odd}.",
                "Keep tensors, numbers, strings and lists.",
            ) from None
        return tensors, {"optimizer": meta}

    def _copy(self, name: str, value: torch.Tensor) -> torch.Tensor:
        held = self._held.get(name)
        if held is None or held.shape != value.shape or held.dtype != value.dtype:
            held = self._held[name] = torch.empty(value.shape, dtype=value.dtype)
        return held.copy_(value.detach())


def scalar_tensor(value: Any) -> Any:
    if isinstance(value, torch.Tensor) and value.numel() == 1:
        return value.item()
    raise TypeError(f"a {type(value).__name__}")


def training_bytes(model: torch.nn.Module, optimizer: torch.optim.Optimizer, best: Tensors | None) -> bytes:
    """The same as a safetensors file's bytes, for another worker."""
    tensors, metadata = Snapshot().take(model, optimizer, best)
    return save(tensors, metadata=metadata)


def _take_layouts(optimizer: torch.optim.Optimizer) -> None:
    """State of a parameter's shape lies in memory as the parameter does: kernels give other bits for other layouts."""
    for parameter, entries in optimizer.state.items():
        for key, value in entries.items():
            if isinstance(value, torch.Tensor) and value.shape == parameter.shape:
                like = torch.empty_like(parameter, dtype=value.dtype, device=value.device, requires_grad=False)
                entries[key] = like.copy_(value)


def load_training(path: Path, model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> Tensors | None:
    """Load a checkpoint into model and optimizer, in place; return the best model's tensors, if it holds any."""
    with safe_open(path, framework="pt") as file:
        meta = json.loads(file.metadata()["optimizer"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
    model.load_state_dict({n.removeprefix("model/"): t for n, t in tensors.items() if n.startswith("model/")})
    state: dict[int, dict[str, Any]] = {int(i): dict(entries) for i, entries in meta["scalars"].items()}
    for name, tensor in tensors.items():
        if name.startswith("optim/"):
            _, index, key = name.split("/", 2)
            state.setdefault(int(index), {})[key] = tensor
    optimizer.load_state_dict({"state": state, "param_groups": meta["groups"]})
    _take_layouts(optimizer)
    best = {n.removeprefix("best/"): t for n, t in tensors.items() if n.startswith("best/")}
    return best or None
