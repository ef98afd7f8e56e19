"""The client: a light HTTP client of a master. It never imports ray, and never unpickles anything."""

from __future__ import annotations

import tempfile
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import httpx

from paceline.client import login
from paceline.client.embedded import EmbeddedMaster, embed
from paceline.client.job import Job
from paceline.client.scripts import Call, prepare_script
from paceline.client.submission import Packed, prepare
from paceline.errors import InvalidSpec, Unauthorized
from paceline.measured import Link
from paceline.plan import Node, Plan
from paceline.script import ScriptSpec
from paceline.spec import TrainSpec
from paceline.tls import trusting
from paceline.transfer import BlobStore, raise_for, unreachable

TIMEOUT_S = 60.0


class Client:
    """Talks to a master: the one at `url`, this machine's own with `local=True`, or the one of `paceline login`.

    token: the master's bearer token. ca: a certificate file to trust. folder: with local=True, where the embedded
    master keeps its state (default: a temporary folder). agents, cores: with local=True, how many nodes to emulate on
    this machine, and the cores of each. engine: with local=True, what starts the agents: "local" or "ray". Use it as a
    context manager, or call close().

    Raises InvalidSpec, MasterUnreachable and Unauthorized at once where the master can't be talked to.
    """

    def __init__(
        self,
        url: str | None = None,
        token: str | None = None,
        *,
        local: bool = False,
        folder: str | Path | None = None,
        agents: int = 1,
        cores: int | None = None,
        engine: str = "local",
        ca: str | None = None,
    ) -> None:
        if local and url is not None:
            raise InvalidSpec("both url= and local=True were given.", "Give one of them.")
        self._embedded: EmbeddedMaster | None = None
        if local:
            self._embedded = embed(Path(folder) if folder else None, agents, cores, engine)
            url, token = self._embedded.url, self._embedded.token
        elif url is None or token is None:
            known = login.load(url)
            url, token, ca = known.url, token or known.token, ca or known.ca
        if not url.startswith(("http://", "https://")):
            raise InvalidSpec(
                f"{url!r} is not a master's address.", f"Write https://{url}, or http:// where there is no TLS."
            )
        if not token.isascii():
            raise Unauthorized(
                "the token has characters that no token has.", "Copy it whole, without the “…” of a help text."
            )
        self.url = url
        self.http = httpx.Client(
            base_url=url,
            headers={"Authorization": f"Bearer {token}"},
            timeout=TIMEOUT_S,
            verify=trusting(ca) if ca else True,
            trust_env=False,
        )
        self.blobs = BlobStore(self.http)
        self._models = tempfile.TemporaryDirectory(prefix="paceline-models-")
        self.models = Path(self._models.name)
        self._templates: dict[str, Any] = {}
        self._finalizer = weakref.finalize(self, _close, self.http, self._embedded, self._models)
        self.get("/version")

    # ---- jobs ----

    def train(self, model: Any, train_data: Any, **fields: Any) -> Job:
        """Submit a job: `submit(TrainSpec(model=…, train_data=…, …))`."""
        return self.submit(TrainSpec(model=model, train_data=train_data, **fields))

    def submit(self, spec: TrainSpec, request_id: str | None = None) -> Job:
        """Hand a spec to the master; returns when it is stored. The same request id twice is one job."""
        packed = prepare(spec, request_id)
        self._upload(packed)
        made = self.post("/jobs", json=packed.submission.model_dump(mode="json"))
        self._templates[made["id"]] = spec.model
        return self.job(made["id"])

    def run(self, script: str, args: Sequence[str] = (), **fields: Any) -> Job:
        """Run a script that works under `torchrun`, as it is: `run("train.py", ["--epochs", "3"], workdir=".")`.

        fields: of a `ScriptSpec`; `resources=pl.Resources(workers=4)` for four ranks.
        """
        return self.submit_script(ScriptSpec(command=(script, *args), **fields))

    def call(self, function: Callable[..., Any], /, *args: Any, spec: ScriptSpec | None = None, **named: Any) -> Job:
        """Call a function on each rank, under the environment of `torchrun`; `job.returned()` has what it returned.

        It returns JSON values, a tensor or a dict of tensors: nothing that a worker pickled is ever opened here.
        spec: `ScriptSpec(workdir=None, resources=pl.Resources(workers=2))`; one rank and no files by default.
        """
        return self.submit_script(spec or ScriptSpec(workdir=None), (function, args, named))

    def submit_script(self, spec: ScriptSpec, call: Call | None = None, request_id: str | None = None) -> Job:
        """Hand a script, or a call of a function, to the master. The same request id twice is one job."""
        packed = prepare_script(spec, self.models, call, request_id)
        self._upload(packed)
        made = self.post("/scripts", json=packed.submission.model_dump(mode="json"))
        return self.job(made["id"])

    def plan_script(self, spec: ScriptSpec) -> Plan:
        """Where the master would run this script now; runs and stores nothing."""
        body = prepare_script(spec, self.models).submission.model_dump(mode="json")
        return Plan.model_validate(self.post("/scripts/plan", json=body))

    def plan(self, model: Any = None, train_data: Any = None, *, spec: TrainSpec | None = None, **fields: Any) -> Plan:
        """What the master would decide for this job now, by what it knows; runs, measures and stores nothing."""
        spec = spec or TrainSpec(model=model, train_data=train_data, **fields)
        body = prepare(spec).submission.model_dump(mode="json")
        return Plan.model_validate(self.post("/jobs/plan", json=body))

    def job(self, job_id: str) -> Job:
        """A job of yours by its id, from any process. Raises NotFound, and Forbidden where it is another user's."""
        self.get(f"/jobs/{job_id}")
        return Job(self, job_id, self._templates.get(job_id))

    def jobs(self) -> list[dict[str, Any]]:
        """All users' jobs, newest first, as the API shows them; others' without values and errors."""
        return list(self.get("/jobs"))

    def nodes(self) -> list[Node]:
        """The cluster's nodes."""
        return [Node.model_validate(node) for node in self.get("/nodes")]

    def links(self, measure: bool | Sequence[str] = False) -> list[Link]:
        """The ways between nodes, as far as they were measured. measure: first measure, for at most half a minute,
        those that are unknown or old: between these nodes, or all. What is left then is for the next call.
        """
        nodes = None if isinstance(measure, bool) else list(measure)
        found = self.post("/links", json={"nodes": nodes}) if measure else self.get("/links")
        return [Link.model_validate(link) for link in found]

    def drain(self, node: str) -> None:
        """Give a node back: its workers leave at the next round, as soon as others can go on. For the admin."""
        self.post(f"/nodes/{node}/drain")

    def _upload(self, packed: Packed) -> None:
        for name in self.blobs.missing(packed.blobs):
            self.blobs.upload(name, packed.blobs[name])

    # ---- plumbing ----

    def get(self, path: str, **params: Any) -> Any:
        """The JSON at `path` under /api/v1. Raises the master's PacelineError."""
        return self._call("GET", path, params=params)

    def post(self, path: str, json: Any = None) -> Any:
        return self._call("POST", path, json=json)

    def _call(self, method: str, path: str, **arguments: Any) -> Any:
        try:
            response = self.http.request(method, f"/api/v1{path}", **arguments)
        except httpx.TransportError as error:
            raise unreachable(self.url, error) from error
        return raise_for(response).json() if response.content else None

    def close(self) -> None:
        """Close connections; with local=True, end the embedded master and its workers."""
        self._finalizer()

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _close(http: httpx.Client, embedded: EmbeddedMaster | None, models: tempfile.TemporaryDirectory[str]) -> None:
    http.close()
    if embedded is not None:
        embedded.close()
    models.cleanup()
