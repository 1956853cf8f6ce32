"""The training loop: collect, learn, again; with everything that a run leaves behind."""

import math
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from gspo.config import GSPOConfig
from gspo.data.prompts import PromptReader
from gspo.engines.base import Engine, eos_ids
from gspo.engines.in_process import InProcessEngine
from gspo.engines.plain import PlainEngine
from gspo.errors import DataError, SettingError
from gspo.log import logger
from gspo.policy import checkpoint
from gspo.policy.load import Policy
from gspo.policy.optimizer import PolicyOptimizer
from gspo.policy.probe import choose_attention
from gspo.report.display import Display
from gspo.report.plots import plot_reward
from gspo.report.tensorboard import TensorBoard
from gspo.rewards.base import RewardSum
from gspo.training.collect import ALWAYS_NAMED, Collected, collect
from gspo.training.health import health
from gspo.training.learn import learn
from gspo.training.metrics import StepStats, peak_memory_gib, rollout_metrics
from gspo.training.run_folder import RunFolder, read_metrics
from gspo.training.stream import (
    Progress,
    Unit,
    check_prompts,
    count_steps,
    rollout_batches,
    warn_if_shuffled,
)
from gspo.types import Group, Prompt


@dataclass(frozen=True)
class TrainResult:
    """What `GSPOTrainer.train` returns."""

    metrics: dict
    """The last line of metrics.jsonl."""
    run_dir: Path
    final_dir: Path
    """A Hugging Face folder with the trained model."""
    metrics_path: Path


