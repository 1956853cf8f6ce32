"""Scored groups in, better weights out.

A rollout batch is split into minibatches of `prompts_per_step` groups; each is one optimizer step.
What has no gradient is not computed: groups without advantages, and the backward pass of
micro-batches whose every response is clipped. The step that is left is the plain one's.
"""

import time
from collections.abc import Iterator

import torch
from torch import Tensor

from gspo.config import GSPOConfig
from gspo.core import PackedLayout, gspo_loss, gspo_token_loss, kl_penalty
from gspo.core.kl import ESTIMATORS
from gspo.core.losses import LossOutput
from gspo.policy.forward import policy_logprobs, split_for
from gspo.policy.load import Policy
from gspo.policy.optimizer import PolicyOptimizer
from gspo.training import old_policy
from gspo.training.metrics import ClipReport, StepStats
from gspo.types import Group, Sample


def learn(
    policy: Policy,
    optimizer: PolicyOptimizer,
    groups: list[Group],
    config: GSPOConfig,
    reference: Policy | None = None,
    minibatches_done: int = 0,
) -> Iterator[StepStats]:
    """Takes one optimizer step for each minibatch of a rollout batch, and yields after each.

    Args:
        groups: a rollout batch, in order, dead groups included.
        reference: for the KL penalty; needed when `config.kl_coef` > 0.
        minibatches_done: skip these; the run was interrupted after them.
    """
    policy.start_learning()
    minibatches = split(groups, config.prompts_per_step)
    if config.old_logprobs == "behavior":
        old_policy.use_behavior([sample for group in groups for sample in group.samples])
    for index in range(minibatches_done, len(minibatches)):
        start = time.perf_counter()
        stats = accumulate_gradients(
            policy, optimizer, minibatches[index], config, reference, at_equal_weights=index == 0
        )
        if index == 0:
            rest = live_groups([g for m in minibatches[1:] for g in m], config)
            stats.old_logprobs = old_policy.settle(policy, rest, config, stats.ratio_noise)
        stats.learning_rate = optimizer.learning_rate
        stats.grad_norm = optimizer.step()
        stats.seconds = time.perf_counter() - start
        yield stats


def split(groups: list[Group], prompts_per_step: int) -> list[list[Group]]:
    """Minibatches of so many groups; the last may be smaller."""
    return [groups[i : i + prompts_per_step] for i in range(0, len(groups), prompts_per_step)]


def live_groups(groups: list[Group], config: GSPOConfig) -> list[Group]:
    """Groups with a gradient: those with an advantage; all, where a KL or entropy term is on."""
    every = config.kl_coef > 0 or config.entropy_coef > 0
    return [group for group in groups if every or not group.dead]


def accumulate_gradients(
    policy: Policy,
    optimizer: PolicyOptimizer,
    groups: list[Group],
    config: GSPOConfig,
    reference: Policy | None = None,
    at_equal_weights: bool = False,
) -> StepStats:
    """The gradient of one minibatch, a mean over its scored responses whatever the micro-batches.

    loss = (loss_sum + kl_coef sum_i KL_i - entropy_coef sum_i H_i) / number of scored responses,
    with KL_i and H_i means over the tokens of a response.

    Args:
        at_equal_weights: nothing has been learned since the responses were sampled, so that what
            log s is between trainer and sampler is noise.
    """
    optimizer.zero_grad()
    stats = StepStats(groups, at_equal_weights)
    live = [[s for s in group.samples if s.votes] for group in live_groups(groups, config)]
    live = [samples for samples in live if samples]
    for batch in split_for(policy, live, config.micro_batch_tokens, config.share_prompts):
        loss = _micro_batch_loss(policy, batch, config, reference, stats)
        if loss is not None:
            loss.backward()
    return stats


def _micro_batch_loss(
    policy: Policy,
    batch: list[list[Sample]],
    config: GSPOConfig,
    reference: Policy | None,
    stats: StepStats,
) -> Tensor | None:
    """The share of one micro-batch in the minibatch's loss; None where its gradient is zero."""
    samples = [sample for samples in batch for sample in samples]
    settings = {"temperature": config.temperature, "share_prompts": config.share_prompts}
    logprobs, entropy = policy_logprobs(policy, batch, **settings)
    lengths = torch.tensor([sample.length for sample in samples], device=logprobs.device)
    ids = torch.arange(len(samples), device=logprobs.device).repeat_interleave(lengths)
    layout = PackedLayout(ids, len(samples))
    output, token_advantages = _surrogate(logprobs, samples, layout, config)
    clip = ClipReport.of(output, token_advantages, layout)
    stats.add(samples, layout, logprobs.detach(), entropy.detach(), output, clip)
    loss_sum = output.loss_sum
    if config.kl_coef > 0:
        with torch.no_grad():
            ref_logprobs = policy_logprobs(reference, batch, **settings).logprobs
        kl = kl_penalty(logprobs, ref_logprobs, layout, ESTIMATORS[config.kl_estimator])
        loss_sum = loss_sum + config.kl_coef * kl.sum()
        stats.kl_sum = (stats.kl_sum or 0.0) + kl.sum().item()
    if config.entropy_coef > 0:
        loss_sum = loss_sum - config.entropy_coef * layout.mean(entropy).sum()
    loss = loss_sum / stats.votes
    stats.loss += loss.item()
    only_the_surrogate = config.kl_coef == 0 and config.entropy_coef == 0
    return None if only_the_surrogate and not clip.gradient_left.any() else loss


def _surrogate(
    logprobs: Tensor, samples: list[Sample], layout: PackedLayout, config: GSPOConfig
) -> tuple[LossOutput, Tensor]:
    """GSPO or GSPO-token on a micro-batch, and the advantage of each token.

    The policy is its own old policy where no old log-probabilities are given.
    """
    parts = logprobs.detach().split(layout.lengths.tolist())
    old_logprobs = torch.cat(
        [
            own if sample.old_logprobs is None else sample.old_logprobs.to(own)
            for own, sample in zip(parts, samples, strict=True)
        ]
    )
    advantages = torch.tensor(
        [sample.advantage for sample in samples], dtype=torch.float64, device=logprobs.device
    )
    token_advantages = layout.spread(advantages)
    band = {
        "clip_range_left": config.clip_range_left,
        "clip_range_right": config.clip_range_right,
    }
    if not config.use_token_level:
        output = gspo_loss(logprobs, old_logprobs, advantages, layout, **band)
        return output, token_advantages
    token_advantages = torch.cat(
        [
            spread if sample.token_advantages is None else sample.token_advantages.to(spread)
            for spread, sample in zip(
                token_advantages.split(layout.lengths.tolist()), samples, strict=True
            )
        ]
    )
    return gspo_token_loss(
        logprobs, old_logprobs, token_advantages, layout, **band
    ), token_advantages
