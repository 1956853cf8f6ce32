"""Every setting, with its unit, its default and one sentence. Imports no torch.

`GSPOConfig` is what a `GSPOTrainer` needs; `Recipe` adds what the command line needs to make a
trainer: the model, the prompts, the reward. Both are flat. The sentence under each field is also
what `gspo train --help` prints.
"""

import difflib
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from gspo.errors import SettingError

WIDEST_SEQUENCE_BAND = 0.05
"""A wider clip range never binds a sequence ratio: 0.2 is a value for GRPO's token ratio."""


class GSPOConfig(BaseModel):
    """The settings of a training run.

    Raises:
        SettingError: an unknown key (the nearest one is named), a wrong type, or values that
            cannot work together.
    """

    model_config = ConfigDict(
        extra="forbid",
        use_attribute_docstrings=True,
        allow_inf_nan=False,
    )

    # The objective
    group_size: int = Field(8, ge=1)
    """Responses sampled for each prompt."""
    clip_range_left: float = Field(3e-4, gt=0, lt=1)
    """The sequence ratio is kept above 1 - this where the advantage is negative."""
    clip_range_right: float = Field(4e-4, gt=0)
    """The sequence ratio is kept below 1 + this where the advantage is positive."""
    allow_wide_band: bool = False
    """Accept clip ranges above 0.05, which a sequence ratio practically never reaches."""
    use_token_level: bool = False
    """GSPO-token (eq. 13) instead of GSPO (eq. 5): per-token advantages are possible."""
    normalize_advantages: bool = True
    """Divide the advantages of a group by the standard deviation of its rewards."""
    advantage_eps: float = Field(1e-8, ge=0)
    """Added to that standard deviation."""
    kl_coef: float = Field(0.0, ge=0)
    """Weight of the KL penalty towards `ref_model`; at 0 the reference is not even run."""
    kl_estimator: Literal["k2", "k3"] = "k3"
    """Estimator of the reverse KL: k2 = x^2/2, k3 = exp(x) - x - 1, x = log pi_ref - log pi."""
    entropy_coef: float = Field(0.0, ge=0)
    """Weight of an entropy bonus, in the loss as minus the mean token entropy of a response."""
    old_logprobs: Literal["auto", "recompute", "behavior"] = "auto"
    """The ratio's denominator: recomputed, the sampler's own, or whichever a measurement allows."""

    # The optimizer step
    batch_size: int = Field(1, ge=1)
    """Prompts per accumulation step; times gradient_accumulation_steps: per optimizer step."""
    gradient_accumulation_steps: int = Field(1, ge=1)
    """Multiplies batch_size. Memory is set by micro_batch_tokens, not by this."""
    minibatches_per_rollout: int = Field(4, ge=1)
    """Optimizer steps taken on each batch of rollouts (the paper's 4)."""
    num_epochs: int = Field(1, ge=1)
    """Passes over the prompts."""
    max_steps: int | None = Field(None, ge=1)
    """Stop after this many optimizer steps."""
    learning_rate: float = Field(1e-5, gt=0)
    """Of AdamW, after warm-up."""
    lr_schedule: Literal["constant", "linear", "cosine"] = "constant"
    """Of the learning rate after warm-up; linear and cosine reach 0 when the run ends."""
    warmup_steps: int = Field(0, ge=0)
    """Optimizer steps over which the learning rate rises from 0."""
    adam_beta1: float = Field(0.9, ge=0, lt=1)
    """AdamW's decay of the mean of gradients."""
    adam_beta2: float = Field(0.999, ge=0, lt=1)
    """AdamW's decay of the mean of squared gradients."""
    adam_eps: float = Field(1e-8, gt=0)
    """AdamW's epsilon."""
    weight_decay: float = Field(0.0, ge=0)
    """AdamW's decoupled weight decay."""
    max_grad_norm: float = Field(1.0, gt=0)
    """The gradient's norm is clipped to this."""

    # Sampling
    max_response_tokens: int = Field(512, ge=1)
    """Longest response, in tokens; one also ends where the model's context does."""
    temperature: float = Field(1.0, gt=0)
    """Of sampling; the policy is scored at the same temperature."""
    top_p: float = Field(1.0, gt=0, le=1)
    """Nucleus sampling: needs allow_truncated_sampling, because it falsifies every ratio."""
    top_k: int = Field(0, ge=0)
    """Sample among the k likeliest tokens, 0 for all: needs allow_truncated_sampling."""
    allow_truncated_sampling: bool = False
    """Accept top_p and top_k although the policy is scored on the full distribution."""
    stop: list[str] = []
    """Strings that end a response; they stay in its text."""
    seed: int = Field(0, ge=0, lt=2**63)
    """Of the random numbers: one stream for each (seed, epoch, prompt, response, token)."""

    # The machine: none of these changes a result beyond rounding
    device: str = "auto"
    """auto (CUDA where there is one), cpu, cuda, cuda:1, ..."""
    dtype: Literal["auto", "float32", "bfloat16", "float64"] = "auto"
    """Of the model's computation; auto is bfloat16 on a GPU that likes it. Weights stay float32."""
    micro_batch_tokens: int = Field(4096, ge=1)
    """Tokens of one forward and backward pass: memory only."""
    share_prompts: bool = True
    """Compute a group's common prompt once when training."""
    activation_checkpointing: bool = False
    """Recompute activations in the backward pass: a third more time, far less memory."""
    engine_memory_gib: float = Field(4.0, gt=0)
    """GiB for the keys and values of responses being sampled; decides how many run at once."""

    # What a run leaves behind
    output_dir: str = "./gspo_outputs"
    """The run's folder; one that holds another run is never overwritten."""
    overwrite: bool = False
    """Replace the run in output_dir instead of taking a numbered folder beside it."""
    logging_steps: int = Field(10, ge=1)
    """Optimizer steps between two lines on the screen; metrics.jsonl gets every step."""
    save_steps: int = Field(1000, ge=1)
    """Optimizer steps between two checkpoints."""
    keep_checkpoints: int = Field(2, ge=1)
    """Newest checkpoints kept."""
    save_rollouts: bool = True
    """Write every response with its reward to rollouts/*.jsonl."""
    tensorboard: bool = True
    """Write TensorBoard events where tensorboard is installed."""

    def __init__(self, **settings: Any) -> None:
        unknown = [key for key in settings if key not in type(self).model_fields]
        if unknown:
            raise SettingError(unknown_key(unknown[0], type(self).model_fields))
        try:
            super().__init__(**settings)
        except ValidationError as error:
            raise SettingError(_one_sentence(error)) from None
        _refuse_contradictions(self)

    def __setattr__(self, key: str, value: Any) -> None:
        checked = type(self)(**{**self.model_dump(), key: value})
        super().__setattr__(key, getattr(checked, key))

    @field_validator("output_dir", mode="before")
    @classmethod
    def _a_path_is_text(cls, output_dir: Any) -> Any:
        return str(output_dir) if isinstance(output_dir, Path) else output_dir

    @field_validator("stop", mode="before")
    @classmethod
    def _one_stop_string_is_a_list(cls, stop: Any) -> Any:
        return [stop] if isinstance(stop, str) else stop

    @field_validator("stop")
    @classmethod
    def _no_empty_stop_string(cls, stop: list[str]) -> list[str]:
        if "" in stop:
            raise ValueError("an empty stop string would end every response at once")
        return stop

    @property
    def prompts_per_step(self) -> int:
        """Prompts per optimizer step per process."""
        return self.batch_size * self.gradient_accumulation_steps

    @property
    def prompts_per_rollout(self) -> int:
        """Prompts whose responses are sampled together."""
        return self.prompts_per_step * self.minibatches_per_rollout


