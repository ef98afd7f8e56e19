"""Copies of shards in the nodes' memory: where each goes, and whether there is room. Pure functions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from paceline.explain import size
from paceline.plan import Node
from paceline.planner.rooms import kept_back

GENERATIONS = 3  # the last copies stay until the next ones are whole; a checkpoint on its way lies there as well


def neighbours(nodes: Sequence[str]) -> tuple[int, ...]:
    """By place, the next place that is on another node; its own where there is none. nodes: by place, their ids."""
    count = len(nodes)
    around = [[(place + by) % count for by in range(1, count)] for place in range(count)]
    return tuple(
        next((other for other in around[place] if nodes[other] != nodes[place]), place) for place in range(count)
    )


def copy_bytes(nodes: Sequence[str], stored_bytes: int) -> int:
    """Bytes for each worker on the fullest node. stored_bytes: of all shards together, in a checkpoint.

    A shard lies on its own node and on its neighbour's, in as many generations.
    """
    shard, workers = -(-stored_bytes // len(nodes)), Counter(nodes)
    files = workers + Counter(nodes[to] for place, to in enumerate(neighbours(nodes)) if to != place)
    return max(-(-GENERATIONS * shard * files[node] // workers[node]) for node in workers)


def spare(nodes: Sequence[Node], memory: int) -> int:
    """Bytes for each worker beside its `memory`, on the fullest node. nodes: one for each worker."""
    workers = Counter(node.id for node in nodes)
    return min((node.free_memory - kept_back(node)) // workers[node.id] for node in nodes) - memory


def lacking(nodes: Sequence[Node], memory: int, copies: int) -> str:
    """Why there is no room for so many bytes of copies beside each worker's `memory`; "" where there is.

    nodes: one for each worker.
    """
    workers = Counter(node.id for node in nodes)
    for node in sorted({node.id: node for node in nodes}.values(), key=lambda node: node.name):
        wanted, left = workers[node.id] * copies, node.free_memory - kept_back(node) - workers[node.id] * memory
        if wanted > left:
            return f"they take {size(wanted)} on {node.name}, which has {size(max(0, left))} to spare"
        if wanted > node.tmpfs:
            return f"they take {size(wanted)} on {node.name}, whose file system in memory has {size(node.tmpfs)}"
    return ""
