"""Who gets nodes, and when: a pure policy over what waits, what runs and what is free.

Jobs are looked at by rank: priority, what they gained by waiting, and their user's fair share. Each starts as a whole
or not at all. The first ones that do not fit get a reservation each, from the predicted ends of what runs; a later one
starts only where it delays none of them. With one reservation that is EASY backfill, with one for each job conservative
backfill (Lifka, "The ANL/IBM SP scheduling system", JSSPP 1995; Mu'alem and Feitelson, "Utilization, predictability,
workloads, and user runtime estimates in scheduling the IBM SP2 with backfilling", IEEE TPDS 12(6), 2001). Where the
first reservation is far off, the cheapest running jobs of lower priority are asked to leave at their next commit.

There is no clock here: times are seconds from now, or for how long something has lasted. The same input gives the same
decisions, and each has its reason in numbers.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import reduce
from math import inf

from paceline.errors import Unplaceable
from paceline.plan import Node, Plan
from paceline.planner.resources import Hold, common, cores_of, give, holds_of, take
from paceline.planner.timeline import End, Fit, Place, Reservation, Timeline, fits, following, reserve
from paceline.settings import Quota

EVERYBODY = "*"


@dataclass(frozen=True)
class Policy:
    """aging_s: who waits so long gains one priority. share_weight: how many priorities a user loses by having had
    everything, where what was had a half-life ago counts half. min_run_s: a job that has run less is not asked to
    leave, and nobody is for one that starts so soon anyhow. quotas, shares: by user, `"*"` for all who are not named; a
    share is 1 unless given. tried: how many jobs a pass looks at; reserved: how many of them get a reservation.
    """

    aging_s: float = 3600.0
    share_weight: float = 1.0
    half_life_s: float = 86_400.0
    min_run_s: float = 60.0
    quotas: Mapping[str, Quota] = field(default_factory=dict)
    shares: Mapping[str, float] = field(default_factory=dict)
    tried: int = 100
    reserved: int = 10

    def quota(self, user: str) -> Quota:
        return self.quotas.get(user) or self.quotas.get(EVERYBODY) or Quota()

    def share(self, user: str) -> float:
        return self.shares.get(user, self.shares.get(EVERYBODY, 1.0))


@dataclass(frozen=True)
class WaitingJob:
    """waited_s: since it came, or was asked to leave. threads: cores of each of its workers."""

    id: str
    user: str
    priority: int
    waited_s: float
    threads: int = 1


@dataclass(frozen=True)
class RunningJob:
    """What holds places. rank: the one that it started with. ran_s: 0 until it trains. left_s: to its predicted end.

    leaves: it was asked to, or is ending.
    """

    id: str
    user: str
    priority: int
    rank: float
    holds: tuple[Hold, ...]
    ran_s: float
    left_s: float | None = None
    leaves: bool = False


@dataclass(frozen=True)
class Start:
    job: str
    plan: Plan
    rank: float
    reason: str


@dataclass(frozen=True)
class Preempt:
    """Ask a running job to leave at its next commit."""

    job: str
    for_job: str
    reason: str


@dataclass(frozen=True)
class Wait:
    """place: 1 is next. start_in_s: by when it starts, as far as predictions go; None where they can't tell.

    refusal: the planner's, where there is no room.
    """

    job: str
    place: int
    start_in_s: float | None
    reason: str
    refusal: Unplaceable | None = None


Decision = Start | Preempt | Wait


def decide(
    waiting: Sequence[WaitingJob],
    running: Sequence[RunningJob],
    nodes: Sequence[Node],
    usage: Mapping[str, float],
    policy: Policy,
    place: Place,
) -> list[Decision]:
    """What to do now: every waiting job is started, or told why not.

    nodes: with what is free now. usage: what users had of late, in core-seconds (`charged`). place: plans one job.
    """
    ranks = ranked(waiting, running, usage, policy)
    order = sorted(waiting, key=lambda job: (-ranks[job.id], -job.waited_s, job.id))
    look = _Pass(running, nodes, policy, place)
    for job in order[: policy.tried]:
        look.at(job, ranks[job.id])
    for job in order[policy.tried :]:
        look.put_off(job, f"{policy.tried} jobs are ahead of it")
    return look.decisions


def ranked(
    waiting: Sequence[WaitingJob], running: Sequence[RunningJob], usage: Mapping[str, float], policy: Policy
) -> dict[str, float]:
    """Each waiting job's rank: priority, plus its time in the queue, plus what its user's share lacks or exceeds."""
    users = {job.user for job in waiting} | {job.user for job in running} | {user for user in usage if usage[user] > 0}
    shares, had = sum(policy.share(user) for user in sorted(users)), sum(usage.values())
    lacks = {user: policy.share(user) / shares - usage.get(user, 0.0) / had if had else 0.0 for user in users}
    return {
        job.id: job.priority + job.waited_s / policy.aging_s + policy.share_weight * lacks[job.user] for job in waiting
    }


def charged(
    usage: Mapping[str, float], cores: Mapping[str, float], seconds: float, half_life_s: float
) -> dict[str, float]:
    """Users' core-seconds after so many seconds with these cores: what was before counts half after each half-life."""
    kept = {user: had * 0.5 ** (seconds / half_life_s) for user, had in usage.items()}
    return {user: kept.get(user, 0.0) + cores.get(user, 0.0) * seconds for user in sorted({*kept, *cores})}


