"""What users hand over as data, brought to one of two forms: `Arrays`, or a Dataset (or its builder) as it is."""

from __future__ import annotations

from typing import Any

import numpy as np

from paceline.arrays import Arrays
from paceline.errors import InvalidSpec

FORMS = "Give a tuple of arrays or tensors, the targets last; a (table, target) pair; or a map-style Dataset."


def normalize(data: Any, field: str) -> Any:
    """Arrays for tuples and tables, anything else unchanged.

    numpy's and pandas' float64 become float32, torch's default; integer targets become int64, as torch's losses want
    them. torch tensors stay as they are. Raises InvalidSpec for unequal lengths, empty data and text columns.
    """
    if isinstance(data, tuple) and len(data) == 2 and isinstance(data[1], str) and hasattr(data[0], "columns"):
        return _from_table(data[0], data[1], field)
    if hasattr(data, "columns") and not hasattr(data, "__getitems__"):
        raise InvalidSpec(f"{field} is a table without a target.", f'Write {field}=(table, "name of the target").')
    if isinstance(data, tuple | list) and all(hasattr(column, "shape") for column in data):
        return _from_columns(tuple(data), field)
    if isinstance(data, list | tuple | dict | str):
        raise InvalidSpec(
            f"{field} is a {type(data).__name__} of {', '.join({type(v).__name__ for v in data}) or 'nothing'}.",
            FORMS,
        )
    if hasattr(data, "__getitem__") and not hasattr(data, "__len__"):
        raise InvalidSpec(f"{field} has no length.", "Give it __len__; streams are not supported.")
    if not any(hasattr(data, has) for has in ("__getitem__", "__len__", "__call__")):
        raise InvalidSpec(f"{field} is a {type(data).__name__}.", FORMS)
    if hasattr(data, "__len__") and not isinstance(data, type) and len(data) == 0:
        raise InvalidSpec(f"{field} is empty.", "Check how it is made.")
    return data


def _from_columns(columns: tuple[Any, ...], field: str) -> Arrays:
    lengths = [column.shape[0] if len(column.shape) else 0 for column in columns]
    if len(set(lengths)) > 1:
        raise InvalidSpec(
            f"{field} has columns of unequal lengths: {', '.join(map(str, lengths))}.",
            "Give one row per sample in each.",
        )
    if not lengths or lengths[0] == 0:
        raise InvalidSpec(f"{field} is empty.", "Check how it is made.")
    last = len(columns) - 1
    return Arrays(tuple(_column(column, at == last and last > 0, field) for at, column in enumerate(columns)))


def _column(column: Any, is_target: bool, field: str) -> Any:
    if type(column).__module__.startswith("torch"):
        return column
    array = np.asarray(column)
    if array.dtype.kind not in "fiub":
        raise InvalidSpec(
            f"{field} has a column of type {array.dtype}, which is no number.", "Encode it as numbers first."
        )
    if array.dtype == np.float64:
        array = array.astype(np.float32)
    elif is_target and array.dtype.kind in "iu":
        array = array.astype(np.int64)
    return np.require(array, requirements=["C", "W"])  # a read-only one would make torch warn on every worker


def _from_table(table: Any, target: str, field: str) -> Arrays:
    frame = table.to_pandas() if hasattr(table, "to_pandas") else table
    if target not in frame.columns:
        raise InvalidSpec(f"{field} has no column {target!r}.", f"It has: {', '.join(map(str, frame.columns))}.")
    features = frame.drop(columns=[target])
    odd = [str(name) for name in features.columns if features[name].dtype.kind not in "fiub"]
    if odd:
        raise InvalidSpec(
            f"{field}'s columns {', '.join(odd[:5])} are not numbers.", "Encode them (pandas.get_dummies) or drop them."
        )
    return _from_columns((features.to_numpy(dtype=np.float32), frame[target].to_numpy()), field)
