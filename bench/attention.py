"""Where attention over a shared prompt is cheaper in one masked product, and where in parts.

    python bench/attention.py

Forward and backward of one layer's attention (9 query heads, 3 key heads, 64 wide) over a group of
eight responses, by `gspo.policy.attention`, both ways. The rule that it supports is `DENSE_TOKENS`.
"""

import statistics
import time

import torch

from gspo.data.packing import Block
from gspo.policy import attention
from gspo.policy.attention import LayerRules, PackedAttention

SHAPES = [(42, 13), (42, 48), (100, 64), (60, 128), (400, 60), (600, 64), (60, 480)]
RULES = LayerRules(0, 64**-0.5, None, None, None)


def seconds(block: Block, dense_tokens: int) -> float:
    attention.DENSE_TOKENS = dense_tokens
    q, k, v = (torch.randn(1, heads, block.length, 64, requires_grad=True) for heads in (9, 3, 3))
    times = []
    for _ in range(7):
        attend = PackedAttention((block,))
        start = time.perf_counter()
        attend(q, k, v, RULES).sum().backward()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def main() -> None:
    print("prompt  response  block   dense ms  apart ms")
    for prompt, response in SHAPES:
        block = Block(0, prompt, (response,) * 8)
        dense, apart = seconds(block, 10**9), seconds(block, 0)
        print(f"{prompt:6d}  {response:8d}  {block.length:5d}  {dense * 1e3:9.1f}", end="")
        print(f" {apart * 1e3:9.1f}")


if __name__ == "__main__":
    main()
