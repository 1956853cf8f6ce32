"""One ready batch gives the same weights however it is computed.

The reference is this file's own: a plain padded forward pass, eq. 5 with `torch.min` and `clamp`,
torch's AdamW; no packing, no sharing, no skipping.
"""

import copy

import pytest
import torch

from gspo import GSPOConfig, GSPOTrainer
from tiny import VOCABULARY, staying_in_float64, tiny_model

G = 4
SETTINGS = dict(
    group_size=G,
    batch_size=2,
    minibatches_per_rollout=2,
    learning_rate=1e-2,
    max_grad_norm=0.5,
    clip_range_left=3e-3,
    clip_range_right=4e-3,
    allow_wide_band=True,
    tensorboard=False,
)


def ready_batch(seed=0, with_old=False, dtype=torch.float64):
    """Four groups of four rows of 16 places: the first is dead, one row is unscored, one has no
    response, one has a hole, and padding stands on the left or on the right."""
    generator = torch.Generator().manual_seed(seed)
    rows = 4 * G
    input_ids = torch.randint(2, VOCABULARY, (rows, 16), generator=generator)
    attention_mask = torch.zeros(rows, 16, dtype=torch.long)
    response_mask = torch.zeros(rows, 16, dtype=torch.long)
    for group in range(4):
        prompt = 3 + group
        shared = torch.randint(2, VOCABULARY, (prompt,), generator=generator)
        for i in range(G):
            row = group * G + i
            length = 1 + int(torch.randint(9, (), generator=generator))
            start = 16 - prompt - length if i % 2 else 0
            input_ids[row, start : start + prompt] = shared
            attention_mask[row, start : start + prompt + length] = 1
            response_mask[row, start + prompt : start + prompt + length] = 1
    input_ids *= attention_mask
    response_mask[6] = 0
    response_mask[9, response_mask[9].nonzero()[:1]] = 0
    rewards = torch.rand(rows, generator=generator, dtype=torch.float64)
    rewards[:G] = 0.1
    rewards[13] = torch.nan
    batch = dict(
        input_ids=input_ids,
        attention_mask=attention_mask,
        response_mask=response_mask,
        rewards=rewards,
    )
    if with_old:
        noise = torch.randn(rows, 16, generator=generator, dtype=dtype)
        model = tiny_model(dtype=dtype)
        batch["old_logprobs"] = plain_logprobs(model, batch).detach() + 3e-3 * noise
    return batch


def plain_logprobs(model, batch):
    mask = batch["attention_mask"]
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    logits = model(batch["input_ids"], attention_mask=mask, position_ids=positions).logits
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    log_p = logits[:, :-1].log_softmax(-1).gather(-1, batch["input_ids"][:, 1:, None]).squeeze(-1)
    return torch.nn.functional.pad(log_p, (1, 0))


def plain_advantages(rewards):
    advantages = []
    for group in rewards.view(-1, G):
        scored = group[~group.isnan()]
        values = (group - scored.mean()) / (scored.std() + 1e-8)
        dead = scored.max() - scored.min() <= 1e-6
        advantages.append(torch.zeros(G).double() if dead else values.nan_to_num(0.0))
    return torch.cat(advantages)


def plain_loss(model, batch, old, config, rows, ref=None):
    mask = batch["response_mask"][rows].bool()
    new = plain_logprobs(model, {name: value[rows] for name, value in batch.items()})
    length = mask.sum(-1).clamp(min=1)
    log_ratio = torch.where(mask, new - old[rows], 0).sum(-1) / length
    votes = (mask.any(-1) & ~batch["rewards"][rows].isnan()).to(new.dtype)
    low, high = 1 - config.clip_range_left, 1 + config.clip_range_right
    if config.use_token_level:
        a = batch["token_advantages"][rows].to(new.dtype)
        s = log_ratio.detach().exp()[:, None] * (new - new.detach()).exp()
        objective = torch.where(mask, torch.min(s * a, s.clamp(low, high) * a), 0).sum(-1) / length
    else:
        a = plain_advantages(batch["rewards"])[rows].to(new.dtype)
        s = log_ratio.exp()
        objective = torch.min(s * a, s.clamp(low, high) * a)
    loss = -(objective * votes).sum()
    if config.kl_coef:
        x = plain_logprobs(ref, {name: v[rows] for name, v in batch.items()}).detach() - new
        kl = x.exp() - x - 1 if config.kl_estimator == "k3" else x.square() / 2
        kl = torch.where(mask, kl, 0).sum(-1) / length
        loss = loss + config.kl_coef * (kl * votes).sum()
    if config.entropy_coef:
        mean = torch.where(mask, plain_entropy(model, batch, rows), 0).sum(-1) / length
        loss = loss - config.entropy_coef * (mean * votes).sum()
    return loss / votes.sum()


