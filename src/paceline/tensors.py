"""Tensors in packages: their bytes travel beside the pickle, and are mapped rather than copied where they arrive."""

from __future__ import annotations

from typing import Any


def reduce_tensor(tensor: Any) -> tuple[Any, tuple[Any, ...]] | None:
    """How to pickle a dense torch tensor with its bytes out of band; None leaves it to torch's own way."""
    import torch

    if type(tensor) not in (torch.Tensor, torch.nn.Parameter) or tensor.layout != torch.strided:
        return None
    if tensor.is_meta or tensor.is_quantized or tensor.is_complex() or (tensor.requires_grad and not tensor.is_leaf):
        return None
    data = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
    dtype = str(tensor.dtype).removeprefix("torch.")
    is_parameter = isinstance(tensor, torch.nn.Parameter)
    return rebuild_tensor, (data, dtype, tuple(tensor.shape), tensor.requires_grad, is_parameter)


def rebuild_tensor(data: Any, dtype: str, shape: tuple[int, ...], requires_grad: bool, is_parameter: bool) -> Any:
    """The tensor again, sharing `data`'s memory. data: uint8 array, shape (bytes,)."""
    import torch

    if data.size == 0:
        tensor = torch.empty(shape, dtype=getattr(torch, dtype))
    else:
        tensor = torch.from_numpy(data).view(getattr(torch, dtype)).reshape(shape)
    if is_parameter:
        return torch.nn.Parameter(tensor, requires_grad)
    return tensor.requires_grad_(requires_grad)
