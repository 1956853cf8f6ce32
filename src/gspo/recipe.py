"""A recipe: one YAML file that holds a whole training run."""

from pathlib import Path
from typing import TYPE_CHECKING

import yaml

from gspo.config import Recipe
from gspo.errors import DataError, SettingError
from gspo.log import logger

if TYPE_CHECKING:
    from gspo.data.prompts import ShuffledPrompts
    from gspo.training.trainer import GSPOTrainer


def read_recipe(path: str | Path, overrides: dict | None = None) -> Recipe:
    """The settings of a YAML file, with `overrides` on top.

    Raises:
        SettingError: the file is not there, is no YAML mapping, or holds what `Recipe` refuses.
    """
    path = Path(path)
    try:
        settings = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SettingError(f"cannot read the recipe '{path}': {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())
        raise SettingError(f"the recipe '{path}' is no valid YAML: {reason}") from None
    if not isinstance(settings, dict):
        raise SettingError(f"the recipe '{path}' must consist of `key: value` lines")
    return Recipe(**({str(key): value for key, value in settings.items()} | (overrides or {})))


def make_trainer(
    recipe: Recipe, resume: bool = False
) -> "tuple[GSPOTrainer, ShuffledPrompts | list[dict]]":
    """The trainer and the prompts of a recipe.

    What can be checked without the model's weights (device, rewards, prompts, lengths, a run to
    resume) is checked before they are loaded.
    """
    from transformers import AutoConfig, AutoTokenizer

    from gspo.data.prompts import PromptReader, ShuffledPrompts
    from gspo.data.sources import load_prompts
    from gspo.policy.load import context_tokens, load_model, resolve_device
    from gspo.rewards.base import as_reward
    from gspo.rewards.load import load_reward
    from gspo.training.collect import ALWAYS_NAMED
    from gspo.training.run_folder import RunFolder
    from gspo.training.stream import check_prompts
    from gspo.training.trainer import GSPOTrainer

    resolve_device(recipe.device)
    if resume:
        RunFolder.reopen(recipe)
    prompts = load_prompts(
        recipe.prompts,
        prompt_field=recipe.prompt_field,
        split=recipe.prompts_split,
        limit=recipe.max_prompts,
        system_prompt=recipe.system_prompt,
        chat=recipe.chat,
    )
    rewards = [load_reward(name) for name in recipe.reward_names]
    terms = rewards if recipe.reward_weights is None else _weighted(rewards, recipe.reward_weights)
    as_reward(terms).check(ALWAYS_NAMED.union(*(prompt.keys() - {"prompt"} for prompt in prompts)))
    code = {"trust_remote_code": recipe.trust_remote_code}
    try:
        tokenizer = AutoTokenizer.from_pretrained(recipe.model, **code)
        context = context_tokens(AutoConfig.from_pretrained(recipe.model, **code))
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise DataError(f"cannot load the tokenizer of '{recipe.model}': {reason}") from error
    check_prompts(prompts, PromptReader(tokenizer, context))
    reference = None
    if recipe.kl_coef > 0:
        reference = load_model(recipe.reference_model, recipe.trust_remote_code)
    elif recipe.reference_model is not None:
        logger.info("reference_model is not loaded: kl_coef is 0")
    trainer = GSPOTrainer(
        model=load_model(recipe.model, recipe.trust_remote_code),
        ref_model=reference,
        reward_model=terms,
        tokenizer=tokenizer,
        config=recipe,
    )
    return trainer, ShuffledPrompts(prompts, recipe.seed) if recipe.shuffle else prompts


def _weighted(rewards: list, weights: list[float]) -> list[tuple]:
    if len(rewards) != len(weights):
        raise SettingError(f"reward_weights has {len(weights)} values for {len(rewards)} rewards")
    return list(zip(rewards, weights, strict=True))
