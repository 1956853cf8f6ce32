"""The figures of a metrics line: one object an optimizer step.

Reward figures describe the whole rollout batch; everything about the loss describes the step's own
minibatch. A figure that does not exist (the KL without a reference) is null.
"""

import math
import resource
import sys
from dataclasses import dataclass

import torch
from torch import Tensor

from gspo.core import LossOutput, PackedLayout
from gspo.types import Group, Sample


@dataclass
class ClipReport:
    """What the clip has left of each sequence of a micro-batch; all [S] bool but the last."""

    gradient_left: Tensor
    """Some token with an advantage is not clipped."""
    clipped_left: Tensor
    """No gradient is left of a negative advantage: the ratio fell below 1 - left."""
    clipped_right: Tensor
    """No gradient is left of a positive advantage: the ratio rose above 1 + right."""
    clipped_tokens: int
    """Tokens whose gradient the clip has removed."""

    @classmethod
    def of(cls, output: LossOutput, token_advantages: Tensor, layout: PackedLayout) -> "ClipReport":
        tokens = output.clipped
        if tokens.shape != layout.mask.shape:
            tokens = layout.spread(tokens)
        left = layout.sum(((token_advantages != 0) & ~tokens).double()) > 0
        clipped = (layout.sum(tokens.double()) > 0) & ~left
        pull = layout.sum(torch.where(tokens, token_advantages, 0.0))
        return cls(left, clipped & (pull < 0), clipped & (pull > 0), int(tokens.sum()))


class StepStats:
    """Adds up the micro-batches of one optimizer step.

    Args:
        groups: the minibatch, dead groups included.
        at_equal_weights: the policy still is the one that sampled.
    """

    def __init__(self, groups: list[Group], at_equal_weights: bool = False) -> None:
        voters = [s for group in groups for s in group.samples if s.votes]
        self.votes = len(voters)
        self.response_tokens = sum(sample.length for sample in voters)
        self.at_equal_weights = at_equal_weights
        self.loss = 0.0
        self.kl_sum: float | None = None
        self.grad_norm = 0.0
        self.learning_rate = 0.0
        self.seconds = 0.0
        self.old_logprobs: str | None = None
        self._entropy_sum = 0.0
        self._tokens = 0
        self._clipped_left = 0
        self._clipped_right = 0
        self._clipped_tokens = 0
        self._log_ratios: list[Tensor] = []
        self._noise: list[Tensor] = []

    def add(
        self,
        samples: list[Sample],
        layout: PackedLayout,
        logprobs: Tensor,
        entropy: Tensor,
        output: LossOutput,
        clip: ClipReport,
    ) -> None:
        self._entropy_sum += entropy.double().sum().item()
        self._tokens += len(entropy)
        self._clipped_left += int(clip.clipped_left.sum())
        self._clipped_right += int(clip.clipped_right.sum())
        self._clipped_tokens += clip.clipped_tokens
        self._log_ratios.append(output.log_ratio.double().cpu())
        if self.at_equal_weights and all(s.behavior_logprobs is not None for s in samples):
            behavior = torch.cat([s.behavior_logprobs for s in samples]).to(logprobs)
            self._noise.append(layout.mean(logprobs - behavior).double().cpu())

    @property
    def ratio_noise(self) -> float | None:
        """Root mean square of log s between trainer and sampler at equal weights."""
        if not self._noise:
            return None
        return torch.cat(self._noise).square().mean().sqrt().item()

    def metrics(self) -> dict:
        votes, tokens = max(1, self.votes), max(1, self.response_tokens)
        log_ratios = torch.cat(self._log_ratios) if self._log_ratios else torch.empty(0)
        return {
            "clip_fraction": (self._clipped_left + self._clipped_right) / votes,
            "clip_fraction_left": self._clipped_left / votes,
            "clip_fraction_right": self._clipped_right / votes,
            "clip_token_fraction": self._clipped_tokens / tokens,
            "log_ratio_std": log_ratios.std().item() if len(log_ratios) > 1 else None,
            "ratio_noise": self.ratio_noise,
            "old_logprobs": self.old_logprobs,
            "entropy": self._entropy_sum / self._tokens if self._tokens else None,
            "kl": None if self.kl_sum is None else self.kl_sum / votes,
            "loss": self.loss,
            "grad_norm": self.grad_norm,
            "learning_rate": self.learning_rate,
            "learn_seconds": self.seconds,
        }


def rollout_metrics(groups: list[Group]) -> dict:
    """Reward figures of a rollout batch."""
    rewards = torch.cat([group.rewards for group in groups])
    scored = rewards[~rewards.isnan()]
    rollouts = [rollout for group in groups for rollout in group.rollouts]
    lengths = [sample.length for group in groups for sample in group.samples]
    figures = {
        "reward_mean": scored.mean().item() if len(scored) else None,
        "reward_std": scored.std().item() if len(scored) > 1 else None,
        "unscored_fraction": 1 - len(scored) / len(rewards),
        "dead_group_fraction": sum(group.dead for group in groups) / len(groups),
        "response_tokens_mean": sum(lengths) / len(lengths),
        "truncated_fraction": (
            sum(r.finish_reason == "length" for r in rollouts) / len(rollouts) if rollouts else None
        ),
    }
    for name in groups[0].reward_parts:
        values = [v for group in groups for v in group.reward_parts[name] if not math.isnan(v)]
        figures[f"reward/{name}"] = sum(values) / len(values) if values else None
    return figures


def peak_memory_gib() -> float:
    """The largest memory that this process has had: CUDA's where it is used, else resident."""
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        return torch.cuda.max_memory_allocated() / 2**30
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**30 if sys.platform == "darwin" else 2**20)
