"""What travels from a prompt to a gradient. Read this first.

A run reads `Prompt`s, samples `Rollout`s of each, scores them, and hands `Group`s of `Sample`s to
`training.learn`. A worked example, with a prompt of three tokens and one response of two:

    Prompt.tokens            7  8  9
    Rollout.tokens                     4  2          2 ends the response and belongs to it
    Sample.tokens            7  8  9   4  2          [T] = 5
    Sample.response_mask     .  .  .   1  1
    Sample.behavior_logprobs          -1.2 -0.3      [L] = 2, one for each True in the mask

Letters: T tokens of one sample, L response tokens of one sample, G samples of a group.
"""

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Prompt:
    """One prompt, ready to be sampled from."""

    text: str
    """What reward functions get as the query: the text, or the last user turn of a chat."""
    source: str | list[dict]
    """The prompt as it was given: text, or the whole conversation."""
    tokens: list[int]
    """Token ids, chat template applied."""
    fields: dict[str, Any] = field(default_factory=dict)
    """Whatever else came along, such as `answer`; handed to reward functions by name."""
    epoch: int = 1
    """The pass over the prompts, from 1."""
    position: int = 0
    """Where it stands in the epoch's stream of prompts, from 0. With the epoch, the seed and the
    response's index it keys the random numbers of its responses."""


@dataclass
class Rollout:
    """One response and what was recorded while it was sampled."""

    tokens: list[int]
    """The sampled token ids, the end-of-sequence token included."""
    behavior_logprobs: Tensor  # [L]
    """log mu(token): log-probabilities of the distribution that the tokens were drawn from."""
    finish_reason: str
    """`stop` (an end-of-sequence token or a stop string) or `length`."""
    version: int
    """Optimizer steps that the weights had had."""
    text: str = ""
    """The decoded response without special tokens."""


@dataclass
class Sample:
    """One response with its context, as learning sees it."""

    tokens: Tensor  # [T] int64, no padding
    response_mask: Tensor  # [T] bool, True on the tokens that the policy sampled
    reward: float = math.nan
    """NaN is unscored: left out of the group, never 0."""
    advantage: float = 0.0
    token_advantages: Tensor | None = None  # [L], for GSPO-token
    behavior_logprobs: Tensor | None = None  # [L], of the sampler
    old_logprobs: Tensor | None = None  # [L], the denominator of the importance ratio

    @property
    def length(self) -> int:
        """Response tokens."""
        return int(self.response_mask.sum())

    @property
    def votes(self) -> bool:
        """Whether it counts in the optimizer step's denominator: scored, and with a response."""
        return not math.isnan(self.reward) and self.length > 0

    @property
    def has_advantage(self) -> bool:
        if self.token_advantages is not None:
            return bool((self.token_advantages != 0).any())
        return self.advantage != 0.0


@dataclass
class Group:
    """The samples of one prompt."""

    samples: list[Sample]
    prompt: Prompt | None = None
    """None where the group came in a ready batch."""
    rollouts: list[Rollout] = field(default_factory=list)
    reward_parts: dict[str, list[float]] = field(default_factory=dict)
    """Each reward function's own values before weighting, [G]."""

    @property
    def votes(self) -> int:
        return sum(sample.votes for sample in self.samples)

    @property
    def dead(self) -> bool:
        """No sample has an advantage, so the group has no policy gradient."""
        return not any(sample.votes and sample.has_advantage for sample in self.samples)

    @property
    def rewards(self) -> Tensor:
        """[G] float64, NaN where unscored."""
        return torch.tensor([sample.reward for sample in self.samples], dtype=torch.float64)
