"""Tensors in packages: their bytes travel beside the pickle, and are mapped rather than copied where they arrive."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def reduce_tensor(tensor: Any) -> tuple[Any, tuple[Any, ...]] | None:
    """How to pickle a torch tensor with its bytes out of band; None leaves it to torch's own way.

    One that fills its memory without gaps or overlaps, in whatever order of dimensions, keeps its strides: kernels
    give other bits for other layouts. Any other one, such as a slice, arrives contiguous.
    """
    import torch

    if type(tensor) not in (torch.Tensor, torch.nn.Parameter) or tensor.layout != torch.strided:
        return None
    if tensor.is_meta or tensor.is_quantized or tensor.is_complex() or (tensor.requires_grad and not tensor.is_leaf):
        return None
    dense = tensor.detach().cpu().resolve_neg()
    if not fills_its_memory(dense.shape, dense.stride()):
        dense = dense.contiguous()
    data = dense.as_strided((dense.numel(),), (1,)).view(torch.uint8).numpy()
    dtype = str(tensor.dtype).removeprefix("torch.")
    is_parameter = isinstance(tensor, torch.nn.Parameter)
    shape, stride = tuple(dense.shape), dense.stride()
    return rebuild_tensor, (data, dtype, shape, stride, tensor.requires_grad, is_parameter)


def fills_its_memory(shape: Sequence[int], stride: Sequence[int]) -> bool:
    """Whether every element of a block of memory belongs to exactly one index. Strides count elements."""
    expected = 1
    for step, size in sorted((step, size) for step, size in zip(stride, shape, strict=True) if size != 1):
        if step != expected:
            return False
        expected *= size
    return True


def rebuild_tensor(
    data: Any, dtype: str, shape: tuple[int, ...], stride: tuple[int, ...], requires_grad: bool, is_parameter: bool
) -> Any:
    """The tensor again, sharing `data`'s memory. data: uint8 array, shape (bytes,), in the memory's order."""
    import torch

    if data.size == 0:
        tensor = torch.empty(shape, dtype=getattr(torch, dtype))
    else:
        tensor = torch.from_numpy(data).view(getattr(torch, dtype)).as_strided(shape, stride)
    if is_parameter:
        return torch.nn.Parameter(tensor, requires_grad)
    return tensor.requires_grad_(requires_grad)
