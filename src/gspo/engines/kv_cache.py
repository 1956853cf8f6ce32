"""Keys and values of prompts and responses while sampling, and attention over them.

A prompt's keys and values stand once and serve its whole group; each response has a row of its own
of preallocated length. The two parts are attended to apart and merged by their log-sum-exp, which
is exact: softmax over a union is the mass-weighted mean of the softmaxes over its parts.

Letters: n live rows, S prompt slots, c rows per slot at most, Q query heads, K key heads,
r = Q / K, P prompt places, L response places, D head size.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from gspo.core.layout import at_least_float32
from gspo.data.packing import Block
from gspo.policy.attention import LayerRules, PackedAttention

LayerShape = tuple[int, int, int, torch.dtype]
"""Key heads, size of a key, size of a value, dtype."""


CLEARED_TOGETHER = 64
"""Places of the responses' buffers that are cleared in one go."""


class KVCache:
    """Buffers for `rows` responses of `response_tokens` and `slots` prompts of `prompt_tokens`."""

    def __init__(
        self,
        shapes: dict[int, LayerShape],
        *,
        rows: int,
        response_tokens: int,
        slots: int,
        prompt_tokens: int,
        device: torch.device,
    ) -> None:
        def buffers(make: Callable, first: int, places: int) -> dict[int, tuple[Tensor, Tensor]]:
            return {
                layer: (
                    make(first, heads, places, key_size, dtype=dtype, device=device),
                    make(first, heads, places, value_size, dtype=dtype, device=device),
                )
                for layer, (heads, key_size, value_size, dtype) in shapes.items()
            }

        self.prompts = buffers(torch.zeros, slots, prompt_tokens)
        # Reserved, not touched: most responses end long before the last place.
        self.responses = buffers(torch.empty, rows, response_tokens)
        self._cleared = 0

    def clear_up_to(self, places: int) -> None:
        """Makes the first places of all responses readable: masked, but read, so they be finite."""
        if places <= self._cleared:
            return
        part = slice(self._cleared, places + CLEARED_TOGETHER)
        for buffers in self.responses.values():
            for buffer in buffers:
                buffer[:, :, part] = 0
        self._cleared = part.stop

    def move_row(self, source: int, target: int, length: int) -> None:
        """Copies the first `length` places of one response's row over another's."""
        for keys, values in self.responses.values():
            keys[target, :, :length] = keys[source, :, :length]
            values[target, :, :length] = values[source, :, :length]


class PrefillAttention:
    """Attention over packed prompts that also stores their keys and values in their slots."""

    def __init__(self, cache: KVCache, lengths: list[int], slots: list[int]) -> None:
        starts = [sum(lengths[:i]) for i in range(len(lengths))]
        self.blocks = tuple(Block(s, 0, (n,)) for s, n in zip(starts, lengths, strict=True))
        self.attend = PackedAttention(self.blocks)
        self.cache = cache
        self.slots = slots

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, rules: LayerRules) -> Tensor:
        keys, values = self.cache.prompts[rules.layer]
        for block, slot in zip(self.blocks, self.slots, strict=True):
            part = slice(block.start, block.start + block.length)
            keys[slot, :, : block.length] = k[0, :, part]
            values[slot, :, : block.length] = v[0, :, part]
        return self.attend(q, k, v, rules)


