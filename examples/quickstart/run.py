"""Trains the quick start's recipe and shows what the model answers before and after."""

import json
import time
from pathlib import Path

from transformers import AutoTokenizer

from gspo.data.prompts import PromptReader
from gspo.data.sources import load_prompts
from gspo.engines.base import Sampling
from gspo.engines.in_process import InProcessEngine
from gspo.policy.load import Policy, load_model
from gspo.policy.probe import choose_attention
from gspo.recipe import make_trainer, read_recipe
from gspo.rewards import last_number

RECIPE = Path("recipes/quickstart.yaml")
HELD_OUT = "models/sums/heldout.jsonl"
SHOWN = 5


def answers(model: Path | str) -> tuple[list[str], float]:
    """The greedy answers of a saved model to the held-out sums, and the share that is right."""
    tokenizer = AutoTokenizer.from_pretrained(model)
    policy = Policy(load_model(str(model)))
    choose_attention(policy)
    sums = load_prompts(HELD_OUT)
    reader = PromptReader(tokenizer, policy.context_tokens)
    prompts = [reader.read(item, epoch=1, position=i) for i, item in enumerate(sums)]
    groups = InProcessEngine(policy, tokenizer).generate(
        prompts, Sampling(max_response_tokens=48, temperature=0)
    )
    rollouts = [group[0] for group in groups]
    texts = [rollout.text for rollout in rollouts]
    rewards = last_number(
        [prompt.text for prompt in prompts],
        texts,
        [item["answer"] for item in sums],
        [rollout.finish_reason for rollout in rollouts],
    )
    return texts, sum(rewards) / len(rewards)


def main() -> None:
    recipe = read_recipe(RECIPE)
    before, right_before = answers(recipe.model)
    started = time.monotonic()
    trainer, prompts = make_trainer(recipe)
    result = trainer.train(prompts)
    minutes = (time.monotonic() - started) / 60
    after, right_after = answers(result.final_dir)

    print("\nHeld-out sums, greedy answers")
    for item, old, new in list(zip(load_prompts(HELD_OUT), before, after, strict=True))[:SHOWN]:
        print(f"  {item['prompt'][-1]['content']}")
        print(f"    before  {json.dumps(old[:70])}")
        print(f"    after   {json.dumps(new[:70])}")
    lines = [json.loads(line) for line in result.metrics_path.read_text().splitlines()]
    rewards = list({line["rollout"]: line["reward_mean"] for line in lines}.values())
    print(f"\nright answers        {right_before:.0%} before, {right_after:.0%} after")
    print(f"mean reward          {rewards[0]:.2f} in the first rollout, ", end="")
    print(f"{sum(rewards[-5:]) / 5:.2f} over the last five")
    print(f"training             {minutes:.1f} min, {len(lines)} steps, peak memory ", end="")
    print(f"{result.metrics['peak_memory_gib']:.1f} GiB")
    print(f"the trained model    {result.final_dir}")
    print(f"figures and curve    {result.metrics_path}, {result.run_dir / 'reward.png'}")


if __name__ == "__main__":
    main()
