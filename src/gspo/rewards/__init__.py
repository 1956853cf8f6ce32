"""Reward functions: what a response is worth."""

from typing import TYPE_CHECKING

from gspo.rewards.base import BaseRewardModel
from gspo.rewards.math import MathReward, last_number

if TYPE_CHECKING:
    from gspo.rewards.model import HFRewardModel

__all__ = ["BaseRewardModel", "HFRewardModel", "MathReward", "last_number"]


def __getattr__(name: str) -> type:
    """Import `HFRewardModel`, and transformers with it, only where it is asked for."""
    if name == "HFRewardModel":
        from gspo.rewards.model import HFRewardModel

        return HFRewardModel
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
