import functools
import math

import numpy as np
import pytest
import torch

from gspo.errors import DataError, SettingError
from gspo.rewards import BaseRewardModel
from gspo.rewards.base import as_reward, score

QUERIES = ["a", "b", "c"]
RESPONSES = ["1", "22", "333"]
NAMED = {
    "prompts": QUERIES,
    "finish_reasons": ["stop", "stop", "length"],
    "response_tokens": [[1], [2, 2], [3, 3, 3]],
    "answer": [1, 22, 4],
}


class LengthReward(BaseRewardModel):
    def __init__(self):  # no super().__init__(), as users write it
        self.calls = 0

    def __call__(self, queries, responses):
        self.calls += 1
        return torch.tensor([float(len(response)) for response in responses])


def returning(value):
    def reward(queries, responses):
        return value

    return reward


def rewards_of(reward_model, weights=None, named=NAMED):
    return score(as_reward(reward_model, weights), QUERIES, RESPONSES, named)


def test_one_reward_model_is_called_once_and_its_values_are_recorded():
    reward = LengthReward()
    scores = rewards_of(reward)
    assert reward.calls == 1
    assert scores.rewards.dtype == torch.float64
    assert scores.rewards.tolist() == [1, 2, 3]
    assert {name: part.tolist() for name, part in scores.parts.items()} == {
        "LengthReward": [1, 2, 3]
    }


def test_a_subclass_without_call_cannot_be_made():
    class Nothing(BaseRewardModel):
        pass

    with pytest.raises(TypeError, match="abstract"):
        Nothing()


def test_a_weighted_sum_records_each_part_before_its_weight():
    def right(queries, responses, answer):
        return [response == str(gold) for response, gold in zip(responses, answer, strict=True)]

    expected = [1 + 0.1, 1 + 0.2, 0 + 0.3]
    for scores in (
        rewards_of([right, LengthReward()], weights=[1, 0.1]),
        rewards_of([(right, 1), (LengthReward(), 0.1)]),
    ):
        assert scores.rewards.tolist() == pytest.approx(expected)
        assert scores.parts["right"].tolist() == [1, 1, 0]
        assert scores.parts["LengthReward"].tolist() == [1, 2, 3]


def test_equal_names_are_numbered():
    scores = rewards_of([LengthReward(), LengthReward(), functools.partial(LengthReward())])
    assert list(scores.parts) == ["LengthReward", "LengthReward_2", "LengthReward_3"]
    assert scores.rewards.tolist() == [3, 6, 9]


def test_a_response_that_one_function_leaves_unscored_is_unscored():
    scores = rewards_of([(returning([1, None, 1]), 0.0), returning([math.nan, 1, 1])])
    assert scores.rewards.isnan().tolist() == [True, True, False]
    assert scores.rewards[2] == 1
    assert scores.parts["reward"].isnan().tolist() == [False, True, False]


@pytest.mark.parametrize(
    "returned",
    [
        torch.tensor([0.0, 1.0, 2.0], dtype=torch.bfloat16),
        torch.tensor([0.0, 1.0, 2.0], requires_grad=True),
        torch.arange(3),
        np.arange(3, dtype=np.float32),
        np.array([0, 1, 2], dtype=object),
        (0, 1.0, np.float32(2)),
        [False, torch.tensor(1.0), np.int64(2)],
    ],
)
def test_what_a_reward_function_may_return(returned):
    assert rewards_of(returning(returned)).rewards.tolist() == [0, 1, 2]


def test_booleans_are_ones_and_zeros():
    for flags in (torch.tensor([True, False, True]), np.array([True, False, True])):
        assert rewards_of(returning(flags)).rewards.tolist() == [1, 0, 1]


def test_the_error_for_a_wrong_number_of_values_says_who_what_and_how():
    with pytest.raises(DataError) as error:
        rewards_of(returning(torch.zeros(4)))
    assert str(error.value) == (
        "reward 'reward' returned 4 values for 3 responses; "
        "return one per response, e.g. torch.zeros(len(responses))"
    )


