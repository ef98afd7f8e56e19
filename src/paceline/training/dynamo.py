"""A stand-in for torch._dynamo until somebody compiles.

Every optimizer imports torch._dynamo at its first step: as long as torch itself takes, sympy and inductor with it, for
two calls that mean nothing outside torch.compile. The stand-in answers those two, and gives way to the real module at
the first use of anything else, so that torch.compile works as ever.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any, TypeVar

import torch

NAME = "torch._dynamo"
F = TypeVar("F", bound=Callable[..., Any])


class _UntilCompiled(ModuleType):
    def graph_break(self, msg: str = "") -> None:
        """Where a compiled graph would end; there is none."""

    def disable(self, fn: F, recursive: bool = True, **_: Any) -> F:
        """Not to be compiled; nothing is."""
        return fn

    def __getattr__(self, name: str) -> Any:
        if sys.modules.get(NAME) is self:
            del sys.modules[NAME]
            importlib.import_module(NAME)  # also sets it as torch's attribute
            if torch.are_deterministic_algorithms_enabled():
                torch.use_deterministic_algorithms(True)  # inductor keeps a note of its own, which was not loaded then
        return getattr(sys.modules[NAME], name)


def defer() -> None:
    """Put the stand-in in place, unless the real module is already here."""
    if NAME not in sys.modules:
        stand_in = _UntilCompiled(NAME)
        spec = importlib.util.find_spec(NAME)
        stand_in.__spec__ = spec  # no __path__: the import of a submodule takes the real one
        stand_in.__file__ = spec.origin if spec else None  # whoever looks for a file's module asks all of them
        sys.modules[NAME] = stand_in
        torch._dynamo = stand_in
