"""Who is here: the agents' nodes, and the workers that this master started on them."""

from __future__ import annotations

import secrets
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from itertools import chain

from paceline.errors import NotFound
from paceline.measured import Calibration
from paceline.messages.from_agent import AgentHello, Load
from paceline.messages.message import Message
from paceline.messages.to_agent import ForgetJob, StartWorker, StopWorkers
from paceline.plan import Node, Placement

SendMessage = Callable[[Message], None]
WorkerKey = tuple[str, int, int]  # job, attempt, rank


@dataclass
class NodeLink:
    """A connected agent. busy_cores, worker_cores: as in `Load`."""

    id: str
    hello: AgentHello
    send: SendMessage
    available_memory: int
    speed: tuple[Calibration, ...]
    busy_cores: float = 0.0
    worker_cores: float = 0.0
    draining: bool = False
    quarantined: str | None = None

    @property
    def machine(self) -> str:
        """The same for all nodes of one machine."""
        return self.hello.machine or self.id


@dataclass
class WorkerLink:
    """A worker that was started and has not been seen to end. `send` is there once it has connected."""

    placement: Placement
    threads: int
    memory: int
    secret: str = field(default_factory=lambda: secrets.token_urlsafe(32))
    send: SendMessage | None = None
    pid: int | None = None
    last_step: int = 0


class Cluster:
    """Plain bookkeeping in the master's loop. What jobs hold follows from the workers that are alive."""

    def __init__(self) -> None:
        self._nodes: dict[str, NodeLink] = {}
        self.workers: dict[WorkerKey, WorkerLink] = {}
        self.held: dict[str, list[WorkerLink]] = {}  # by job: places for workers that may soon be started

    def join(self, hello: AgentHello, send: SendMessage) -> str:
        """Add a node; its id is its name, or with a number where another node has that name."""
        node_id, number = hello.name, 1
        while node_id in self._nodes:
            number += 1
            node_id = f"{hello.name}~{number}"
        self._nodes[node_id] = NodeLink(node_id, hello, send, available_memory=hello.memory, speed=hello.speed)
        return node_id

    def former(self, hello: AgentHello) -> str | None:
        """The node that this very agent, or one that died before it, is in the cluster as."""
        same = (link.id for link in self._nodes.values() if link.hello.identity == hello.identity)
        return next(same, None) if hello.identity else None

    def linked(self, node_id: str) -> NodeLink | None:
        """The node's agent, while it is connected."""
        return self._nodes.get(node_id)

    def is_busy(self, node_id: str) -> bool:
        """Whether a worker runs there."""
        return any(worker.placement.node_id == node_id for worker in self.workers.values())

    def is_linked(self, node_id: str, send: SendMessage) -> bool:
        """Whether the node is reached by this connection, and not by a later one of the same agent."""
        return node_id in self._nodes and self._nodes[node_id].send is send

    def leave(self, node_id: str) -> list[WorkerKey]:
        """Remove a node; return its workers, which are lost with it."""
        self._nodes.pop(node_id, None)
        lost = [key for key, worker in self.workers.items() if worker.placement.node_id == node_id]
        for key in lost:
            del self.workers[key]
        return lost

    def drain(self, node_id: str) -> None:
        """Give the node no more workers. Raises NotFound."""
        if node_id not in self._nodes:
            raise NotFound(f"there is no node {node_id!r}.", "`paceline nodes` lists them.")
        self._nodes[node_id].draining = True

    def quarantine(self, node_id: str, reason: str) -> None:
        """Give the node no more workers: it computes wrongly. Its agent's next start lifts that."""
        if node_id in self._nodes:
            self._nodes[node_id].quarantined = reason

    def report(self, node_id: str, load: Load) -> None:
        link = self._nodes[node_id]
        link.available_memory = load.available_memory
        link.busy_cores, link.worker_cores = load.busy_cores, load.worker_cores

    def calibrated(self, node_id: str, speed: tuple[Calibration, ...]) -> None:
        self._nodes[node_id].speed = speed

    def nodes(self) -> list[Node]:
        """The planner's view, by name."""
        held: defaultdict[str, list[WorkerLink]] = defaultdict(list)
        for worker in (*self.workers.values(), *chain.from_iterable(self.held.values())):
            held[worker.placement.node_id].append(worker)
        by_workers: defaultdict[str, float] = defaultdict(float)
        for link in self._nodes.values():
            by_workers[link.machine] += link.worker_cores
        views = (_view(link, held[link.id], by_workers[link.machine]) for link in self._nodes.values())
        return sorted(views, key=lambda node: node.name)

    def hold(self, job_id: str, placements: Iterable[Placement], threads: int, memory: int) -> None:
        """Keep these places free for the job, and no others."""
        self.held.pop(job_id, None)
        if held := [WorkerLink(placement, threads, memory) for placement in placements]:
            self.held[job_id] = held

    def start(
        self, job_id: str, attempt: int, placements: Iterable[Placement], threads: int, memory: int
    ) -> list[WorkerKey]:
        """Ask the agents for these workers; return those whose node has left since it was chosen.

        threads, memory: that each of them holds.
        """
        lost = []
        for placement in placements:
            worker, key = WorkerLink(placement, threads, memory), (job_id, attempt, placement.rank)
            link = self._nodes.get(placement.node_id)
            if link is None:
                lost.append(key)
                continue
            self.workers[key] = worker
            link.send(
                StartWorker(
                    job_id=job_id,
                    attempt=attempt,
                    rank=placement.rank,
                    secret=worker.secret,
                    threads=threads,
                    device=placement.device,
                )
            )
        return lost

    def stop(self, job_id: str, attempt: int, ranks: tuple[int, ...] | None = None) -> None:
        """Ask the agents to end an attempt's workers: those of these ranks, or all."""
        for node_id in {worker.placement.node_id for worker in self.of_attempt(job_id, attempt).values()}:
            if node_id in self._nodes:
                self._nodes[node_id].send(StopWorkers(job_id=job_id, attempt=attempt, ranks=ranks))

    def forget(self, job_id: str) -> None:
        """The job has ended: nothing of it is to stay on the nodes."""
        for link in self._nodes.values():
            link.send(ForgetJob(job_id=job_id))

    def of_attempt(self, job_id: str, attempt: int) -> dict[int, WorkerLink]:
        """The attempt's workers that are not known to have ended, by rank."""
        return {rank: worker for (job, a, rank), worker in self.workers.items() if (job, a) == (job_id, attempt)}

    def worker(self, key: WorkerKey) -> WorkerLink:
        """Raises NotFound."""
        if key not in self.workers:
            raise NotFound(f"no worker of rank {key[2]} in attempt {key[1]} of job {key[0]} is expected.")
        return self.workers[key]

    def opens(self, secret: str) -> bool:
        """Whether the secret belongs to a worker that is alive."""
        workers = list(self.workers.values())  # at once: requests are let in by threads beside the loop
        return any(secrets.compare_digest(worker.secret.encode(), secret.encode()) for worker in workers)


