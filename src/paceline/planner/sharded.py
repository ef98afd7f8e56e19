"""Where a model that is cut over its workers trains: as few of them as its memory takes. A pure function.

Each worker holds its part of parameters, gradients and optimizer state, and a few units whole while it computes with
them. The ladder is climbed only as far as that fits: first the grid as it is, then smaller microbatches, then
recomputed activations, then shards in the host's memory where the device is an accelerator.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from paceline.errors import Unplaceable
from paceline.explain import counted, size
from paceline.measured import Measured
from paceline.plan import Node, NodeReason, Placement, Plan, Prediction, Sharding
from paceline.planner.choose import allowed
from paceline.planner.copies import copy_bytes, lacking, spare
from paceline.planner.predict import BASE_BYTES, Slot, worker_bytes
from paceline.planner.profiles import Workload, costs
from paceline.planner.rooms import excluded, fitting, kept_back, when_idle
from paceline.planner.sharded_times import over_limits, predict_sharded
from paceline.shares import split_evenly
from paceline.spec import Facts, Keep, Submission, TrainOptions

COPIES = 4  # parameters, gradients and two of the optimizer's
FSDP_BYTES = 48 * 2**20  # that its import takes
# Whole ones: two gathered, one's gradients, those once more while they are summed, and gloo's copy of what it moves.
UNITS_AT_ONCE = 5
# Of a worker's part of the state, what its heap loses to holes where it keeps memory: blocks that stay, as gradients
# and the optimizer's do, come to lie between such that go.
HOLES = 0.5


@dataclass(frozen=True)
class Need:
    """What a sharded job takes. state_bytes: of all workers together; stored_bytes: of it, what a checkpoint holds.
    fixed_bytes: of each, whatever its part.

    activation_bytes: of one sample in a pass; recomputed_bytes: the same where units compute their activations again.
    Both 0 where nothing is measured.
    """

    state_bytes: int
    stored_bytes: int
    fixed_bytes: int
    activation_bytes: float
    recomputed_bytes: float
    units: int

    def of_worker(self, workers: int, cell_size: int, sharding: Sharding) -> int:
        """Bytes that each of so many workers needs."""
        per_sample = self.recomputed_bytes if sharding.recompute else self.activation_bytes
        return self.fixed_bytes + -(-self.state_bytes // workers) + int(per_sample * cell_size)

    def holes(self, workers: int) -> int:
        """Bytes more, of each of them, where its heap keeps memory."""
        return int(HOLES * self.state_bytes / workers)


def decided(
    nodes: Sequence[Node],
    submission: Submission,
    known: Measured = Measured(),  # noqa: B008 - it is frozen
) -> Submission:
    """The submission with `sync="sharded"` where that was left to the master and the model fits on no node.

    Decided once, when the job is submitted: its checkpoints are of one kind.
    """
    options, facts = submission.options, submission.facts
    if options.sync != "auto" or options.resources.memory is not None or not facts.parameter_bytes:
        return submission
    work = Workload(options, facts, known)
    if any(_fits_whole(work, node) for node in nodes):
        return submission
    cut = options.model_copy(update={"sync": "sharded"})
    try:
        plan_sharded(nodes, cut, facts, known=known)
    except Unplaceable as refusal:
        if not refusal.details.get("busy"):
            return submission  # the refusal of exact training names the plainer remedies
    return submission.model_copy(update={"options": cut})


def _fits_whole(work: Workload, node: Node) -> bool:
    return node.memory - kept_back(node) >= worker_bytes(work, costs(work, node, "cpu"), workers=1)


def plan_sharded(
    nodes: Sequence[Node],
    options: TrainOptions,
    facts: Facts,
    wish: int | None = None,
    known: Measured = Measured(),  # noqa: B008 - it is frozen
) -> Plan:
    """Raises Unplaceable, with `details["busy"]` true where the job fits once running ones have ended.

    wish: workers that the user asked for since. known: of the model's profiles, the newest tells what activations take.
    """
    options = _on_one_kind(nodes, options)
    need = _need(options, facts, known)
    work = Workload(options, facts, known)
    usable = [node for node in nodes if not excluded(node, options)]
    asked = wish or options.resources.workers
    best: Prediction | None = None
    for cut in _cuts(work, need, usable, asked):
        if allowed(options, cut.predicted):
            return _plan(nodes, options, need, cut)
        best = cut.predicted
    if best is None:
        raise _refusal(usable, options, facts, need, asked)
    later = _cuts(work, need, when_idle(usable), asked)
    raise over_limits(options, best, busy=any(allowed(options, cut.predicted) for cut in later))


@dataclass(frozen=True)
class Cut:
    """Places for a job's shards. memory: of each worker, without copies."""

    sharding: Sharding
    slots: Sequence[Slot]
    memory: int
    predicted: Prediction

    @property
    def time(self) -> tuple[float, float]:
        return self.predicted.time_s, self.predicted.step_s


