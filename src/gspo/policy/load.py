"""A Hugging Face causal model made ready for training and sampling.

The model stays the caller's object: its weights are trained in place and the sampling engine reads
the same tensors.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from types import MethodType

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.utils import logging as transformers_logging

from gspo.core import head_logits
from gspo.core.layout import at_least_float32
from gspo.core.linear import linear
from gspo.errors import DataError, SettingError
from gspo.log import logger
from gspo.policy.attention import IMPLEMENTATION, Attend, attend_with


@dataclass(frozen=True)
class LMHead:
    """The last linear layer and what the model does to its logits."""

    module: nn.Linear
    scale: float
    softcap: float | None

    def logits(self, hidden: Tensor) -> Tensor:
        """[..., H] -> [..., V] in at least float32."""
        hidden = at_least_float32(hidden)
        weight, bias = self.module.weight.to(hidden.dtype), self.module.bias
        bias = None if bias is None else bias.to(hidden.dtype)
        return head_logits(hidden, weight, bias, scale=self.scale, softcap=self.softcap)


class Policy:
    """A causal language model on its device, in its dtype, without dropout.

    `gspo.policy.probe.choose_attention` decides at load whether the model is `packed`: whether it
    runs on packed rows through our attention and chunked head. Otherwise it runs padded, with its
    own attention, cache and head. It also switches dropout off. `release` undoes what a run needs.
    """

    def __init__(
        self, model: PreTrainedModel, *, device: str = "auto", dtype: str = "auto"
    ) -> None:
        check_language_model(model)
        self.model = model
        self.device = resolve_device(device) or model.device
        self.autocast = _place(model, self.device, dtype)
        self.packed = False
        self.learns_in_train_mode = True
        self._own_attention = model.config._attn_implementation
        self._own_mode = model.training
        self._checkpoints_activations = False
        self._linears = [module for module in model.modules() if type(module) is nn.Linear]
        for module in self._linears:
            module.forward = MethodType(_linear_forward, module)

    @property
    def head(self) -> LMHead:
        config = self.model.config.get_text_config()
        scale = getattr(config, "logit_scale", None) or 1.0
        scale /= getattr(config, "logits_scaling", None) or 1.0
        softcap = getattr(config, "final_logit_softcapping", None)
        return LMHead(self.model.get_output_embeddings(), scale, softcap)

    @property
    def context_tokens(self) -> int | None:
        """Longest sequence the model was made for, where its config says so."""
        return context_tokens(self.model.config)

    def room_after(self, prompt_tokens: int, wanted: int) -> int:
        """Response tokens, at most `wanted`, that fit into the context after a prompt."""
        context = self.context_tokens
        return wanted if context is None else min(wanted, context - prompt_tokens)

    @property
    def vocabulary(self) -> int:
        """Number of tokens that the model can read."""
        return self.model.get_input_embeddings().weight.shape[0]

    @property
    def rows_alone(self) -> bool:
        """Whether positions are encoded by the longest sequence of a forward pass, so that only a
        sequence on its own is computed independently of the others."""
        rope = getattr(self.model.config.get_text_config(), "rope_parameters", None) or {}
        kinds = [rope, *(value for value in rope.values() if isinstance(value, dict))]
        return any(kind.get("rope_type") in ("longrope", "dynamic") for kind in kinds)

    def start_learning(self) -> None:
        """Train mode, which activation checkpointing needs, where it computes the same."""
        self.model.train(self.learns_in_train_mode)

    def checkpoint_activations(self) -> None:
        """Activations are recomputed in the backward pass."""
        if not self.learns_in_train_mode:
            raise SettingError(
                "activation_checkpointing needs the model's training mode, which for this model "
                "adds noise that cannot be switched off"
            )
        self.model.gradient_checkpointing_enable({"use_reentrant": False})
        self._checkpoints_activations = True

    def precision(self) -> AbstractContextManager:
        """bfloat16 compute where that was chosen; weights stay as they are."""
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.autocast)

    def packed_hidden(self, input_ids: Tensor, position_ids: Tensor, attend: Attend) -> Tensor:
        """Final hidden states, [b, n, H], of tokens [b, n] whose attention is `attend`."""
        with self.precision():
            return self.model.base_model(
                input_ids=input_ids,
                position_ids=position_ids,
                **attend_with(attend, self.device),
            ).last_hidden_state

    def plain_logits(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """The model's own logits, [b, T, V], of rows padded on the right."""
        with self.precision():
            return self.model(
                input_ids=input_ids, attention_mask=attention_mask, use_cache=False
            ).logits

    def use_packed_attention(self) -> None:
        self.model.set_attn_implementation(IMPLEMENTATION)
        self.packed = True

    def release(self) -> None:
        """Gives the model its own attention, linear layers and mode back, without gradients."""
        self.use_own_attention()
        self.model.train(self._own_mode)
        self.model.zero_grad(set_to_none=True)
        if self._checkpoints_activations:
            self.model.gradient_checkpointing_disable()
        for module in self._linears:
            module.__dict__.pop("forward", None)

    def use_own_attention(self) -> None:
        self.packed = False
        if self.model.config._attn_implementation != self._own_attention:
            self.model.set_attn_implementation(self._own_attention)


