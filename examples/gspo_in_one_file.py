"""GSPO on one page: prompts -> responses -> rewards -> advantages -> loss -> better weights.

    python examples/gspo_in_one_file.py [MODEL] [STEPS]

MODEL is a local folder or a hub id of a chat model; without one, a tiny random model learns to say
the letter "e". Everything is plain: `model.generate` samples, batches are padded, full logits are
built. What this page leaves out, and `gspo.GSPOTrainer` does: packing and shared prompts, an engine
of its own, skipping what has no gradient, chunked log-probabilities, sampling that is exact for any
`generation_config`, checkpoints and resume, bad input, metrics, more than one machine's memory.
"""

import sys

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig

from gspo.core import PaddedLayout, group_advantages, gspo_loss

PROMPTS = ["spell", "write", "tell", "say"]
GROUP_SIZE, MINIBATCHES, RESPONSE_TOKENS = 8, 2, 24
CLIP = {"clip_range_left": 3e-3, "clip_range_right": 4e-3}


class Letters:
    """A tokenizer of one character a token, for the tiny model."""

    pad_token_id, eos_token_id = 0, 1

    def encode(self, text):
        return [2 + ord(c) % 62 for c in text]

    def decode(self, tokens):
        return "".join("abcdefghijklmnopqrstuvwxyz"[t % 26] for t in tokens)


def reward(response: str) -> float:
    """The share of the letter e; a real task would look at the prompt, too."""
    return response.count("e") / max(1, len(response))


def tiny_model():
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        pad_token_id=0,
        eos_token_id=1,
    )
    return AutoModelForCausalLM.from_config(config), Letters()


def load(path):
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(path)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return model, tokenizer


@torch.no_grad()
def sample(model, tokenizer, prompts):
    """[B, T] tokens with the prompts padded on the left, and the mask of response tokens."""
    rows = [tokenizer.encode(prompt) for prompt in prompts for _ in range(GROUP_SIZE)]
    width = max(len(row) for row in rows)
    prompt_ids = torch.tensor([[tokenizer.pad_token_id] * (width - len(r)) + r for r in rows])
    real = torch.tensor([[0] * (width - len(r)) + [1] * len(r) for r in rows])
    input_ids = model.generate(
        prompt_ids,
        attention_mask=real,
        do_sample=True,
        temperature=1.0,
        top_k=0,
        top_p=1.0,
        max_new_tokens=RESPONSE_TOKENS,
        pad_token_id=tokenizer.pad_token_id,
    )
    response = input_ids[:, width:]
    ended_before = (response == tokenizer.eos_token_id).cumsum(-1).roll(1, -1)
    ended_before[:, 0] = 0
    response_mask = torch.cat([torch.zeros_like(real), (ended_before == 0).long()], -1)
    return input_ids, torch.cat([real, (ended_before == 0).long()], -1), response_mask


def logprobs_of(model, input_ids, attention_mask):
    """[B, T], the log-probability of each token at its own place; the first is 0."""
    positions = (attention_mask.cumsum(-1) - 1).clamp(min=0)
    logits = model(input_ids, attention_mask=attention_mask, position_ids=positions).logits
    log_p = logits[:, :-1].float().log_softmax(-1)
    own = log_p.gather(-1, input_ids[:, 1:, None]).squeeze(-1)
    return torch.nn.functional.pad(own, (1, 0))


def main(path=None, steps=20):
    model, tokenizer = load(path) if path else tiny_model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5 if path else 1e-3, weight_decay=0.0)
    for step in range(steps):
        # collect: sample groups, score them, compare each response with its group
        input_ids, attention_mask, response_mask = sample(model, tokenizer, PROMPTS)
        texts = [
            tokenizer.decode(row[mask.bool()].tolist())
            for row, mask in zip(input_ids, response_mask, strict=True)
        ]
        rewards = torch.tensor([reward(text) for text in texts])
        advantages = group_advantages(rewards.view(-1, GROUP_SIZE)).flatten()
        with torch.no_grad():
            old_logprobs = logprobs_of(model, input_ids, attention_mask)
        # learn: several optimizer steps on the same rollouts, kept in bounds by the clip
        for rows in torch.arange(len(rewards)).chunk(MINIBATCHES):
            output = gspo_loss(
                logprobs_of(model, input_ids[rows], attention_mask[rows]),
                old_logprobs[rows],
                advantages[rows],
                PaddedLayout(response_mask[rows]),
                **CLIP,
            )
            optimizer.zero_grad()
            (output.loss_sum / len(rows)).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
        clipped = output.clipped.float().mean()
        print(f"{step + 1:3d}  reward {rewards.mean():.3f}  clipped {clipped:.0%}")
    return rewards.mean().item()


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else None, int(sys.argv[2]) if len(sys.argv) > 2 else 20)
