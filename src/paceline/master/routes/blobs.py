"""Blobs: what is missing, resumable upload, download with ranges."""

from __future__ import annotations

from fastapi import APIRouter, Request
from fastapi.responses import FileResponse
from pydantic import BaseModel, Field
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect

from paceline.errors import Corrupt, InvalidSpec
from paceline.master.context import The, allow

MAX_CHUNK_BYTES = 64 * 2**20

router = APIRouter(prefix="/blobs", tags=["blobs"], dependencies=[allow("client", "worker")])


class BlobNames(BaseModel):
    blobs: list[str] = Field(max_length=1000)


class MissingBlobs(BaseModel):
    missing: list[str]


class Received(BaseModel):
    """received: bytes that the master has of this upload; the next chunk starts there."""

    received: int
    complete: bool


@router.post("/missing")
def missing(master: The, names: BlobNames) -> MissingBlobs:
    """Which of these blobs the master does not have."""
    return MissingBlobs(missing=master.blobs.missing(names.blobs))


@router.put("/{name}")
async def upload(master: The, name: str, offset: int, total: int, request: Request) -> Received:
    """Add a chunk at `offset` of a blob of `total` bytes."""
    length = int(request.headers.get("content-length", MAX_CHUNK_BYTES + 1))
    if length > MAX_CHUNK_BYTES or offset < 0 or total < 1:
        raise InvalidSpec(f"a chunk of {length} bytes at {offset} of {total} can't be taken.", "Send 64 MiB at most.")
    try:
        chunk = await request.body()
    except ClientDisconnect as gone:
        raise Corrupt(
            f"the sender of blob {name} went away in a chunk.", "Send it again from the last offset."
        ) from gone
    received, complete = await run_in_threadpool(master.blobs.append, name, offset, total, chunk)
    return Received(received=received, complete=complete)


@router.get("/{name}")
def download(master: The, name: str) -> FileResponse:
    """The blob's bytes; understands Range."""
    return FileResponse(master.blobs.path(name), media_type="application/octet-stream")
