"""Float32 products of the sizes that a small model has: torch's own (MKL) beside ours (oneDNN).

    python bench/matmul.py

Prints GFLOP/s for the product of a forward pass, best of seven; writes bench/results/matmul.json.
"""

import json
import time
from pathlib import Path

import torch

from gspo.core.linear import linear

SIZES = [(64, 576, 576), (64, 576, 1536), (64, 576, 49152), (512, 576, 1536), (512, 1536, 576)]
RESULTS = Path("bench/results/matmul.json")


def gflops(function, rows: int, inner: int, outer: int) -> float:
    """Best rate over seven rounds, each over enough weights that none stays in the cache."""
    weights = [torch.randn(outer, inner) for _ in range(max(1, 30_000_000 // (inner * outer)))]
    x = torch.randn(rows, inner)
    best = float("inf")
    with torch.no_grad():
        for _ in range(7):
            start = time.perf_counter()
            for weight in weights:
                function(x, weight)
            best = min(best, time.perf_counter() - start)
    return 2 * rows * inner * outer * len(weights) / best / 1e9


def main() -> None:
    results = []
    for size in SIZES:
        theirs = gflops(torch.nn.functional.linear, *size)
        ours = gflops(linear, *size)
        results.append({"size": size, "torch": theirs, "gspo": ours})
        print(f"{size}: torch {theirs:.0f} GFLOP/s, gspo {ours:.0f} GFLOP/s")
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    RESULTS.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
