"""The stream of prompts (or ready groups), cut into rollout batches."""

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice

from torch.utils.data import RandomSampler

from gspo.config import GSPOConfig
from gspo.data.padded import read_ready_batch
from gspo.data.prompts import PromptReader, ShuffledPrompts, read_items
from gspo.errors import DataError
from gspo.log import logger
from gspo.types import Group, Prompt

Unit = Prompt | Group
"""What takes one place in the stream."""


@dataclass
class Progress:
    """Where a run stands; all of it is in a checkpoint."""

    step: int = 0
    """Optimizer steps taken."""
    epoch: int = 1
    rollout: int = 0
    """Rollout batches begun."""
    position: int = 0
    """Prompts of this epoch read, those of the rollout batch in hand included."""
    minibatches_done: int = 0
    """Of the rollout batch in hand."""


def rollout_batches(
    dataloader: Iterable, reader: PromptReader, config: GSPOConfig, progress: Progress
) -> Iterator[list[Unit]]:
    """The rollout batches that are left, with `progress` moved on before each is handed out.

    Nothing spans two epochs; an epoch's remainder makes a smaller batch.
    """
    while progress.epoch <= config.num_epochs:
        units = _units(dataloader, reader, config, progress.epoch)
        units = islice(units, progress.position, None)
        while batch := list(islice(units, config.prompts_per_rollout)):
            progress.rollout += 1
            progress.position += len(batch)
            progress.minibatches_done = 0
            yield batch
        if progress.position == 0:
            raise DataError(f"train_dataloader gave no prompts in epoch {progress.epoch}")
        progress.epoch += 1
        progress.position = 0


def check_prompts(dataloader: Iterable, reader: PromptReader) -> None:
    """Reads every prompt of a list once, so that a bad one is found before anything is sampled."""
    if isinstance(dataloader, ShuffledPrompts):
        dataloader = dataloader.prompts
    if not isinstance(dataloader, list | tuple):
        return
    for position, item in enumerate(read_items(dataloader)):
        if not (isinstance(item, Mapping) and "input_ids" in item):
            reader.read(item, epoch=1, position=position)


def warn_if_shuffled(dataloader: Iterable) -> None:
    """A resumed run skips the prompts that it has had: of another order, they would be others."""
    if isinstance(getattr(dataloader, "sampler", None), RandomSampler):
        logger.warning(
            "this DataLoader shuffles: unless its generator gives the order that the resumed run "
            "had, some prompts come twice and others never"
        )


def _units(
    dataloader: Iterable, reader: PromptReader, config: GSPOConfig, epoch: int
) -> Iterator[Unit]:
    if isinstance(dataloader, ShuffledPrompts):
        dataloader.set_epoch(epoch)
    position = 0
    first: type | None = None
    for item in read_items(dataloader):
        if isinstance(item, Mapping) and "input_ids" in item:
            units: list[Unit] = list(
                read_ready_batch(item, config, reader.vocabulary, reader.context_tokens)
            )
        else:
            units = [reader.read(item, epoch, position)]
        for unit in units:
            first = first or type(unit)
            if type(unit) is not first:
                raise DataError(
                    "train_dataloader mixes prompts and ready batches; give one or the other"
                )
            position += 1
            yield unit


def count_steps(dataloader: Iterable, config: GSPOConfig) -> int | None:
    """Optimizer steps of the whole run; None where the length of the stream cannot be known
    without reading it."""
    per_epoch = _count_units(dataloader, config)
    if per_epoch is None:
        return config.max_steps
    steps = math.ceil(per_epoch / config.prompts_per_step) * config.num_epochs
    return min(steps, config.max_steps) if config.max_steps else steps


def _count_units(dataloader: Iterable, config: GSPOConfig) -> int | None:
    if isinstance(dataloader, ShuffledPrompts):
        return len(dataloader.prompts)
    if isinstance(dataloader, list | tuple):
        return sum(
            len(item["input_ids"]) // config.group_size
            if isinstance(item, Mapping) and "input_ids" in item
            else 1
            for item in read_items(dataloader)
        )
    return None
