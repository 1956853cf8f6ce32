"""How closely a ready batch gives the weights of the plain padded computation.

    python bench/exactness.py

Prints, for each model family, the largest norm of (our weights - theirs) over the norm of the
movement, over micro-batches of 10,000, 30 and 1 tokens, prompts shared or not. The batch, the plain
computation and the bounds are those of `tests/training/test_learn.py`.
"""

import logging
import sys
import tempfile
from pathlib import Path

import torch

TESTS = Path(__file__).parent.parent / "tests"
sys.path[:0] = [str(TESTS), str(TESTS / "training")]

from test_learn import FAMILIES, ready_batch, relative_error  # noqa: E402


def main() -> None:
    logging.getLogger("gspo").setLevel("ERROR")
    torch.set_num_threads(1)
    print("family       RMSNorm          largest error   asked")
    cases = [(family, bound, True) for family, bound in FAMILIES.items()]
    cases += [("llama", 1e-6, False), ("qwen3", 1e-6, False)]
    for family, bound, stays in cases:
        errors = [
            relative_error(
                family,
                ready_batch(),
                torch.float64,
                Path(tempfile.mkdtemp()),
                as_shipped=not stays,
                share_prompts=share_prompts,
                micro_batch_tokens=tokens,
                logging_steps=1000,
            )
            for share_prompts in (True, False)
            for tokens in (10_000, 30, 1)
        ]
        norm = "in float64" if stays and bound == 1e-10 else "casts to float32"
        print(f"{family:12s} {norm:16s} {max(errors):.1e}         {bound:.0e}")


if __name__ == "__main__":
    main()
