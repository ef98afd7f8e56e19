"""What the sum of a step's gradients takes, as `training/group.py` does it.

Bucket by bucket there is an all-to-all of the shares' tree nodes, then a ring that shares the sums. Each of W workers
sends each other one its slice (1/W of the gradients) of every tree node of its share, then W-1 slices along the ring:
(W-1) * G * (nodes/W + 1) bytes in all, (nodes/W + 1)/2 times a ring all-reduce's. The first of both may go on under the
last microbatch's backward. Machines send at their links' rates; handling the bytes takes processor time too, and is all
there is between workers on one machine.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from paceline.plan import Node
from paceline.planner.network import Network

LEAST_RATE = 1.0  # bytes/s, of nodes that can't reach each other: such an exchange would take for ever
BUCKET_BYTES = 1 << 20  # as in training/exchange.py
SUMS_AT_ONCE = 2  # gloo's threads
CPU_S_PER_BYTE = 0.5e-9  # at either end: packing, the socket, adding. From `benchmarks/throughput.py` on the loopback
RINGS_A_PASS = 3  # of sharded training
COLLECTIVE_S = 2e-4  # that one takes however few its bytes


@dataclass(frozen=True)
class Exchange:
    """seconds: of a step's sum. early_s: how much of it can go on while the last microbatch's backward runs.

    sent: bytes that each worker sends, in the workers' order. unknown: pairs of machines whose link was never measured.
    on_links: whether machines take part that are not one.
    """

    seconds: float = 0.0
    early_s: float = 0.0
    sent: tuple[float, ...] = (0.0,)
    unknown: int = 0
    on_links: bool = False

    @property
    def bytes(self) -> float:
        return sum(self.sent)


def exchange(
    hosts: Sequence[Node],
    tree_nodes: Sequence[int],
    gradient_bytes: int,
    threads: int,
    network: Network,
    pace: Mapping[str, float],
) -> Exchange:
    """hosts: each worker's, in rank order. tree_nodes: partial sums that each of them sends. threads: of each worker.

    pace: how many times slower than usual a host's cores are.
    """
    world = len(hosts)
    if world == 1:
        return Exchange()
    part, total = gradient_bytes / world, sum(tree_nodes)
    by_id = {host.id: host for host in hosts}
    workers = Counter([host.id for host in hosts])
    nodes: Counter[str] = Counter()
    for host, number in zip(hosts, tree_nodes, strict=True):
        nodes[host.id] += number
    ways = _Ways(workers, nodes, network)
    sums_cpu_s = ring_cpu_s = 0.0
    busy = False
    for name, mine in workers.items():
        cores = max(1, min(by_id[name].cores, mine * threads)) / pace.get(name, 1.0)
        handled = nodes[name] * (world - 1) + mine * total - nodes[name]
        sums_cpu_s = max(sums_cpu_s, handled * part * CPU_S_PER_BYTE / cores)
        ring_cpu_s = max(ring_cpu_s, 2 * mine * (world - 1) * part * CPU_S_PER_BYTE / cores)
        busy = busy or mine * threads >= by_id[name].cores
    buckets = max(1, math.ceil(gradient_bytes / BUCKET_BYTES))
    sums_s = max(ways.busiest * part, sums_cpu_s)
    ring_s = max((world - 1) * part / ways.slowest, ring_cpu_s)
    hops = math.ceil(buckets / SUMS_AT_ONCE) * world + world - 1  # in turn, with the ring that gathers the losses
    early_s = (sums_s - sums_cpu_s if busy else sums_s) * (buckets - 1) / buckets  # a busy core can't do both
    collectives_s = (2 * buckets + 1) * COLLECTIVE_S * max([pace.get(name, 1.0) for name in workers])
    return Exchange(
        seconds=sums_s + ring_s + hops * ways.latency_s + collectives_s,
        early_s=early_s,
        sent=tuple([(world - 1) * part * (number + 1) for number in tree_nodes]),
        unknown=ways.unknown,
        on_links=len(workers) > 1,
    )


def gathers(
    hosts: Sequence[Node],
    parameter_bytes: int,
    passes: int,
    units: int,
    threads: int,
    network: Network,
    pace: Mapping[str, float],
) -> Exchange:
    """What a step takes where the parameters are sharded. passes: of each worker. The rest as in `exchange`.

    In each pass every unit is gathered twice, for forward and for backward, and its gradients are summed once: three
    rings, in each of which a worker sends (W-1)/W of the bytes. All but the first unit's may go on under the computing.
    """
    world = len(hosts)
    if world == 1:
        return Exchange()
    sent = RINGS_A_PASS * passes * parameter_bytes * (world - 1) / world
    workers = Counter([host.id for host in hosts])
    ways = _Ways(workers, workers, network)
    cores = {host.id: host.cores / pace.get(host.id, 1.0) for host in hosts}
    cpu_s = max([2 * mine * sent * CPU_S_PER_BYTE / min(cores[name], mine * threads) for name, mine in workers.items()])
    collective_s = COLLECTIVE_S * max([pace.get(name, 1.0) for name in workers]) + (world - 1) * ways.latency_s
    seconds = max(sent / ways.slowest, cpu_s) + RINGS_A_PASS * passes * units * collective_s
    return Exchange(
        seconds=seconds,
        early_s=seconds * (units - 1) / units,
        sent=tuple([sent] * world),
        unknown=ways.unknown,
        on_links=len(workers) > 1,
    )


class _Ways:
    """The links between the machines. busiest: seconds that one sends or receives for each byte of a slice in the
    all-to-all, which goes over all of them at once. slowest: bytes/s; latency_s: the longest.
    """

    def __init__(self, workers: Mapping[str, int], nodes: Mapping[str, int], network: Network) -> None:
        self.busiest, self.latency_s, self.slowest = 0.0, 0.0, math.inf
        usual = network.usual
        world, total, known = sum(workers.values()), sum(nodes.values()), 0
        for name, mine in workers.items():
            measured = [(other, link) for other, link in network.near(name).items() if other in workers]
            rates = {other: max(LEAST_RATE, link.bytes_per_s) for other, link in measured}
            known += len(measured)
            theirs = sum([workers[other] for other, _ in measured])
            partials = sum([nodes[other] for other, _ in measured])
            out = nodes[name] * (world - mine - theirs) / usual.bytes_per_s
            out += sum([nodes[name] * workers[other] / rates[other] for other, _ in measured])
            into = (total - nodes[name] - partials) * mine / usual.bytes_per_s
            into += sum([nodes[other] * mine / rates[other] for other, _ in measured])
            self.busiest = max(self.busiest, out, into)
            self.latency_s = max([self.latency_s, *(link.latency_s for _, link in measured)])
            self.slowest = min([self.slowest, *rates.values()])
        self.unknown = len(workers) * (len(workers) - 1) // 2 - known // 2
        if self.unknown:
            self.latency_s = max(self.latency_s, usual.latency_s)
            self.slowest = min(self.slowest, usual.bytes_per_s)
