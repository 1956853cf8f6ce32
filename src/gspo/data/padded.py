"""The one door through which padded tensors come in: ready batches."""

import torch
from torch import Tensor

from gspo.config import GSPOConfig
from gspo.core import group_advantages
from gspo.errors import DataError
from gspo.types import Group, Sample

TOKEN_FIELDS = ("input_ids", "attention_mask", "response_mask", "token_advantages", "old_logprobs")


def read_ready_batch(batch: dict, config: GSPOConfig) -> list[Group]:
    """Groups out of a batch of tensors that somebody else sampled and scored.

    Args:
        batch: `input_ids`, `attention_mask`, `response_mask` [B, T], `rewards` [B], optional
            `token_advantages` and `old_logprobs` [B, T], each token's value at its own index.
            `group_size` consecutive rows are a group. Padding on either side, holes in
            `response_mask` (a tool's text) and all-masked rows are fine.

    Raises:
        DataError: a field that is missing or of the wrong shape, rows that are not whole groups,
            or a response without a token before it.
    """
    batch = {name: torch.as_tensor(value).detach().cpu() for name, value in batch.items()}
    _check_fields(batch, config)
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
