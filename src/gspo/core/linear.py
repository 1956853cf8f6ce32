"""The linear layer, by the faster of the two float32 matrix libraries that torch carries.

On x86 `torch.nn.functional.linear` multiplies float32 matrices with MKL, which on AMD processors
reaches half of what oneDNN does, the library that torch uses for 16-bit products. Both are plain
float32 (`bench/matmul.py` measures them, `bench/results/matmul.json` keeps what it found).
"""

import platform

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

_AVAILABLE = (
    platform.machine() in ("x86_64", "AMD64")
    and torch.backends.mkldnn.is_available()
    and hasattr(torch.ops.mkldnn, "_linear_pointwise")
)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x weight^T + bias: [..., K], [N, K], [N] -> [..., N], with gradients to all three."""
    if not serves(x, weight):
        return nn.functional.linear(x, weight, bias)
    if torch.is_grad_enabled():
        return _Linear.apply(x, weight, bias)
    return _times_transposed(x, weight, bias)


def serves(x: Tensor, weight: Tensor) -> bool:
    """Whether oneDNN's float32 product can take these."""
    return (
        _AVAILABLE
        and x.device.type == "cpu"
        and x.dtype == weight.dtype == torch.float32
        and x.numel() > 0
        and not torch.is_autocast_enabled("cpu")
    )


def matmul(a: Tensor, b: Tensor) -> Tensor:
    """[M, K] by [K, N] -> [M, N], without gradients."""
    return _times_transposed(a, b.T) if serves(a, b) else a @ b


def _times_transposed(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, bias):
        ctx.save_for_backward(x, weight)
        return _times_transposed(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        x, weight = ctx.saved_tensors
        needs_x, needs_weight, needs_bias = ctx.needs_input_grad
        rows = grad.reshape(-1, grad.shape[-1])
        grad_x = matmul(rows, weight).view(x.shape) if needs_x else None
        grad_weight = matmul(rows.T, x.reshape(-1, x.shape[-1])) if needs_weight else None
        return grad_x, grad_weight, rows.sum(0) if needs_bias else None
