"""From responses to rewards: the interface of reward functions and their weighted sum.

Letter: B responses of a rollout batch.
"""

import functools
import inspect
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from numbers import Real

import numpy as np
import torch
from torch import Tensor

from gspo.errors import DataError, SettingError


class BaseRewardModel(ABC):
    """What turns responses into rewards; a plain function of the same signature serves as well."""

    @abstractmethod
    def __call__(self, queries: list[str], responses: list[str]) -> Tensor:
        """Return the rewards `[B]` of a whole rollout batch, NaN (or None) where it cannot tell.

        `queries[i]` is the prompt of `responses[i]` as text: the last user turn of a chat. Further
        parameters are filled by their names with lists of length B: `prompts` (the prompts as they
        were given, such as whole conversations), `finish_reasons` (`stop` or `length`),
        `response_tokens` (lists of token ids), and fields of the prompts such as `answer`.
        """


@dataclass(frozen=True)
class Scores:
    """The rewards of a rollout batch and what they are made of."""

    rewards: Tensor
    """[B] float64, NaN where a response is unscored."""
    parts: dict[str, Tensor]
    """Each reward function's own values before weighting, [B] float64, by its name."""


@dataclass(frozen=True)
class RewardFunction:
    """One term of a weighted sum: a function, and the parameters that it wants by name."""

    name: str
    function: Callable
    weight: float
    required: frozenset[str]
    """Parameters after `queries` and `responses` that have no default."""
    optional: frozenset[str]
    """Those that have one."""
    reserved: frozenset[str] | None
    """Where the function takes `**kwargs`: the names of its first two parameters, else None."""

    def check(self, available: Collection[str]) -> None:
        """Raise `DataError` where the function needs something that is not in `available`."""
        for name in sorted(self.required.difference(available)):
            raise DataError(
                f"reward '{self.name}' asks for '{name}', which the prompts do not have; "
                f"available: {', '.join(sorted(available))}"
            )

    def __call__(self, queries: list[str], responses: list[str], named: dict[str, list]) -> Tensor:
        """Call the function once and return its values, `[B]` float64, NaN where unscored."""
        handed = {name: values for name, values in named.items() if self._takes(name)}
        try:
            returned = self.function(queries, responses, **handed)
        except Exception as error:
            error.add_note(f"(raised by reward '{self.name}')")
            raise
        return _values(self.name, returned, len(responses))

    def _takes(self, name: str) -> bool:
        if self.reserved is not None:
            return name not in self.reserved
        return name in self.required or name in self.optional


@dataclass(frozen=True)
class RewardSum:
    """A weighted sum of reward functions, built by `as_reward`."""

    functions: tuple[RewardFunction, ...]

    def check(self, available: Collection[str]) -> None:
        """Raise `DataError` where a function needs something that is not in `available`.

        `score` does it too; asked before the first response is sampled, it costs nothing.
        """
        for function in self.functions:
            function.check(available)


def as_reward(reward_model: Callable | Sequence, weights: Sequence[float] | None = None):
    """Build a `RewardSum` from one callable, a list of them, or a list of (callable, weight) pairs.

    `weights` goes with a list of callables; without it each weighs 1. Raises `SettingError` where
    something cannot be called with (queries, responses), or a weight is missing or not finite.
    """
    terms = list(reward_model) if isinstance(reward_model, list | tuple) else [reward_model]
    if not terms:
        raise SettingError("reward_model is an empty list; give at least one reward function")
    if weights is not None and len(weights) != len(terms):
        raise SettingError(f"got {len(weights)} weights for {len(terms)} reward functions")
    if weights is not None:
        terms = list(zip(terms, weights, strict=True))
    functions: dict[str, RewardFunction] = {}
    for term in terms:
        function, weight = term if isinstance(term, list | tuple) and len(term) == 2 else (term, 1)
        name = _free_name(_name(function), functions)
        functions[name] = _reward_function(name, function, weight)
    return RewardSum(tuple(functions.values()))


def score(
    reward: RewardSum, queries: list[str], responses: list[str], named: dict[str, list]
) -> Scores:
    """Call each reward function once for a rollout batch and add up what they return.

    `named` holds what functions may ask for by name, lists of length B. A response that any
    function leaves unscored is unscored. Raises `DataError` where a function asks for a name that
    is not there, or returns anything but B numbers; its own exceptions pass through.
    """
    reward.check(named)
    parts = {term.name: term(queries, responses, named) for term in reward.functions}
    rewards = sum(term.weight * parts[term.name] for term in reward.functions)
    return Scores(rewards, parts)


def _reward_function(name: str, function: Callable, weight: float) -> RewardFunction:
    if not isinstance(weight, Real) or not math.isfinite(weight):
        raise SettingError(f"the weight of reward '{name}' must be a finite number, got {weight!r}")
    if inspect.isclass(function):
        raise SettingError(f"reward '{name}' is a class; give an instance of it: {name}(...)")
    try:
        signature = inspect.signature(_inspected(function))
    except (TypeError, ValueError) as error:
        raise SettingError(
            f"a reward must be a callable (queries, responses) -> rewards, got {function!r}"
        ) from error
    parameters = signature.parameters.values()
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    first_two = [parameter.name for parameter in parameters if parameter.kind in kinds][:2]
    by_name = [
        parameter
        for parameter in parameters
        if parameter.name not in first_two
        and parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
    ]
    takes_all = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters)
    required = frozenset(each.name for each in by_name if each.default is each.empty)
    try:
        signature.bind(None, None, **dict.fromkeys(required))
    except TypeError as error:
        raise SettingError(
            f"reward '{name}' must take (queries, responses) and further parameters by name; "
            f"its signature is {signature}"
        ) from error
    return RewardFunction(
        name=name,
        function=function,
        weight=float(weight),
        required=required,
        optional=frozenset(each.name for each in by_name) - required,
        reserved=frozenset(first_two) if takes_all else None,
    )
