"""From a model without memory to a worker's shard of it: one unit at a time is whole, on no process ever all of them.

A builder runs on the meta device. Then each unit in turn gets memory, initialises itself under seeds of its modules'
paths (so that the values depend on no number of workers), and is cut; its whole is let go of. A model that was handed
over with its values keeps them: they lie in mapped files, and each worker copies its shard out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch.distributed.fsdp import CPUOffloadPolicy, OffloadPolicy, fully_shard
from torch.distributed.tensor import DTensor

from paceline.errors import InvalidSpec
from paceline.grid import derive_seed
from paceline.plan import Sharding
from paceline.training.program import build_model
from paceline.training.recompute import can_recompute, recompute
from paceline.training.seeds import seed_everything
from paceline.training.sharded.group import GatherUnit, ScatterGradients, ShardGroup
from paceline.units import choose_units, tree_of

REMEDY = (
    "Give it a method reset_parameters() that fills its own parameters and buffers, as torch's layers have; "
    "or hand the model over as a module, with its values."
)


def skeleton(given: Any, seed: int) -> torch.nn.Module:
    """The model, without memory where a builder made it. Raises InvalidSpec where a part can't re-initialise itself."""
    if isinstance(given, torch.nn.Module):
        return given
    with torch.device("meta"):
        model = build_model(given, seed)
    for path, module in model.named_modules():
        if _unfilled(module) and _reset_of(module) is None:
            raise InvalidSpec(f"{path or 'the model'} ({type(module).__name__}) can't initialise itself.", REMEDY)
    return model


def _unfilled(module: torch.nn.Module) -> bool:
    """Whether it holds tensors of its own, without memory."""
    return any(t.is_meta for t in [*module.parameters(recurse=False), *module.buffers(recurse=False)])


def _reset_of(module: torch.nn.Module) -> Callable[[], Any] | None:
    """Its way to fill its own tensors; torch's attention layers write it with an underscore."""
    for name in ("reset_parameters", "_reset_parameters"):
        method = getattr(module, name, None)
        if callable(method):
            return method  # type: ignore[no-any-return]
    return None


def shard(model: torch.nn.Module, group: ShardGroup, seed: int, sharding: Sharding) -> None:
    """Give the model's units memory and values, and leave this member's shard of each. In place."""
    modules = dict(model.named_modules())
    offload = CPUOffloadPolicy() if sharding.offload and group.device.type == "cuda" else OffloadPolicy()
    units = []
    for path in choose_units(tree_of(model)):  # the root's rest comes last: all below it is cut by then
        unit = modules[path]
        inside = {name: m for name, m in modules.items() if not path or name == path or name.startswith(f"{path}.")}
        materialise(inside, modules, seed, group.device)
        if path and sharding.recompute and can_recompute(unit):
            recompute(unit)
        cut = fully_shard(unit, mesh=group.mesh, offload_policy=offload)
        cut.set_custom_all_gather(GatherUnit(group))  # type: ignore[arg-type]  # the base class is not public
        cut.set_custom_reduce_scatter(ScatterGradients(group))  # type: ignore[arg-type]
        cut.set_force_sum_reduction_for_comms(True)
        cut.set_gradient_divide_factor(1.0)  # each cell's loss is weighted already: their gradients add up
        if group.device.type == "cpu":  # which has no streams for FSDP to overlap by
            cut._set_unshard_async_op(True)
        units.append(cut)
    _prefetch(units)


def _prefetch(units: Sequence[Any]) -> None:
    """Gather each unit while the one before it computes: in forward by the order of the first one, which is seen here.

    Backward goes by the order of its own forward without being told. units: modules that are cut, the model last.
    """
    order: list[Any] = []
    hooks = [unit.register_forward_pre_hook(lambda entered, _: order.append(entered)) for unit in units]

    def seen(*_: Any) -> None:
        for hook in hooks:
            hook.remove()
        for before, after in pairwise(order):
            before.set_modules_to_forward_prefetch([after])

    hooks.append(units[-1].register_forward_hook(seen))


def materialise(
    inside: dict[str, torch.nn.Module], model: dict[str, torch.nn.Module], seed: int, device: torch.device
) -> None:
    """Memory and values for those tensors of the modules `inside` that have none. Raises InvalidSpec.

    model: all of its modules, by path. What was written to a tensor more often than its own module does is left to the
    method `_init_weights(module)` of a model around it, as Hugging Face's and many others have one; or refused.
    """
    filled = _fill(inside, device)
    new = {id(tensor) for _, tensor in filled}
    done: set[int] = set()
    for path in sorted(inside, key=lambda path: -path.count(".") if path else 1):  # children first, as in building
        module = inside[path]
        own = {id(t) for t in [*module.parameters(recurse=False), *module.buffers(recurse=False)]} & new
        all_here = own or new >= {id(p) for p in module.parameters()}
        reset = _reset_of(module)
        if reset is None or not all_here or (own and own <= done):  # tied tensors keep their first owner's values
            continue
        seed_everything(derive_seed(seed, "parameters", path))
        with torch.no_grad():
            reset()
        done |= own
    for path in {path: None for path, m in inside.items() for _, t in _own(m) if _behind(t, filled)}:
        init = _initialiser(model, path)
        if init is not None:
            seed_everything(derive_seed(seed, "parameters", path, "again"))
            with torch.no_grad():
                init(inside[path])
    for old, tensor in filled:
        if old._version > tensor._version:
            name = next(f"{path}.{name}" for path, m in inside.items() for name, t in _own(m) if t is tensor)
            raise InvalidSpec(
                f"{name} is initialised once more after its own module did that; without memory that is lost.", REMEDY
            )


def _behind(tensor: torch.Tensor, filled: list[tuple[torch.Tensor, torch.Tensor]]) -> bool:
    """Whether it was written to less often than the one whose place it took."""
    return any(old._version > new._version for old, new in filled if new is tensor)


def _initialiser(model: dict[str, torch.nn.Module], path: str) -> Callable[[torch.nn.Module], Any] | None:
    """The nearest `_init_weights` of the modules around it."""
    parts = path.split(".")
    around = [".".join(parts[:count]) for count in reversed(range(len(parts)))]
    found = (getattr(model.get(name), "_init_weights", None) for name in around)
    return next(filter(callable, found), None)


def _own(module: torch.nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    yield from module.named_parameters(recurse=False)
    yield from module.named_buffers(recurse=False)


def _fill(inside: dict[str, torch.nn.Module], device: torch.device) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Put memory into the place of tensors that have none: (old, new) of each; tied ones stay tied.

    Tensors with values of their own are moved to the device; buffers also out of the file in which they lie.
    """
    filled: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
    for module in inside.values():
        for held in (module._parameters, module._buffers):
            for name, tensor in held.items():
                if tensor is None or isinstance(tensor, DTensor):
                    continue
                if not tensor.is_meta:
                    tensor.data = tensor.data.to(device, copy=held is module._buffers)
                    continue
                if id(tensor) not in filled:
                    filled[id(tensor)] = tensor, _like(tensor, device)
                held[name] = filled[id(tensor)][1]  # type: ignore[assignment]
    return list(filled.values())


def _like(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    empty = torch.empty_like(tensor, device=device)
    return torch.nn.Parameter(empty, tensor.requires_grad) if isinstance(tensor, torch.nn.Parameter) else empty
