import pytest
import torch

from gspo.core import group_advantages


def test_on_a_literal():
    # mean 0.5, sample std sqrt(4 x 0.25 / 3) = 0.57735
    advantages = group_advantages(torch.tensor([[1.0, 0.0, 1.0, 0.0]]))
    assert advantages[0].tolist() == pytest.approx([0.8660254, -0.8660254, 0.8660254, -0.8660254])


def test_without_normalization_only_the_mean_goes():
    advantages = group_advantages(torch.tensor([[3.0, 1.0]]), normalize=False)
    assert advantages.tolist() == [[1.0, -1.0]]


def test_eight_equal_float32_rewards_are_a_dead_group():
    rewards = torch.full((1, 8), 0.1)
    bare = (rewards - rewards.mean(-1)) / (rewards.std(-1) + 1e-8)
    assert group_advantages(rewards).abs().max() == 0
    assert bare.abs().max() > 0.1  # what the formula alone makes of rounding


def test_unscored_is_left_out_and_not_zero():
    nan = torch.nan
    advantages = group_advantages(torch.tensor([[1.0, nan, 0.0], [5.0, nan, nan], [nan, nan, nan]]))
    assert advantages[0].tolist() == pytest.approx([0.70710678, 0.0, -0.70710678])
    assert advantages[1:].abs().max() == 0


def test_a_spread_that_is_rounding_at_a_large_reward_is_none():
    rewards = torch.tensor([[1e6, 1e6 + 0.5]], dtype=torch.float64)
    assert group_advantages(rewards).abs().max() == 0
    assert group_advantages(rewards + torch.tensor([0.0, 5.0])).abs().min() > 0


def test_a_group_of_one_is_dead():
    assert group_advantages(torch.tensor([[3.0]])).tolist() == [[0.0]]


def test_dtypes_and_refusals():
    assert group_advantages(torch.tensor([[1, 0]])).dtype == torch.float32
    assert group_advantages(torch.tensor([[1.0, 0.0]]).double()).dtype == torch.float64
    with pytest.raises(ValueError, match=r"\[P, G\]"):
        group_advantages(torch.tensor([1.0, 0.0]))
    with pytest.raises(ValueError, match="infinity"):
        group_advantages(torch.tensor([[1.0, torch.inf]]))
