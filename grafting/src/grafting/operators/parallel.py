"""Layers of the same shapes run side by side, as one batched product: k branches, (k, B, N, F) → (k, B, N, G).

The weights stay parameters of their own layers, so that names, optimisers and files know nothing of this. Without
gradients their storage is one tensor (k, G, F) whose slices they are: nothing is copied twice, and what an optimiser
writes is there at the next call. With gradients they are stacked anew, which autograd follows, and so they are where
a compiler traces, which knows no storage.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def bare(module: nn.Module) -> bool:
    """Whether a call of the module is its class's own ``forward`` and nothing else: no hook, and no other ``forward``
    in its place, as offloading and casting put one there."""
    return not (module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module))


def plain(layers: Sequence[nn.Module]) -> bool:
    """Whether all are linear layers of one shape and kind, whose weights are here, without adapters or hooks that a
    batched product skips."""
    return all(
        type(layer) is nn.Linear
        and bare(layer)
        and not layer.weight.is_meta
        and layer.weight.shape == layers[0].weight.shape
        and (layer.bias is None) == (layers[0].bias is None)
        for layer in layers
    )


def stack(tensors: Sequence[Tensor]) -> Tensor:
    """(k, ...): the parameters on top of each other; a view of their common storage where no gradient is asked for."""
    learnt = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)
    if learnt or torch.compiler.is_compiling():
        return torch.stack(list(tensors))
    first, size = tensors[0], tensors[0].numel()
    home = first.untyped_storage().data_ptr()
    tied = first.is_contiguous() and all(
        tensor.untyped_storage().data_ptr() == home
        and tensor.storage_offset() == first.storage_offset() + k * size
        and tensor.is_contiguous()
        for k, tensor in enumerate(tensors)
    )
    if not tied:
        # An inference tensor could never be trained again.
        with torch.inference_mode(False), torch.no_grad():
            whole = torch.stack([tensor.detach() for tensor in tensors])
            for tensor, part in zip(tensors, whole, strict=True):
                tensor.data = part
        first = tensors[0]
    shape = (len(tensors), *first.shape)
    return first.detach().as_strided(shape, (size, *first.stride()), first.storage_offset())


def linear(x: Tensor, layers: Sequence[Sequence[nn.Module]]) -> Tensor:
    """Branch i of x (k, ..., F) through the layers of ``layers[i]``, their outputs one after another: (k, ..., m G)."""
    flat = [layer for branch in layers for layer in branch]
    weights = stack([layer.weight for layer in flat]).flatten(0, 1)  # type: ignore[misc]
    bias = None if flat[0].bias is None else stack([layer.bias for layer in flat]).flatten()  # type: ignore[misc]
    k = len(layers)
    if k == 1:
        return F.linear(x, weights, bias)
    rows, weights = x.flatten(1, -2), weights.unflatten(0, (k, -1)).transpose(1, 2)
    out = torch.bmm(rows, weights) if bias is None else torch.baddbmm(bias.view(k, 1, -1), rows, weights)
    return out.view(*x.shape[:-1], out.shape[-1])


def attention(x: Tensor, qkv: Sequence[Sequence[nn.Module]], out: Sequence[nn.Module], heads: int) -> Tensor:
    """Softmax attention of every branch over its own tokens, all heads at once: x (k, B, N, D) to the same shape."""
    k, b, n, _ = x.shape
    q, key, v = linear(x, qkv).view(k * b, n, 3, heads, -1).permute(2, 0, 3, 1, 4)
    mixed = F.scaled_dot_product_attention(q, key, v).transpose(1, 2).reshape(k, b, n, -1)
    return linear(mixed, [[layer] for layer in out])


def perceptron(x: Tensor, first: Sequence[nn.Module], last: Sequence[nn.Module]) -> Tensor:
    """The tanh-GELU perceptron of every branch: x (k, B, N, D) to the same shape."""
    hidden = linear(x, [[layer] for layer in first])
    if torch.is_grad_enabled():
        hidden = F.gelu(hidden, approximate="tanh")
    else:
        torch.ops.aten.gelu_(hidden, approximate="tanh")  # fresh memory costs more than the arithmetic
    return linear(hidden, [[layer] for layer in last])