def _view(link: NodeLink, held: list[WorkerLink], by_workers: float) -> Node:
    """held: the node's workers. by_workers: as in `_load`."""
    taken = {worker.placement.device for worker in held}
    hello = link.hello
    return Node(
        id=link.id,
        name=link.id,
        address=hello.address,
        is_master=hello.is_master,
        hardware_class=hello.hardware_class,
        cores=hello.cores,
        memory=hello.memory,
        tmpfs=hello.tmpfs,
        devices=hello.devices,
        free_cores=0 if link.draining or link.quarantined else hello.cores - sum(worker.threads for worker in held),
        free_memory=min(link.available_memory, hello.memory - sum(worker.memory for worker in held)),
        free_devices=tuple(d.index for d in hello.devices if not taken & {f"cuda:{d.index}", d.kind}),
        load=_load(link, by_workers),
        draining=link.draining,
        quarantined=link.quarantined,
        speed=link.speed,
        price=hello.price,
    )


def _load(link: NodeLink, by_workers: float) -> float:
    """What others than workers take of the cores that the node offers: of the machine's, those beyond go first.

    by_workers: cores' worth of time of all workers on the node's machine, its other nodes' too.
    """
    not_offered = max(0, link.hello.machine_cores - link.hello.cores)
    return max(0.0, link.busy_cores - by_workers - not_offered)
