"""AdamW on the policy's trainable weights, with warm-up and a schedule."""

import math

import torch
from torch import nn

from gspo.config import GSPOConfig
from gspo.errors import SettingError


class PolicyOptimizer:
    """AdamW, gradient clipping and the learning rate's schedule.

    Every trainable weight has a gradient at all times, zero where nothing reached it: a step in
    which all work was skipped moves the weights by their momentum, just as the plain computation's.

    Args:
        total_steps: optimizer steps of the whole run; linear and cosine schedules need it.
    """

    def __init__(self, model: nn.Module, config: GSPOConfig, total_steps: int | None) -> None:
        self.parameters = {
            name: p for name, p in model.named_parameters(remove_duplicate=True) if p.requires_grad
        }
        if not self.parameters:
            raise SettingError("every weight of the model is frozen: there is nothing to train")
        self.config = config
        self.total_steps = total_steps
        self.steps = 0
        self.adamw = torch.optim.AdamW(
            self.parameters.values(),
            lr=config.learning_rate,
            betas=(config.adam_beta1, config.adam_beta2),
            eps=config.adam_eps,
            weight_decay=config.weight_decay,
            fused=True,
        )

    @property
    def learning_rate(self) -> float:
        """Of the next step."""
        return scheduled_rate(self.config, self.steps + 1, self.total_steps)

    def zero_grad(self) -> None:
        for p in self.parameters.values():
            if p.grad is None:
                p.grad = torch.zeros_like(p)
            else:
                p.grad.zero_()

    def step(self) -> float:
        """Clips the gradient, takes a step; returns the gradient's norm before clipping.

        Raises:
            FloatingPointError: the norm is not finite; the weights are as they were.
        """
        norm = nn.utils.clip_grad_norm_(self.parameters.values(), self.config.max_grad_norm)
        if not norm.isfinite():
            raise FloatingPointError(
                f"the gradient's norm is {norm.item()} at optimizer step {self.steps + 1}, which "
                "was not taken; lower the learning rate or look at the newest rollouts"
            )
        for group in self.adamw.param_groups:
            group["lr"] = self.learning_rate
        self.adamw.step()
        self.steps += 1
        return norm.item()


def scheduled_rate(config: GSPOConfig, step: int, total_steps: int | None) -> float:
    """The learning rate of a step, counted from 1: a linear rise over `warmup_steps`, then
    constant, or falling linearly or by a cosine to 0 after the last step."""
    if step <= config.warmup_steps:
        return config.learning_rate * step / config.warmup_steps
    if config.lr_schedule == "constant":
        return config.learning_rate
    passed = (step - 1 - config.warmup_steps) / max(1, total_steps - config.warmup_steps)
    passed = min(1.0, passed)
    if config.lr_schedule == "linear":
        return config.learning_rate * (1 - passed)
    return config.learning_rate * (1 + math.cos(math.pi * passed)) / 2
