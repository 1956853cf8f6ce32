"""The GSPO objectives (arXiv 2507.18071), as losses to be minimised.

Both return the *sum* over sequences. Whoever calls divides by the number of responses of the whole
optimizer step, so that the result does not depend on micro-batches, padding or machines.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from gspo.core.layout import Layout
from gspo.core.ratio import removed_by_clip, sequence_log_ratio


@dataclass
class LossOutput:
    """A loss and what there is to know of the clip."""

    loss_sum: Tensor
    """Scalar: the sum over sequences of minus the objective."""
    log_ratio: Tensor
    """[S], log s_i, without gradient."""
    clipped: Tensor
    """bool, where the clip has removed the gradient: [S] for `gspo_loss`, the shape of the
    per-token tensors for `gspo_token_loss`."""


def _surrogate(
    log_ratio: Tensor, advantages: Tensor, clip_range_left: float, clip_range_right: float
) -> tuple[Tensor, Tensor]:
    """min(s A, clip(s, 1 - left, 1 + right) A), elementwise, and where the clip decided it.

    Where the gradient is zero the ratio is masked *before* `exp`: zero times an overflowed
    exponential would be NaN.
    """
    clipped = removed_by_clip(
        log_ratio,
        advantages,
        clip_range_left=clip_range_left,
        clip_range_right=clip_range_right,
    )
    bound = log_ratio.detach().exp().clamp(1 - clip_range_left, 1 + clip_range_right)
    ratio = torch.where(clipped | (advantages == 0), 0.0, log_ratio).exp()
    return torch.where(clipped, bound, ratio) * advantages, clipped


def _check_clip_ranges(clip_range_left: float, clip_range_right: float) -> None:
    if clip_range_left <= 0 or clip_range_right <= 0:
        raise ValueError(
            "clip_range_left and clip_range_right are two positive widths: the ratio is kept in "
            f"[1 - left, 1 + right]; got {clip_range_left} and {clip_range_right}"
        )


def gspo_loss(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    layout: Layout,
    *,
    clip_range_left: float,
    clip_range_right: float,
) -> LossOutput:
    """GSPO, eq. 5: loss_sum = - sum_i min(s_i A_i, clip(s_i, 1 - left, 1 + right) A_i).

    s_i = exp(1/|y_i| sum_t [log pi - log pi_old]) (eq. 7). The gradient is that of eq. 10,
    s_i A_i 1/|y_i| sum_t grad log pi(y_t), and exactly zero for a clipped sequence. For A < 0 and
    s > 1 the objective is unbounded, as in the paper: there is no dual clip.

    Args:
        logprobs: log pi of the policy in training, a per-token tensor of the layout.
        old_logprobs: log pi_old, the same shape.
        advantages: [S].
        layout: a `PaddedLayout` or a `PackedLayout`.
        clip_range_left, clip_range_right: positive widths of the band (3e-4 and 4e-4 in the paper).

    An empty sequence adds nothing.

    Raises:
        ValueError: shapes that do not fit, or widths that are not positive.
    """
    _check_clip_ranges(clip_range_left, clip_range_right)
    if advantages.shape != layout.lengths.shape:
        raise ValueError(
            f"advantages must be [S] = {list(layout.lengths.shape)}, got {list(advantages.shape)}"
        )
    log_ratio = sequence_log_ratio(logprobs, old_logprobs, layout)
    advantages = torch.where(layout.lengths > 0, advantages, 0).to(log_ratio.dtype)
    objective, clipped = _surrogate(log_ratio, advantages, clip_range_left, clip_range_right)
    return LossOutput(-objective.sum(), log_ratio.detach(), clipped)


def gspo_token_loss(
    logprobs: Tensor,
    old_logprobs: Tensor,
    token_advantages: Tensor,
    layout: Layout,
    *,
    clip_range_left: float,
    clip_range_right: float,
) -> LossOutput:
    """GSPO-token, eq. 13: loss_sum = - sum_i 1/|y_i| sum_t min(s_it A_it, clip(s_it) A_it).

    s_it = sg[s_i] pi(y_t) / sg[pi(y_t)] (eq. 14): the sequence's ratio in value, the token's own
    gradient (eq. 17). At a constant advantage value, clipping and gradient are those of
    `gspo_loss`.

    Args:
        token_advantages: a per-token tensor of the layout.
        Everything else as in `gspo_loss`.

    Raises:
        ValueError: shapes that do not fit, or widths that are not positive.
    """
    _check_clip_ranges(clip_range_left, clip_range_right)
    if token_advantages.shape != layout.mask.shape:
        raise ValueError(
            f"token_advantages must have the layout's shape {list(layout.mask.shape)}, got "
            f"{list(token_advantages.shape)}"
        )
    log_ratio = sequence_log_ratio(logprobs, old_logprobs, layout).detach()
    # The stop-gradient term comes last: `(log s + logprobs) - logprobs.detach()` would round a
    # log s of 3e-4 at the precision of logprobs.
    own_gradient = torch.where(layout.mask, logprobs - logprobs.detach(), 0).to(log_ratio.dtype)
    token_log_ratio = own_gradient + layout.spread(log_ratio)
    advantages = torch.where(layout.mask, token_advantages, 0).to(log_ratio.dtype)
    objective, clipped = _surrogate(token_log_ratio, advantages, clip_range_left, clip_range_right)
    return LossOutput(-layout.mean(objective).sum(), log_ratio, clipped)
