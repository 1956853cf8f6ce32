"""Packed rows, padded rows and the model's own plain forward pass say the same."""

import pytest
import torch
from transformers import AutoModelForCausalLM

from gspo.policy import attention
from gspo.policy.forward import policy_logprobs, split_for
from gspo.policy.load import Policy
from gspo.policy.probe import choose_attention
from gspo.types import Sample
from tiny import CONFIGS, VOCABULARY, tiny_model

PACKED = [family for family in CONFIGS if family != "mamba"]


def samples(seed=0):
    """Groups with prompts of 9 and 4 tokens, longer than the tiny models' windows of 5."""
    generator = torch.Generator().manual_seed(seed)

    def draw(n):
        return torch.randint(2, VOCABULARY, (n,), generator=generator)

    groups = []
    for prompt, lengths in ((draw(9), (6, 1, 12)), (draw(4), (8, 3))):
        rows = [torch.cat([prompt, draw(n)]) for n in lengths]
        groups.append([Sample(row, torch.arange(len(row)) >= len(prompt)) for row in rows])
    return groups


def one_by_one(model, groups, temperature=1.0):
    """The reference: each sequence alone through the plain model."""
    values = []
    for sample in (s for group in groups for s in group):
        with torch.no_grad():
            logits = model(sample.tokens[None], use_cache=False).logits[0, :-1].float()
        log_p = (logits / temperature).log_softmax(-1)
        log_p = log_p.gather(-1, sample.tokens[1:, None]).squeeze(-1)
        values.append(log_p[sample.response_mask[1:]])
    return torch.cat(values)


@pytest.mark.parametrize("family", CONFIGS)
def test_log_probabilities_are_those_of_the_plain_model(family):
    groups = samples()
    want = one_by_one(tiny_model(family, attn_implementation="eager"), groups, 0.8)
    policy = Policy(tiny_model(family))
    choose_attention(policy)
    assert policy.packed == (family in PACKED)
    for share_prompts in (True, False):
        got = policy_logprobs(policy, groups, temperature=0.8, share_prompts=share_prompts)
        torch.testing.assert_close(got.logprobs, want, rtol=0, atol=1e-4)
        assert got.entropy.shape == want.shape


@pytest.mark.parametrize("family", PACKED)
def test_attention_in_parts_is_the_same(family, monkeypatch):
    groups = samples()
    policy = Policy(tiny_model(family))
    choose_attention(policy)
    want = policy_logprobs(policy, groups).logprobs
    monkeypatch.setattr(attention, "DENSE_TOKENS", 0)
    for share_prompts in (True, False):
        got = policy_logprobs(policy, groups, share_prompts=share_prompts).logprobs
        torch.testing.assert_close(got, want, rtol=0, atol=1e-4)


@pytest.mark.parametrize("family", ["gemma3", "mistral", "llama"])
def test_float64_models_run_packed(family):
    policy = Policy(tiny_model(family, dtype=torch.float64))
    choose_attention(policy)
    assert policy.packed


def test_positions_that_depend_on_the_longest_row_are_not_packed(caplog):
    caplog.set_level("INFO", "gspo")
    factors = dict(short_factor=[1.0] * 4, long_factor=[2.0, 3.0, 4.0, 5.0])
    rope = dict(rope_type="longrope", rope_theta=1e4, original_max_position_embeddings=12)
    config = CONFIGS["llama"]()
    config.rope_parameters = rope | factors
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    groups = samples()
    want = one_by_one(model, groups)
    policy = Policy(model)
    choose_attention(policy)
    assert not policy.packed and "longest sequence" in caplog.text
    torch.testing.assert_close(policy_logprobs(policy, groups).logprobs, want, rtol=0, atol=1e-4)


def test_an_unpacked_model_keeps_the_token_budget():
    policy = Policy(tiny_model())
    rows = samples()
    sizes = []
    for batch in split_for(policy, rows, 30, share_prompts=True):
        lengths = [len(s.tokens) for group in batch for s in group]
        sizes.append(len(lengths) * max(lengths))
    assert len(sizes) > 1 and max(sizes) <= 30


@pytest.mark.parametrize("family", ["gemma3", "mistral", "gpt_oss"])
def test_the_probe_notices_a_window_that_is_ignored(family, monkeypatch):
    honest = attention.block_mask
    monkeypatch.setattr(
        attention, "block_mask", lambda block, window, *rest: honest(block, None, *rest)
    )
    policy = Policy(tiny_model(family))
    choose_attention(policy)
    assert not policy.packed


def test_the_probe_notices_a_head_it_does_not_know(caplog):
    model = tiny_model("llama")
    model.lm_head.register_forward_hook(lambda module, inputs, logits: logits * 1.1)
    policy = Policy(model)
    choose_attention(policy)
    assert not policy.packed
    assert "runs unpacked" in caplog.text


def test_the_model_gets_its_attention_back():
    model = tiny_model("gemma3")
    before = (model.config._attn_implementation, model.config.sliding_window)
    policy = Policy(model)
    choose_attention(policy)
    assert model.config._attn_implementation == "gspo"
    policy.release()
    assert (model.config._attn_implementation, model.config.sliding_window) == before


@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_ordinary_calls_still_work_while_in_training(family):
    model = tiny_model(family)
    tokens = torch.arange(2, 14)[None]
    mask = torch.tensor([[0, 0] + [1] * 10])
    want = model(tokens, attention_mask=mask).logits[:, 2:]
    choose_attention(Policy(model))
    torch.testing.assert_close(model(tokens, attention_mask=mask).logits[:, 2:], want)
