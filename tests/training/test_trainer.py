"""Whole runs on a tiny model: what they compute, what they leave behind, what they refuse."""

import json

import pytest
import torch
import yaml
from torch.utils.data import DataLoader
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer

from gspo import BaseRewardModel, DataError, GSPOConfig, GSPOTrainer, SettingError
from tiny import CONFIGS, tiny_model

PROMPTS = [f"w{i} w{i + 1} w{i + 2}" for i in range(3, 13)]
CONTRACT = """step epoch rollout reward_mean reward_std unscored_fraction dead_group_fraction
response_tokens_mean truncated_fraction clip_fraction clip_fraction_left clip_fraction_right
clip_token_fraction log_ratio_std ratio_noise entropy kl loss grad_norm learning_rate
tokens_per_second collect_seconds reward_seconds learn_seconds sync_seconds
peak_memory_gib""".split()
TIMES = ("_seconds", "_per_second", "memory_gib")


def count_w5(queries, responses):
    return [float(response.count("w5")) for response in responses]


def config(tmp_path, **changes):
    settings = dict(
        group_size=4,
        batch_size=2,
        minibatches_per_rollout=2,
        learning_rate=1e-2,
        max_response_tokens=8,
        output_dir=str(tmp_path / "run"),
        tensorboard=False,
    )
    return GSPOConfig(**settings | changes)


def trainer(tmp_path, tokenizer, reward=count_w5, model=None, ref_model=None, **changes):
    return GSPOTrainer(
        model=model or tiny_model(),
        ref_model=ref_model,
        reward_model=reward,
        tokenizer=tokenizer,
        config=config(tmp_path, **changes),
    )


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def untimed(metrics):
    return [{k: v for k, v in line.items() if not k.endswith(TIMES)} for line in metrics]


def same_weights(a, b):
    pairs = zip(a.parameters(), b.parameters(), strict=True)
    return all(torch.equal(x, y) for x, y in pairs)


def test_the_original_quick_start(tmp_path, tokenizer):
    class MyRewardModel(BaseRewardModel):
        def __call__(self, queries, responses):
            assert len(queries) == len(responses) and queries[0] in PROMPTS
            return torch.tensor([float("w5" in response) for response in responses])

    settings = GSPOConfig(
        group_size=4,
        clip_range_left=3e-4,
        clip_range_right=4e-4,
        learning_rate=1e-5,
        batch_size=1,
        num_epochs=3,
        max_response_tokens=8,
        output_dir=str(tmp_path / "run"),
    )
    result = GSPOTrainer(
        model=tiny_model(),
        ref_model=tiny_model(seed=1),
        reward_model=MyRewardModel(),
        tokenizer=tokenizer,
        config=settings,
    ).train(DataLoader(PROMPTS, batch_size=3))
    assert result.metrics["step"] == 30 and result.metrics["epoch"] == 3
    assert result.metrics["kl"] is None
    # an epoch of ten prompts is cut into rollout batches of 4, 4 and 2
    assert result.metrics["rollout"] == 9


def test_training_raises_the_reward(tmp_path, tokenizer):
    result = trainer(tmp_path, tokenizer, num_epochs=6, clip_range_left=3e-2, clip_range_right=4e-2)
    metrics = lines(result.train(PROMPTS).metrics_path)
    assert metrics[-1]["reward_mean"] > 2 * metrics[0]["reward_mean"] + 1


def test_what_a_run_leaves_behind(tmp_path, tokenizer):
    run = trainer(tmp_path, tokenizer, save_steps=2, keep_checkpoints=2, tensorboard=True)
    result = run.train(PROMPTS)
    folder = result.run_dir
    metrics = lines(folder / "metrics.jsonl")
    assert [m["step"] for m in metrics] == [1, 2, 3, 4, 5]
    assert [m["rollout"] for m in metrics] == [1, 1, 2, 2, 3]
    assert all(set(CONTRACT) <= m.keys() for m in metrics)
    assert metrics[1]["collect_seconds"] == 0.0 < metrics[0]["collect_seconds"]
    assert metrics[0]["reward_mean"] == metrics[1]["reward_mean"]
    assert result.metrics == metrics[-1]
    assert yaml.safe_load((folder / "config.yaml").read_text())["group_size"] == 4
    assert sorted(p.name for p in (folder / "checkpoints").iterdir()) == [
        "step-000002",
        "step-000004",
    ]
    assert (folder / "reward.png").exists() and list((folder / "tensorboard").iterdir())
    rollouts = [line for path in sorted((folder / "rollouts").iterdir()) for line in lines(path)]
    assert len(rollouts) == 40
    first = rollouts[0]
    assert first["prompt"] == PROMPTS[0] and first["reward"] == first["reward_parts"]["count_w5"]
    assert (first["old_version"], first["new_version"]) == (0, 1)
    assert rollouts[8]["new_version"] == 2 and rollouts[16]["old_version"] == 2
    final = AutoModelForCausalLM.from_pretrained(result.final_dir)
    assert same_weights(final, run.model)
    assert AutoTokenizer.from_pretrained(result.final_dir)("w7")["input_ids"] == [7]
    assert run.model.config._attn_implementation != "gspo"