class Recipe(GSPOConfig):
    """A run from the command line: `GSPOConfig` and where model, prompts and reward are."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        if self.kl_coef > 0 and self.reference_model is None:
            raise SettingError("kl_coef > 0 needs a reference_model to stay near to")
        if self.group_size == 1:
            raise SettingError(
                "group_size = 1: a response is compared with its group, so it needs at least 2"
            )

    model: str
    """A local folder or a hub id of a causal language model."""
    reference_model: str | None = None
    """A local folder or a hub id for the KL penalty; needed when kl_coef > 0."""
    trust_remote_code: bool = False
    """Let a model's repository run its own Python code on this machine."""
    prompts: str
    """A .jsonl or .parquet file, a dataset's folder or hub id, or reasoning_gym:TASK?size=100."""
    prompt_field: str = "prompt"
    """The field of a line that holds the prompt, text or chat messages."""
    prompts_split: str = "train"
    """The split of a Hugging Face dataset."""
    max_prompts: int | None = Field(None, ge=1)
    """Use only so many prompts, the first ones."""
    shuffle: bool = True
    """Shuffle the prompts in each epoch, by the seed."""
    chat: bool = True
    """Put text prompts into the model's chat template as a user's turn."""
    system_prompt: str | None = None
    """A system turn in front of each chat."""
    reward: str | list[str]
    """last_number, math, hf:MODEL, package.module:name, or file.py:name; several are summed."""
    reward_weights: list[float] | None = None
    """One weight for each reward; 1 each by default."""

    @property
    def reward_names(self) -> list[str]:
        return [self.reward] if isinstance(self.reward, str) else self.reward


def unknown_key(key: str, known: Any) -> str:
    """The sentence for a key that does not exist, with the nearest one that does."""
    near = difflib.get_close_matches(key, list(known), n=1, cutoff=0.5)
    hint = f"; did you mean '{near[0]}'?" if near else "; `gspo train --help` lists the keys"
    return f"there is no setting '{key}'{hint}"


def _one_sentence(error: ValidationError) -> str:
    first = error.errors()[0]
    key = ".".join(str(part) for part in first["loc"])
    if first["type"] == "missing":
        return f"the setting '{key}' is missing"
    message = first["msg"].removeprefix("Value error, ")
    message = message[0].lower() + message[1:]
    return f"{key} = {first['input']!r}: {message}"


def _refuse_contradictions(config: GSPOConfig) -> None:
    widest = max(config.clip_range_left, config.clip_range_right)
    if widest > WIDEST_SEQUENCE_BAND and not config.allow_wide_band:
        raise SettingError(
            f"a clip range of {widest:g} never binds a sequence ratio (0.2 is GRPO's, for token "
            "ratios; GSPO's are 3e-4 and 4e-4): narrow it, or set allow_wide_band"
        )
    if (config.top_p < 1 or config.top_k > 0) and not config.allow_truncated_sampling:
        raise SettingError(
            "top_p < 1 and top_k scale every importance ratio by the probability they cut off: "
            "leave them out, or set allow_truncated_sampling"
        )
    if config.warmup_steps and config.max_steps and config.warmup_steps >= config.max_steps:
        raise SettingError(
            f"warmup_steps = {config.warmup_steps} leaves nothing of max_steps = {config.max_steps}"
        )
