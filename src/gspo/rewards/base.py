"""From the B responses of a rollout batch to their rewards: one function, or a weighted sum."""

import functools
import inspect
import itertools
import math
import reprlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection
from dataclasses import dataclass
from numbers import Real

import numpy as np
import torch
from torch import Tensor

from gspo.errors import DataError, SettingError

_POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
_BY_NAME = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)


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
    """One term of a weighted sum: a function, and what it takes by name."""

    name: str
    function: Callable
    weight: float
    accepted: frozenset[str]  # parameters after the first two
    required: frozenset[str]  # those of them without a default
    excluded: frozenset[str] | None  # of a function with `**kwargs`: what does not go there

    def __call__(self, queries: list[str], responses: list[str], named: dict[str, list]) -> Tensor:
        """Call the function once and return its values, `[B]` float64, NaN where unscored."""
        if self.excluded is None:
            names = named.keys() & self.accepted
        else:
            names = named.keys() - self.excluded
        try:
            returned = self.function(queries, responses, **{name: named[name] for name in names})
        except Exception as error:
            error.add_note(f"raised by reward '{self.name}'")
            raise
        return _values(self.name, returned, len(responses))


@dataclass(frozen=True)
class RewardSum:
    """A weighted sum of reward functions, built by `as_reward`."""

    functions: tuple[RewardFunction, ...]

    def check(self, available: Collection[str]) -> None:
        """Raise `DataError` where a function needs a name that is not `available`.

        `score` asks this too; asked before anything is sampled, it saves the sampling.
        """
        for function in self.functions:
            for name in sorted(function.required.difference(available)):
                raise DataError(
                    f"reward '{function.name}' asks for '{name}', which the prompts do not have; "
                    f"available: {', '.join(sorted(available))}"
                )


def as_reward(reward_model: Callable | list, weights: list[float] | None = None) -> RewardSum:
    """Build the weighted sum of one callable, a list of them, or a list of (callable, weight).

    `weights` goes with a list of callables; without it each weighs 1. Raises `SettingError` where
    something cannot be called with (queries, responses), or a weight is missing or not finite.
    """
    terms = list(reward_model) if isinstance(reward_model, list | tuple) else [reward_model]
    if not terms:
        raise SettingError("the list of reward functions is empty; give at least one")
    if weights is not None and len(weights) != len(terms):
        raise SettingError(f"{len(weights)} weights for {len(terms)} reward functions")
    if weights is not None:
        terms = list(zip(terms, weights, strict=True))
    functions: list[RewardFunction] = []
    for term in terms:
        function, weight = term if isinstance(term, list | tuple) and len(term) == 2 else (term, 1)
        name = _name(function, taken=[term.name for term in functions])
        functions.append(_reward_function(name, function, weight))
    return RewardSum(tuple(functions))


def score(
    reward: RewardSum, queries: list[str], responses: list[str], named: dict[str, list]
) -> Scores:
    """Call each reward function once on a rollout batch and add up their weighted values.

    `named` holds what functions may take by name, lists of length B. A response that any function
    leaves unscored is unscored. Raises `DataError` where a function asks for a name that is not
    there or returns anything but B numbers; its own exceptions pass through.
    """
    reward.check(named)
    parts = {term.name: term(queries, responses, named) for term in reward.functions}
    weighted = [term.weight * parts[term.name] for term in reward.functions]
    return Scores(rewards=torch.stack(weighted).sum(dim=0), parts=parts)


def _reward_function(name: str, function: Callable, weight: float) -> RewardFunction:
    """Check one term, and find out from its signature what it takes by name."""
    if not isinstance(weight, Real) or not math.isfinite(weight):
        raise SettingError(f"the weight of reward '{name}' must be a finite number, got {weight!r}")
    if inspect.isclass(function):
        raise SettingError(f"reward '{name}' is a class; give an instance of it: {name}(...)")
    # A torch module's own __call__ takes anything.
    forwards = type(function).__call__ is torch.nn.Module.__call__
    try:
        signature = inspect.signature(function.forward if forwards else function)
        parameters = signature.parameters.values()
        positional = [each.name for each in parameters if each.kind in _POSITIONAL]
        rest = [each for each in parameters if each.name not in positional[:2]]
        by_name = {each.name: each.default for each in rest if each.kind in _BY_NAME}
        required = frozenset(name for name in by_name if by_name[name] is inspect.Parameter.empty)
        takes_any_name = any(each.kind is each.VAR_KEYWORD for each in parameters)
        signature.bind(None, None, **dict.fromkeys(required))
    except (TypeError, ValueError) as error:
        sentence = f"reward '{name}' cannot be called with (queries, responses): {error}"
        raise SettingError(sentence) from error
    for index, expected in enumerate(("queries", "responses")):
        if expected in signature.parameters and positional[index : index + 1] != [expected]:
            raise SettingError(
                f"reward '{name}' takes {signature}; its first two parameters must be "
                "(queries, responses), what follows is handed by name"
            )
    return RewardFunction(
        name=name,
        function=function,
        weight=float(weight),
        accepted=frozenset(by_name),
        required=required,
        excluded=frozenset(positional[:2]) if takes_any_name else None,
    )


def _name(function: Callable, taken: Collection[str]) -> str:
    """The name of a function or of an instance's class, numbered where it is taken."""
    while isinstance(function, functools.partial):
        function = function.func
    name = getattr(function, "__name__", type(function).__name__)
    numbered = (f"{name}_{number}" for number in itertools.count(2))
    return next(each for each in itertools.chain([name], numbered) if each not in taken)


def _values(name: str, returned: object, count: int) -> Tensor:
    """Check what a reward function returned and convert it to `[count]` float64."""
    came = reprlib.repr(returned)
    if isinstance(returned, Tensor | np.ndarray):
        came = f"a {type(returned).__name__} of shape {list(returned.shape)}, not [{count}],"
        returned = returned.tolist() if returned.ndim == 1 else None
    if isinstance(returned, list | tuple) and len(returned) == count:
        values = [_value(name, value, index) for index, value in enumerate(returned)]
        return torch.tensor(values, dtype=torch.float64)
    if isinstance(returned, list | tuple):
        came = f"{len(returned)} values"
    raise DataError(
        f"reward '{name}' returned {came} for {count} responses; "
        "return one per response, e.g. torch.zeros(len(responses))"
    )


def _value(name: str, value: object, index: int) -> float:
    if value is None:
        return math.nan
    if isinstance(value, Tensor | np.ndarray | np.generic) and value.ndim == 0:
        value = value.item()
    if not isinstance(value, Real) or math.isinf(value):
        raise DataError(
            f"reward '{name}' returned {reprlib.repr(value)} ({type(value).__name__}) for "
            f"responses[{index}]; return a finite number, or None where it cannot tell"
        )
    return float(value)