@pytest.mark.parametrize("fails_at", [2, 3])
def test_a_resumed_run_equals_the_undisturbed_one(fails_at, tmp_path, tokenizer):
    settings = dict(num_epochs=2, save_steps=1, temperature=0.9)
    whole = trainer(tmp_path / "a", tokenizer, **settings)
    want = whole.train(PROMPTS)

    calls = []

    def dies_once(queries, responses):
        calls.append(1)
        if len(calls) == fails_at:
            raise RuntimeError("power cut")
        return count_w5(queries, responses)

    killed = trainer(tmp_path / "b", tokenizer, reward=dies_once, **settings)
    with pytest.raises(RuntimeError, match="power cut"):
        killed.train(PROMPTS)
    again = trainer(tmp_path / "b", tokenizer, **settings)
    got = again.train(PROMPTS, resume=True)
    want_metrics, got_metrics = lines(want.metrics_path), lines(got.metrics_path)
    for line in want_metrics + got_metrics:  # the reward function has another name
        line.pop("reward/count_w5", None), line.pop("reward/dies_once", None)
    assert untimed(got_metrics) == untimed(want_metrics)
    assert same_weights(again.model, whole.model)


def test_resuming_in_the_middle_of_a_rollout_batch(tmp_path, tokenizer):
    whole = trainer(tmp_path / "a", tokenizer, minibatches_per_rollout=5, batch_size=1)
    want = whole.train(PROMPTS)
    settings = dict(minibatches_per_rollout=5, batch_size=1, save_steps=3)
    trainer(tmp_path / "b", tokenizer, max_steps=3, **settings).train(PROMPTS)
    again = trainer(tmp_path / "b", tokenizer, **settings)
    got = again.train(PROMPTS, resume=True)
    assert untimed(lines(got.metrics_path)) == untimed(lines(want.metrics_path))
    assert same_weights(again.model, whole.model)


@pytest.mark.parametrize("family", ["qwen3_moe", "gemma3", "mamba"])
def test_other_families_resume(family, tmp_path, tokenizer):
    whole = trainer(tmp_path / "a", tokenizer, model=tiny_model(family))
    whole.train(PROMPTS)
    first = trainer(tmp_path / "b", tokenizer, model=tiny_model(family), max_steps=3, save_steps=3)
    first.train(PROMPTS)
    again = trainer(tmp_path / "b", tokenizer, model=tiny_model(family), save_steps=3)
    again.train(PROMPTS, resume=True)
    assert same_weights(again.model, whole.model)


def test_a_finished_run_is_not_resumed_beyond_its_end(tmp_path, tokenizer):
    settings = dict(max_steps=3, minibatches_per_rollout=4, batch_size=1, save_steps=1)
    want = trainer(tmp_path, tokenizer, **settings).train(PROMPTS)
    got = trainer(tmp_path, tokenizer, **settings).train(PROMPTS, resume=True)
    assert got.metrics == want.metrics


def test_resuming_another_run_is_refused(tmp_path, tokenizer):
    trainer(tmp_path, tokenizer, max_steps=2, save_steps=1).train(PROMPTS)
    with pytest.raises(SettingError, match="batch_size was 2 when this run began and is 3 now"):
        trainer(tmp_path, tokenizer, batch_size=3).train(PROMPTS, resume=True)
    trainer(tmp_path, tokenizer, max_steps=1).train(PROMPTS)
    with pytest.raises(SettingError, match="or the later '.*run-2'"):
        trainer(tmp_path, tokenizer).train(PROMPTS, resume=True)


def test_nothing_is_lost_to_input_that_is_refused(tmp_path, tokenizer):
    kept = trainer(tmp_path, tokenizer, max_steps=1).train(PROMPTS)
    before = kept.metrics_path.read_bytes()

    def asks(queries, responses, nothing):
        raise AssertionError("never called")

    for reward, data in ((None, PROMPTS), (asks, PROMPTS), (count_w5, [*PROMPTS, "w3 " * 200])):
        model = tiny_model()
        with pytest.raises(DataError):
            trainer(tmp_path, tokenizer, reward=reward, model=model, overwrite=True).train(data)
        assert kept.metrics_path.read_bytes() == before
        assert same_weights(model, tiny_model())
        assert model.config._attn_implementation != "gspo"


