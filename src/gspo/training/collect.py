"""Prompts in, scored groups out."""

import time
from dataclasses import dataclass

import torch

from gspo.config import GSPOConfig
from gspo.core import group_advantages
from gspo.engines.base import Engine, Sampling
from gspo.rewards.base import RewardSum, score
from gspo.types import Group, Prompt, Rollout, Sample

ALWAYS_NAMED = frozenset({"prompts", "finish_reasons", "response_tokens"})
"""What a reward function may ask for by name besides fields of the prompts."""


@dataclass
class Collected:
    """A rollout batch and how long its making took."""

    groups: list[Group]
    collect_seconds: float
    reward_seconds: float


def collect(
    engine: Engine, prompts: list[Prompt], reward: RewardSum, config: GSPOConfig
) -> Collected:
    """Samples `group_size` responses of each prompt, scores them in one call, and gives each its
    advantage in its group (eq. 6)."""
    start = time.perf_counter()
    rollouts = engine.generate(prompts, Sampling.of(config))
    sampled = time.perf_counter()
    groups = score_groups(prompts, rollouts, reward, config)
    return Collected(groups, sampled - start, time.perf_counter() - sampled)


def score_groups(
    prompts: list[Prompt], rollouts: list[list[Rollout]], reward: RewardSum, config: GSPOConfig
) -> list[Group]:
    """One call of each reward function for the whole batch, then advantages group by group."""
    flat = [rollout for group in rollouts for rollout in group]
    owners = [p for p, group in zip(prompts, rollouts, strict=True) for _ in group]
    scores = score(
        reward, [p.text for p in owners], [r.text for r in flat], named_columns(owners, flat)
    )
    size = config.group_size
    rewards = scores.rewards.view(len(prompts), size)
    advantages = group_advantages(
        rewards, normalize=config.normalize_advantages, eps=config.advantage_eps
    )
    return [
        Group(
            samples=[
                _sample(prompt, *values)
                for values in zip(
                    rollouts[i], rewards[i].tolist(), advantages[i].tolist(), strict=True
                )
            ],
            prompt=prompt,
            rollouts=rollouts[i],
            reward_parts={
                name: part[i * size : (i + 1) * size].tolist()
                for name, part in scores.parts.items()
            },
        )
        for i, prompt in enumerate(prompts)
    ]


def named_columns(owners: list[Prompt], rollouts: list[Rollout]) -> dict[str, list]:
    """What reward functions may ask for by name, each a list of length B: fields of the prompts
    (None where a prompt lacks one), `prompts`, `finish_reasons` and `response_tokens`."""
    names = dict.fromkeys(name for prompt in owners for name in prompt.fields)
    columns = {name: [prompt.fields.get(name) for prompt in owners] for name in names}
    return columns | {
        "prompts": [prompt.source for prompt in owners],
        "finish_reasons": [rollout.finish_reason for rollout in rollouts],
        "response_tokens": [rollout.tokens for rollout in rollouts],
    }


def _sample(prompt: Prompt, rollout: Rollout, reward: float, advantage: float) -> Sample:
    tokens = torch.tensor(prompt.tokens + rollout.tokens)
    return Sample(
        tokens=tokens,
        response_mask=torch.arange(len(tokens)) >= len(prompt.tokens),
        reward=reward,
        advantage=advantage,
        behavior_logprobs=rollout.behavior_logprobs,
    )
