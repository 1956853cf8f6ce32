"""Which log-probabilities stand below the importance ratio.

On the first minibatch of a rollout batch the policy *is* the old policy, so its own detached
log-probabilities serve. The rest takes the sampler's (`behavior`) where they are as good, and is
computed anew before the weights move where they are not.
"""

import torch

from gspo.config import GSPOConfig
from gspo.policy.forward import policy_logprobs, split_for
from gspo.policy.load import Policy
from gspo.types import Group, Sample

NOISE_SHARE = 0.1
"""`auto` uses the sampler's log-probabilities while their noise in log s is below this share of the
narrower clip range."""


def use_behavior(samples: list[Sample]) -> None:
    """Makes the sampler's log-probabilities the old ones where none are set."""
    for sample in samples:
        if sample.old_logprobs is None:
            sample.old_logprobs = sample.behavior_logprobs


@torch.no_grad()
def recompute(policy: Policy, groups: list[list[Sample]], config: GSPOConfig) -> None:
    """Sets `old_logprobs` by the policy as it stands."""
    for batch in split_for(policy, groups, config.micro_batch_tokens, config.share_prompts):
        scores = policy_logprobs(
            policy, batch, temperature=config.temperature, share_prompts=config.share_prompts
        )
        samples = [sample for samples in batch for sample in samples]
        parts = scores.logprobs.split([sample.length for sample in samples])
        for sample, logprobs in zip(samples, parts, strict=True):
            sample.old_logprobs = logprobs


def settle(
    policy: Policy, rest: list[Group], config: GSPOConfig, noise: float | None
) -> str | None:
    """Gives every later minibatch its old log-probabilities, before the first step.

    Args:
        rest: the groups of the minibatches to come.
        noise: root mean square of log s between trainer and sampler at equal weights, measured on
            the first minibatch; None where there was nothing to measure.

    Returns:
        `behavior` or `recompute`: where they are from; `given` where all came with the batch; None
        where nothing is left to learn.
    """
    if not rest:
        return None
    lacking = [[s for s in group.samples if s.votes and s.old_logprobs is None] for group in rest]
    lacking = [samples for samples in lacking if samples]
    if not lacking:
        sampled = rest[0].samples[0].behavior_logprobs is not None
        return "behavior" if sampled else "given"
    known = all(s.behavior_logprobs is not None for samples in lacking for s in samples)
    limit = NOISE_SHARE * min(config.clip_range_left, config.clip_range_right)
    quiet = noise is not None and noise <= limit
    if known and quiet and config.old_logprobs == "auto":
        for samples in lacking:
            use_behavior(samples)
        return "behavior"
    recompute(policy, lacking, config)
    return "recompute"
