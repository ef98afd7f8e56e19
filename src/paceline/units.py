"""The units that a sharded model is cut into: what is gathered, computed with and let go of at once. Pure.

The tree of modules is descended from the root; what is at most a certain part of the whole becomes a unit, so that one
unit's gathered parameters are small beside a worker's shard. Blocks, the elements of lists that are repeated, stay
whole: their own code may use the parameters of what is inside them. What stays above the units is the root's own.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

PARTS = 8  # a unit is at most this part of the model, where its modules can be cut so
LEAST_BYTES = 1 << 20  # cutting a smaller one costs more in collectives' latency than it saves in memory
SMALLEST = 16  # what is smaller than this part of the largest unit stays with the root
LARGEST_BLOCK = 4  # a block of up to so many times the largest unit is not cut


@dataclass(frozen=True)
class ModuleTree:
    """A module: its path ("" for the root), the bytes of its own parameters, and its children.

    lists: whether it is a list of modules, or has one below. shared: whether a parameter below it belongs to a module
    elsewhere too: such a module is no unit.
    """

    path: str
    own_bytes: int
    children: tuple[ModuleTree, ...] = ()
    lists: bool = False
    shared: bool = False

    @property
    def nbytes(self) -> int:
        return self.own_bytes + sum(child.nbytes for child in self.children)


def choose_units(tree: ModuleTree) -> dict[str, int]:
    """Path -> parameter bytes of each unit, in the tree's order; the root's rest stands last, under ""."""
    most = max(tree.nbytes // PARTS, LEAST_BYTES)
    units = dict(_below(tree, most)) if tree.nbytes > most else {}
    return {**units, "": tree.nbytes - sum(units.values())}


def _below(tree: ModuleTree, most: int) -> Iterator[tuple[str, int]]:
    for child in tree.children:
        nbytes = child.nbytes
        allowed = most if child.lists else LARGEST_BLOCK * most
        if child.children and (nbytes > allowed or child.shared):
            yield from _below(child, most)
        elif not child.shared and nbytes >= most // SMALLEST:
            yield child.path, nbytes


def tree_of(model: Any) -> ModuleTree:
    """A torch module's tree. A parameter counts once, where it is met first."""
    owners: dict[int, int] = {}
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            owners[id(parameter)] = owners.get(id(parameter), 0) + 1
    return _tree(model, "", {at for at, count in owners.items() if count > 1}, set())


def _tree(module: Any, path: str, tied: set[int], seen: set[int]) -> ModuleTree:
    from torch import nn

    parameters = list(module.parameters(recurse=False))
    own = sum(p.nbytes for p in parameters if id(p) not in seen)
    seen |= {id(p) for p in parameters}
    prefix = f"{path}." if path else ""
    children = tuple(_tree(child, prefix + name, tied, seen) for name, child in module.named_children())
    is_list = isinstance(module, nn.ModuleList | nn.ModuleDict | nn.Sequential)
    return ModuleTree(
        path,
        own,
        children,
        lists=is_list or any(child.lists for child in children),
        shared=any(id(p) in tied for p in parameters) or any(child.shared for child in children),
    )