def _cuts(work: Workload, need: Need, nodes: Sequence[Node], asked: int | None) -> Iterator[Cut]:
    """On the first rung that fits: as few workers as fit, then twice as many, and so on while that is quicker."""
    options, facts = work.options, work.facts
    for rung in _ladder(options, facts, need):
        last: Cut | None = None
        for workers in _counts(nodes, options, asked):
            if last is not None and workers < 2 * len(last.slots):
                continue
            sharding = _grid_of(rung, workers, options, facts)
            memory = options.resources.memory or need.of_worker(workers, _cell_size(options, sharding), sharding)
            slots = _places(nodes, options, memory, idle=False)[:workers]
            if len(slots) < workers:
                continue
            cut = Cut(sharding, slots, memory, predict_sharded(work, slots, sharding, need.units, memory))
            if last is not None and cut.time >= last.time:
                return
            last = cut
            yield cut
        if last is not None:
            return


def _on_one_kind(nodes: Sequence[Node], options: TrainOptions) -> TrainOptions:
    """With the kind of device named that `device="auto"` comes to: GPUs wherever a node that may be used has some."""
    if options.resources.device != "auto":
        return options
    found = any(d.kind == "cuda" for node in nodes if not excluded(node, options) for d in node.devices)
    return options.with_resources(device="cuda" if found else "cpu")


