"""Groups of samples as one ragged row in which a group's common prompt stands once.

A group with the prompt `a b` and the responses `c d` and `e` becomes

    input_ids       a  b  c  d  e
    position_ids    0  1  2  3  2
    block           prefix 2, tails (2, 1): a tail sees the prefix and itself
    predictors      1  2  1          the place whose hidden state predicts ...
    targets         c  d  e          ... this response token

Letters: N packed tokens, M response tokens.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from gspo.types import Sample


@dataclass(frozen=True)
class Block:
    """Consecutive tokens of a packed row: a prefix, and tails that do not see each other."""

    start: int
    prefix: int
    tails: tuple[int, ...]

    @property
    def length(self) -> int:
        return self.prefix + sum(self.tails)


@dataclass(frozen=True)
class PackedBatch:
    """One packed row and where its response tokens are predicted from."""

    input_ids: Tensor  # [N]
    position_ids: Tensor  # [N]
    blocks: tuple[Block, ...]
    predictors: Tensor  # [M] index into the row
    targets: Tensor  # [M] token ids

    def to(self, device: torch.device) -> "PackedBatch":
        moved = {
            name: value.to(device) if isinstance(value, Tensor) else value
            for name, value in vars(self).items()
        }
        return PackedBatch(**moved)


def common_prefix(samples: list[Sample]) -> int:
    """How many leading tokens all samples share, none of them a response token."""
    longest = min(int(sample.response_mask.to(torch.uint8).argmax()) for sample in samples)
    first = samples[0].tokens[:longest]
    for sample in samples[1:]:
        differs = sample.tokens[: len(first)] != first
        if differs.any():
            first = first[: int(differs.to(torch.uint8).argmax())]
    return len(first)


def shared_prefix(samples: list[Sample], share_prompts: bool) -> int:
    """The prefix that a block of these samples has: 0 where there is nothing to share."""
    return common_prefix(samples) if share_prompts and len(samples) > 1 else 0


def packed_length(samples: list[Sample], share_prompts: bool = True) -> int:
    """Tokens that these samples of one group take in a packed row."""
    prefix = shared_prefix(samples, share_prompts)
    return prefix + sum(len(sample.tokens) - prefix for sample in samples)


def pack(groups: list[list[Sample]], share_prompts: bool = True) -> PackedBatch:
    """Lays the groups end to end; response tokens come in the order of the samples."""
    tokens: list[Tensor] = []
    positions: list[Tensor] = []
    blocks: list[Block] = []
    predictors: list[Tensor] = []
    targets: list[Tensor] = []
    start = 0
    for samples in groups if share_prompts else [[s] for group in groups for s in group]:
        prefix = shared_prefix(samples, share_prompts)
        tokens.append(samples[0].tokens[:prefix])
        positions.append(torch.arange(prefix))
        offset = start + prefix
        for sample in samples:
            tail = len(sample.tokens) - prefix
            tokens.append(sample.tokens[prefix:])
            positions.append(torch.arange(prefix, prefix + tail))
            at = sample.response_mask.nonzero().squeeze(-1)
            before = at - 1
            predictors.append(before + torch.where(before < prefix, start, offset - prefix))
            targets.append(sample.tokens[at])
            offset += tail
        tails = tuple(len(sample.tokens) - prefix for sample in samples)
        blocks.append(Block(start, prefix, tails))
        start = offset
    return PackedBatch(
        input_ids=torch.cat(tokens),
        position_ids=torch.cat(positions),
        blocks=tuple(blocks),
        predictors=torch.cat(predictors),
        targets=torch.cat(targets),
    )


def padded_micro_batches(samples: list[Sample], budget: int) -> Iterator[list[list[Sample]]]:
    """As `micro_batches`, for padded rows: rows times the longest is at most `budget`."""
    batch: list[Sample] = []
    for sample in samples:
        longest = max(len(s.tokens) for s in [*batch, sample])
        if batch and (len(batch) + 1) * longest > budget:
            yield [batch]
            batch = []
        batch.append(sample)
    if batch:
        yield [batch]


def micro_batches(
    groups: list[list[Sample]], budget: int, share_prompts: bool = True
) -> Iterator[list[list[Sample]]]:
    """Splits groups, in order, into micro-batches of at most `budget` packed tokens.

    A group that is larger is split, and its prompt computed again in each piece; a single sample
    that is larger stands alone.
    """
    batch: list[list[Sample]] = []
    used = 0
    for piece in _pieces(groups, budget, share_prompts):
        size = packed_length(piece, share_prompts)
        if batch and used + size > budget:
            yield batch
            batch, used = [], 0
        batch.append(piece)
        used += size
    if batch:
        yield batch


def _pieces(groups: list[list[Sample]], budget: int, share_prompts: bool) -> Iterator[list[Sample]]:
    for samples in groups:
        if packed_length(samples, share_prompts) <= budget:
            yield samples
            continue
        piece: list[Sample] = []
        for sample in samples:
            if piece and packed_length([*piece, sample], share_prompts) > budget:
                yield piece
                piece = []
            piece.append(sample)
        yield piece
