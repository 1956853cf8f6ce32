"""Where each sequence's tokens lie. The only code that knows whether tokens are padded or packed.

Letters: B rows, T tokens in a padded row, N packed tokens, S sequences.
"""

from typing import Protocol

import torch
from torch import Tensor


def at_least_float32(x: Tensor) -> Tensor:
    """float64 stays, every other dtype becomes float32: the published clip band is 3e-4 wide, and
    the distance from 1 to the next bfloat16 is 7.8e-3."""
    return x if x.dtype == torch.float64 else x.float()


class Layout(Protocol):
    """What the losses need to know of a batch: sums and means over each sequence, and back."""

    lengths: Tensor  # [S] int64
    mask: Tensor  # the shape of a per-token tensor, bool

    def sum(self, x: Tensor) -> Tensor: ...

    def mean(self, x: Tensor) -> Tensor: ...

    def spread(self, s: Tensor) -> Tensor: ...


class PaddedLayout:
    """Rows of T tokens, of which `mask` counts.

    `PaddedLayout(tensor([[0, 1, 1], [0, 0, 1]]))` has lengths [2, 1]; its
    `mean(tensor([[9., 1., 3.], [9., 9., 5.]]))` is [2., 5.].

    Args:
        mask: [B, T], nonzero on response tokens; S = B. Holes are allowed.

    Values outside the mask are never read, be they NaN or infinite.
    """

    def __init__(self, mask: Tensor) -> None:
        if mask.ndim != 2:
            raise ValueError(f"mask must be [B, T], got {list(mask.shape)}")
        self.mask = mask.bool()
        self.lengths = self.mask.sum(-1)

    def sum(self, x: Tensor) -> Tensor:
        """[B, T] -> [S], the sum over each sequence; 0 for an empty one."""
        return torch.where(self.mask, x, 0).sum(-1)

    def mean(self, x: Tensor) -> Tensor:
        """[B, T] -> [S], the mean over each sequence; 0 for an empty one."""
        return self.sum(x) / self.lengths.clamp(min=1)

    def spread(self, s: Tensor) -> Tensor:
        """[S] -> [B, T], each sequence's value at all of its places."""
        return s.unsqueeze(-1).expand(self.mask.shape)


class PackedLayout:
    """Response tokens of S sequences end to end.

    `PackedLayout(tensor([0, 0, 2]), 3)` has lengths [2, 0, 1]; its `mean(tensor([1., 3., 5.]))` is
    [2., 0., 5.].

    Args:
        sequence_ids: [N] integers in [0, S), ascending.
        num_sequences: S; sequences without a token are allowed.
    """

    def __init__(self, sequence_ids: Tensor, num_sequences: int) -> None:
        if sequence_ids.ndim != 1:
            raise ValueError(f"sequence_ids must be [N], got {list(sequence_ids.shape)}")
        self.sequence_ids = sequence_ids.long()
        self.num_sequences = num_sequences
        self.lengths = torch.bincount(self.sequence_ids, minlength=num_sequences)
        if len(self.lengths) > num_sequences:
            raise ValueError(
                f"sequence_ids go up to {len(self.lengths) - 1}, but num_sequences is "
                f"{num_sequences}"
            )
        self.mask = torch.ones_like(self.sequence_ids, dtype=torch.bool)

    def sum(self, x: Tensor) -> Tensor:
        """[N] -> [S], the sum over each sequence; 0 for an empty one."""
        return x.new_zeros(self.num_sequences).index_add(0, self.sequence_ids, x)

    def mean(self, x: Tensor) -> Tensor:
        """[N] -> [S], the mean over each sequence; 0 for an empty one."""
        return self.sum(x) / self.lengths.clamp(min=1)

    def spread(self, s: Tensor) -> Tensor:
        """[S] -> [N], each sequence's value at all of its tokens."""
        return s[self.sequence_ids]
