"""Paceline: hand a model to a cluster, get it back trained.

The public names, imported only when they are used: `import paceline` loads neither torch nor ray.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from paceline.client.client import Client
    from paceline.client.job import Job
    from paceline.client.result import Result
    from paceline.errors import (
        Conflict,
        Corrupt,
        DataMismatch,
        DataUnreachable,
        DiskFull,
        Expired,
        FolderInUse,
        Forbidden,
        InvalidSpec,
        JobCancelled,
        JobFailed,
        MasterUnreachable,
        ModelUnknown,
        NonFinite,
        NotFound,
        NotYetSupported,
        PacelineError,
        ProtocolError,
        Unauthorized,
        Unpicklable,
        Unplaceable,
        UserCodeError,
        VersionMismatch,
        WaitTimeout,
    )
    from paceline.plan import Plan
    from paceline.reports import report
    from paceline.script import ScriptSpec
    from paceline.shards.data import ShardedData
    from paceline.spec import Resources, TrainSpec
    from paceline.stop import MaxEpochs, MaxSteps, MaxTime, Metric, Patience

_HOMES = {
    "paceline.client.client": ("Client",),
    "paceline.client.job": ("Job",),
    "paceline.client.result": ("Result",),
    "paceline.errors": (
        "Conflict", "Corrupt", "DataMismatch", "DataUnreachable", "DiskFull", "Expired", "FolderInUse", "Forbidden",
        "InvalidSpec", "JobCancelled", "JobFailed", "MasterUnreachable", "ModelUnknown", "NonFinite", "NotFound",
        "NotYetSupported", "PacelineError", "ProtocolError", "Unauthorized", "Unpicklable", "Unplaceable",
        "UserCodeError", "VersionMismatch", "WaitTimeout",
    ),
    "paceline.plan": ("Plan",),
    "paceline.reports": ("report",),
    "paceline.script": ("ScriptSpec",),
    "paceline.shards.data": ("ShardedData",),
    "paceline.spec": ("Resources", "TrainSpec"),
    "paceline.stop": ("MaxEpochs", "MaxSteps", "MaxTime", "Metric", "Patience"),
}  # fmt: skip
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "Client", "Conflict", "Corrupt", "DataMismatch", "DataUnreachable", "DiskFull", "Expired", "FolderInUse",
    "Forbidden", "InvalidSpec", "Job", "JobCancelled", "JobFailed", "MasterUnreachable", "MaxEpochs", "MaxSteps",
    "MaxTime", "Metric", "ModelUnknown", "NonFinite", "NotFound", "NotYetSupported", "PacelineError", "Patience",
    "Plan", "ProtocolError", "Resources", "Result", "ScriptSpec", "ShardedData", "TrainSpec", "Unauthorized",
    "Unpicklable", "Unplaceable", "UserCodeError", "VersionMismatch", "WaitTimeout", "report",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module 'paceline' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME_OF[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
