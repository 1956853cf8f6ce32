"""The engines sample from the model, and from nothing but the model."""

import math

import pytest
import torch
from scipy import stats

from gspo.engines.base import Sampling
from gspo.engines.in_process import InProcessEngine
from gspo.engines.plain import PlainEngine
from gspo.policy.forward import policy_logprobs
from gspo.policy.load import Policy
from gspo.policy.probe import choose_attention
from gspo.types import Prompt, Sample
from tiny import CONFIGS, EOS, VOCABULARY, tiny_model

SAMPLING = Sampling(group_size=3, max_response_tokens=14, seed=3)


def prompts(lengths=(5, 9, 3, 12, 7)):
    generator = torch.Generator().manual_seed(1)
    return [
        Prompt("", "", torch.randint(2, VOCABULARY, (n,), generator=generator).tolist(), {}, 1, i)
        for i, n in enumerate(lengths)
    ]


def packed_policy(family="llama", **kwargs):
    policy = Policy(tiny_model(family, **kwargs))
    choose_attention(policy)
    return policy


def plain_policy(family="llama", **kwargs):
    return Policy(tiny_model(family, **kwargs))


def tokens_of(rollouts):
    return [[rollout.tokens for rollout in group] for group in rollouts]


def scored_again(policy, prompts, rollouts, temperature=1.0):
    groups = []
    for prompt, group in zip(prompts, rollouts, strict=True):
        rows = [torch.tensor(prompt.tokens + rollout.tokens) for rollout in group]
        groups.append([Sample(r, torch.arange(len(r)) >= len(prompt.tokens)) for r in rows])
    return policy_logprobs(policy, groups, temperature=temperature).logprobs


def recorded(rollouts):
    return torch.cat([rollout.behavior_logprobs for group in rollouts for rollout in group])


@pytest.mark.parametrize("family", [f for f in CONFIGS if f != "mamba"])
def test_recorded_log_probabilities_are_those_of_a_forward_pass(family, tokenizer):
    policy = packed_policy(family)
    rollouts = InProcessEngine(policy, tokenizer).generate(prompts(), SAMPLING)
    again = scored_again(policy, prompts(), rollouts)
    torch.testing.assert_close(recorded(rollouts), again, rtol=0, atol=1e-4)


@pytest.mark.parametrize("family", ["llama", "qwen3_moe", "mamba"])
def test_the_plain_engine_records_the_same(family, tokenizer):
    policy = plain_policy(family)
    rollouts = PlainEngine(policy, tokenizer).generate(prompts(), SAMPLING)
    again = scored_again(policy, prompts(), rollouts)
    torch.testing.assert_close(recorded(rollouts), again, rtol=0, atol=1e-4)


def test_a_temperature_is_part_of_what_is_recorded(tokenizer):
    policy = packed_policy()
    sampling = Sampling(group_size=3, max_response_tokens=14, temperature=0.6)
    rollouts = InProcessEngine(policy, tokenizer).generate(prompts(), sampling)
    again = scored_again(policy, prompts(), rollouts, temperature=0.6)
    torch.testing.assert_close(recorded(rollouts), again, rtol=0, atol=1e-4)


def test_responses_do_not_depend_on_batch_order_refill_or_engine(tokenizer):
    policy = packed_policy(dtype=torch.float64)
    engine = InProcessEngine(policy, tokenizer)
    want = tokens_of(engine.generate(prompts(), SAMPLING))
    assert tokens_of([engine.generate([p], SAMPLING)[0] for p in prompts()]) == want
    assert tokens_of(engine.generate(prompts()[::-1], SAMPLING)) == want[::-1]
    for memory_gib in (2e-5, 6e-5, 1e-4):  # room for a few rows, so that others wait
        small = InProcessEngine(policy, tokenizer, memory_gib=memory_gib, prefill_tokens=10)
        rows, slots = small.plan(prompts(), SAMPLING)
        assert rows < 15
        assert tokens_of(small.generate(prompts(), SAMPLING)) == want
    plain = PlainEngine(plain_policy(dtype=torch.float64), tokenizer)
    assert tokens_of(plain.generate(prompts(), SAMPLING)) == want


def test_seed_epoch_and_position_change_the_responses(tokenizer):
    engine = InProcessEngine(packed_policy(), tokenizer)
    base = Prompt("", "", [5, 6, 7], {}, 1, 0)
    seen = [
        tokens_of(engine.generate([prompt], Sampling(2, 14, seed=seed)))
        for prompt, seed in (
            (base, 0),
            (base, 1),
            (Prompt("", "", [5, 6, 7], {}, 2, 0), 0),
            (Prompt("", "", [5, 6, 7], {}, 1, 1), 0),
        )
    ]
    assert len({str(tokens) for tokens in seen}) == 4


def test_token_frequencies_match_the_softmax(tokenizer):
    """First and second tokens of 4,000 responses against the model's own probabilities."""
    policy = packed_policy()
    prompt = prompts((6,))[0]
    sampling = Sampling(group_size=4000, max_response_tokens=2, temperature=1.3)
    (rollouts,) = InProcessEngine(policy, tokenizer).generate([prompt], sampling)
    with torch.no_grad():
        logits = policy.model(torch.tensor([prompt.tokens])).logits[0, -1] / 1.3
        first = logits.double().softmax(-1)
        commonest = int(first.argmax())
        after = policy.model(torch.tensor([[*prompt.tokens, commonest]])).logits[0, -1] / 1.3
    assert fits([r.tokens[0] for r in rollouts], first)
    seconds = [r.tokens[1] for r in rollouts if r.tokens[0] == commonest and len(r.tokens) > 1]
    assert len(seconds) > 200
    assert fits(seconds, after.double().softmax(-1))