class DecodeAttention:
    """One new token for each of n live rows: it sees its slot's prompt and its own row.

    Args:
        slot: [n] the row's prompt slot.
        place: [n] the new token's place in its row, from 0.
        prompt_lengths: [S].
    """

    def __init__(self, cache: KVCache, slot: Tensor, place: Tensor, prompt_lengths: Tensor) -> None:
        self.cache = cache
        self.rows = torch.arange(len(slot), device=slot.device)
        self.place = place
        self.num_slots = int(slot.max()) + 1
        self.prompt_lengths = prompt_lengths[: self.num_slots]
        self.prompt_places = int(self.prompt_lengths.max())
        self.response_places = int(place.max()) + 1
        cache.clear_up_to(self.response_places)
        self.rows_per_slot, self.grid = _grid(slot, self.num_slots)
        self._masks: dict[int | None, tuple[Tensor, Tensor]] = {}

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, rules: LayerRules) -> Tensor:
        keys, values = self.cache.responses[rules.layer]
        keys[self.rows, :, self.place] = k[:, :, 0].to(keys.dtype)
        values[self.rows, :, self.place] = v[:, :, 0].to(values.dtype)
        prompt_mask, response_mask = self._mask(rules.window)
        n, num_heads, _, size = q.shape
        q = q.view(n, keys.shape[1], -1, size)  # [n, K, r, D]
        prompt = self._over_prompts(q, prompt_mask, rules)
        own = _partial_attention(
            q,
            keys[:n, :, : self.response_places],
            values[:n, :, : self.response_places],
            response_mask,
            rules,
        )
        return _merge([prompt, own], rules.sinks).to(q.dtype).view(n, num_heads, 1, -1)

    def _over_prompts(self, q: Tensor, mask: Tensor, rules: LayerRules):
        """All rows of a slot against its prompt in one product: [S, K, c r, D] by [S, K, P, D]."""
        keys, values = self.cache.prompts[rules.layer]
        n, heads, repeats, size = q.shape
        slots, c = self.num_slots, self.rows_per_slot
        grid = q.new_zeros(slots * c, heads, repeats, size).index_copy(0, self.grid, q)
        grid = grid.view(slots, c, heads, repeats, size).transpose(1, 2)
        parts = _partial_attention(
            grid.reshape(slots, heads, c * repeats, size),
            keys[:slots, :, : self.prompt_places],
            values[:slots, :, : self.prompt_places],
            mask.repeat_interleave(repeats, 2) if mask.shape[2] > 1 else mask,
            rules,
        )

        def rows(x: Tensor) -> Tensor:
            x = x.view(slots, heads, c, repeats, -1).transpose(1, 2)
            return x.reshape(slots * c, heads, repeats, -1).index_select(0, self.grid)

        return tuple(rows(part) for part in parts)

    def _mask(self, window: int | None) -> tuple[Tensor, Tensor]:
        """Additive masks, made once a step for each window: [S, 1, 1 or c, P] and [n, 1, 1, L]."""
        if window not in self._masks:
            at = torch.arange(self.prompt_places, device=self.place.device)
            prompt = (at < self.prompt_lengths[:, None])[:, None, :]  # [S, 1, P]
            at_own = torch.arange(self.response_places, device=self.place.device)
            own = at_own <= self.place[:, None]  # [n, L]
            if window is not None:
                place = self.place.new_zeros(self.num_slots * self.rows_per_slot)
                place = place.index_copy(0, self.grid, self.place).view(self.num_slots, -1)
                position = self.prompt_lengths[:, None] + place  # [S, c]
                prompt = prompt & (position[:, :, None] - at < window)
                own = own & (self.place[:, None] - at_own < window)
            self._masks[window] = _additive(prompt[:, None]), _additive(own[:, None, None])
        return self._masks[window]


def _grid(slot: Tensor, num_slots: int) -> tuple[int, Tensor]:
    """Each row's place in a table of [slots, c], rows of a slot side by side; and c."""
    counts = torch.bincount(slot, minlength=num_slots)
    c = int(counts.max())
    order = slot.argsort(stable=True)
    first = counts.cumsum(0) - counts
    rank = torch.empty_like(slot)
    rank[order] = torch.arange(len(slot), device=slot.device) - first[slot[order]]
    return c, slot * c + rank


def _additive(allowed: Tensor) -> Tensor:
    """0 where allowed; elsewhere so low that nothing is left of it, but finite, so that a part
    with nothing to see is merged with weight 0 and not NaN."""
    return torch.zeros(allowed.shape, device=allowed.device).masked_fill(~allowed, -1e30)


def _partial_attention(
    q: Tensor, keys: Tensor, values: Tensor, mask: Tensor, rules: LayerRules
) -> tuple[Tensor, Tensor, Tensor]:
    """Softmax over one part, not yet divided: sum_j e^(z_j - m) v_j, sum_j e^(z_j - m), m."""
    scores = at_least_float32(q @ keys.transpose(-1, -2)) * rules.scaling
    if rules.softcap is not None:
        scores = torch.tanh(scores / rules.softcap) * rules.softcap
    scores = scores + mask
    highest = scores.amax(-1, keepdim=True)
    weights = (scores - highest).exp_()
    mass = weights.sum(-1, keepdim=True)
    return at_least_float32(weights.to(values.dtype) @ values), mass, highest


def _merge(parts: list[tuple[Tensor, Tensor, Tensor]], sinks: Tensor | None) -> Tensor:
    """The softmax over all parts together, and over sinks, which have mass but no value."""
    highest = torch.stack([part[2] for part in parts]).amax(0)
    total = values = 0.0
    for value, mass, own_highest in parts:
        weight = (own_highest - highest).exp()
        values = values + value * weight
        total = total + mass * weight
    if sinks is not None:
        _, heads, repeats, _ = highest.shape
        total = total + (sinks.to(highest.dtype).view(1, heads, repeats, 1) - highest).exp()
    return values / total
