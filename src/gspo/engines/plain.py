"""The engine for models that cannot run packed: the model's own cache, our exact draws.

transformers' `generate` drives the model, so that recurrent states, linear attention and whatever
else is in its cache are its own business; the responses of one prompt decode together, unpadded.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessorList, StoppingCriteriaList

from gspo.core.layout import at_least_float32
from gspo.engines.base import Sampling, ends_with_stop_string, eos_ids
from gspo.engines.sampling import sample, stream_key, uniforms
from gspo.policy.load import Policy
from gspo.types import Prompt, Rollout


class PlainEngine:
    """Samples from a `Policy` of any kind, one prompt's group at a time."""

    def __init__(self, policy: Policy, tokenizer) -> None:
        self.policy = policy
        self.tokenizer = tokenizer
        self.version = 0
        self.eos = eos_ids(policy.model, tokenizer)

    def sync(self, version: int) -> None:
        self.version = version

    @torch.no_grad()
    def generate(self, prompts: list[Prompt], sampling: Sampling) -> list[list[Rollout]]:
        self.policy.model.eval()
        with _without_own_sampling_settings(self.policy.model), self.policy.precision():
            return [self._group(prompt, sampling) for prompt in prompts]

    def _group(self, prompt: Prompt, sampling: Sampling) -> list[Rollout]:
        draws = _Draws(prompt, sampling)
        input_ids = torch.tensor([prompt.tokens] * sampling.group_size, device=self.policy.device)
        stopping = StoppingCriteriaList()
        if sampling.stop:
            stopping.append(_StopStrings(self.tokenizer, sampling.stop, len(prompt.tokens)))
        output = self.policy.model.generate(
            input_ids,
            attention_mask=torch.ones_like(input_ids),
            generation_config=GenerationConfig(
                do_sample=False,
                max_new_tokens=self.policy.room_after(
                    len(prompt.tokens), sampling.max_response_tokens
                ),
                eos_token_id=list(self.eos) or None,
                pad_token_id=self.eos[0] if self.eos else 0,
                use_cache=True,
            ),
            logits_processor=LogitsProcessorList([draws]),
            stopping_criteria=stopping,
        )
        rows = output[:, len(prompt.tokens) :].tolist()
        return [self._rollout(row, draws.logprobs(i), sampling) for i, row in enumerate(rows)]

    def _rollout(self, row: list[int], logprobs: Tensor, sampling: Sampling) -> Rollout:
        """Cuts the padding off that `generate` gives to rows that end before others."""
        ends = (i + 1 for i in range(len(row)) if self._ends(row[: i + 1], sampling.stop))
        end = next(ends, None)
        tokens = row[:end]
        return Rollout(
            tokens=tokens,
            behavior_logprobs=logprobs[: len(tokens)].clone(),
            finish_reason="length" if end is None else "stop",
            version=self.version,
            text=self.tokenizer.decode(tokens, skip_special_tokens=True),
        )

    def _ends(self, tokens: list[int], stop: tuple[str, ...]) -> bool:
        if tokens[-1] in self.eos:
            return True
        return bool(stop) and ends_with_stop_string(tokens, stop, self.tokenizer)


class _Draws:
    """A logits processor that draws by our random numbers and leaves `generate` no choice."""

    def __init__(self, prompt: Prompt, sampling: Sampling) -> None:
        self.sampling = sampling
        self.keys = np.array(
            [
                stream_key(sampling.seed, prompt.epoch, prompt.position, i)
                for i in range(sampling.group_size)
            ]
        )
        self._logprobs: list[Tensor] = []

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        s = self.sampling
        u = uniforms(self.keys, np.full(len(self.keys), len(self._logprobs)))
        tokens, logprobs = sample(at_least_float32(scores), u, s.temperature, s.top_k, s.top_p)
        self._logprobs.append(logprobs.cpu())
        return torch.full_like(scores, -torch.inf).scatter(-1, tokens[:, None], 0.0)

    def logprobs(self, response: int) -> Tensor:
        """[T] of one response, as far as `generate` went."""
        return torch.stack(self._logprobs)[:, response]


class _StopStrings:
    """A stopping criterion, one flag a row."""

    def __init__(self, tokenizer, stop: tuple[str, ...], prompt_tokens: int) -> None:
        self.tokenizer = tokenizer
        self.stop = stop
        self.prompt_tokens = prompt_tokens

    def __call__(self, input_ids: Tensor, scores: Tensor, **kwargs) -> Tensor:
        rows = input_ids[:, self.prompt_tokens :].tolist()
        flags = [ends_with_stop_string(row, self.stop, self.tokenizer) for row in rows]
        return torch.tensor(flags, device=input_ids.device)


@contextmanager
def _without_own_sampling_settings(model) -> Iterator[None]:
    """A model's repetition penalty or top_p would change the distribution that we record."""
    own, model.generation_config = model.generation_config, GenerationConfig()
    try:
        yield
    finally:
        model.generation_config = own
