"""Random numbers that belong to a token, and exact draws from large vocabularies.

Letters: n rows, V vocabulary.
"""

import numpy as np
import torch
from torch import Tensor

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
BLOCK = 256
"""Tokens summed first when drawing: the cumulative sum then runs over V / 256 entries."""


def _mix(x: np.ndarray) -> np.ndarray:
    """The finaliser of SplitMix64 (Steele, Lea and Flood, 2014): a bijection that scrambles."""
    with np.errstate(over="ignore"):
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return x ^ (x >> np.uint64(31))


def _absorb(state: np.ndarray, value: np.ndarray | int) -> np.ndarray:
    with np.errstate(over="ignore"):
        return _mix(state + _GOLDEN * (np.asarray(value, dtype=np.uint64) + np.uint64(1)))


def stream_key(seed: int, epoch: int, position: int, response: int) -> np.uint64:
    """The key of one response's stream of random numbers."""
    state = np.zeros(1, dtype=np.uint64)
    for part in (seed, epoch, position, response):
        state = _absorb(state, part)
    return state[0]


def uniforms(keys: np.ndarray, token: np.ndarray) -> np.ndarray:
    """A number in [0, 1) for each (stream, index of the token): [n] uint64, [n] -> [n] float64."""
    return (_absorb(keys, token) >> np.uint64(11)) * 2.0**-53


def draw(logits: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
    """Draws from softmax(logits) by inverting its cumulative sum, in float64.

    Args:
        logits: [n, V], float32 or float64, temperature and truncation applied.
        u: [n] float64 in [0, 1).

    Returns:
        tokens [n] and their log-probabilities [n]. A token of probability 0 is never drawn.
    """
    log_p = logits.log_softmax(-1)
    n, vocabulary = log_p.shape
    p = torch.nn.functional.pad(log_p.exp(), (0, -vocabulary % BLOCK)).view(n, -1, BLOCK)
    block_ends = p.sum(-1, dtype=torch.float64).cumsum(-1)
    target = u[:, None] * block_ends[:, -1:]
    block = torch.searchsorted(block_ends, target, right=True)
    block_start = torch.where(block > 0, block_ends.gather(1, (block - 1).clamp(min=0)), 0.0)
    ends = p[torch.arange(n, device=p.device), block[:, 0]].double().cumsum(-1)
    # A block's sum and its cumulative sum may differ in the last bit: stay below the latter.
    inside = torch.minimum(target - block_start, ends[:, -1:] * (1 - 2**-52))
    tokens = block * BLOCK + torch.searchsorted(ends, inside, right=True)
    return tokens.squeeze(-1), log_p.gather(-1, tokens).squeeze(-1)


def truncate(logits: Tensor, top_k: int, top_p: float) -> Tensor:
    """-inf for all but the k likeliest tokens and all but the likeliest of joint probability p."""
    if top_k > 0:
        least = logits.topk(min(top_k, logits.shape[-1])).values[:, -1:]
        logits = logits.masked_fill(logits < least, -torch.inf)
    if top_p < 1:
        p, order = logits.softmax(-1).sort(descending=True)
        beyond = p.cumsum(-1) - p >= top_p
        beyond = torch.zeros_like(beyond).scatter(-1, order, beyond)
        logits = logits.masked_fill(beyond, -torch.inf)
    return logits


def sample(
    logits: Tensor, u: np.ndarray, temperature: float, top_k: int, top_p: float
) -> tuple[Tensor, Tensor]:
    """Tokens [n] and log mu(token) [n] of the distribution that they were drawn from.

    Temperature 0 takes the likeliest token; its log-probability is that at temperature 1.
    """
    if temperature == 0:
        tokens = logits.argmax(-1)
        return tokens, logits.log_softmax(-1).gather(-1, tokens[:, None]).squeeze(-1)
    logits = truncate(logits / temperature, top_k, top_p)
    return draw(logits, torch.from_numpy(u).to(logits.device))
