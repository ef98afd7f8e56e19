"""What a job costs on one device: as measured there, as measured elsewhere and carried over, or estimated."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property

from paceline.grid import CELL_FLOP, CELL_FLOP_PER_PARAMETER, Grid
from paceline.measured import COPIES_ALONE, CellTime, Measured, Profile, in_steps
from paceline.plan import Node
from paceline.planner.network import Network
from paceline.spec import Facts, TrainOptions
from paceline.stop import step_bound

USUAL_FLOP_PER_S = {"cpu": 1e11, "cuda": 2e13, "mps": 4e12}  # of a core, of a device, where none was calibrated
PART_OF_CALIBRATED = 0.3  # that a model's own operations reach of a matrix product's rate
UPDATE_FLOP_PER_PARAMETER = 40.0  # an optimizer's step, in operations that take as long
DISPATCH_S = {"cpu": 0.0, "cuda": 2e-3, "mps": 4e-3}  # a pass's launches, which no device makes shorter
BUILD_S = 0.5  # a warm worker's setup of a small model
STATE_COPIES = 4
MOST_FLOP = 1e30  # of a step: what a client sends may be any number
LEAST_S = 1e-9  # of a microbatch, so that rates are finite

MEASURED, REFINED = 0.15, 0.05  # relative uncertainty of a probe, and of what real training has refined
OTHER_CLASS, OUTSIDE, ESTIMATED, UNKNOWN = 0.4, 0.5, 1.0, 9.0


@dataclass(frozen=True)
class Workload:
    """A job as predictions see it."""

    options: TrainOptions
    facts: Facts
    known: Measured = field(default_factory=Measured)

    @cached_property
    def grid(self) -> Grid | None:
        """None where the number of samples is known on the nodes only."""
        samples = self.facts.train_samples
        return self.options.grid(samples) if samples else None

    @cached_property
    def cell_samples(self) -> int:
        return -(-self.options.batch_size // self.options.microbatches)

    @cached_property
    def worked_out(self) -> tuple[dict[tuple[str, str], Costs], dict[tuple[object, ...], Costs]]:
        """Costs that are known already: by node and kind of device, and by hardware class, kind and speeds."""
        return {}, {}

    @cached_property
    def network(self) -> Network:
        return Network.of(self.known.links)

    def asked(self, options: TrainOptions) -> Workload:
        """The same job with other options. Links are as they were: there may be thousands."""
        other = replace(self, options=options)
        other.__dict__["network"] = self.network  # as cached_property keeps it
        return other


@dataclass(frozen=True)
class Costs:
    """One worker's costs on an otherwise idle node. cell_s: of a full microbatch. uncertainty: of the times, relative.

    pace: how many times slower than usual one of the node's cores is; 1 where it is not calibrated.
    doubt: what makes them uncertain, "" where they were measured for this microbatch on this hardware class.
    """

    profile: Profile
    cell_s: float
    update_s: float
    uncertainty: float
    doubt: str = ""
    pace: float = 1.0


def costs(work: Workload, node: Node, kind: str) -> Costs:
    """Of this job on one device of the node; kind: "cpu", "cuda" or "mps"."""
    by_node, by_class = work.worked_out
    found = by_node.get((node.id, kind))
    if found is None:
        key = (node.hardware_class, kind, speed_of(node, kind), speed_of(node, "cpu"))
        if key not in by_class:
            pace = USUAL_FLOP_PER_S["cpu"] / key[3] if key[3] else 1.0
            by_class[key] = replace(_worked_out(work, *key[:3]), pace=pace)
        found = by_node[node.id, kind] = by_class[key]
    return found


def _worked_out(work: Workload, hardware_class: str, kind: str, speed: float | None) -> Costs:
    measured = [profile for profile in work.known.profiles if profile.device == kind and profile.cells]
    here = next((profile for profile in measured if profile.hardware_class == hardware_class), None)
    if here is not None:
        uncertainty, doubt = (REFINED if here.steps else MEASURED), ""
        return _scaled(work, here, _times_slower(here, speed), uncertainty, doubt)
    if measured:
        other = min(measured, key=lambda profile: profile.hardware_class)
        by_speed = bool(speed and other.flop_per_s)
        doubt = f"measured on {other.hardware_class}, carried over to {hardware_class} "
        doubt += "by the nodes' speeds" if by_speed else "as if it were as fast: no speed is known"
        uncertainty = OTHER_CLASS if by_speed else ESTIMATED
        return _scaled(work, other, _times_slower(other, speed), uncertainty, doubt)
    profile, known = estimated(work, hardware_class, kind, speed)
    uncertainty, doubt = (ESTIMATED, _estimated_from(work, speed)) if known else (UNKNOWN, UNKNOWN_SIZE)
    return _scaled(work, profile, 1.0, uncertainty, doubt)


UNKNOWN_SIZE = "the model's size is not known before it is built, and no probe has run"


def _estimated_from(work: Workload, speed: float | None) -> str:
    flop = work.facts.flop_per_sample
    counted = f"{flop:.2g} FLOP a sample" if flop else f"{work.facts.parameters or 0:.2g} parameters"
    return f"estimated from {counted} and {'the calibrated' if speed else 'a usual'} speed: no probe has run"


def speed_of(node: Node, kind: str) -> float | None:
    """`Node.speed_of`, in steps of 5%."""
    found = node.speed_of(kind)
    return in_steps(found) if found else None


def _times_slower(profile: Profile, speed: float | None) -> float:
    """How much longer the profile's times are at this speed; 1 where one of both is not known."""
    if not speed or not profile.flop_per_s:
        return 1.0
    return in_steps(profile.flop_per_s) / speed


