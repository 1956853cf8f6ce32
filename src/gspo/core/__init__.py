"""The mathematics of GSPO on plain tensors. Imports torch alone.

Per-token tensors come in one of two layouts, `PaddedLayout` ([B, T] with a mask) or `PackedLayout`
([N] response tokens end to end with their sequence ids); every function takes either.
"""

from gspo.core.advantages import group_advantages
from gspo.core.kl import k2, k3, kl_penalty
from gspo.core.layout import PackedLayout, PaddedLayout
from gspo.core.logprob import LogProbs, chunked_logprobs, head_logits
from gspo.core.losses import LossOutput, gspo_loss, gspo_token_loss
from gspo.core.ratio import removed_by_clip, sequence_log_ratio

__all__ = [
    "LogProbs",
    "LossOutput",
    "PackedLayout",
    "PaddedLayout",
    "chunked_logprobs",
    "group_advantages",
    "gspo_loss",
    "gspo_token_loss",
    "head_logits",
    "k2",
    "k3",
    "kl_penalty",
    "removed_by_clip",
    "sequence_log_ratio",
]
