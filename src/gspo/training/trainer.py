"""`GSPOTrainer`, the public door: checks what it is given and starts runs."""

from collections.abc import Iterable

from gspo.config import GSPOConfig
from gspo.data.prompts import check_readable_again
from gspo.errors import SettingError
from gspo.log import logger
from gspo.policy.load import check_language_model
from gspo.rewards.base import as_reward
from gspo.training.run import Run, TrainResult


class GSPOTrainer:
    """Trains a Hugging Face causal language model by GSPO (arXiv 2507.18071).

    Args:
        model: from `AutoModelForCausalLM`; trained in place.
        ref_model: the frozen reference of the KL penalty; run only when `config.kl_coef` > 0.
        reward_model: called as `reward_model(queries, responses) -> Tensor [B]`; a
            `BaseRewardModel`, any such callable, a list of them, or a list of (callable, weight).
            What its signature names besides is handed to it (`answer`, `finish_reasons`, ...).
        tokenizer: of the model; its chat template renders chats.
        config: a `GSPOConfig`; the defaults are the paper's.

    Raises:
        SettingError, DataError: in one sentence, before anything expensive.
    """

    def __init__(
        self, model, ref_model=None, reward_model=None, tokenizer=None, config=None
    ) -> None:
        self.config = GSPOConfig() if config is None else config
        if not isinstance(self.config, GSPOConfig):
            kind = type(config).__name__
            raise SettingError(f"config must be a GSPOConfig, got {kind}: GSPOConfig(**settings)")
        if isinstance(tokenizer, str):
            raise SettingError(
                "tokenizer must be a loaded one: AutoTokenizer.from_pretrained(...), got a name"
            )
        check_language_model(model)
        self.model = model
        self.ref_model = ref_model
        self.tokenizer = tokenizer
        self.reward = None if reward_model is None else as_reward(reward_model)
        self._check_reference()
        if self.config.minibatches_per_rollout == 1:
            logger.warning(
                "minibatches_per_rollout = 1: with one update a rollout every ratio is 1 and "
                "nothing is ever clipped; this is plain REINFORCE with group advantages"
            )

    def _check_reference(self) -> None:
        if self.config.kl_coef == 0:
            if self.ref_model is not None:
                logger.info("ref_model is not run: kl_coef is 0")
            return
        if self.ref_model is None:
            raise SettingError("kl_coef > 0 needs a ref_model to stay near to")
        check_language_model(self.ref_model)
        ours = next(self.model.parameters()).data_ptr()
        if next(self.ref_model.parameters()).data_ptr() == ours:
            raise SettingError(
                "ref_model is the model itself, so the KL would always be 0: load it a second time"
            )
        sizes = [len(m.get_input_embeddings().weight) for m in (self.model, self.ref_model)]
        if sizes[0] != sizes[1]:
            raise SettingError(f"model and ref_model have other vocabularies: {sizes} tokens")

    def train(self, train_dataloader: Iterable, resume: bool = False) -> TrainResult:
        """Runs all epochs (or `max_steps`) and writes the run's folder.

        Args:
            train_dataloader: prompts (text, chat messages, or dicts with `prompt` and any other
                fields), or ready batches of tensors; see `docs/data.md`.
            resume: go on from the newest checkpoint in `config.output_dir`.
        """
        check_readable_again(train_dataloader, self.config.num_epochs)
        run = Run(
            model=self.model,
            ref_model=self.ref_model,
            reward=self.reward,
            tokenizer=self.tokenizer,
            config=self.config,
            dataloader=train_dataloader,
            resume=resume,
        )
        return run.run()
