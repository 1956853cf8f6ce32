"""What an engine is: own weights to sample from."""

from dataclasses import dataclass
from typing import Protocol

from gspo.config import GSPOConfig
from gspo.types import Prompt, Rollout


@dataclass(frozen=True)
class Sampling:
    """How to sample. Field for field as in `GSPOConfig`; temperature 0 is greedy decoding."""

    group_size: int = 1
    max_response_tokens: int = 512
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    stop: tuple[str, ...] = ()
    seed: int = 0

    @classmethod
    def of(cls, config: GSPOConfig) -> "Sampling":
        """The sampling that a training run's settings ask for."""
        return cls(
            group_size=config.group_size,
            max_response_tokens=config.max_response_tokens,
            temperature=config.temperature,
            top_p=config.top_p,
            top_k=config.top_k,
            stop=tuple(config.stop),
            seed=config.seed,
        )


class Engine(Protocol):
    """Samples responses and says with which probability."""

    def generate(self, prompts: list[Prompt], sampling: Sampling) -> list[list[Rollout]]:
        """`group_size` rollouts for each prompt, in the order of the prompts.

        A response depends on its (seed, epoch, position, index) and the weights alone: not on what
        else is in the batch, nor on the order.
        """
        ...

    def sync(self, version: int) -> None:
        """Takes the policy's newest weights, which have had `version` optimizer steps."""
        ...


def ends_with_stop_string(tokens: list[int], stop: tuple[str, ...], tokenizer) -> bool:
    """Whether the newest tokens of a response complete one of the stop strings."""
    longest = max(len(text.encode()) for text in stop)
    tail = tokenizer.decode(tokens[-longest - 1 :])
    return any(text in tail for text in stop)


def eos_ids(model, tokenizer) -> tuple[int, ...]:
    """All token ids that end a response: those of `generation_config`, else the tokenizer's."""
    ids = model.generation_config.eos_token_id if model.generation_config else None
    if ids is None:
        ids = model.config.get_text_config().eos_token_id
    if ids is None:
        ids = tokenizer.eos_token_id
    if ids is None:
        return ()
    return (ids,) if isinstance(ids, int) else tuple(ids)
