"""Which nodes train a job: a pure function of plain data, with a reason for every node taken or not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from paceline.errors import Unplaceable
from paceline.grid import DEFAULT_MICROBATCHES, MOST_COST
from paceline.plan import Node, NodeReason, Placement, Plan
from paceline.planner.sharded import plan_sharded
from paceline.shares import split_evenly
from paceline.spec import Facts, Submission, TrainOptions

WORKER_BASE_BYTES = 400 * 2**20  # a process with torch, before any model
COPIES_OF_PARAMETERS = 6  # parameters, gradients, two of the optimizer, a partial sum, a copy to save
MASTER_BYTES = 512 * 2**20
MASTER_CORES_FROM = 4  # on a smaller node the master shares the cores
WORTH_SPLITTING_FLOP = 2e8  # a step below this takes a few milliseconds on one core: exchanging it would take longer


@dataclass(frozen=True)
class Slot:
    """Room for one worker. device: "cpu", "cuda:0", "mps"."""

    node: Node
    device: str


@dataclass(frozen=True)
class Room:
    """What one node offers this job: slots now, slots when idle, and why not more. excluded: whatever room it has."""

    node: Node
    now: tuple[Slot, ...]
    idle: int
    limit: str
    excluded: bool = False


def plan_workers(
    nodes: Sequence[Node],
    options: TrainOptions,
    facts: Facts,
    wish: int | None = None,
    hardware_class: str | None = None,
) -> Plan:
    """Choose the nodes for a job, all of its workers at once.

    wish: workers that the user asked for since; as many of them as fit now, whatever `options` say.
    hardware_class: the one that the job began on, part of its result; a reproducible job goes on on no other.
    Raises Unplaceable, with `details["busy"]` true where the job fits once running ones have ended, and with
    `details["hardware_class"]` where no node of that class is left.
    """
    if options.sync == "sharded":
        return plan_sharded(nodes, options, facts, wish)
    memory = options.resources.memory or worker_memory(facts)
    begun_on = hardware_class if options.reproducible else None
    device = _device([node for node in nodes if begun_on in (None, node.hardware_class)], options)
    rooms = [_room(node, options, memory, device) for node in nodes]
    least = 1 if wish is not None else options.resources.workers or 1
    rooms = _of_one_class(rooms, least, begun_on) if options.reproducible else rooms
    if begun_on is not None and all(room.excluded for room in rooms):
        raise _class_gone(rooms, begun_on)
    wanted, why = _wanted(options, facts, rooms, wish)
    slots = _take(rooms, wanted)
    if len(slots) < wanted:
        raise _unplaceable(rooms, options, memory, device, wanted, begun_on)
    shares = split_evenly(options.microbatches, wanted)
    workers = tuple(
        Placement(rank=rank, node_id=slot.node.id, node_name=slot.node.name, device=slot.device, share=share)
        for rank, (slot, share) in enumerate(zip(slots, shares, strict=True))
    )
    return Plan(
        workers=workers,
        hardware_class=slots[0].node.hardware_class,
        cores_per_worker=options.threads,
        memory_per_worker=memory,
        microbatches=options.microbatches,
        most_workers=most_workers(options, facts, wish),
        summary=f"{why}; {_grid(options, facts)}",
        reasons=tuple(_reason(room, workers, memory) for room in rooms),
    )


def decided(nodes: Sequence[Node], submission: Submission) -> Submission:
    """The submission with `sync="sharded"` where that was left to the master and the model fits on no node.

    Decided once, when the job is submitted: its checkpoints are of one kind.
    """
    options, facts = submission.options, submission.facts
    if options.sync != "auto" or options.resources.memory is not None or not facts.parameter_bytes:
        return submission
    if any(node.memory - (MASTER_BYTES if node.is_master else 0) >= worker_memory(facts) for node in nodes):
        return submission
    cut = options.model_copy(update={"sync": "sharded"})
    try:
        plan_sharded(nodes, cut, facts)
    except Unplaceable as refusal:
        if not refusal.details.get("busy"):
            return submission  # the refusal of exact training names the plainer remedies
    return submission.model_copy(update={"options": cut})


def most_workers(options: TrainOptions, facts: Facts, wish: int | None = None) -> int:
    """As many workers as the job would use on a large cluster."""
    if wish is not None:
        return min(wish, options.microbatches)
    if options.resources.workers is not None:
        return options.resources.workers
    return options.microbatches if _step_flop(options, facts) >= WORTH_SPLITTING_FLOP else 1


def _step_flop(options: TrainOptions, facts: Facts) -> float:
    """A lower bound of a step's work: as counted, or else every parameter once a sample; a backward is two forwards."""
    forward = 2.0 * (facts.parameters or 0) if facts.flop_per_sample is None else facts.flop_per_sample
    return 3 * forward * options.batch_size