def estimated(work: Workload, hardware_class: str, kind: str, speed: float | None) -> tuple[Profile, bool]:
    """(a profile from the model's size and the node's speed alone, whether that size is known).

    Operations as in `grid.default_microbatches`: a forward's thrice, and what a pass costs whatever its samples.
    """
    parameters, nbytes = work.facts.parameters or 0, work.facts.parameter_bytes or 0
    threads = work.options.threads if kind == "cpu" else 1
    rate = PART_OF_CALIBRATED * (speed or USUAL_FLOP_PER_S[kind]) * threads
    size = work.cell_samples
    flop = step_flop(work) / work.options.batch_size * size + CELL_FLOP_PER_PARAMETER * parameters
    flop += CELL_FLOP if kind == "cpu" else 0.0
    made = Profile(
        hardware_class=hardware_class,
        device=kind,
        cells=(CellTime(samples=size, seconds=flop / rate + DISPATCH_S[kind]),),
        cell_samples=size,
        update_s=UPDATE_FLOP_PER_PARAMETER * parameters / rate,
        state_bytes=STATE_COPIES * nbytes,
        activation_bytes=0,
        worker_bytes=COPIES_ALONE * nbytes,
        exchange_bytes=nbytes,
        build_s=BUILD_S,
        flop_per_s=speed,
        at=0.0,
    )
    return made, work.facts.parameters is not None or work.facts.flop_per_sample is not None


def rough_seconds(options: TrainOptions, facts: Facts) -> float | None:
    """Of all steps on one usual core, to the stop condition's bound; None where the facts do not tell."""
    work = Workload(options, facts)
    if work.grid is None or facts.flop_per_sample is None:
        return None
    steps = step_bound(options.stop, work.grid.steps_per_epoch)
    if steps is None:
        return None
    profile, _ = estimated(work, "", "cpu", None)
    return steps * (options.microbatches * profile.cells[0].seconds + profile.update_s)


def step_flop(work: Workload) -> float:
    """A lower bound of a step's work: as counted, or else every parameter once a sample; a backward is two forwards."""
    facts = work.facts
    forward = 2.0 * (facts.parameters or 0) if facts.flop_per_sample is None else facts.flop_per_sample
    return min(MOST_FLOP, 3 * forward * work.options.batch_size)


def _scaled(work: Workload, profile: Profile, slower: float, uncertainty: float, doubt: str) -> Costs:
    seconds, inside = cell_seconds(profile.cells, work.cell_samples)
    if not inside:
        sizes = [cell.samples for cell in profile.cells]
        outside = f"microbatches of {work.cell_samples} samples, where {_span(sizes)} were measured"
        uncertainty, doubt = uncertainty + OUTSIDE, "; ".join(filter(None, (doubt, outside)))
    return Costs(profile, max(LEAST_S, seconds * slower), profile.update_s * slower, uncertainty, doubt)


def _span(sizes: list[int]) -> str:
    return f"{min(sizes)}" if len(sizes) == 1 else f"{min(sizes)} to {max(sizes)}"


def cell_seconds(cells: tuple[CellTime, ...], samples: int) -> tuple[float, bool]:
    """(seconds of a microbatch of so many samples, whether that lies within the measured sizes).

    Between two sizes and beyond them: on the straight line through the nearest two, never below none; a single size is
    taken in proportion.
    """
    inside = cells[0].samples <= samples <= cells[-1].samples
    if len(cells) == 1:
        return cells[0].seconds * samples / cells[0].samples, inside
    at = next((i for i, cell in enumerate(cells[1:-1]) if samples <= cell.samples), len(cells) - 2)
    low, high = cells[at], cells[at + 1]
    slope = (high.seconds - low.seconds) / (high.samples - low.samples)
    least = cells[0].seconds * min(1.0, samples / cells[0].samples)
    return max(low.seconds + slope * (samples - low.samples), least if not inside else 0.0), inside
