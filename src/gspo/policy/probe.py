"""The self-test at load: does this model compute the same on a packed row as on plain ones?

Models with linear attention, Mamba layers, ALiBi, chunked attention or an unusual head do not; they
then run padded, with their own attention, cache and head, and one line says so.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from gspo.log import logger
from gspo.policy.forward import policy_logprobs
from gspo.policy.load import Policy
from gspo.types import Sample

TOLERANCE = 2e-4
"""Largest difference in a log-probability, relative to the largest one: rounding in float32 lies
two orders of magnitude below, a window off by one two above."""

SHORT_WINDOW = 3
"""Windows of thousands of positions are cut to this while testing, so that short rows meet them."""


@torch.no_grad()
def choose_attention(policy: Policy) -> None:
    """Sets the policy to packed rows if they are exact for this model, and says if they are not."""
    autocast, policy.autocast = policy.autocast, False
    try:
        with _short_windows(policy.model):
            reason = _difference(policy)
    finally:
        policy.autocast = autocast
    if reason is not None:
        policy.packed = False
        policy.release()
        logger.info("this model runs unpacked, with its own attention, cache and head: %s", reason)


def _difference(policy: Policy) -> str | None:
    """Why packed rows do not serve this model; None if they do."""
    groups = _random_groups(policy)
    policy.model.eval()
    if policy.model.config._attn_implementation != "eager":
        try:
            policy.model.set_attn_implementation("eager")
        except ValueError:
            pass  # the model has no attention to choose; it is its own reference
    want = policy_logprobs(policy, groups).logprobs
    # What a model of unknown make does with our arguments cannot be listed: any failure means no.
    try:
        policy.use_packed_attention()
        got = policy_logprobs(policy, groups).logprobs
    except Exception as error:
        return f"a packed forward pass failed ({type(error).__name__}: {str(error)[:200]})"
    worst = (got - want).abs().max().item()
    if worst <= TOLERANCE * max(1.0, want.abs().max().item()):
        return None
    return f"packed log-probabilities differ by {worst:.1e}"


def _random_groups(policy: Policy) -> list[list[Sample]]:
    """Two groups of random tokens: prompts of 5 and 3, responses of 4, 7 and 2, and of 5 and 1."""
    generator = torch.Generator().manual_seed(0)
    vocabulary = policy.model.get_input_embeddings().weight.shape[0]

    def draw(length: int) -> Tensor:
        return torch.randint(vocabulary, (length,), generator=generator)

    groups = []
    for prompt, responses in ((draw(5), (4, 7, 2)), (draw(3), (5, 1))):
        tokens = [torch.cat([prompt, draw(length)]) for length in responses]
        groups.append([Sample(row, torch.arange(len(row)) >= len(prompt)) for row in tokens])
    return groups


@contextmanager
def _short_windows(model: torch.nn.Module) -> Iterator[None]:
    holders = [model.config.get_text_config(), *model.modules()]
    changed = []
    for holder in holders:
        for name in ("sliding_window", "attention_chunk_size"):
            value = getattr(holder, name, None)
            if isinstance(value, int) and not isinstance(value, bool):
                changed.append((holder, name, value))
                setattr(holder, name, SHORT_WINDOW)
    try:
        yield
    finally:
        for holder, name, value in changed:
            setattr(holder, name, value)
