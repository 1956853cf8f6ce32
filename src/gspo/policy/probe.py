"""The self-test at load: does this model compute the same on a packed row as on plain ones?

Models with linear attention, Mamba layers, ALiBi, chunked attention or an unusual head do not; they
then run padded, with their own attention, cache and head, and one line says so.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from gspo.errors import DataError
from gspo.log import logger
from gspo.policy.forward import policy_logprobs
from gspo.policy.load import Policy, switch_off_noise
from gspo.types import Sample

TOLERANCE = 2e-4
"""Largest difference in a log-probability, relative to the largest one: rounding in float32 lies
two orders of magnitude below, a window off by one two above."""

SHORT_WINDOW = 3
"""Windows of thousands of positions are cut to this while testing, so that short rows meet them."""


@torch.no_grad()
def choose_attention(policy: Policy) -> None:
    """Sets the policy to packed rows if they are exact for this model, and says if they are not.

    Dropout and jitter are switched off on the way; a model whose training mode still differs from
    its evaluation mode learns in the latter.

    Raises:
        DataError: the model's log-probabilities are not finite.
    """
    autocast, policy.autocast = policy.autocast, False
    try:
        with _short_windows(policy.model):
            reason = _compare(policy)
    finally:
        policy.autocast = autocast
    if reason is not None:
        policy.use_own_attention()
        logger.info("this model runs unpacked, with its own attention, cache and head: %s", reason)


def _compare(policy: Policy) -> str | None:
    """Why packed rows do not serve this model; None if they do."""
    groups = _random_groups(policy)
    policy.model.eval()
    try:
        policy.model.set_attn_implementation("eager")
    except ValueError:
        pass  # the model has no attention to choose; it is its own reference
    want = _one_by_one(policy, groups)
    if not want.isfinite().all():
        raise DataError(
            "the model gives log-probabilities that are not finite: look at its weights"
        )
    _silence(policy, groups, want)
    if policy.rows_alone:
        return "its positions are encoded by the longest sequence of a batch"
    # What a model of unknown make does with our arguments cannot be listed: any failure means no.
    try:
        policy.use_packed_attention()
        got = policy_logprobs(policy, groups).logprobs
    except Exception as error:
        return f"a packed forward pass failed ({type(error).__name__}: {str(error)[:200]})"
    if _agree(got, want):
        return None
    return f"packed log-probabilities differ by {(got - want).abs().max():.1e}"


def _silence(policy: Policy, groups: list[list[Sample]], want: Tensor) -> None:
    """Switches dropout off where train mode then computes what evaluation mode did before."""
    undo = switch_off_noise(policy.model)
    policy.model.train()
    if not _agree(_one_by_one(policy, groups), want):
        undo()
        policy.learns_in_train_mode = False
        logger.info(
            "this model learns in evaluation mode: its training mode adds noise of its own, which "
            "would be noise in every ratio"
        )
    policy.start_learning()


def _one_by_one(policy: Policy, groups: list[list[Sample]]) -> Tensor:
    """Without padding, which a model's own attention may get wrong: in float64, transformers' eager
    attention gives NaN for a padding token outside its window."""
    samples = [sample for samples in groups for sample in samples]
    return torch.cat([policy_logprobs(policy, [[sample]]).logprobs for sample in samples])


def _agree(got: Tensor, want: Tensor) -> bool:
    return bool((got - want).abs().max() <= TOLERANCE * max(1.0, want.abs().max().item()))


def _random_groups(policy: Policy) -> list[list[Sample]]:
    """Two groups of random tokens: prompts of 5 and 3, responses of 4, 7 and 2, and of 5 and 1."""
    generator = torch.Generator().manual_seed(0)

    def draw(length: int) -> Tensor:
        return torch.randint(policy.vocabulary, (length,), generator=generator)

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
