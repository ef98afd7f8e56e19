"""The application: settings in, FastAPI out."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import time
from collections.abc import AsyncIterator
from pathlib import Path

import structlog
from fastapi import APIRouter, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse

from paceline.errors import InvalidSpec, PacelineError
from paceline.master import retention
from paceline.master.artifacts import Blobs
from paceline.master.cluster import Cluster
from paceline.master.context import Master
from paceline.master.controller import Controller
from paceline.master.feed import Feed
from paceline.master.logs import Logs
from paceline.master.routes import blobs, channels, cluster, jobs, scripts, tokens
from paceline.master.store import Store
from paceline.planner.queue import Policy
from paceline.settings import LOG_BYTES
from paceline.versions import here

SWEEP_EVERY_S = 3600.0
DEFAULT_POLICY = Policy()

log = structlog.get_logger("master")


def open_master(folder: Path, policy: Policy = DEFAULT_POLICY, log_bytes: int = LOG_BYTES) -> Master:
    """Open the durable state in `folder`, creating it where there is none. policy: who gets nodes first.

    log_bytes: as of the settings.
    """
    folder.mkdir(parents=True, exist_ok=True)
    logs = Logs(folder, log_bytes)
    store, nodes, feed, files = Store(f"sqlite:///{folder / 'paceline.db'}"), Cluster(), Feed(), Blobs(folder)
    return Master(
        store=store,
        blobs=files,
        cluster=nodes,
        feed=feed,
        controller=Controller(store, nodes, feed, files, logs, policy),
        logs=logs,
        versions=here(),
    )


def create_app(master: Master) -> FastAPI:
    """The API under /api/v1; the controller runs as long as the application does."""

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        await master.controller.resume()
        running = [asyncio.create_task(work) for work in (master.controller.run(), sweep_forever(master))]
        for task in running:
            task.add_done_callback(_end_with)
        yield
        for task in running:
            task.cancel()
        master.store.close()
        master.logs.close()

    app = FastAPI(title="Paceline", version=master.versions.paceline, lifespan=lifespan)
    app.state.master = master
    api = APIRouter(prefix="/api/v1")
    for part in (jobs, scripts, blobs, cluster, channels, tokens):
        api.include_router(part.router)
    app.include_router(api)
    app.add_exception_handler(PacelineError, _answer_error)
    app.add_exception_handler(RequestValidationError, _answer_invalid)
    return app


def _end_with(task: asyncio.Task[None]) -> None:
    """End the master with a part of it that failed: jobs that are taken and never handled are worse than none."""
    if not task.cancelled() and task.exception() is not None:
        log.error("master_failed", exc_info=task.exception())
        signal.raise_signal(signal.SIGTERM)


async def _answer_error(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, PacelineError)
    return JSONResponse(error.to_json(), status_code=error.http_status)


async def _answer_invalid(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    found = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
    invalid = InvalidSpec(f"the request is not valid: {found}.", "See /docs for the API.")
    return await _answer_error(request, invalid)


async def sweep_forever(master: Master) -> None:
    """Every hour, let go of what is kept no longer."""
    while True:
        try:
            await asyncio.to_thread(sweep, master, time.time())
        except (OSError, PacelineError) as error:  # a full disk above all: the next sweep may make room
            log.error("sweep_failed", error=str(error))
        await asyncio.sleep(SWEEP_EVERY_S)


def sweep(master: Master, now: float) -> int:
    """Forget expired models and logs, and delete blobs that no job needs; return the bytes that these freed."""
    rows = master.store.jobs()
    freed = master.blobs.keep_only(retention.blobs_in_use(rows, now), before=now - retention.DAY_S)
    # after the blobs: with a full disk nothing can be written before these make room
    for row in rows:
        if retention.is_over(row, now):
            master.logs.forget(row.id)
    for row in retention.expired(rows, now):
        master.store.forget_model(row.id)
    return freed