def test_bfloat16_compute_with_float32_weights(tmp_path, tokenizer):
    run = trainer(tmp_path, tokenizer, dtype="bfloat16")
    metrics = lines(run.train(PROMPTS).metrics_path)
    assert metrics[0]["old_logprobs"] == "recompute"  # its noise is wider than the band
    assert metrics[0]["clip_fraction"] == 0.0
    assert {p.dtype for p in run.model.parameters()} == {torch.float32}


def test_the_samplers_log_probabilities_can_be_asked_for(tmp_path, tokenizer):
    run = trainer(tmp_path, tokenizer, dtype="bfloat16", old_logprobs="behavior")
    metrics = lines(run.train(PROMPTS).metrics_path)
    assert metrics[0]["old_logprobs"] == "behavior" and metrics[0]["log_ratio_std"] > 0


def test_a_folder_that_holds_a_run_is_left_alone(tmp_path, tokenizer, caplog):
    caplog.set_level("INFO", "gspo")
    first = trainer(tmp_path, tokenizer, max_steps=1).train(PROMPTS)
    before = first.metrics_path.read_bytes()
    second = trainer(tmp_path, tokenizer, max_steps=1).train(PROMPTS)
    assert second.run_dir == tmp_path / "run-2"
    assert "holds a run already and is left alone" in caplog.text
    assert first.metrics_path.read_bytes() == before
    third = trainer(tmp_path, tokenizer, max_steps=2, overwrite=True).train(PROMPTS)
    assert third.run_dir == tmp_path / "run"
    assert len(lines(third.metrics_path)) == 2


def test_a_reference_without_a_kl_is_never_run(tmp_path, tokenizer, caplog):
    caplog.set_level("INFO", "gspo")

    def refuse(*args, **kwargs):
        raise AssertionError("the reference was run")

    reference = tiny_model(seed=1)
    reference.forward = reference.model.forward = refuse
    trainer(tmp_path, tokenizer, ref_model=reference, max_steps=1).train(PROMPTS)
    assert "ref_model is not run: kl_coef is 0" in caplog.text


def test_a_kl_penalty_holds_the_policy_back(tmp_path, tokenizer):
    free = trainer(tmp_path / "a", tokenizer, num_epochs=4, clip_range_right=4e-2)
    held = trainer(
        tmp_path / "b",
        tokenizer,
        ref_model=tiny_model(),
        kl_coef=5.0,
        num_epochs=4,
        clip_range_right=4e-2,
    )
    free.train(PROMPTS)
    kl = held.train(PROMPTS).metrics["kl"]
    start = torch.cat([p.flatten() for p in tiny_model().parameters()])

    def moved(t):
        return (torch.cat([p.detach().flatten() for p in t.model.parameters()]) - start).norm()

    assert kl > 0
    assert moved(held) < moved(free)


def test_the_samplers_log_probabilities_are_used_where_they_are_as_good(tmp_path, tokenizer):
    result = trainer(tmp_path, tokenizer).train(PROMPTS)
    metrics = lines(result.metrics_path)
    assert [m["old_logprobs"] for m in metrics] == ["behavior", None] * 2 + [None]
    assert 0 < metrics[0]["ratio_noise"] < 1e-5


def test_noisy_log_probabilities_of_the_sampler_are_recomputed(tmp_path, tokenizer, monkeypatch):
    from gspo.engines.in_process import InProcessEngine

    honest = InProcessEngine.generate

    def noisy(self, prompts, sampling):
        rollouts = honest(self, prompts, sampling)
        for rollout in (r for group in rollouts for r in group):
            rollout.behavior_logprobs = rollout.behavior_logprobs + 0.01
        return rollouts

    want = trainer(tmp_path / "a", tokenizer, old_logprobs="recompute")
    want_metrics = lines(want.train(PROMPTS).metrics_path)
    monkeypatch.setattr(InProcessEngine, "generate", noisy)
    got = trainer(tmp_path / "b", tokenizer)
    got_metrics = lines(got.train(PROMPTS).metrics_path)
    assert got_metrics[0]["ratio_noise"] == pytest.approx(0.01, rel=1e-3)
    assert got_metrics[0]["old_logprobs"] == "recompute"
    assert same_weights(got.model, want.model)
    assert got_metrics[1]["log_ratio_std"] == want_metrics[1]["log_ratio_std"]


def test_unscored_responses_are_left_out(tmp_path, tokenizer):
    def half(queries, responses):
        return [None if i % 2 else float(len(r)) for i, r in enumerate(responses)]

    metrics = trainer(tmp_path, tokenizer, reward=half, max_steps=1).train(PROMPTS).metrics
    assert metrics["unscored_fraction"] == 0.5


