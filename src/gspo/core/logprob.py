"""Log-probabilities and entropy from hidden states, a chunk of tokens at a time.

Neither forward nor backward ever holds [tokens, vocabulary] for more than one chunk: at 16,384
tokens and 152k words the full logits are 10 GB, and autograd keeps them more than once.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from gspo.core.layout import at_least_float32
from gspo.core.linear import linear, matmul

CHUNK_BYTES = 64 * 2**20
"""Size of one chunk of logits, of which a pass holds about three. It never changes the result."""


class LogProbs(NamedTuple):
    """What a policy says of N tokens; both in at least float32."""

    logprobs: Tensor  # [N] log pi(target)
    entropy: Tensor  # [N] nats, of the whole distribution


def chunked_logprobs(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    bias: Tensor | None = None,
    temperature: float = 1.0,
    scale: float = 1.0,
    softcap: float | None = None,
    chunk_bytes: int = CHUNK_BYTES,
) -> LogProbs:
    """log softmax(z / temperature)[target] and the entropy of that softmax.

    z = cap(scale (hidden weight^T + bias)), with cap(a) = softcap tanh(a / softcap) where a model
    has one. From the matrix product on, everything is float32 (float64 where an input is), and both
    results have gradients to hidden, weight and bias.

    Args:
        hidden: [N, H] final hidden states at the places that predict `targets`.
        weight: [V, H] of the LM head; bias: [V].
        targets: [N] token ids.
        temperature: of sampling; the policy is scored as it was sampled.
        chunk_bytes: memory for one chunk of logits, never the result.
    """
    dtype = torch.promote_types(at_least_float32(hidden).dtype, at_least_float32(weight).dtype)
    rows = max(1, chunk_bytes // (weight.shape[0] * dtype.itemsize))
    spec = (dtype, rows, temperature, scale, softcap)
    with torch.autocast(hidden.device.type, enabled=False):
        return LogProbs(*_ChunkedLogProbs.apply(hidden, weight, bias, targets, spec))


def head_logits(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    *,
    scale: float = 1.0,
    softcap: float | None = None,
) -> Tensor:
    """cap(scale (hidden weight^T + bias)): [..., H] -> [..., V] in the dtype of the inputs."""
    logits = linear(hidden, weight, bias)
    if scale != 1.0:
        logits = logits * scale
    return logits if softcap is None else torch.tanh(logits / softcap) * softcap


class _ChunkedLogProbs(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden, weight, bias, targets, spec):
        dtype, rows, temperature, scale, softcap = spec
        w, b = weight.to(dtype), None if bias is None else bias.to(dtype)
        logprobs = torch.empty(len(hidden), dtype=dtype, device=hidden.device)
        entropy = torch.empty_like(logprobs)
        for i in range(0, len(hidden), rows):
            part = slice(i, i + rows)
            z = head_logits(hidden[part].to(dtype), w, b, scale=scale, softcap=softcap)
            log_p = torch.log_softmax(z.div_(temperature), dim=-1)
            logprobs[part] = log_p.gather(-1, targets[part, None]).squeeze(-1)
            entropy[part] = -(log_p.exp() * log_p).sum(-1)
        ctx.save_for_backward(hidden, weight, bias, targets, entropy)
        ctx.spec = spec
        return logprobs, entropy

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_logprobs, grad_entropy):
        """With p the softmax of z / temperature and H its entropy,
        d logprob / dz_v = ([v = target] - p_v) / temperature and
        d H / dz_v = -p_v (log p_v + H) / temperature; then through cap and scale."""
        hidden, weight, bias, targets, entropy = ctx.saved_tensors
        dtype, rows, temperature, scale, softcap = ctx.spec
        w, b = weight.to(dtype), None if bias is None else bias.to(dtype)
        needs_hidden, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        grad_hidden = torch.empty_like(hidden) if needs_hidden else None
        grad_weight = torch.zeros_like(w) if needs_weight else None
        grad_bias = torch.zeros_like(b) if needs_bias else None
        with_entropy = bool(grad_entropy.any())
        for i in range(0, len(hidden), rows):
            part = slice(i, i + rows)
            h = hidden[part].to(dtype)
            z = head_logits(h, w, b, scale=scale, softcap=softcap)
            log_p = torch.log_softmax(z / temperature, dim=-1)
            grad_z = log_p.exp().mul_(-grad_logprobs[part, None])
            if with_entropy:
                p_grad = log_p.exp() * grad_entropy[part, None]
                grad_z -= p_grad * (log_p + entropy[part, None])
            grad_z.scatter_add_(-1, targets[part, None], grad_logprobs[part, None])
            if softcap is not None:
                grad_z *= 1 - (z / softcap).square()
            grad_z *= scale / temperature
            if needs_hidden:
                grad_hidden[part] = matmul(grad_z, w).to(hidden.dtype)
            if needs_weight:
                grad_weight += matmul(grad_z.T, h)
            if needs_bias:
                grad_bias += grad_z.sum(0)
        if needs_weight:
            grad_weight = grad_weight.to(weight.dtype)
        if needs_bias:
            grad_bias = grad_bias.to(bias.dtype)
        return grad_hidden, grad_weight, grad_bias, None, None