def plain_entropy(model, batch, rows):
    mask = batch["attention_mask"][rows]
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    logits = model(batch["input_ids"][rows], attention_mask=mask, position_ids=positions).logits
    log_p = logits[:, :-1].log_softmax(-1)
    return torch.nn.functional.pad(-(log_p.exp() * log_p).sum(-1), (1, 0))


def plain_training(model, batch, config, ref=None):
    """The weights after one epoch of the batch."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.learning_rate, weight_decay=0.0)
    old = batch.get("old_logprobs")
    rows_per_step = config.prompts_per_step * G
    rows_per_rollout = rows_per_step * config.minibatches_per_rollout
    for start in range(0, 4 * G, rows_per_step):
        if start % rows_per_rollout == 0 and "old_logprobs" not in batch:
            old = plain_logprobs(model, batch).detach()
        optimizer.zero_grad()
        rows = slice(start, start + rows_per_step)
        plain_loss(model, batch, old, config, rows, ref).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), config.max_grad_norm)
        optimizer.step()
    return model


def flat(model):
    return torch.cat([p.detach().double().flatten() for p in model.parameters()])


def relative_error(family, batch, dtype, tmp_path, ref=None, as_shipped=False, **changes):
    """Norm of the difference of the weights over the norm of their movement.

    `as_shipped` leaves transformers' own RMSNorm in, which casts to float32.
    """
    config = GSPOConfig(**SETTINGS | changes, output_dir=str(tmp_path / "run"))
    # transformers' grouped product of experts refuses float64
    kwargs = {"experts_implementation": "eager"} if family == "qwen3_moe" else {}
    start = tiny_model(family, dtype=dtype, **kwargs)
    if not as_shipped:
        staying_in_float64(start)
    plain_model, ours = copy.deepcopy(start), copy.deepcopy(start)
    plain_training(plain_model, batch, config, ref)
    GSPOTrainer(model=ours, ref_model=ref, config=config).train([batch])
    movement = (flat(plain_model) - flat(start)).norm()
    assert movement > 1e-3
    return ((flat(ours) - flat(plain_model)).norm() / movement).item()


FAMILIES = {"llama": 1e-10, "qwen3": 1e-10, "qwen3_moe": 1e-6, "gemma3": 1e-6}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("share_prompts", [True, False])
@pytest.mark.parametrize("micro_batch_tokens", [10_000, 30, 1])
def test_weights_equal_the_plain_computation(family, share_prompts, micro_batch_tokens, tmp_path):
    error = relative_error(
        family,
        ready_batch(),
        torch.float64,
        tmp_path,
        share_prompts=share_prompts,
        micro_batch_tokens=micro_batch_tokens,
    )
    assert error <= FAMILIES[family]


@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_models_that_cast_inside_agree_to_the_cast(family, tmp_path):
    batch = ready_batch()
    assert relative_error(family, batch, torch.float64, tmp_path, as_shipped=True) <= 1e-6


@pytest.mark.parametrize(
    "changes",
    [
        dict(batch_size=1, gradient_accumulation_steps=2),
        dict(batch_size=1, minibatches_per_rollout=4),
        dict(batch_size=3, minibatches_per_rollout=1),
        dict(use_token_level=True),
        dict(kl_coef=0.3),
        dict(kl_coef=0.3, kl_estimator="k2"),
        dict(use_token_level=True, kl_coef=0.3, micro_batch_tokens=25),
        dict(activation_checkpointing=True),
        dict(entropy_coef=0.2),
        dict(clip_range_left=1e-5, clip_range_right=1e-5),
    ],
    ids=str,
)
@pytest.mark.parametrize("with_old", [False, True])
def test_every_setting_equals_the_plain_computation(changes, with_old, tmp_path):
    batch = ready_batch(1, with_old)
    if changes.get("use_token_level"):
        generator = torch.Generator().manual_seed(5)
        batch["token_advantages"] = torch.randn(16, 16, generator=generator).double()
    ref = tiny_model(seed=9, dtype=torch.float64)
    ref = staying_in_float64(ref) if "kl_coef" in changes else None
    error = relative_error("llama", batch, torch.float64, tmp_path, ref, **changes)
    assert error <= 1e-10


@pytest.mark.parametrize("family", FAMILIES)
def test_float32_gradients_of_one_step(family, tmp_path):
    from gspo.data.padded import read_ready_batch
    from gspo.policy.load import Policy
    from gspo.policy.optimizer import PolicyOptimizer
    from gspo.policy.probe import choose_attention
    from gspo.training.learn import accumulate_gradients

    config = GSPOConfig(**SETTINGS | dict(batch_size=4))
    batch = ready_batch(2, with_old=True, dtype=torch.float32)
    reference = tiny_model(family)
    plain_loss(reference, batch, batch["old_logprobs"], config, slice(0, 4 * G)).backward()
    policy = Policy(tiny_model(family))
    choose_attention(policy)
    optimizer = PolicyOptimizer(policy.model, config, None)
    accumulate_gradients(policy, optimizer, read_ready_batch(batch, config), config)
    want = torch.cat([p.grad.flatten() for p in reference.parameters()])
    got = torch.cat([p.grad.flatten() for p in policy.model.parameters()])
    assert (got - want).norm() / want.norm() <= 1e-4


def test_a_step_with_nothing_in_it_still_moves_by_momentum(tmp_path):
    batch = ready_batch(3)
    batch["rewards"][2 * G :] = 1.0  # the second minibatch is dead
    assert relative_error("llama", batch, torch.float64, tmp_path) <= 1e-10


def test_an_unpacked_model_learns_the_same(tmp_path):
    batch = ready_batch(4)
    # a recurrent model cannot skip padding on the left: both sides get it on the right
    for name in ("input_ids", "attention_mask", "response_mask"):
        for row in range(len(batch["input_ids"])):
            real = batch["attention_mask"][row].nonzero().squeeze(-1)
            if name != "attention_mask":
                batch[name][row, : len(real)] = batch[name][row, real].clone()
                batch[name][row, len(real) :] = 0
    lengths = batch["attention_mask"].sum(-1, keepdim=True)
    batch["attention_mask"] = (torch.arange(16) < lengths).long()
    assert relative_error("mamba", batch, torch.float64, tmp_path) <= 1e-6


def test_ready_batches_with_and_without_token_advantages_may_alternate(tmp_path):
    plain, token = ready_batch(5), ready_batch(6)
    generator = torch.Generator().manual_seed(7)
    token["token_advantages"] = torch.randn(16, 16, generator=generator).double()
    advantages = plain_advantages(plain["rewards"])[:, None].expand(16, 16)
    both = {name: torch.cat([plain[name], token[name]]) for name in plain}
    both["token_advantages"] = torch.cat([advantages, token["token_advantages"]])
    weights = []
    for data in ([plain, token], [both]):
        config = GSPOConfig(
            **SETTINGS | dict(batch_size=8, use_token_level=True, overwrite=True),
            output_dir=str(tmp_path / "run"),
        )
        model = tiny_model(dtype=torch.float64)
        GSPOTrainer(model=model, config=config).train(data)
        weights.append(flat(model))
    torch.testing.assert_close(weights[0], weights[1], rtol=0, atol=1e-12)


def test_frozen_weights_stay_and_the_others_move(tmp_path):
    model = tiny_model()
    for p in model.model.layers[0].parameters():
        p.requires_grad_(False)
    config = GSPOConfig(**SETTINGS, output_dir=str(tmp_path / "run"))
    GSPOTrainer(model=model, config=config).train([ready_batch()])
    moved = [
        not torch.equal(a, b)
        for a, b in zip(
            model.model.layers.parameters(), tiny_model().model.layers.parameters(), strict=True
        )
    ]
    frozen = [not p.requires_grad for p in model.model.layers.parameters()]
    assert moved == [not f for f in frozen]


def test_learning_rate_schedules():
    from gspo.policy.optimizer import scheduled_rate

    def rates(schedule):
        config = GSPOConfig(learning_rate=1.0, warmup_steps=2, lr_schedule=schedule)
        return [scheduled_rate(config, step, 6) for step in range(1, 8)]

    assert rates("constant") == [0.5, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0]
    assert rates("linear") == [0.5, 1.0, 1.0, 0.75, 0.5, 0.25, 0.0]
    assert rates("cosine") == pytest.approx([0.5, 1.0, 1.0, 0.853553, 0.5, 0.146447, 0.0], abs=1e-6)
