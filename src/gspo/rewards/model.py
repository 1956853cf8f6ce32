"""Rewards from a model: sequence classification with one label, as in Hugging Face."""

import math
import os
import warnings

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from gspo.errors import DataError, SettingError
from gspo.rewards.base import BaseRewardModel


class HFRewardModel(BaseRewardModel):
    """The raw logit that a sequence-classification model with one label gives a response.

    The model reads prompt and response through its tokenizer's chat template (the whole
    conversation where the prompt is one), or joined by a space where it has none. What is longer
    than `max_tokens` or than the model's context is unscored (NaN), with one warning.

    Args:
        path_or_model: a local folder or hub id with safetensors weights, or a loaded model.
        tokenizer: the reward model's own, not the policy's; by default the one at the path.
        batch_size: responses in a forward pass.
        max_tokens: the longest prompt and response together, in the reward model's tokens.
        device: by default a loaded model stays where it is, and a path goes to the GPU if any.

    Raises `SettingError` for a model without its tokenizer and for numbers below 1, `DataError`
    for a model with several labels, an untrained head, or neither a pad nor an EOS token.
    """

    def __init__(
        self,
        path_or_model: str | os.PathLike | PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase | None = None,
        batch_size: int = 8,
        max_tokens: int | None = None,
        device: str | torch.device | None = None,
    ) -> None:
        if batch_size < 1 or (max_tokens is not None and max_tokens < 1):
            raise SettingError(
                "HFRewardModel needs a batch_size and max_tokens of at least 1, "
                f"got {batch_size} and {max_tokens}"
            )
        if isinstance(path_or_model, PreTrainedModel):
            model = path_or_model
            _check_labels(model.config)
        else:
            model = _load(path_or_model)
            device = device or ("cuda" if torch.cuda.is_available() else "cpu")
            tokenizer = tokenizer or AutoTokenizer.from_pretrained(
                path_or_model, trust_remote_code=False
            )
        if tokenizer is None:
            raise SettingError("HFRewardModel got a model without its tokenizer; pass tokenizer=")
        self.model = (model.to(device) if device else model).eval()
        self.tokenizer = tokenizer
        self.batch_size = batch_size
        self.max_tokens = min(max_tokens or math.inf, _context(model.config, tokenizer))
        self._pad_token_id = _set_pad_token(model.config, tokenizer)
        self._warned = False

    def __call__(
        self,
        queries: list[str],
        responses: list[str],
        prompts: list[str | list[dict]] | None = None,
    ) -> Tensor:
        """Return the logits `[B]` float32, NaN where prompt and response are too long."""
        rows = self._tokenize(queries, responses, prompts or queries)
        fitting = [index for index, row in enumerate(rows) if len(row) <= self.max_tokens]
        if len(fitting) < len(rows):
            self._warn_once(max(len(row) for row in rows))
        fitting.sort(key=lambda index: len(rows[index]))  # rows of like length pad little
        rewards = torch.full((len(rows),), math.nan)
        for start in range(0, len(fitting), self.batch_size):
            batch = fitting[start : start + self.batch_size]
            rewards[batch] = self._logits([torch.tensor(rows[index]) for index in batch])
        return rewards

    def _tokenize(
        self, queries: list[str], responses: list[str], prompts: list[str | list[dict]]
    ) -> list[list[int]]:
        """Return the token ids of each prompt with its response, not padded."""
        if self.tokenizer.chat_template is None:
            texts = [
                f"{query} {response}" for query, response in zip(queries, responses, strict=True)
            ]
            return self.tokenizer(texts)["input_ids"]
        conversations = [
            (prompt if isinstance(prompt, list) else [{"role": "user", "content": prompt}])
            + [{"role": "assistant", "content": response}]
            for prompt, response in zip(prompts, responses, strict=True)
        ]
        return self.tokenizer.apply_chat_template(conversations)["input_ids"]

    @torch.no_grad()
    def _logits(self, rows: list[Tensor]) -> Tensor:
        """Return the logits `[b]` of one batch, in float32 on the CPU."""
        input_ids = pad_sequence(rows, batch_first=True, padding_value=self._pad_token_id)
        attention_mask = pad_sequence([torch.ones_like(row) for row in rows], batch_first=True)
        device = self.model.device
        output = self.model(
            input_ids=input_ids.to(device), attention_mask=attention_mask.to(device)
        )
        return output.logits.squeeze(-1).float().cpu()

    def _warn_once(self, longest: int) -> None:
        if not self._warned:
            warnings.warn(
                f"HFRewardModel leaves responses unscored that are longer than {self.max_tokens} "
                f"tokens with their prompt; here the longest has {longest}",
                stacklevel=3,
            )
        self._warned = True


def _load(path: str | os.PathLike) -> PreTrainedModel:
    try:
        config = AutoConfig.from_pretrained(path, trust_remote_code=False)
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise DataError(f"cannot load a reward model from '{path}': {reason}") from error
    _check_labels(config)
    model, loading = AutoModelForSequenceClassification.from_pretrained(
        path,
        config=config,
        trust_remote_code=False,
        use_safetensors=True,
        output_loading_info=True,
    )
    if loading["missing_keys"]:
        raise DataError(
            f"{path} is no reward model: it has no weights for "
            f"{', '.join(sorted(loading['missing_keys']))}, which would be random"
        )
    return model


def _check_labels(config: PreTrainedConfig) -> None:
    if config.num_labels != 1:
        raise DataError(
            f"a reward model has 1 label, {config.name_or_path or config.model_type} has "
            f"{config.num_labels}; give a sequence-classification model with num_labels=1"
        )


def _context(config: PreTrainedConfig, tokenizer: PreTrainedTokenizerBase) -> int:
    """The most tokens that both the model and the tokenizer say they take."""
    positions = getattr(config.get_text_config(), "max_position_embeddings", math.inf)
    return min(positions, tokenizer.model_max_length)


def _set_pad_token(config: PreTrainedConfig, tokenizer: PreTrainedTokenizerBase) -> int:
    """Return the pad token's id, EOS where there is none, after telling the model.

    The model reads its logit at the last token that differs from the pad token of its config, so
    rows are padded with that one, whatever the tokenizer's is.
    """
    config = config.get_text_config()
    for token_id in (config.pad_token_id, tokenizer.pad_token_id, tokenizer.eos_token_id):
        if token_id is not None:
            config.pad_token_id = token_id
            return token_id
    raise DataError(
        "the reward model's tokenizer has neither a pad nor an EOS token, so responses of "
        "different lengths cannot share a batch; set tokenizer.pad_token"
    )
