"""The one door through which padded tensors come in: ready batches."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from gspo.config import GSPOConfig
from gspo.core import group_advantages
from gspo.errors import DataError
from gspo.types import Group, Sample

TOKEN_FIELDS = ("input_ids", "attention_mask", "response_mask", "token_advantages", "old_logprobs")


def read_ready_batch(
    batch: Mapping,
    config: GSPOConfig,
    vocabulary: int | None = None,
    context_tokens: int | None = None,
) -> list[Group]:
    """Groups out of a batch of tensors that somebody else sampled and scored.

    Args:
        batch: `input_ids`, `attention_mask`, `response_mask` [B, T], `rewards` [B], optional
            `token_advantages` and `old_logprobs` [B, T], each token's value at its own index.
            `group_size` consecutive rows are a group. Padding on either side, holes in
            `response_mask` (a tool's text) and all-masked rows are fine. Other fields are ignored.
        vocabulary: of the model, where token ids are to be checked.
        context_tokens: longest sequence of the model, where lengths are to be checked.

    Raises:
        DataError: a field that is missing, not numeric or of the wrong shape, rows that are not
            whole groups, a response without a token before it, tokens that the model does not have.
    """
    known = [name for name in (*TOKEN_FIELDS, "rewards") if batch.get(name) is not None]
    batch = {name: _tensor(name, batch[name]) for name in known}
    _check_fields(batch, config)
    _check_tokens(batch, vocabulary, context_tokens)
    mask = batch["attention_mask"].bool()
    response_mask = batch["response_mask"].bool()
    if (response_mask & ~mask).any():
        row = int((response_mask & ~mask).any(-1).nonzero()[0])
        raise DataError(
            f"ready batch: row {row} of response_mask marks a padding token (attention_mask is 0)"
        )
    rewards = batch["rewards"].double()
    advantages = group_advantages(
        rewards.view(-1, config.group_size),
        normalize=config.normalize_advantages,
        eps=config.advantage_eps,
    ).flatten()
    samples = []
    for row in range(len(mask)):
        real = mask[row]
        sampled = response_mask[row][real]
        if len(sampled) and sampled[0]:
            raise DataError(
                f"ready batch: row {row} of response_mask marks the first token, which nothing "
                "predicts; a response needs a prompt of at least one token"
            )
        samples.append(
            Sample(
                tokens=batch["input_ids"][row][real].long(),
                response_mask=sampled,
                reward=rewards[row].item(),
                advantage=advantages[row].item(),
                token_advantages=_at(batch.get("token_advantages"), row, response_mask),
                old_logprobs=_at(batch.get("old_logprobs"), row, response_mask),
            )
        )
    size = config.group_size
    return [Group(samples[i : i + size]) for i in range(0, len(samples), size)]


def _tensor(name: str, value: object) -> Tensor:
    if name == "rewards" and isinstance(value, list | tuple):
        value = [math.nan if reward is None else reward for reward in value]
    try:
        return torch.as_tensor(value).detach().cpu()
    except (TypeError, ValueError, RuntimeError) as error:
        raise DataError(f"ready batch: {name} is no tensor of numbers: {error}") from None


def _check_tokens(
    batch: dict[str, Tensor], vocabulary: int | None, context_tokens: int | None
) -> None:
    real = batch["attention_mask"].bool()
    ids = batch["input_ids"][real]
    if vocabulary is not None and len(ids) and not 0 <= ids.min() <= ids.max() < vocabulary:
        raise DataError(
            f"ready batch: input_ids go from {int(ids.min())} to {int(ids.max())}, but the model "
            f"has the tokens 0 to {vocabulary - 1}"
        )
    longest = int(real.sum(-1).max())
    if context_tokens is not None and longest > context_tokens:
        raise DataError(
            f"ready batch: a row has {longest} tokens, more than the model's {context_tokens}"
        )
    for name in ("old_logprobs", "token_advantages"):
        if name in batch and not batch[name][batch["response_mask"].bool()].isfinite().all():
            raise DataError(f"ready batch: {name} is not finite on some response token")


def _at(values: Tensor | None, row: int, response_mask: Tensor) -> Tensor | None:
    """[L], a row's values on its response tokens."""
    return None if values is None else values[row][response_mask[row]]


def _check_fields(batch: dict[str, Tensor], config: GSPOConfig) -> None:
    needed = ("input_ids", "attention_mask", "response_mask", "rewards")
    missing = [name for name in needed if name not in batch]
    if missing:
        raise DataError(
            f"ready batch: '{missing[0]}' is missing; it has {', '.join(sorted(batch))}"
        )
    shape = batch["input_ids"].shape
    if len(shape) != 2:
        raise DataError(f"ready batch: input_ids must be [B, T], got {list(shape)}")
    for name in TOKEN_FIELDS:
        if name in batch and batch[name].shape != shape:
            raise DataError(
                f"ready batch: {name} must have the shape of input_ids {list(shape)}, got "
                f"{list(batch[name].shape)}"
            )
    if batch["rewards"].shape != shape[:1]:
        raise DataError(
            f"ready batch: rewards must be [B] = [{shape[0]}], got {list(batch['rewards'].shape)}"
        )
    if batch["rewards"].isinf().any():
        raise DataError("ready batch: rewards hold an infinity; NaN is the value for unscored")
    if shape[0] == 0 or shape[0] % config.group_size:
        raise DataError(
            f"ready batch: {shape[0]} rows are no whole groups of group_size = {config.group_size}"
        )
    if "token_advantages" in batch and not config.use_token_level:
        raise DataError(
            "ready batch: token_advantages came, but the sequence form has one advantage a "
            "response; set use_token_level=True or leave them out"
        )
    if config.group_size == 1 and "token_advantages" not in batch:
        raise DataError(
            "ready batch: with group_size = 1 there is no group to compare with; give "
            "token_advantages or larger groups"
        )