def check_language_model(model: object) -> None:
    """Refuses, with a DataError, what is no loaded model or has no language-model head."""
    if not hasattr(model, "get_output_embeddings"):
        raise DataError(
            f"model must be a loaded one, AutoModelForCausalLM.from_pretrained(...), got a "
            f"{type(model).__name__}"
        )
    if model.get_output_embeddings() is None:
        raise DataError(
            f"{type(model).__name__} has no language-model head, so it gives no probabilities: "
            "load it with AutoModelForCausalLM.from_pretrained(...) instead of AutoModel"
        )


def load_model(path: str, trust_remote_code: bool = False) -> PreTrainedModel:
    """A causal model from a local folder or a hub id, in the dtype it was saved in."""
    try:
        with without_progress_bar():
            return AutoModelForCausalLM.from_pretrained(
                path, dtype="auto", trust_remote_code=trust_remote_code, use_safetensors=True
            )
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise DataError(f"cannot load a causal language model from '{path}': {reason}") from error


@contextmanager
def without_progress_bar() -> Iterator[None]:
    """transformers draws one for each file that it loads or saves."""
    was_on = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if was_on:
            transformers_logging.enable_progress_bar()


def resolve_device(name: str) -> torch.device | None:
    """The device of that name; for `auto` CUDA where there is one, else None: where the model is.

    Raises:
        SettingError: there is no such device.
    """
    if name == "auto":
        return torch.device("cuda") if torch.cuda.is_available() else None
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise SettingError(f"device '{name}' cannot be used here: {reason}") from None


def context_tokens(config) -> int | None:
    return getattr(config.get_text_config(), "max_position_embeddings", None)


def _linear_forward(self: nn.Linear, x: Tensor) -> Tensor:
    return linear(x, self.weight, self.bias)


def _place(model: PreTrainedModel, device: torch.device, dtype: str) -> bool:
    """Moves the model, gives it float32 master weights where they are 16-bit; returns autocast."""
    model.to(device)
    came = {p.dtype for p in model.parameters() if p.is_floating_point()}
    if dtype == "float64":
        model.double()
    elif came & {torch.bfloat16, torch.float16} or dtype == "float32" and torch.float64 in came:
        model.float()
        names = ", ".join(sorted(str(d).removeprefix("torch.") for d in came))
        logger.info("the model came in %s and gets float32 master weights", names)
    if dtype == "auto":
        likes = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
        return likes and torch.float64 not in came
    return dtype == "bfloat16"


def switch_off_noise(model: nn.Module) -> Callable[[], None]:
    """Sets every dropout and jitter of the model to 0, and returns a function that undoes it.

    By value and not by `eval()`, because activation checkpointing needs train mode: noise in the
    policy would be noise in the ratio.
    """
    changed = []
    for module in model.modules():
        is_dropout = isinstance(module, nn.modules.dropout._DropoutNd)
        for name, value in list(vars(module).items()):
            noisy = "drop" in name or "jitter" in name or (is_dropout and name == "p")
            if noisy and isinstance(value, float) and value > 0:
                changed.append((module, name, value))
                setattr(module, name, 0.0)

    def undo() -> None:
        for module, name, value in changed:
            setattr(module, name, value)

    return undo
