"""Sampling speed: our in-process engine beside `model.generate`, in turn, in one process.

    python bench/sampling.py [--model FOLDER] [--prompts FILE.jsonl] [--pairs 3]

Both sample the same number of responses of exactly the same number of tokens (no response may end
early), at temperature 1 from the full distribution, from the same weights and prompts. Two cases:
eight prompts, eight responses each, of 48 tokens; and the same with ragged ends, where ours lets
responses end by themselves and `generate` does, too. Prints each pair and the median of the ratios;
writes bench/results/sampling.json.
"""

import argparse
import json
import os
import platform
import statistics
import time
from pathlib import Path

import torch
import transformers
from transformers import AutoTokenizer

from gspo.data.prompts import PromptReader
from gspo.data.sources import load_prompts
from gspo.engines.base import Sampling
from gspo.engines.in_process import InProcessEngine
from gspo.policy.load import Policy, load_model
from gspo.policy.probe import choose_attention

PROMPTS, GROUP, TOKENS = 8, 8, 48
RESULTS = Path("bench/results/sampling.json")


class Theirs:
    """`model.generate` on left-padded rows, every prompt repeated for its group."""

    def __init__(self, model, tokenizer, prompts) -> None:
        self.model = model
        self.pad = tokenizer.pad_token_id
        rows = [prompt.tokens for prompt in prompts for _ in range(GROUP)]
        width = max(map(len, rows))
        self.input_ids = torch.tensor([[self.pad] * (width - len(r)) + r for r in rows])
        self.mask = torch.tensor([[0] * (width - len(r)) + [1] * len(r) for r in rows])

    def run(self, may_end: bool) -> int:
        """Samples once; returns the response tokens."""
        output = self.model.generate(
            self.input_ids,
            attention_mask=self.mask,
            do_sample=True,
            temperature=1.0,
            top_k=0,
            top_p=1.0,
            max_new_tokens=TOKENS,
            min_new_tokens=None if may_end else TOKENS,
            pad_token_id=self.pad,
        )
        response = output[:, self.input_ids.shape[1] :]
        if not may_end:
            return response.numel()
        ends = (response == self.model.generation_config.eos_token_id).int()
        before_end = ends.cumsum(-1) - ends == 0
        return int(before_end.sum())


class Ours:
    """`InProcessEngine`."""

    def __init__(self, policy, tokenizer, prompts) -> None:
        self.engine = InProcessEngine(policy, tokenizer)
        self.prompts = prompts
        self.eos = self.engine.eos
        self.seed = 0

    def run(self, may_end: bool) -> int:
        self.engine.eos = self.eos if may_end else self.eos[:0]
        self.seed += 1
        groups = self.engine.generate(self.prompts, Sampling(GROUP, TOKENS, seed=self.seed))
        return sum(len(rollout.tokens) for group in groups for rollout in group)


def timed(run, may_end: bool) -> dict:
    start = time.perf_counter()
    tokens = run(may_end)
    seconds = time.perf_counter() - start
    return {"seconds": seconds, "tokens": tokens, "tokens_per_second": tokens / seconds}


def compare(ours: Ours, theirs: Theirs, pairs: int, may_end: bool) -> dict:
    rows = []
    for pair in range(pairs):
        row = {"generate": timed(theirs.run, may_end), "gspo": timed(ours.run, may_end)}
        rows.append(row)
        speeds = {name: figures["tokens_per_second"] for name, figures in row.items()}
        print(f"  pair {pair + 1}: generate {speeds['generate']:.0f} tokens/s, gspo ", end="")
        print(f"{speeds['gspo']:.0f} tokens/s")
    ratios = [
        row["gspo"]["tokens_per_second"] / row["generate"]["tokens_per_second"] for row in rows
    ]
    print(f"  median ratio {statistics.median(ratios):.2f}")
    return {"pairs": rows, "ratios": ratios, "median_ratio": statistics.median(ratios)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="models/SmolLM2-135M-Instruct")
    parser.add_argument("--prompts", default="models/sums/train.jsonl")
    parser.add_argument("--pairs", type=int, default=3)
    options = parser.parse_args()

    tokenizer = AutoTokenizer.from_pretrained(options.model)
    policy = Policy(load_model(options.model))
    choose_attention(policy)
    reader = PromptReader(tokenizer, policy.context_tokens)
    items = load_prompts(options.prompts, limit=PROMPTS)
    prompts = [reader.read(item, epoch=1, position=i) for i, item in enumerate(items)]
    # `generate` runs a model of its own, with the attention that it came with.
    theirs = Theirs(load_model(options.model).float().eval(), tokenizer, prompts)
    ours = Ours(policy, tokenizer, prompts)
    results = {
        "machine": {
            "cpu": platform.processor() or platform.machine(),
            "cores": os.cpu_count(),
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
        "work": {"prompts": PROMPTS, "group_size": GROUP, "response_tokens": TOKENS},
    }
    for name, may_end in (("fixed_length", False), ("natural_ends", True)):
        theirs.run(may_end)
        ours.run(may_end)
        print(f"{name}: {PROMPTS} prompts x {GROUP} responses x {TOKENS} tokens")
        results[name] = compare(ours, theirs, options.pairs, may_end)
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    RESULTS.write_text(json.dumps(results, indent=1) + "\n")
    print(RESULTS)


if __name__ == "__main__":
    main()
