"""A bridge in this machine, and links from it into namespaces, each of a given bandwidth."""

from __future__ import annotations

import ipaddress
import os
from dataclasses import dataclass

from paceline.testing.system import EmulationUnavailable, tool

SUBNETS = list(ipaddress.IPv4Network("198.18.0.0/15").subnets(new_prefix=24))  # RFC 2544: for tests of networks
INSIDE = "eth0"
QUEUE_MS = 100
SMALLEST_BURST_BYTES = 32 * 1024
BURST_S = 0.004  # of traffic at full speed, before the shaping shows


@dataclass(frozen=True)
class Bridge:
    """A switch that this machine, too, is connected to, at `address`."""

    name: str
    subnet: ipaddress.IPv4Network

    @property
    def address(self) -> str:
        return str(self.subnet[1])

    def host_address(self, number: int) -> str:
        return str(self.subnet[2 + number])

    def create(self) -> None:
        tool("ip", "link", "add", self.name, "type", "bridge")
        tool("ip", "address", "add", f"{self.address}/{self.subnet.prefixlen}", "dev", self.name)
        tool("ip", "link", "set", self.name, "up")

    def remove(self) -> None:
        tool("ip", "link", "del", self.name)


@dataclass(frozen=True)
class Link:
    """From the bridge into a namespace. outside: the end at the bridge."""

    bridge: Bridge
    outside: str
    namespace: str
    address: str

    def create(self) -> None:
        inside = ("ip", "-n", self.namespace)
        tool("ip", "link", "add", self.outside, "type", "veth", "peer", "name", INSIDE, "netns", self.namespace)
        tool("ip", "link", "set", self.outside, "master", self.bridge.name, "up")
        tool(*inside, "address", "add", f"{self.address}/{self.bridge.subnet.prefixlen}", "dev", INSIDE)
        tool(*inside, "link", "set", "lo", "up")
        tool(*inside, "link", "set", INSIDE, "up")

    def shape(self, mbit: float | None) -> None:
        """Limit both directions to so many megabits a second; None: no limit."""
        tool("tc", *_shaping(self.outside, mbit))
        tool("tc", "-n", self.namespace, *_shaping(INSIDE, mbit))

    def set_up(self, up: bool) -> None:
        """Down, packets vanish both ways: no connection is reset, as when a cable is pulled."""
        tool("ip", "link", "set", self.outside, "up" if up else "down")


def _shaping(device: str, mbit: float | None) -> list[str]:
    change = ["qdisc", "replace", "dev", device, "root"]
    if mbit is None:
        return [*change, "pfifo"]
    burst = max(SMALLEST_BURST_BYTES, round(mbit * 1e6 / 8 * BURST_S))
    return [*change, "tbf", "rate", f"{round(mbit * 1e6)}bit", "burst", str(burst), "latency", f"{QUEUE_MS}ms"]


def free_subnet() -> ipaddress.IPv4Network:
    """One that no interface of this machine is in; runs at the same time begin to look at different ones."""
    addresses = [line.split()[3] for line in tool("ip", "-4", "-oneline", "address").splitlines()]
    taken = [ipaddress.IPv4Interface(address).network for address in addresses]
    for at in range(len(SUBNETS)):
        subnet = SUBNETS[(os.getpid() + at) % len(SUBNETS)]
        if not any(subnet.overlaps(other) for other in taken):
            return subnet
    raise EmulationUnavailable("Every subnet of 198.18.0.0/15 is in use.", "Remove `ip link` bridges named pl….")