@pytest.mark.parametrize(
    ("returned", "words"),
    [
        ([0.5], "reward 'reward' returned 1 values for 3 responses"),
        (torch.zeros(3, 1), r"a Tensor of shape \[3, 1\], not \[3\], for 3 responses"),
        (np.zeros((3, 3)), r"a ndarray of shape \[3, 3\], not \[3\],"),
        (torch.tensor(0.5), r"a Tensor of shape \[\], not"),
        (0.5, "returned 0.5 for 3 responses"),
        (None, "returned None for 3 responses"),
        ("good", "returned 'good' for 3 responses"),
        ([1, "0.5", 1], r"returned '0.5' \(str\) for responses\[1\]"),
        ([1, 1, [1]], r"returned \[1\] \(list\) for responses\[2\]"),
        ([1, 1, math.inf], r"returned inf \(float\) for responses\[2\]"),
        (torch.tensor([1, -math.inf, 1]), r"returned -inf .* for responses\[1\]"),
        (torch.zeros(3, dtype=torch.complex64), r"complex\) for responses\[0\]"),
    ],
)
def test_what_a_reward_function_may_not_return(returned, words):
    with pytest.raises(DataError, match=words):
        rewards_of(returning(returned))


def test_a_function_gets_by_name_what_it_names():
    seen = {}

    def reward(queries, responses, finish_reasons, *, answer=None, other="default", **rest):
        seen.update(finish_reasons=finish_reasons, answer=answer, other=other, rest=rest)
        return [0, 0, 0]

    rewards_of(reward)
    assert seen == {
        "finish_reasons": NAMED["finish_reasons"],
        "answer": NAMED["answer"],
        "other": "default",
        "rest": {"prompts": QUERIES, "response_tokens": NAMED["response_tokens"]},
    }


def test_the_first_two_parameters_may_have_any_name():
    def reward(prompts, completions, **fields):
        assert prompts is QUERIES and completions is RESPONSES
        assert "prompts" not in fields and "answer" in fields
        return [0, 0, 0]

    rewards_of(reward)


def test_a_torch_module_is_asked_through_its_forward():
    class Module(torch.nn.Module):
        def forward(self, queries, responses, answer):
            return torch.tensor([float(gold) for gold in answer])

    assert rewards_of(Module()).rewards.tolist() == [1, 22, 4]


def test_a_name_that_is_not_there_is_refused_before_any_call():
    def asks(queries, responses, solution):
        return [0, 0, 0]

    reward = LengthReward()
    words = (
        "reward 'asks' asks for 'solution', which the prompts do not have; "
        "available: answer, finish_reasons, prompts, response_tokens"
    )
    with pytest.raises(DataError, match=words):
        rewards_of([reward, asks])
    with pytest.raises(DataError, match="available: answer"):
        as_reward(asks).check(["answer"])
    assert reward.calls == 0


def test_an_exception_in_a_reward_function_passes_with_a_note():
    def broken(queries, responses):
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine") as error:
        rewards_of(broken)
    assert error.value.__notes__ == ["raised by reward 'broken'"]


@pytest.mark.parametrize(
    ("reward_model", "words"),
    [
        (5, "reward 'int' cannot be called with .*not a callable"),
        (lambda responses: 0, "reward '<lambda>' cannot be called with"),
        (lambda query, response, answer, /: 0, "cannot be called with"),
        (lambda responses, answer: 0, "first two parameters must be"),
        (lambda responses, queries: 0, "first two parameters must be"),
        (LengthReward, "reward 'LengthReward' is a class; give an instance"),
        ([], "empty; give at least one"),
        ([(LengthReward(), "high")], "weight of reward 'LengthReward' must be .* got 'high'"),
        ([(LengthReward(), math.nan)], "must be a finite number, got nan"),
    ],
)
def test_what_is_not_a_reward_function_is_refused_when_it_is_set(reward_model, words):
    with pytest.raises(SettingError, match=words):
        as_reward(reward_model)


def test_a_number_of_weights_that_does_not_match_is_refused():
    with pytest.raises(SettingError, match="1 weights for 2 reward functions"):
        as_reward([LengthReward(), LengthReward()], weights=[1.0])