class Run:
    """One call of `GSPOTrainer.train`: state, loop, and what is written on the way."""

    def __init__(
        self,
        model,
        ref_model,
        reward: RewardSum | None,
        tokenizer,
        config: GSPOConfig,
        dataloader: Iterable,
        resume: bool,
    ) -> None:
        self.config = config
        self.tokenizer = tokenizer
        self.reward = reward
        self.dataloader = dataloader
        self.total_steps = count_steps(dataloader, self.config)
        if self.total_steps is None and self.config.lr_schedule != "constant":
            raise SettingError(
                f"lr_schedule = {self.config.lr_schedule} needs to know where the run ends, and "
                "this train_dataloader does not say how long it is: set max_steps"
            )
        self._check_warmup()
        self.models = (model, ref_model)
        self.reference: Policy | None = None
        self._engine: Engine | None = None
        self.progress = Progress()
        self.groups: list[Group] = []  # the rollout batch in hand
        self.batch_metrics: dict = {}
        self.last_metrics: dict = {}
        self.folder: RunFolder | None = RunFolder.reopen(config) if resume else None
        self.tensorboard: TensorBoard | None = None

    def _check_warmup(self) -> None:
        if self.total_steps and self.config.warmup_steps >= self.total_steps:
            raise SettingError(
                f"warmup_steps = {self.config.warmup_steps}, but the run has only "
                f"{self.total_steps} optimizer steps"
            )

    def run(self) -> TrainResult:
        model, ref_model = self.models
        self.policy = Policy(model, device=self.config.device, dtype=self.config.dtype)
        try:
            choose_attention(self.policy)
            if self.config.activation_checkpointing:
                self.policy.checkpoint_activations()
            if self.config.kl_coef > 0:
                self.reference = Policy(
                    ref_model, device=self.config.device, dtype=self.config.dtype
                )
                choose_attention(self.reference)
                self.reference.model.eval()
            self.optimizer = PolicyOptimizer(self.policy.model, self.config, self.total_steps)
            if self.folder:
                self._restore()
            with Display(
                self.config.logging_steps, self.total_steps, self.progress.step
            ) as self.display:
                self._loop()
        finally:
            if self.tensorboard:
                self.tensorboard.close()
            self.policy.release()
            if self.reference:
                self.reference.release()
        return self._finish()

    def _restore(self) -> None:
        newest = checkpoint.checkpoint_folders(self.folder.checkpoints)[-1]
        state, self.groups = checkpoint.load_checkpoint(newest, self.policy, self.optimizer)
        self.progress = Progress(**state["progress"])
        self.batch_metrics = state["batch_metrics"]
        self.folder.cut_metrics_after(self.progress.step)
        self._open_tensorboard()
        warn_if_shuffled(self.dataloader)
        logger.info("resumed from %s", newest)

    def _open_tensorboard(self) -> None:
        if not self.config.tensorboard:
            return
        try:
            self.tensorboard = TensorBoard(self.folder.path / "tensorboard", self.progress.step + 1)
        except ImportError:
            logger.info("no TensorBoard events: tensorboard is not installed")

    def _loop(self) -> None:
        reader = PromptReader(self.tokenizer, self.policy.context_tokens, self.policy.vocabulary)
        check_prompts(self.dataloader, reader)
        batches = rollout_batches(self.dataloader, reader, self.config, self.progress)
        if self.groups and not self._enough():  # the rollout batch of a run that goes on
            self._learn()
        while not self._enough() and (units := next(batches, None)):
            self._begin(units)
            self._learn()

    def _enough(self) -> bool:
        return self.config.max_steps is not None and self.progress.step >= self.config.max_steps

    def _begin(self, units: list[Unit]) -> None:
        """Makes the next rollout batch: sampled and scored, or as it came."""
        sampled = isinstance(units[0], Prompt)
        if sampled:
            engine = self.engine
            self.reward.check({name for prompt in units for name in prompt.fields} | ALWAYS_NAMED)
        # Only now: input that cannot be used must not have cost an older run its folder.
        if self.folder is None:
            self.folder = RunFolder.create(self.config)
            self._open_tensorboard()
        sync_seconds = 0.0
        if sampled:
            start = time.perf_counter()
            engine.sync(self.progress.step)
            sync_seconds = time.perf_counter() - start
            collected = collect(engine, units, self.reward, self.config)
            if self.config.save_rollouts:
                self.folder.write_rollouts(
                    collected.groups,
                    self.progress.rollout,
                    self.progress.step + 1,
                    self.config.prompts_per_step,
                )
        else:
            collected = Collected(units, 0.0, 0.0)
        self.groups = collected.groups
        self.batch_metrics = rollout_metrics(collected.groups) | {
            "collect_seconds": collected.collect_seconds,
            "reward_seconds": collected.reward_seconds,
            "sync_seconds": sync_seconds,
        }

    @property
    def engine(self) -> Engine:
        """Made when the first prompts come: ready batches need none."""
        if self._engine is None:
            self._engine = self._make_engine()
        return self._engine

    def _make_engine(self) -> Engine:
        if self.reward is None:
            raise DataError("prompts came, but the trainer has no reward_model")
        if self.config.group_size == 1:
            raise SettingError(
                "group_size = 1: a response is compared with its group, so there must be at least 2"
            )
        room = self.policy.room_after(0, self.config.max_response_tokens)
        if room < self.config.max_response_tokens:
            logger.warning(
                "max_response_tokens = %d, but the model has a context of %d: responses end there",
                self.config.max_response_tokens,
                room,
            )
        if not eos_ids(self.policy.model, self.tokenizer) and not self.config.stop:
            logger.warning(
                "neither the model nor its tokenizer names an end-of-sequence token: every "
                "response will have max_response_tokens = %d",
                self.config.max_response_tokens,
            )
        if not self.policy.packed:
            return PlainEngine(self.policy, self.tokenizer)
        return InProcessEngine(
            self.policy,
            self.tokenizer,
            memory_gib=self.config.engine_memory_gib,
            prefill_tokens=self.config.micro_batch_tokens,
        )

    def _learn(self) -> None:
        """Takes the optimizer steps that are left of the rollout batch in hand."""
        steps = learn(
            self.policy,
            self.optimizer,
            self.groups,
            self.config,
            self.reference,
            self.progress.minibatches_done,
        )
        for stats in steps:
            self.progress.step += 1
            self.progress.minibatches_done += 1
            self._log(stats)
            if self.progress.step % self.config.save_steps == 0:
                self._save()
            if self._enough():
                break
        self.groups = []

    def _log(self, stats: StepStats) -> None:
        batch = self.batch_metrics
        if self.progress.minibatches_done > 1:
            batch = batch | {"collect_seconds": 0.0, "reward_seconds": 0.0, "sync_seconds": 0.0}
        metrics = {
            "step": self.progress.step,
            "epoch": self.progress.epoch,
            "rollout": self.progress.rollout,
            **batch,
            **stats.metrics(),
        }
        metrics["tokens_per_second"] = stats.response_tokens / self._seconds(stats)
        metrics["peak_memory_gib"] = peak_memory_gib()
        self.last_metrics = metrics
        self.folder.write_metrics(metrics)
        if self.tensorboard:
            self.tensorboard.write(metrics)
        self.display.step(metrics, health(metrics, self.config))

    def _seconds(self, stats: StepStats) -> float:
        """Of one step, its share of sampling and scoring the rollout batch included."""
        names = ("collect_seconds", "reward_seconds", "sync_seconds")
        steps = math.ceil(len(self.groups) / self.config.prompts_per_step)
        return stats.seconds + sum(self.batch_metrics[name] for name in names) / steps

    def _save(self) -> None:
        state = {
            "step": self.progress.step,
            "progress": asdict(self.progress),
            "batch_metrics": self.batch_metrics,
        }
        checkpoint.save_checkpoint(
            self.folder.checkpoints,
            self.policy,
            self.optimizer,
            self.tokenizer,
            state,
            self.groups,
            self.config.keep_checkpoints,
        )

    def _finish(self) -> TrainResult:
        if not self.last_metrics:
            logger.info("nothing was left to do in %s", self.folder.path)
        checkpoint.save_model(self.folder.final, self.policy, self.tokenizer)
        metrics = read_metrics(self.folder.metrics_path)
        if not plot_reward(metrics, self.folder.path / "reward.png"):
            logger.info("no reward curve: matplotlib is not installed")
        return TrainResult(
            metrics=metrics[-1],
            run_dir=self.folder.path,
            final_dir=self.folder.final,
            metrics_path=self.folder.metrics_path,
        )
