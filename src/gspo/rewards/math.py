"""Rewards for answers that are right or wrong: the last number, and mathematical equality."""

import re
import threading
from decimal import Decimal

from gspo.errors import SettingError
from gspo.rewards.base import BaseRewardModel

# Digits with or without thousands separators, then decimals and a short exponent. A minus after a
# digit, a letter or a closing bracket subtracts.
_NUMBER = re.compile(
    r"(?:(?<![\w.)\]])[+-])?"
    r"(?:(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)(?:\.[0-9]+)?|\.[0-9]+)"
    r"(?:[eE][+-]?[0-9]{1,3}(?![0-9]))?"
)
# An answer in LaTeX's own delimiters, or with a word in it that is not LaTeX's.
_NOT_BARE_LATEX = re.compile(r"\$|\\boxed|(?<!\\)\\[(\[]|(?<![\\A-Za-z{])[A-Za-z]{3}")


def last_number(
    queries: list[str],
    responses: list[str],
    answer: list,
    finish_reasons: list[str] | None = None,
) -> list[float | None]:
    """Reward 1.0 where a response is finished and its last number is the answer, else 0.0.

    `answer` holds numbers or their text, as `1,234.50`, `$7`, `-3.` or `2e6`; where it is neither,
    the response is unscored (None). Numbers are compared exactly. A response whose finish reason
    is `length` is not finished. For fractions, percentages and formulas there is `MathReward`.
    """
    finish_reasons = finish_reasons or ["stop"] * len(responses)
    rewards = []
    for response, gold, finish_reason in zip(responses, answer, finish_reasons, strict=True):
        expected = _only_number(str(gold))
        right = finish_reason != "length" and _numbers(response)[-1:] == [expected]
        rewards.append(None if expected is None else float(right))
    return rewards


class MathReward(BaseRewardModel):
    """Reward 1.0 where the response's last mathematical expression equals the prompt's `answer`.

    Equality is that of math-verify: 0.5 is 1/2, x + 1 is 1 + x. The answer is the expression
    alone, in LaTeX or plain, or text that holds it as `$...$`, in a `boxed` or as its last number.
    A prompt without an answer, or with one that cannot be parsed, leaves its responses unscored
    (None). What takes longer than five seconds counts as wrong, but only in the main thread:
    math-verify's deadlines are signals, so in any other thread there is none, until rewards run
    in processes that can be killed.

    Raises `SettingError` where math-verify is not installed.
    """

    def __init__(self) -> None:
        try:
            import math_verify
        except ImportError as error:
            raise SettingError(
                "MathReward needs the package math-verify; run: pip install math-verify"
            ) from error
        self._parse = math_verify.parse
        self._verify = math_verify.verify

    def __call__(
        self, queries: list[str], responses: list[str], answer: list
    ) -> list[float | None]:
        in_main_thread = threading.current_thread() is threading.main_thread()
        seconds = 5 if in_main_thread else None
        return [
            self._reward(response, gold, seconds)
            for response, gold in zip(responses, answer, strict=True)
        ]

    def _reward(self, response: str, gold: object, seconds: int | None) -> float | None:
        expected = self._parse_answer(gold, seconds)
        if not expected:
            return None
        found = self._parse(response, parsing_timeout=seconds)
        return float(self._verify(expected, found, timeout_seconds=seconds))

    def _parse_answer(self, answer: object, seconds: int | None) -> list:
        """Parse the answer to sympy expressions; an empty list where it is not mathematics."""
        text = str(answer)
        number = _only_number(text)
        if number is not None:  # math-verify reads 1e5 as 1
            text = f"{number:f}"
        if not _NOT_BARE_LATEX.search(text):
            text = f"${text}$"
        return self._parse(text, fallback_mode="no_fallback", parsing_timeout=seconds)


def _numbers(text: str) -> list[Decimal]:
    return [Decimal(number.replace(",", "")) for number in _NUMBER.findall(_plain(text))]


def _only_number(text: str) -> Decimal | None:
    """The number that the text is, None where it is anything else."""
    number = _plain(text).strip().removesuffix(".")
    return Decimal(number.replace(",", "")) if _NUMBER.fullmatch(number) else None


def _plain(text: str) -> str:
    """The text without currency and mathematics signs, with an ASCII minus."""
    return text.replace("$", "").replace("\N{MINUS SIGN}", "-")
