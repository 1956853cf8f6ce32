"""Penalties that keep the policy near a reference (Schulman, "Approximating KL Divergence", 2020).

With x = log pi_ref(y_t) - log pi(y_t) for a token drawn from pi, `k2` and `k3` estimate the reverse
divergence KL(pi || pi_ref). k1 = -x is left out: its gradient does not know the reference.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from gspo.core.layout import Layout, at_least_float32


def k2(logprobs: Tensor, ref_logprobs: Tensor) -> Tensor:
    """x^2 / 2, elementwise. Its gradient is the unbiased one of the reverse KL on policy."""
    return (ref_logprobs - logprobs).square() / 2


def k3(logprobs: Tensor, ref_logprobs: Tensor) -> Tensor:
    """exp(x) - x - 1, elementwise: unbiased in value, never negative."""
    x = ref_logprobs - logprobs
    return x.exp() - x - 1


ESTIMATORS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"k2": k2, "k3": k3}


def kl_penalty(
    logprobs: Tensor,
    ref_logprobs: Tensor,
    layout: Layout,
    estimator: Callable[[Tensor, Tensor], Tensor] = k3,
) -> Tensor:
    """[S], the estimator's mean over each sequence's tokens; 0 for an empty sequence.

    Args:
        logprobs, ref_logprobs: per-token tensors of the layout, at the same temperature.
    """
    # Select before the estimator: what lies outside the mask may overflow in `exp`.
    logprobs = torch.where(layout.mask, at_least_float32(logprobs), 0)
    ref_logprobs = torch.where(layout.mask, at_least_float32(ref_logprobs), 0)
    return layout.mean(estimator(logprobs, ref_logprobs))
