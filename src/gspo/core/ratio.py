"""The sequence importance ratio (arXiv 2507.18071, eq. 7) and what the clip removes of it."""

from torch import Tensor

from gspo.core.layout import Layout, at_least_float32


def sequence_log_ratio(logprobs: Tensor, old_logprobs: Tensor, layout: Layout) -> Tensor:
    """log s_i = 1/|y_i| sum_t [log pi(y_t) - log pi_old(y_t)]  (eq. 7), float32 or float64.

    Args:
        logprobs, old_logprobs: per-token tensors of the layout's shape.

    Returns:
        [S]; 0 for an empty sequence.
    """
    if logprobs.shape != layout.mask.shape or old_logprobs.shape != layout.mask.shape:
        raise ValueError(
            f"logprobs {list(logprobs.shape)} and old_logprobs {list(old_logprobs.shape)} must "
            f"have the layout's shape {list(layout.mask.shape)}"
        )
    return layout.mean(at_least_float32(logprobs) - at_least_float32(old_logprobs))


def removed_by_clip(
    log_ratio: Tensor, advantages: Tensor, *, clip_range_left: float, clip_range_right: float
) -> Tensor:
    """Where min(s A, clip(s, 1 - left, 1 + right) A) no longer depends on s.

    That is A > 0 and s > 1 + right, or A < 0 and s < 1 - left; the other two sides of the band
    stay unbounded, as in eq. 5. Any shape, elementwise; bool.
    """
    ratio = log_ratio.detach().exp()
    too_high = (advantages > 0) & (ratio > 1 + clip_range_right)
    too_low = (advantages < 0) & (ratio < 1 - clip_range_left)
    return too_high | too_low
