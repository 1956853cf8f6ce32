"""Group-relative advantages (arXiv 2507.18071, eq. 6)."""

import torch
from torch import Tensor

SPREAD_TOLERANCE = 1e-6
"""Rewards whose spread is at most this share of max(1, |reward|) are equal."""


def group_advantages(rewards: Tensor, *, normalize: bool = True, eps: float = 1e-8) -> Tensor:
    """A_i = (r_i - mean(r)) / (std(r) + eps) over each group (eq. 6), std with ddof = 1.

    The paper does not state the ddof; like its peers this takes the sample standard deviation.
    NaN is unscored: left out of mean and std, advantage 0. A dead group, where
    max - min <= 1e-6 x max(1, |reward|) or fewer than two responses are scored, has advantage
    exactly 0: eight float32 rewards of 0.1 would give 0.41 by the bare formula. All of it is
    computed in float64.

    Args:
        rewards: [P, G], one row a group.
        normalize: False leaves out the division (Dr. GRPO, arXiv 2503.20783).
        eps: added to the standard deviation.

    Returns:
        [P, G] in the dtype of `rewards` (at least float32; integers give float32).

    Raises:
        ValueError: `rewards` is not [P, G], or holds an infinity.
    """
    if rewards.ndim != 2:
        raise ValueError(f"rewards must be [P, G], one row a group; got {list(rewards.shape)}")
    if rewards.isinf().any():
        raise ValueError("rewards hold an infinity; NaN is the value for unscored")
    r = rewards.double()
    scored = ~r.isnan()
    r = torch.where(scored, r, 0.0)
    count = scored.sum(-1, keepdim=True)
    centred = torch.where(scored, r - r.sum(-1, keepdim=True) / count.clamp(min=1), 0.0)
    advantages = centred
    if normalize:
        variance = centred.square().sum(-1, keepdim=True) / (count - 1).clamp(min=1)
        advantages = centred / (variance.sqrt() + eps)
    advantages = torch.where(_has_spread(r, scored), advantages, 0.0)
    return advantages.to(torch.float64 if rewards.dtype == torch.float64 else torch.float32)


def _has_spread(r: Tensor, scored: Tensor) -> Tensor:
    """[P, 1] bool, whether at least two scored rewards differ."""
    if r.numel() == 0:
        return torch.zeros(len(r), 1, dtype=torch.bool, device=r.device)
    highest = torch.where(scored, r, -torch.inf).amax(-1, keepdim=True)
    lowest = torch.where(scored, r, torch.inf).amin(-1, keepdim=True)
    scale = r.abs().amax(-1, keepdim=True).clamp(min=1.0)
    return (scored.sum(-1, keepdim=True) >= 2) & (highest - lowest > SPREAD_TOLERANCE * scale)
