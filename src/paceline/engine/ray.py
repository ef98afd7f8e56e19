"""The Ray engine: one actor a node, which does nothing but keep an agent running there. The only file that imports ray.

Each actor holds the CPUs and GPUs that were free when it came, so that Ray gives them to nobody else. No object that
user code made ever passes through Ray: fetching one would run its code here.
"""

from __future__ import annotations

import tempfile
import threading
from pathlib import Path
from typing import Any, NamedTuple

import ray
import structlog
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from paceline.engine.local import REFUSED, end_agent, spawn_agent
from paceline.engine.protocol import AgentArgs
from paceline.errors import MasterUnreachable

WATCH_EVERY_S = 1.0
NAMESPACE = "paceline"

log = structlog.get_logger("ray")


class Places(NamedTuple):
    """What Ray counts on a node."""

    cores: int
    gpus: int


class AgentActor:
    """Keeps one agent alive on its node; the agent ends with this actor's process."""

    def __init__(self, args_json: str) -> None:
        args = AgentArgs.model_validate_json(args_json)
        self._folder = tempfile.TemporaryDirectory(prefix="paceline-node-")
        self._process = spawn_agent(args.model_copy(update={"folder": Path(self._folder.name)}))

    def alive(self) -> bool:
        """Whether there is an agent, or one that the master refused: another would be refused again."""
        return self._process.poll() in (None, *REFUSED)

    def end(self) -> None:
        end_agent(self._process)
        self._folder.cleanup()


class RayEngine:
    """address: of a running cluster; None starts one on this machine, with token authentication."""

    def __init__(self, address: str | None = None) -> None:
        self._address = address
        self._actors: dict[str, Any] = {}
        self._places: dict[str, Places] = {}  # by node: an actor's own are not free at once when it has died
        self._closing = threading.Event()
        self._watcher: threading.Thread | None = None

    def start(self, args: AgentArgs) -> None:
        """Connect to Ray and put an agent on each node, now and whenever one comes. Raises MasterUnreachable."""
        try:
            ray.init(
                address=self._address or "local", namespace=NAMESPACE, include_dashboard=False, log_to_driver=False,
                configure_logging=False,
            )  # fmt: skip
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise MasterUnreachable(
                f"Ray can't be reached at {self._address or 'this machine'}: {error}",
                "Check --ray-address, or leave it out.",
            ) from error
        self._cover(args)
        self._watcher = threading.Thread(target=self._watch, args=(args,), name="ray-nodes", daemon=True)
        self._watcher.start()

    def _watch(self, args: AgentArgs) -> None:
        while not self._closing.wait(WATCH_EVERY_S):
            try:
                self._cover(args)
            except (OSError, ray.exceptions.RayError) as error:  # the next look may find Ray well again
                log.error("ray_not_looked_at", error=str(error))

    def _cover(self, args: AgentArgs) -> None:
        """An agent on each node that is alive and has none."""
        nodes = {node["NodeID"]: node for node in ray.nodes() if node["Alive"]}
        for node_id in [n for n, actor in self._actors.items() if n not in nodes or not _alive(actor)]:
            log.warning("ray_agent_lost", ray_node=node_id)
            del self._actors[node_id]
        for node_id, node in nodes.items():
            if node_id not in self._actors:
                places = self._places.setdefault(node_id, _free(node))
                self._actors[node_id] = _place(args, node, places)

    def close(self) -> None:
        if not ray.is_initialized():
            return
        self._closing.set()
        if self._watcher is not None:
            self._watcher.join()
        for actor in self._actors.values():
            try:
                ray.get(actor.end.remote(), timeout=15)
            except ray.exceptions.RayError as error:
                log.warning("ray_agent_did_not_end", error=str(error))
            ray.kill(actor)
        ray.shutdown()


def _free(node: dict[str, Any]) -> Places:
    free = ray._private.state.available_resources_per_node().get(node["NodeID"], node["Resources"])
    return Places(int(free.get("CPU", 0)), int(free.get("GPU", 0)))


def _place(args: AgentArgs, node: dict[str, Any], places: Places) -> Any:
    """Start the actor of one node, holding these."""
    cores, gpus = places
    is_here = node["NodeID"] == ray.get_runtime_context().get_node_id()
    name = f"{node['NodeManagerHostname']}-{node['NodeID'][:6]}"
    own = args.model_copy(update={"name": name, "cores": max(1, cores), "blobs": args.blobs if is_here else None})
    log.info("ray_agent_placed", node=name, cores=cores, gpus=gpus)
    return (
        ray.remote(AgentActor)
        .options(
            num_cpus=cores,
            num_gpus=gpus,
            max_restarts=0,
            scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False),
        )
        .remote(own.model_dump_json())
    )


def _alive(actor: Any) -> bool:
    try:
        return bool(ray.get(actor.alive.remote(), timeout=30))
    except ray.exceptions.RayError:
        return False
