"""Log-probabilities of response tokens under a policy: packed where the model allows it."""

from collections.abc import Iterator

import torch
from torch import Tensor

from gspo.core import LogProbs, chunked_logprobs
from gspo.core.layout import at_least_float32
from gspo.data.packing import micro_batches, pack, padded_micro_batches
from gspo.policy.attention import PackedAttention
from gspo.policy.load import Policy
from gspo.types import Sample


def split_for(
    policy: Policy, groups: list[list[Sample]], budget: int, share_prompts: bool
) -> Iterator[list[list[Sample]]]:
    """Micro-batches of at most `budget` tokens of one forward pass, in the order of the samples."""
    if policy.packed:
        return micro_batches(groups, budget, share_prompts)
    return padded_micro_batches([sample for samples in groups for sample in samples], budget)


def policy_logprobs(
    policy: Policy,
    groups: list[list[Sample]],
    *,
    temperature: float = 1.0,
    share_prompts: bool = True,
) -> LogProbs:
    """log pi(y_t | x, y_<t) and entropy of every response token, in the order of the samples.

    Args:
        groups: samples that may share a prompt, together; one micro-batch.
        temperature: of sampling.
        share_prompts: compute a group's common prefix once: speed only.

    Returns:
        `LogProbs` of [M] tensors on the policy's device, M the response tokens of all samples.
    """
    if policy.packed:
        return _packed(policy, groups, temperature, share_prompts)
    samples = [sample for samples in groups for sample in samples]
    if not policy.rows_alone:
        return _plain(policy, samples, temperature)
    alone = [_plain(policy, [sample], temperature) for sample in samples]
    return LogProbs(*(torch.cat(parts) for parts in zip(*alone, strict=True)))


def _packed(
    policy: Policy, groups: list[list[Sample]], temperature: float, share_prompts: bool
) -> LogProbs:
    batch = pack(groups, share_prompts).to(policy.device)
    hidden = policy.packed_hidden(
        batch.input_ids[None], batch.position_ids[None], PackedAttention(batch.blocks)
    )
    head = policy.head
    return chunked_logprobs(
        hidden[0].index_select(0, batch.predictors),
        head.module.weight,
        batch.targets,
        bias=head.module.bias,
        temperature=temperature,
        scale=head.scale,
        softcap=head.softcap,
    )


def _plain(policy: Policy, samples: list[Sample], temperature: float) -> LogProbs:
    """One padded row a sample, the model's own attention and head, its full logits in memory."""
    input_ids = pad_right([sample.tokens for sample in samples]).to(policy.device)
    attention_mask = pad_right([torch.ones_like(sample.tokens) for sample in samples])
    response_mask = pad_right([sample.response_mask for sample in samples]).to(policy.device)
    logits = policy.plain_logits(input_ids, attention_mask.to(policy.device))
    logits = at_least_float32(logits[:, :-1][response_mask[:, 1:]]) / temperature
    log_p = logits.log_softmax(-1)
    targets = input_ids[response_mask]
    entropy = -(log_p.exp() * log_p).sum(-1)
    return LogProbs(log_p.gather(-1, targets[:, None]).squeeze(-1), entropy)


def pad_right(rows: list[Tensor]) -> Tensor:
    """Ragged rows as [B, T], zeros on the right."""
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
