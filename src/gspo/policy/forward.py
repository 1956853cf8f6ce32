"""Log-probabilities of response tokens under a policy: packed where the model allows it."""

import torch
from torch import Tensor

from gspo.core import LogProbs, chunked_logprobs
from gspo.core.layout import at_least_float32
from gspo.data.packing import pack
from gspo.policy.attention import PackedAttention
from gspo.policy.load import Policy
from gspo.types import Sample


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
    return _plain(policy, [sample for samples in groups for sample in samples], temperature)


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
    input_ids = padded([sample.tokens for sample in samples]).to(policy.device)
    attention_mask = padded([torch.ones_like(sample.tokens) for sample in samples])
    response_mask = padded([sample.response_mask for sample in samples]).to(policy.device)
    logits = policy.plain_logits(input_ids, attention_mask.to(policy.device))
    logits = at_least_float32(logits[:, :-1][response_mask[:, 1:]]) / temperature
    log_p = logits.log_softmax(-1)
    targets = input_ids[response_mask]
    entropy = -(log_p.exp() * log_p).sum(-1)
    return LogProbs(log_p.gather(-1, targets[:, None]).squeeze(-1), entropy)


def padded(rows: list[Tensor]) -> Tensor:
    """Ragged rows as [B, T], zeros on the right."""
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
