"""What a script leaves in its output folder, which all its ranks on a node share."""

from __future__ import annotations

from pathlib import Path

from paceline.archive import pack_folder
from paceline.messages.from_worker import OutputSaved
from paceline.training.channel import WorkerEnv
from paceline.transfer import BlobStore


def project_of(env: WorkerEnv) -> Path:
    """Where the script's project is, from one attempt to the next."""
    return Path(env.job) / "project"


def is_written(folder: Path) -> bool:
    """Whether there is anything in it."""
    return folder.is_dir() and any(folder.iterdir())


def save_output(folder: str, env: WorkerEnv, blobs: BlobStore) -> OutputSaved:
    """Upload this folder of the project, where there is one. Raises DiskFull, MasterUnreachable."""
    path, archive = project_of(env) / folder, Path(env.scratch) / "output.tar"
    if not path.is_dir():
        return OutputSaved(blob=None)
    pack_folder(path, archive)
    return OutputSaved(blob=blobs.upload_file(archive), nbytes=archive.stat().st_size)
