"""Packing what must be pickled: cloudpickle, large arrays out of band, the user's own modules by value.

What comes out is bytes and buffers, each named by its sha256. Nothing is ever unpickled on this side.
"""

from __future__ import annotations

import contextlib
import io
import pickle
import sys
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from types import ModuleType
from typing import Any

import cloudpickle

from paceline.client.preflight import unpicklable
from paceline.spec import PackageRef
from paceline.tensors import reduce_tensor
from paceline.transfer import sha256

OUT_OF_BAND_FROM_BYTES = 64 * 1024


@dataclass(frozen=True)
class Package:
    """A reference, and the blobs that it names, by their names."""

    ref: PackageRef
    blobs: dict[str, Any]


def pack(value: Any, field: str) -> Package:
    """Pickle `value`. Raises Unpicklable, naming the attribute path below `field`."""
    buffers: list[pickle.PickleBuffer] = []

    def keep_in_band(buffer: pickle.PickleBuffer) -> bool:
        if buffer.raw().nbytes < OUT_OF_BAND_FROM_BYTES:
            return True
        buffers.append(buffer)
        return False

    with user_modules_by_value():
        try:
            data = dumps(value, keep_in_band)
        except Exception as error:
            raise unpicklable(value, field, error, dumps) from error
    named = {sha256(buffer.raw()): buffer.raw() for buffer in buffers}
    names = [sha256(buffer.raw()) for buffer in buffers]
    ref = PackageRef(
        pickle=sha256(data), buffers=tuple(names), nbytes=len(data) + sum(view.nbytes for view in named.values())
    )
    return Package(ref, {ref.pickle: data, **named})


def dumps(value: Any, buffer_callback: Any = None) -> bytes:
    """cloudpickle with tensors' bytes as buffers."""
    file = io.BytesIO()
    _Pickler(file, protocol=5, buffer_callback=buffer_callback).dump(value)  # type: ignore[no-untyped-call]
    return file.getvalue()


class _Pickler(cloudpickle.Pickler):
    def reducer_override(self, obj: Any) -> Any:
        torch = sys.modules.get("torch")
        if torch is not None and isinstance(obj, torch.Tensor):
            reduced = reduce_tensor(obj)
            if reduced is not None:
                return reduced
        return super().reducer_override(obj)  # type: ignore[no-untyped-call]


@contextlib.contextmanager
def user_modules_by_value() -> Iterator[None]:
    """Carry the user's own modules along: the nodes don't have them. Installed packages go by name."""
    mine = [module for module in list(sys.modules.values()) if _is_users(module)]
    for module in mine:
        cloudpickle.register_pickle_by_value(module)
    try:
        yield
    finally:
        for module in mine:
            cloudpickle.unregister_pickle_by_value(module)


def _is_users(module: ModuleType | None) -> bool:
    name, file = getattr(module, "__name__", "__main__"), getattr(module, "__file__", None)
    if not isinstance(file, str) or name in ("__main__", "__mp_main__") or name.split(".")[0] == "paceline":
        return False
    return _is_users_file(file)


@lru_cache(maxsize=100_000)  # a process with torch has thousands of modules, and each submission looks at all
def _is_users_file(file: str) -> bool:
    """A source file that is neither installed nor Python's own."""
    path = Path(file)
    installed = {"site-packages", "dist-packages"} & set(path.parts)
    standard = path.is_relative_to(sysconfig.get_path("stdlib")) or path.is_relative_to(sys.base_prefix)
    return path.suffix == ".py" and not installed and not standard
