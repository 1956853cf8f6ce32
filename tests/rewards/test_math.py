import builtins
import math
import threading

import pytest

from gspo.errors import SettingError
from gspo.rewards import MathReward, last_number
from gspo.rewards.base import as_reward, score


def last(response, answer, finish_reason="stop"):
    return last_number(["?"], [response], [answer], [finish_reason])[0]


def equal(response, answer):
    return MathReward()(["?"], [response], [answer])[0]


@pytest.mark.parametrize(
    ("response", "answer"),
    [
        ("17 + 25 = 42.", 42),
        ("42", "42"),
        ("It costs $1,234.50.", "1234.5"),
        ("1234.5", "$1,234.50"),
        ("17 - 25 = -8", "-8"),
        ("-$8", -8),
        ("\N{MINUS SIGN}8", "-8."),
        ("that is +7", 7),
        ("17-8", 8),
        (r"\boxed{3.0}", 3),
        ("**.5**", 0.5),
        ("2e6", "2,000,000"),
        ("0.1000000000000000000001", "0.1000000000000000000001"),
    ],
)
def test_last_number_is_the_answer(response, answer):
    assert last(response, answer) == 1.0


@pytest.mark.parametrize(
    ("response", "answer"),
    [
        ("42 or 43", 42),
        ("I do not know", 42),
        ("", 42),
        ("8", -8),
        ("17-8", -8),
        ("0.1000000000000000000001", "0.1"),
        ("1,2345", "12345"),
        ("1e999999999", 42),
    ],
)
def test_last_number_is_not_the_answer(response, answer):
    assert last(response, answer) == 0.0


@pytest.mark.parametrize("answer", [None, math.nan, "", "x", "1/2", "3 or 4"])
def test_without_a_number_for_an_answer_last_number_leaves_the_response_unscored(answer):
    assert last("42", answer) is None


def test_an_unfinished_response_is_wrong():
    assert last("42", 42, "length") == 0.0
    assert last("42", None, "length") is None
    assert last_number(["?"], ["42"], [42]) == [1.0]


@pytest.mark.parametrize(
    ("response", "answer"),
    [
        ("The answer is 42.", 42),
        ("so it is 0.5", r"\frac{1}{2}"),
        ("$1 + x^2$", "x^2+1"),
        (r"\boxed{\sqrt{12}}", r"2\sqrt{3}"),
        ("1024", "2^{10}"),
        ("$(1,2)$", "(1,2)"),
        ("1000", "1,000"),
        ("100000", 1e5),
        ("0.00001", "1e-5"),
        (r"\boxed{\text{east}}", r"\text{east}"),
        ("72", "so she has\n#### 72"),
        ("72", "72 apples"),
        ("72", r"It is \boxed{72}."),
    ],
)
def test_mathematically_equal(response, answer):
    assert equal(response, answer) == 1.0


@pytest.mark.parametrize(("response", "answer"), [("41", 42), ("", 42), ("none", "x"), ("2", "20")])
def test_mathematically_different(response, answer):
    assert equal(response, answer) == 0.0


@pytest.mark.parametrize("answer", [None, math.nan, "", "no answer", "**"])
def test_an_answer_that_is_not_mathematics_leaves_the_response_unscored(answer):
    assert equal("42", answer) is None


def test_the_answer_comes_by_name():
    named = {"answer": [42, 42, None], "prompts": ["?"] * 3, "finish_reasons": ["stop"] * 3}
    scores = score(as_reward([MathReward(), last_number]), ["?"] * 3, ["42", "4", "4"], named)
    assert scores.rewards[:2].tolist() == [2, 0]
    assert scores.rewards[2].isnan()
    assert list(scores.parts) == ["MathReward", "last_number"]


def test_math_reward_works_in_a_thread():
    found = []
    thread = threading.Thread(target=lambda: found.append(equal("0.5", "1/2")))
    thread.start()
    thread.join()
    assert found == [1.0]


def test_without_math_verify_the_error_names_the_package(monkeypatch):
    real_import = builtins.__import__

    def without_math_verify(name, *arguments, **keywords):
        if name == "math_verify":
            raise ImportError(name)
        return real_import(name, *arguments, **keywords)

    monkeypatch.setattr(builtins, "__import__", without_math_verify)
    with pytest.raises(SettingError, match="pip install math-verify"):
        MathReward()