def workers_left(quota: Quota, held: Sequence[Hold], threads: int) -> tuple[int | None, str]:
    """(workers of so many cores that a user with these may still have, what of the quota is in use)."""
    bounds: list[tuple[int, str]] = []
    if quota.workers is not None:
        bounds.append((max(0, quota.workers - len(held)), f"{len(held)} of {quota.workers} workers"))
    if quota.cores is not None:
        cores = cores_of(held)
        bounds.append((max(0, quota.cores - cores) // threads, f"{cores} of {quota.cores} cores"))
    return min(bounds) if bounds else (None, "")


# ---- one pass over the queue ----


class _Pass:
    """Looks at the waiting jobs in their order, and keeps account of what is free, now and once reserved jobs start."""

    def __init__(self, running: Sequence[RunningJob], nodes: Sequence[Node], policy: Policy, place: Place) -> None:
        ends = (End(0.0 if r.leaves else _seconds(r.left_s), r.id, r.holds) for r in running)
        self.decisions: list[Decision] = []
        self._running, self._policy, self._place = running, policy, place
        self._now = self._later = Timeline.of(nodes, ends)
        self._reserved: list[Reservation] = []
        self._held = [(r.user, r.holds) for r in running]
        self._waits = 0

    def at(self, job: WaitingJob, rank: float) -> None:
        """Start the job, or tell why not."""
        most, bound = self._left(job)
        if most == 0:
            return self.put_off(job, f"the quota of {job.user} is used up: {bound}")
        try:
            fit = self._beside(job, most)
        except Unplaceable as refusal:
            return self._no_room(job, refusal)
        workers, cores = len(fit.plan.workers), cores_of(holds_of(fit.plan))
        if most is not None and workers > most:
            needs = f"it needs {workers} workers with {cores} cores"
            return self.put_off(job, f"{needs}, and the quota of {job.user} has {bound} in use")
        self._start(job, rank, fit)

    def _left(self, job: WaitingJob) -> tuple[int | None, str]:
        """(workers that its user's quota leaves to it, what of the quota is in use)."""
        quota = self._policy.quota(job.user)
        held = [holds for user, holds in self._held if user == job.user]
        if quota.jobs is not None and len(held) >= quota.jobs:
            return 0, f"{len(held)} of {quota.jobs} jobs"
        return workers_left(quota, [hold for holds in held for hold in holds], job.threads)

    def _beside(self, job: WaitingJob, most: int | None, seconds: float = 0.0) -> Fit:
        """A plan on what is free, and not reserved within the time that it takes: at least `seconds`.

        Raises Unplaceable.
        """
        needed = [r for r in self._reserved if r.at < seconds or r.at == inf]
        fit = self._place(job.id, reduce(common, (r.spare for r in needed), self._now.nodes), most)
        takes = _seconds(fit.seconds)
        return fit if takes <= seconds else self._beside(job, most, takes)

    def _start(self, job: WaitingJob, rank: float, fit: Fit) -> None:
        reason = f"rank {rank:.2f}: there is room for its {len(fit.plan.workers)} worker(s) now"
        if self._reserved:
            lasts = "for a time that is not known" if fit.seconds is None else f"for {fit.seconds:.0f} s"
            reason += f"; taken {lasts}, they delay none of the {self._ahead()}"
        self.decisions.append(Start(job.id, fit.plan, rank, reason))
        holds, end = holds_of(fit.plan), _seconds(fit.seconds)
        self._held.append((job.user, holds))
        self._now, self._later = (line.joined(End(end, job.id, holds)) for line in (self._now, self._later))
        self._reserved = [r if end <= r.at < inf else replace(r, nodes=take(r.nodes, holds)) for r in self._reserved]

    def _no_room(self, job: WaitingJob, refusal: Unplaceable) -> None:
        """Reserve places, as long as starts can be foretold. What no end of a job will help holds nobody up."""
        if not refusal.details.get("busy"):
            return self.put_off(job, refusal.fact, refusal=refusal)
        reason = refusal.fact
        if self._reserved and fits(self._place, job.id, self._now.nodes):
            reason = f"it would take places that are free now from the {self._ahead()}"
        self.put_off(job, reason, self._reserve(job), refusal)

    def _ahead(self) -> str:
        first = self._reserved[0]
        return f"{len(self._reserved)} job(s) with reservations; {first.job} is to start {_when(first.at)}"

    def _reserve(self, job: WaitingJob) -> Reservation | None:
        if len(self._reserved) >= self._policy.reserved or (self._reserved and self._reserved[-1].at == inf):
            return None
        found = reserve(job.id, self._later, self._place)
        if found is not None and not self._reserved and found.at > self._policy.min_run_s:
            found = self._make_room(job, found)
        if found is not None:
            self._reserved.append(found)
            self._later = following(self._later, found)
        return found

    def put_off(
        self,
        job: WaitingJob,
        reason: str,
        start: Reservation | None = None,
        refusal: Unplaceable | None = None,
    ) -> None:
        """Tell why the job does not start now."""
        self._waits += 1
        reason = reason.rstrip(".")
        if start is not None:
            reason += f"; by the predictions, it starts {_when(start.at)} at the latest"
            reason += f", once {start.awaited[-1].job} has ended" if start.awaited else ""
        in_s = start.at if start is not None and start.at < inf else None
        self.decisions.append(Wait(job.id, self._waits, in_s, reason, refusal))

    # ---- preemption ----

    def _make_room(self, job: WaitingJob, found: Reservation) -> Reservation | None:
        """Ask the cheapest jobs of lower priority to leave, where that helps; the reservation after it."""
        victims = self._victims(job)
        for victim in victims:
            mine = f"priority {victim.priority}, {victim.ran_s:.0f} s run and {cores_of(victim.holds)} cores held here"
            reason = f"preempted by {job.id} of priority {job.priority}, which would start {_when(found.at)}; {mine}"
            self.decisions.append(Preempt(victim.id, job.id, reason))
        if not victims:
            return found
        self._now = self._later = self._now.leaving(victim.id for victim in victims)
        return reserve(job.id, self._later, self._place)

    def _victims(self, job: WaitingJob) -> list[RunningJob]:
        """The cheapest jobs without which there is room: of the least priority, then those that hold the least."""
        lower = [r for r in self._running if max(r.priority, r.rank) < job.priority and not r.leaves]
        lower = [r for r in lower if r.ran_s >= self._policy.min_run_s]
        lower.sort(key=lambda r: (r.priority, cores_of(r.holds), r.id))
        soon = self._now.after(sum(end.at <= 0 for end in self._now.ends))

        def enough(victims: Sequence[RunningJob]) -> bool:
            return fits(self._place, job.id, give(soon, (hold for victim in victims for hold in victim.holds)))

        counts = range(len(lower) + 1)
        count = bisect_left(counts, True, key=lambda some: enough(lower[:some]))
        if count == len(counts):
            return []
        chosen = lower[:count]
        for victim in reversed(lower[:count]):  # the last one may have made an earlier one needless
            others = [other for other in chosen if other is not victim]
            chosen = others if enough(others) else chosen
        return chosen


def _seconds(known: float | None) -> float:
    return inf if known is None else known


def _when(at: float) -> str:
    return "at a time that is not known" if at == inf else f"in {at:.0f} s"
