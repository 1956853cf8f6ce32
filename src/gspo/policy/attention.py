"""Our attention inside Hugging Face models, through transformers' attention interface.

A model set to the implementation `gspo` hands each layer's queries, keys and values to whatever is
passed to it as `gspo_attend=`: `PackedAttention` when learning, the engine's when sampling. Window,
soft cap and sinks arrive from the layer itself, so that each layer is exact by its own type.

Letters: N packed tokens, Q query heads, K key heads, D head size.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from gspo.core.layout import at_least_float32
from gspo.data.packing import Block

IMPLEMENTATION = "gspo"


@dataclass(frozen=True)
class LayerRules:
    """What one layer's attention does besides softmax(q k^T) v."""

    layer: int
    scaling: float
    window: int | None
    """A query sees this many positions, its own included."""
    softcap: float | None
    sinks: Tensor | None  # [Q] logits that take probability and give nothing


Attend = Callable[[Tensor, Tensor, Tensor, LayerRules], Tensor]
"""(q [b, Q, n, D], k [b, K, n, D], v [b, K, n, D], rules) -> [b, Q, n, D]."""


def _interface(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    gspo_attend: Attend | None = None,
    **kwargs,
) -> tuple[Tensor, None]:
    if gspo_attend is None:  # somebody else calls the model in the ordinary way
        if softcap is not None or s_aux is not None:
            raise NotImplementedError(
                "this model is in training by gspo; outside calls would lose its attention's soft "
                "cap or sinks: use a copy of the model"
            )
        kwargs.pop("dropout", None)
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, **kwargs
        )
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    rules = LayerRules(module.layer_idx, scaling, sliding_window, softcap, s_aux)
    return gspo_attend(query, key, value, rules).transpose(1, 2).contiguous(), None


AttentionInterface.register(IMPLEMENTATION, _interface)
AttentionMaskInterface.register(IMPLEMENTATION, sdpa_mask)

NO_MASK = (1, 1, 1, 1)
"""A mask of four dimensions is passed through by transformers, which then builds none itself."""


def attend_with(attend: Attend, device: torch.device) -> dict:
    """The keyword arguments that route a model's forward pass through `attend`."""
    return {
        "gspo_attend": attend,
        "attention_mask": torch.zeros(NO_MASK, device=device),
        "use_cache": False,
    }


DENSE_TOKENS = 256
"""Up to this many tokens a block is attended to in one product with a mask over all of it; beyond,
its prefix and each of its tails apart, which skips what tails would not see of each other. The rule
looks at the shape alone; `bench/attention.py` measures where the two meet."""


class PackedAttention:
    """Attention over a packed row: block by block, each tail sees its prefix and itself."""

    def __init__(self, blocks: tuple[Block, ...]) -> None:
        self.blocks = blocks
        self._longest = max(length for block in blocks for length in (block.prefix, *block.tails))
        self._masks: dict[tuple, Tensor] = {}

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, rules: LayerRules) -> Tensor:
        outputs: list[Tensor] = []
        for block in self.blocks:
            part = slice(block.start, block.start + block.length)
            attend = self._dense if block.length <= DENSE_TOKENS else self._apart
            outputs += attend(block, q[:, :, part], k[:, :, part], v[:, :, part], rules)
        return torch.cat(outputs, dim=2)

    def _dense(
        self, block: Block, q: Tensor, k: Tensor, v: Tensor, rules: LayerRules
    ) -> list[Tensor]:
        """The whole block in one product."""
        window = _binding(rules.window, block.length)
        if window is None and len(block.tails) == 1:
            return [masked_attention(q, k, v, None, rules)]
        mask = self._mask(block, window, q)
        return [masked_attention(q, k, v, mask, rules)]

    def _apart(
        self, block: Block, q: Tensor, k: Tensor, v: Tensor, rules: LayerRules
    ) -> list[Tensor]:
        """The prefix alone, then each tail over the prefix and itself."""
        p = block.prefix
        outputs = [self._newest(0, q[:, :, :p], k[:, :, :p], v[:, :, :p], rules)] if p else []
        start = p
        for tail in block.tails:
            own = slice(start, start + tail)
            keys = torch.cat([k[:, :, :p], k[:, :, own]], dim=2)
            values = torch.cat([v[:, :, :p], v[:, :, own]], dim=2)
            outputs.append(self._newest(p, q[:, :, own], keys, values, rules))
            start += tail
        return outputs

    def _newest(self, prefix: int, q: Tensor, k: Tensor, v: Tensor, rules: LayerRules) -> Tensor:
        """The places of one sequence from `prefix` on, over all of it."""
        window = _binding(rules.window, k.shape[2])
        if window is None and prefix == 0:
            return masked_attention(q, k, v, None, rules)
        # One mask serves all tails of a prefix: that of a shorter one is its corner.
        mask = self._mask(Block(0, prefix, (self._longest,)), window, q)[prefix:]
        return masked_attention(q, k, v, mask[: q.shape[2], : k.shape[2]], rules)

    def _mask(self, block: Block, window: int | None, like: Tensor) -> Tensor:
        """A block's additive mask, made once for all layers of the same window."""
        key = (block.prefix, block.tails, window, like.dtype)
        if key not in self._masks:
            self._masks[key] = block_mask(block, window, like.dtype, like.device)
        return self._masks[key]


def _binding(window: int | None, length: int) -> int | None:
    """The window where a sequence of that length meets it, else None."""
    return window if window is not None and window < length else None


def block_mask(
    block: Block, window: int | None, dtype: torch.dtype, device: torch.device
) -> Tensor:
    """[n, n] additive: 0 where a token of the block may look, -inf elsewhere."""
    segments = [torch.zeros(block.prefix, dtype=torch.long)]
    positions = [torch.arange(block.prefix)]
    for number, tail in enumerate(block.tails, start=1):
        segments.append(torch.full((tail,), number))
        positions.append(torch.arange(block.prefix, block.prefix + tail))
    segment, position = torch.cat(segments).to(device), torch.cat(positions).to(device)
    distance = position[:, None] - position[None, :]
    allowed = (distance >= 0) & ((segment == 0) | (segment[:, None] == segment))
    if window is not None:
        allowed &= distance < window
    return torch.zeros(allowed.shape, dtype=dtype, device=device).masked_fill(~allowed, -torch.inf)


def masked_attention(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, rules: LayerRules
) -> Tensor:
    """Exact attention of [b, Q, n, D] over [b, K, n, D]; without a mask it is causal."""
    repeats = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(repeats, 1), v.repeat_interleave(repeats, 1)
    if rules.softcap is None and rules.sinks is None:
        return nn.functional.scaled_dot_product_attention(
            q, k, v, attn_mask=mask, is_causal=mask is None, scale=rules.scaling
        )
    scores = at_least_float32(q @ k.transpose(-1, -2)) * rules.scaling
    if rules.softcap is not None:
        scores = torch.tanh(scores / rules.softcap) * rules.softcap
    if mask is None:
        n = q.shape[2]
        mask = torch.full((n, n), -torch.inf, dtype=scores.dtype, device=q.device).triu(1)
    scores = scores + mask
    if rules.sinks is not None:
        sinks = rules.sinks.to(scores.dtype).view(1, -1, 1, 1).expand(*scores.shape[:3], 1)
        scores = torch.cat([scores, sinks], dim=-1)
    weights = scores.softmax(-1)[..., : k.shape[2]]
    return weights.to(v.dtype) @ v