def test_rewards_get_what_they_name_and_are_summed(tmp_path, tokenizer):
    seen = {}

    def length(queries, responses, answer, finish_reasons, response_tokens, prompts):
        seen.update(answer=answer, prompts=prompts, tokens=response_tokens)
        return [float(len(tokens)) for tokens in response_tokens]

    data = [{"prompt": prompt, "answer": i} for i, prompt in enumerate(PROMPTS)]
    metrics = trainer(
        tmp_path, tokenizer, reward=[(length, 0.5), (count_w5, 2.0)], max_steps=1
    ).train(data)
    metrics = metrics.metrics
    assert seen["answer"][:5] == [0, 0, 0, 0, 1] and seen["prompts"][4] == PROMPTS[1]
    assert metrics["reward_mean"] == pytest.approx(
        0.5 * metrics["reward/length"] + 2 * metrics["reward/count_w5"]
    )


def ready(rows=4, **extra):
    generator = torch.Generator().manual_seed(0)
    batch = dict(
        input_ids=torch.randint(2, 64, (rows, 8), generator=generator),
        attention_mask=torch.ones(rows, 8, dtype=torch.long),
        response_mask=(torch.arange(8) >= 3).long().expand(rows, 8),
        rewards=torch.rand(rows, generator=generator),
    )
    return batch | extra


def test_the_original_data_format_needs_neither_reward_nor_tokenizer(tmp_path):
    run = GSPOTrainer(model=tiny_model(), config=config(tmp_path))
    result = run.train([ready(8), ready(4)])
    assert result.metrics["step"] == 2
    assert result.metrics["truncated_fraction"] is None


def test_the_original_token_level_example(tmp_path):
    advantages = torch.randn(4, 8, generator=torch.Generator().manual_seed(1))
    settings = config(tmp_path, use_token_level=True)
    run = GSPOTrainer(model=tiny_model(), config=settings)
    assert run.train([ready(token_advantages=advantages)]).metrics["grad_norm"] > 0
    with pytest.raises(DataError, match="use_token_level=True"):
        GSPOTrainer(model=tiny_model(), config=config(tmp_path)).train(
            [ready(token_advantages=advantages)]
        )


def test_one_update_a_rollout_is_said(tmp_path, tokenizer, caplog):
    trainer(tmp_path, tokenizer, minibatches_per_rollout=1)
    assert "every ratio is 1" in caplog.text


@pytest.mark.parametrize(
    ("arguments", "error", "sentence"),
    [
        (dict(reward=lambda queries, responses: [1.0]), DataError, "1 values for 16 responses"),
        (dict(reward=lambda queries, responses: "good"), DataError, "returned 'good'"),
        (dict(kl_coef=0.1), SettingError, "needs a ref_model"),
        (dict(group_size=1), SettingError, "group_size = 1"),
        (dict(lr_schedule="linear"), SettingError, "set max_steps"),
    ],
)
def test_what_cannot_work_is_one_sentence(arguments, error, sentence, tmp_path, tokenizer):
    data = DataLoader(PROMPTS) if "lr_schedule" in arguments else PROMPTS
    with pytest.raises(error, match=sentence) as raised:
        trainer(tmp_path, tokenizer, **arguments).train(data)
    assert "\n" not in str(raised.value)


def test_other_refusals(tmp_path, tokenizer):
    model = tiny_model()
    with pytest.raises(SettingError, match="ref_model is the model itself"):
        trainer(tmp_path, tokenizer, model=model, ref_model=model, kl_coef=0.1)
    with pytest.raises(DataError, match="AutoModelForCausalLM"):
        body = AutoModel.from_config(CONFIGS["llama"]())
        trainer(tmp_path, tokenizer, model=body).train(PROMPTS)
    with pytest.raises(DataError, match="prompt 1 .* leaves no room .* context of 128"):
        trainer(tmp_path, tokenizer).train(["w3", "w4 " * 128])
    with pytest.raises(DataError, match="gave no prompts"):
        trainer(tmp_path, tokenizer).train([])
    with pytest.raises(DataError, match="can be read only once"):
        trainer(tmp_path, tokenizer, num_epochs=2).train(iter(PROMPTS))
    with pytest.raises(DataError, match="mixes prompts and ready batches"):
        trainer(tmp_path, tokenizer).train([PROMPTS[0], ready()])
    with pytest.raises(DataError, match="no reward_model"):
        trainer(tmp_path, tokenizer, reward=None).train(PROMPTS)
    with pytest.raises(DataError, match="no tokenizer"):
        trainer(tmp_path, None).train(PROMPTS)
    with pytest.raises(DataError, match="asks for 'answer'"):
        trainer(tmp_path, tokenizer, reward=lambda q, r, answer: [0.0] * len(r)).train(PROMPTS)
    with pytest.raises(SettingError, match="no run to resume"):
        trainer(tmp_path / "new", tokenizer).train(PROMPTS, resume=True)