def _counts(nodes: Sequence[Node], options: TrainOptions, asked: int | None) -> Sequence[int]:
    """Numbers of workers to be tried: as many as the nodes' cores and the batch's samples allow."""
    most = min(sum(node.cores for node in nodes) // options.threads, options.batch_size)
    return [asked] if asked else range(1, max(1, most) + 1)


def _need(options: TrainOptions, facts: Facts, known: Measured) -> Need:
    if facts.parameter_bytes is None:
        raise Unplaceable(
            "the model's size is not known: its builder can't run on torch's meta device.",
            "Give a builder that only makes modules, or hand the model over as a module.",
            busy=False,
        )
    unit = facts.unit_bytes or facts.parameter_bytes
    copies = COPIES + (Keep.parse(options.keep).metric is not None)
    profile = max((p for p in known.profiles if p.cells), key=lambda p: p.at, default=None)
    samples = max(profile.cell_samples, 1) if profile else 1
    return Need(
        state_bytes=copies * facts.parameter_bytes,
        stored_bytes=(copies - 1) * facts.parameter_bytes,  # all but gradients
        fixed_bytes=BASE_BYTES[options.resources.device] + FSDP_BYTES + UNITS_AT_ONCE * unit,
        activation_bytes=profile.activation_bytes / samples if profile else 0.0,
        recomputed_bytes=profile.recomputed_bytes / samples if profile else 0.0,
        units=max(1, facts.parameter_bytes // max(unit, 1)),
    )


def _ladder(options: TrainOptions, facts: Facts, need: Need) -> Iterator[Sharding]:
    """From the quickest to the smallest. Without measured activations, what saves on them promises nothing.

    Each pass gathers the whole model: where the spec left their number out, there are as few microbatches as workers.
    """
    cells = 1 if facts.chose_microbatches else options.microbatches
    yield Sharding(microbatches=cells)
    if not need.activation_bytes:
        return
    while cells < options.batch_size:
        cells = min(2 * cells, options.batch_size)
        yield Sharding(microbatches=cells)
    if not need.recomputed_bytes:
        return
    yield Sharding(microbatches=options.batch_size, recompute=True)
    if options.resources.device == "cuda":
        yield Sharding(microbatches=options.batch_size, recompute=True, offload=True)


def _grid_of(rung: Sharding, workers: int, options: TrainOptions, facts: Facts) -> Sharding:
    """At least one microbatch a worker; where the spec left their number out, as many for each."""
    cells = max(rung.microbatches, workers)
    if facts.chose_microbatches:
        cells = -(-cells // workers) * workers
    size = -(-options.batch_size // min(cells, options.batch_size))
    return rung.model_copy(update={"microbatches": -(-options.batch_size // size)})


def _cell_size(options: TrainOptions, sharding: Sharding) -> int:
    return -(-options.batch_size // sharding.microbatches)


def _devices(node: Node, options: TrainOptions, memory: int, idle: bool) -> list[str]:
    """Devices of the workers that the node could take, now or when it is idle."""
    kind = options.resources.device
    number = fitting([node], options, kind, memory, now=not idle)
    if kind == "cpu":
        return ["cpu"] * number
    alike = [d for d in node.devices if d.kind == kind and (idle or d.index in node.free_devices)]
    usable = [d for d in alike if d.memory == 0 or d.memory >= memory]  # 0: it is unknown
    return [f"cuda:{d.index}" if kind == "cuda" else kind for d in usable][:number]


def _places(nodes: Sequence[Node], options: TrainOptions, memory: int, idle: bool) -> list[Slot]:
    """Places for workers, one on each node before a second on any; the roomiest nodes first.

    Before all others those that keep copies of the job's last attempt.
    """
    roomy = sorted(nodes, key=lambda node: (node.kept == 0, -node.free_memory, node.name))
    rows = [[Slot(node, device) for device in _devices(node, options, memory, idle)] for node in roomy]
    return [row[at] for at in range(max(map(len, rows), default=0)) for row in rows if at < len(row)]


def _plan(nodes: Sequence[Node], options: TrainOptions, need: Need, cut: Cut) -> Plan:
    sharding, memory, hosts = cut.sharding, cut.memory, [slot.node for slot in cut.slots]
    shares = split_evenly(sharding.microbatches, len(hosts))
    copies, heap = copy_bytes([node.id for node in hosts], need.stored_bytes), need.holes(len(hosts))
    if options.resources.memory is None:
        no_copies = lacking(hosts, memory, copies)
        memory += 0 if no_copies else copies
        heap = heap if heap <= spare(hosts, memory) else 0
        memory += heap
    else:
        no_copies = "the memory of a worker was asked for"
        left = memory - need.of_worker(len(hosts), _cell_size(options, sharding), sharding)
        heap = heap if heap <= left else 0
    sharding = sharding.model_copy(update={"copy_bytes": 0 if no_copies else copies, "heap_bytes": heap})
    workers = tuple(
        Placement(rank=rank, node_id=slot.node.id, node_name=slot.node.name, device=slot.device, share=share)
        for rank, (slot, share) in enumerate(zip(cut.slots, shares, strict=True))
    )
    return Plan(
        mode="sharded",
        sharding=sharding,
        workers=workers,
        hardware_class=hosts[0].hardware_class,
        cores_per_worker=options.threads,
        memory_per_worker=memory,
        microbatches=sharding.microbatches,
        most_workers=len(workers),
        summary=_summary(options, need, sharding, len(workers), memory) + _copies(sharding, no_copies),
        reasons=_reasons(nodes, options, workers, memory),
        predicted=cut.predicted,
    )


def _copies(sharding: Sharding, why_not: str) -> str:
    if why_not:
        return f"; no copies of shards in memory, a lost worker costs the steps since the last checkpoint: {why_not}"
    return f"; {size(sharding.copy_bytes)} of it hold copies of shards, with a neighbour: a lost worker costs few steps"


def _summary(options: TrainOptions, need: Need, sharding: Sharding, workers: int, memory: int) -> str:
    whole = f"parameters, gradients and optimizer take {size(need.state_bytes)}"
    part = f"{workers} worker(s) hold {size(-(-need.state_bytes // workers))} of it each"
    around = f"and {size(need.fixed_bytes)} for the process and the units being computed: {size(memory)} a worker"
    steps = [f"a batch of {options.batch_size} in {sharding.microbatches} microbatches"]
    steps += ["activations computed again in backward"] if sharding.recompute else []
    steps += ["shards in the host's memory"] if sharding.offload else []
    steps += [] if sharding.heap_bytes else ["a step's memory goes back to the system at each use, for want of room"]
    unmeasured = "" if need.activation_bytes else "; activations are not measured"
    return f"{whole}; {part}, {around}; {', '.join(steps)}{unmeasured}"


def _reasons(
    nodes: Sequence[Node], options: TrainOptions, workers: Sequence[Placement], memory: int
) -> tuple[NodeReason, ...]:
    """Told once for nodes that are alike."""
    alike: dict[tuple[bool, str], list[str]] = {}
    for node in nodes:
        alike.setdefault(_reason(node, options, workers, memory), []).append(node.name)
    return tuple(NodeReason(nodes=tuple(names), taken=taken, reason=why) for (taken, why), names in alike.items())


def _reason(node: Node, options: TrainOptions, workers: Sequence[Placement], memory: int) -> tuple[bool, str]:
    """(whether it is taken, why)."""
    mine = sum(worker.node_id == node.id for worker in workers)
    limit = f"{node.free_cores} of {node.cores} cores free, "
    limit += f"{size(node.free_memory)} of {size(node.memory)} memory free"
    if mine:
        return True, f"holds {mine} of {len(workers)} shards; {limit}"
    if barred := excluded(node, options):
        return False, barred
    if _devices(node, options, memory, idle=False):
        return False, f"not needed: the {counted(len(workers), 'worker')} hold the model; {limit}"
    return False, f"no place for a worker of {size(memory)}: {limit}"


def _refusal(nodes: Sequence[Node], options: TrainOptions, facts: Facts, need: Need, asked: int | None) -> Unplaceable:
    """What is needed and what there is, without what changes by the second: a waiting job says it once."""
    smallest = list(_ladder(options, facts, need))[-1]
    counts = _counts(nodes, options, asked)

    def memory_of(workers: int) -> int:
        sharding = _grid_of(smallest, workers, options, facts)
        return options.resources.memory or need.of_worker(workers, _cell_size(options, sharding), sharding)

    fits = next((n for n in counts if len(_places(nodes, options, memory_of(n), idle=True)) >= n), None)
    workers = fits or counts[-1]
    room = len(_places(nodes, options, memory_of(workers), idle=True))
    largest = max((node.memory for node in nodes), default=0)
    fact = (
        f"sharded over {workers} worker(s), the job needs {size(memory_of(workers))} for each: "
        f"{size(need.state_bytes)} of parameters, gradients and optimizer in {workers} part(s), and "
        f"{size(need.fixed_bytes)} beside it; the {len(nodes)} node(s) that may take it have room for {room} such "
        f"worker(s), the largest has {size(largest)} of memory."
    )
    if fits:
        return Unplaceable(fact, "It waits until running jobs end.", busy=True)
    spare = largest - need.fixed_bytes
    remedy = "Add nodes with `paceline join`"
    if spare > 0:
        remedy += f": {-(-need.state_bytes // spare)} of {size(largest)} would hold it"
    if need.activation_bytes and options.precision == "fp32":
        remedy += "; precision='bf16-mixed' halves what activations take"
    return Unplaceable(fact, f"{remedy}; or train a smaller model.", busy=False, sharded=True)