def one_more(nodes: Sequence[Node], plan: Plan, options: TrainOptions, facts: Facts) -> Placement:
    """A place for one more worker of a running job, on its hardware class. Raises Unplaceable."""
    alike = [node for node in nodes if node.hardware_class == plan.hardware_class or not options.reproducible]
    device = plan.workers[0].device.split(":")[0]
    single = options.model_copy(
        update={"resources": options.resources.model_copy(update={"workers": 1, "device": device})}
    )
    return plan_workers(alike, single, facts).workers[0]


def worker_memory(facts: Facts) -> int:
    """Bytes that a worker will need, as far as the spec tells; activations and data come on top."""
    return WORKER_BASE_BYTES + COPIES_OF_PARAMETERS * (facts.parameter_bytes or 0)


def _device(nodes: Sequence[Node], options: TrainOptions) -> str:
    """The kind of device to train on: the asked one, or accelerators wherever the nodes that may be used have some."""
    asked = options.resources
    if asked.device != "auto":
        return asked.device
    allowed = [node for node in nodes if asked.nodes is None or node.name in asked.nodes]
    kinds = {device.kind for node in allowed for device in node.devices}
    return next((kind for kind in ("cuda", "mps") if kind in kinds), "cpu")


def _room(node: Node, options: TrainOptions, memory: int, device: str) -> Room:
    allowed = options.resources.nodes
    if allowed is not None and node.name not in allowed:
        return Room(node, (), 0, f"not among the nodes asked for ({', '.join(allowed)})", excluded=True)
    if node.quarantined is not None:
        return Room(node, (), 0, f"in quarantine: {node.quarantined}; start its agent anew to lift it", excluded=True)
    if node.draining:
        return Room(node, (), 0, "is being given back", excluded=True)
    reserved = 1 if node.is_master and node.cores >= MASTER_CORES_FROM else 0
    kept_back = MASTER_BYTES if node.is_master else 0
    by_memory = max(0, node.free_memory - kept_back) // memory
    by_cores = max(0, node.free_cores - reserved) // options.threads
    idle = min((node.cores - reserved) // options.threads, max(0, node.memory - kept_back) // memory)
    devices = ["cpu"] * by_cores
    limit = f"{node.free_cores} of {node.cores} cores free, {_gib(node.free_memory)} of {_gib(node.memory)} memory free"
    if device != "cpu":
        fitting = [d for d in node.devices if d.kind == device]
        idle = min(idle, len(fitting))
        free = [d for d in fitting if d.index in node.free_devices]
        devices = [f"cuda:{d.index}" if device == "cuda" else device for d in free][:by_cores]
        limit += f", {len(free)} of {len(fitting)} {device} devices free"
    return Room(node, tuple(Slot(node, name) for name in devices[:by_memory]), max(0, idle), limit)


def _gib(count: int) -> str:
    return f"{count / 2**30:.1f} GiB"


def _of_one_class(rooms: list[Room], workers: int, begun_on: str | None) -> list[Room]:
    """Keep one hardware class; others would compute other bits.

    The one that the job began on, if it has; else one that holds so many workers now, or else once it is idle; of
    those, the one with the most room.
    """
    classes: dict[str, tuple[int, int]] = {}
    for room in rooms:
        now, idle = classes.get(room.node.hardware_class, (0, 0))
        classes[room.node.hardware_class] = (now + len(room.now), idle + room.idle)
    if not classes:
        return rooms
    best = begun_on or max(
        sorted(classes), key=lambda name: ([room >= workers for room in classes[name]], classes[name])
    )
    return [room if room.excluded or room.node.hardware_class == best else _of_other_bits(room, best) for room in rooms]


def _of_other_bits(room: Room, best: str) -> Room:
    reason = f"hardware class {room.node.hardware_class} computes other bits than {best}"
    return Room(room.node, (), 0, reason, excluded=True)


def _wanted(options: TrainOptions, facts: Facts, rooms: Sequence[Room], wish: int | None) -> tuple[int, str]:
    """(number of workers, why)."""
    slots = sum(len(room.now) for room in rooms)
    if wish is not None:
        workers = max(1, min(wish, slots, options.microbatches))
        return workers, f"{workers} of the {wish} workers that the job was scaled to: {slots} places are free"
    asked = options.resources.workers
    if asked is not None:
        if asked > options.microbatches:
            raise Unplaceable(
                f"{asked} workers were asked for, and a batch has {_grid(options, facts)}.",
                f"Ask for at most {_counted(options.microbatches, 'worker')}, or set microbatches={asked} "
                f"and a batch_size that is a multiple of it.",
                busy=False,
            )
        return asked, f"{_counted(asked, 'worker')}, as asked for"
    flop = _step_flop(options, facts)
    if flop < WORTH_SPLITTING_FLOP:
        known = f"a step is about {flop:.2g} FLOP" if flop else "the model's size is not known before it is built"
        return 1, f"1 worker: {known}, and exchanging gradients pays from {WORTH_SPLITTING_FLOP:.0e} on"
    workers = max(1, min(slots, options.microbatches))
    return workers, f"{workers} of {slots} free places: a step is at least {flop:.2g} FLOP"


def _grid(options: TrainOptions, facts: Facts) -> str:
    """How many microbatches a batch has, and why so many where the spec did not say."""
    number = _counted(options.microbatches, "microbatch", "es")
    if not facts.chose_microbatches:
        return number
    if facts.flop_per_sample is None:
        return f"{number}, as many as by default where a sample's operations are not known"
    sample = f"a sample is about {facts.flop_per_sample:.2g} FLOP"
    if 2 * options.microbatches > min(DEFAULT_MICROBATCHES, options.batch_size):
        return f"{number}: {sample}, so that cutting costs little"
    return f"{number}: {sample}, and cutting {options.batch_size} of them further would cost more than {MOST_COST:.0%}"


def _counted(count: int, word: str, ending: str = "s") -> str:
    return f"{count} {word}{ending if count != 1 else ''}"


def _take(rooms: Sequence[Room], wanted: int) -> list[Slot]:
    """Fill the roomiest nodes first, so that few nodes exchange gradients; ties by name."""
    order = sorted(rooms, key=lambda room: (-len(room.now), room.node.name))
    return [slot for room in order for slot in room.now][:wanted]


def _class_gone(rooms: Sequence[Room], begun_on: str) -> Unplaceable:
    why = "; ".join(f"{room.node.name}: {room.limit}" for room in rooms) or "the cluster has 0 nodes"
    return Unplaceable(
        f"the job began on hardware class {begun_on}, and no node of it may take the job: {why}.",
        "Add a node of that class with `paceline join`; or cancel the job and submit it again, to begin on another.",
        busy=False,
        hardware_class=begun_on,
    )


def _unplaceable(
    rooms: Sequence[Room], options: TrainOptions, memory: int, device: str, wanted: int, begun_on: str | None
) -> Unplaceable:
    needs = f"{wanted} worker(s) with {options.threads} core(s) and {_gib(memory)} each on {device}"
    needs += f", of the hardware class {begun_on} that it began on" if begun_on else ""
    if not rooms:
        return Unplaceable(
            f"the job needs {needs}, and the cluster has no nodes.", "Add one with `paceline join`.", busy=False
        )
    now = sum(len(room.now) for room in rooms)
    idle = sum(room.idle for room in rooms)
    best = max(rooms, key=lambda room: (not room.excluded, room.idle, room.node.cores, room.node.memory))
    if best.excluded:
        why = "; ".join(f"{room.node.name}: {room.limit}" for room in rooms)
        return Unplaceable(
            f"the job needs {needs}, and no node may take it: {why}.",
            "Name nodes that are here in resources, or add one with `paceline join`.",
            busy=False,
        )
    fact = (
        f"the job needs {needs}; there is room for {now} now and {idle} on idle nodes. "
        f"The best node, {best.node.name}, has {best.limit}."
    )
    if idle >= wanted:
        return Unplaceable(fact, "It waits until running jobs end.", busy=True)
    fixes = [f"resources=pl.Resources(workers={idle})"] if idle else []
    fixes += ["threads=1"] if options.threads > 1 else []
    fixes += ["a smaller memory="] if options.resources.memory else []
    fixes += ["device='cpu'"] if device != "cpu" else []
    return Unplaceable(
        fact, f"Use {', '.join(fixes) or 'a smaller model'}, or add a node with `paceline join`.", busy=False
    )


def _reason(room: Room, workers: Sequence[Placement], memory: int) -> NodeReason:
    mine = sum(worker.node_id == room.node.id for worker in workers)
    if mine:
        return NodeReason(
            node=room.node.name, taken=True, reason=f"takes {mine} of {len(room.now)} places; {room.limit}"
        )
    if room.now:
        reason = f"not needed: the {len(workers)} worker(s) fit on fewer nodes; {room.limit}"
    elif room.excluded:
        reason = room.limit
    else:
        reason = f"no place for a worker of {_gib(memory)}: {room.limit}"
    return NodeReason(node=room.node.name, taken=False, reason=reason)