def fits(tokens, probabilities):
    """A chi-square test; rare tokens are counted together."""
    expected = probabilities * len(tokens)
    seen = torch.bincount(torch.tensor(tokens), minlength=VOCABULARY)
    common = expected >= 5
    observed = torch.cat([seen[common], seen[~common].sum()[None]])
    wanted = torch.cat([expected[common], expected[~common].sum()[None]])
    return stats.chisquare(observed.numpy(), wanted.numpy()).pvalue > 1e-3


@pytest.mark.parametrize("engine_type", [InProcessEngine, PlainEngine])
def test_eos_belongs_to_the_response_and_all_eos_ids_count(engine_type, tokenizer):
    policy = packed_policy() if engine_type is InProcessEngine else plain_policy()
    policy.model.generation_config.eos_token_id = list(range(0, 40))
    rollouts = engine_type(policy, tokenizer).generate(prompts(), SAMPLING)
    flat = [rollout for group in rollouts for rollout in group]
    for rollout in flat:
        assert all(token >= 40 for token in rollout.tokens[:-1])
        assert (rollout.tokens[-1] < 40) == (rollout.finish_reason == "stop")
        assert len(rollout.behavior_logprobs) == len(rollout.tokens)
    assert any(rollout.finish_reason == "stop" for rollout in flat)


@pytest.mark.parametrize("engine_type", [InProcessEngine, PlainEngine])
def test_stop_strings_end_a_response_and_stay_in_it(engine_type, tokenizer):
    policy = packed_policy() if engine_type is InProcessEngine else plain_policy()
    free = engine_type(policy, tokenizer).generate(prompts(), SAMPLING)
    word = f"w{free[0][0].tokens[3]}"
    sampling = Sampling(3, 14, seed=3, stop=(word + " ", "w99"))
    stopped = engine_type(policy, tokenizer).generate(prompts(), sampling)
    # a stop string that ends in a space is complete when the next word comes
    first = [f"w{t}" for t in free[0][0].tokens]
    assert stopped[0][0].tokens == free[0][0].tokens[: first.index(word) + 2]
    assert stopped[0][0].finish_reason == "stop"
    assert word in stopped[0][0].text


def test_a_length_of_one_and_the_finish_reason(tokenizer):
    engine = InProcessEngine(packed_policy(), tokenizer)
    rollouts = engine.generate(prompts(), Sampling(2, 1))
    for rollout in (r for group in rollouts for r in group):
        assert len(rollout.tokens) == 1
        assert rollout.finish_reason == ("stop" if rollout.tokens == [EOS] else "length")


def test_the_models_own_sampling_settings_are_not_used(tokenizer):
    want = tokens_of(PlainEngine(plain_policy(), tokenizer).generate(prompts(), SAMPLING))
    policy = plain_policy()
    policy.model.generation_config.repetition_penalty = 5.0
    policy.model.generation_config.top_k = 1
    got = tokens_of(PlainEngine(policy, tokenizer).generate(prompts(), SAMPLING))
    assert got == want
    assert policy.model.generation_config.top_k == 1


def test_greedy_decoding_is_the_plain_models(tokenizer):
    policy = packed_policy()
    prompt = prompts((6,))[0]
    ((rollout,),) = InProcessEngine(policy, tokenizer).generate(
        [prompt], Sampling(1, 10, temperature=0)
    )
    want = tiny_model().generate(
        torch.tensor([prompt.tokens]), max_new_tokens=10, do_sample=False, pad_token_id=EOS
    )
    assert rollout.tokens == want[0, 6:].tolist()
    assert math.isfinite(rollout.behavior_logprobs.sum())


def test_places_that_nothing_was_written_to_are_not_used(tokenizer, monkeypatch):
    engine = InProcessEngine(packed_policy(), tokenizer)
    sampling = Sampling(group_size=3, max_response_tokens=90, seed=3)
    want = tokens_of(engine.generate(prompts(), sampling))

    def garbage(*shape, **kwargs):
        return torch.full(shape, torch.nan, **kwargs)

    monkeypatch.setattr(torch, "empty", garbage)
    assert tokens_of(engine.generate(prompts(), sampling)) == want


@pytest.mark.parametrize("engine_type", [InProcessEngine, PlainEngine])
def test_a_response_ends_where_the_context_does(engine_type, tokenizer):
    policy = packed_policy() if engine_type is InProcessEngine else plain_policy()
    policy.model.generation_config.eos_token_id = None
    policy.model.config.eos_token_id = None
    tokenizer_without_end = type("", (), {"eos_token_id": None, "decode": tokenizer.decode})()
    engine = engine_type(policy, tokenizer_without_end)
    groups = engine.generate(prompts((120, 5, 127)), Sampling(2, 100))  # a context of 128
    assert [[len(r.tokens) for r in group] for group in groups] == [[8, 8], [100, 100], [1, 1]]
    assert {r.finish_reason for group in groups for r in group} == {"length"}
