"""A run's folder: who may write there, and what is written.

config.yaml          the settings, resolved
metrics.jsonl        one object an optimizer step
rollouts/*.jsonl     every response, a file a rollout batch
checkpoints/         step-NNNNNN, whole by the time it has its name
final/               a Hugging Face folder
reward.png           the reward curve, where matplotlib is installed
tensorboard/         where tensorboard is installed
"""

import json
import math
import shutil
from collections.abc import Iterator
from itertools import count, takewhile
from pathlib import Path

import yaml

from gspo.config import GSPOConfig
from gspo.errors import SettingError
from gspo.log import logger
from gspo.policy.checkpoint import checkpoint_folders
from gspo.types import Group

CONTENTS = (
    "config.yaml",
    "metrics.jsonl",
    "rollouts",
    "checkpoints",
    "final",
    "reward.png",
    "tensorboard",
)


SHAPING = (
    "model",
    "prompts",
    "shuffle",
    "seed",
    "group_size",
    "batch_size",
    "gradient_accumulation_steps",
    "minibatches_per_rollout",
)
"""Settings that say which responses are sampled when; with others a run would be another run."""


class RunFolder:
    """Where one run writes; make it with `create` or `reopen`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.metrics_path = path / "metrics.jsonl"
        self.checkpoints = path / "checkpoints"
        self.final = path / "final"

    @classmethod
    def create(cls, config: GSPOConfig) -> "RunFolder":
        """A fresh folder at `output_dir`, or numbered beside it where that holds a run already."""
        path = Path(config.output_dir).expanduser()
        if path.exists() and not path.is_dir():
            raise SettingError(f"output_dir '{path}' is a file; name a folder")
        if config.overwrite:
            for name in CONTENTS:
                _remove(path / name)
        elif holds_a_run(path):
            taken = path
            path = next(p for p in _numbered(path) if not holds_a_run(p))
            logger.info(
                "%s holds a run already and is left alone; this one goes to %s", taken, path
            )
        folder = cls(path)
        try:
            (path / "rollouts").mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise SettingError(f"output_dir '{path}' cannot be made: {error.strerror}") from None
        folder.checkpoints.mkdir(exist_ok=True)
        settings = config.model_dump() | {"output_dir": str(path)}
        (path / "config.yaml").write_text(
            yaml.safe_dump(settings, sort_keys=False), encoding="utf-8"
        )
        return folder

    @classmethod
    def reopen(cls, config: GSPOConfig) -> "RunFolder":
        """The folder of a run that is to go on, with a checkpoint to go on from."""
        folder = cls(Path(config.output_dir).expanduser())
        if not checkpoint_folders(folder.checkpoints):
            kind = "checkpoint yet" if folder.metrics_path.exists() else "run to resume"
            raise SettingError(f"there is no {kind} in output_dir '{folder.path}'")
        newer = list(takewhile(holds_a_run, _numbered(folder.path)))
        if newer:
            raise SettingError(
                f"which run is to be resumed, '{folder.path}' or the later '{newer[-1]}'? Name one "
                "by output_dir, and move the later one away to resume the earlier"
            )
        folder._refuse_another_run(config)
        return folder

    def _refuse_another_run(self, config: GSPOConfig) -> None:
        before = yaml.safe_load((self.path / "config.yaml").read_text(encoding="utf-8"))
        for name in SHAPING:
            if name in before and before[name] != getattr(config, name, before[name]):
                raise SettingError(
                    f"{name} was {before[name]} when this run began and is {getattr(config, name)} "
                    f"now; a run goes on with what it began with: {self.path}/config.yaml"
                )

    def cut_metrics_after(self, step: int) -> None:
        """Drops the lines of steps that a resumed run takes again, and a torn last line."""
        if not self.metrics_path.exists():
            return
        kept = []
        for line in self.metrics_path.read_text(encoding="utf-8").splitlines():
            try:
                whole = json.loads(line)["step"] <= step
            except (json.JSONDecodeError, KeyError):
                whole = False
            if whole:
                kept.append(line + "\n")
        rewritten = self.metrics_path.with_suffix(".rewritten")
        rewritten.write_text("".join(kept), encoding="utf-8")
        rewritten.replace(self.metrics_path)

    def write_metrics(self, metrics: dict) -> None:
        with self.metrics_path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(metrics, default=float) + "\n")

    def write_rollouts(
        self, groups: list[Group], rollout: int, first_step: int, prompts_per_step: int
    ) -> None:
        """Every response of a rollout batch, with the versions that sampled it and learned it."""
        with (self.path / "rollouts" / f"rollout-{rollout:06d}.jsonl").open(
            "w", encoding="utf-8"
        ) as file:
            for index, group in enumerate(groups):
                step = first_step + index // prompts_per_step
                for line in _rollout_lines(group, rollout, step):
                    file.write(json.dumps(line, ensure_ascii=False, default=str) + "\n")


def _numbered(path: Path) -> Iterator[Path]:
    """The folders beside `path` that later runs with the same `output_dir` take, one by one."""
    return (path.parent / f"{path.resolve().name}-{number}" for number in count(2))


def holds_a_run(path: Path) -> bool:
    return any((path / name).exists() for name in CONTENTS)


def read_metrics(path: Path) -> list[dict]:
    """All lines of a `metrics.jsonl`."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def _rollout_lines(group: Group, rollout: int, step: int) -> list[dict]:
    prompt = group.prompt
    return [
        {
            "rollout": rollout,
            "step": step,
            "epoch": prompt.epoch,
            "position": prompt.position,
            "response": i,
            "prompt": prompt.source,
            "text": made.text,
            "reward": _or_null(sample.reward),
            "reward_parts": {name: _or_null(v[i]) for name, v in group.reward_parts.items()},
            "advantage": sample.advantage,
            "tokens": made.tokens,
            "finish_reason": made.finish_reason,
            "old_version": made.version,
            "new_version": step,
            "fields": prompt.fields,
        }
        for i, (sample, made) in enumerate(zip(group.samples, group.rollouts, strict=True))
    ]


def _or_null(value: float) -> float | None:
    return None if math.isnan(value) else value


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
