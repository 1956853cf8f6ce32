"""What a person sees while a run goes on: a line every few steps, and a bar on a terminal."""

import time

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn


class Display:
    """Prints every `every` steps; on a terminal a progress bar stands below.

    Args:
        total_steps: of the run, None where it cannot be known.
        steps_done: of a run that goes on.
    """

    def __init__(self, every: int, total_steps: int | None, steps_done: int = 0) -> None:
        self.console = Console(stderr=True, highlight=False)
        self.every = every
        self.total_steps = total_steps
        self.steps_done = steps_done
        self.started = time.monotonic()
        self._bar = Progress(
            TextColumn("step"),
            MofNCompleteColumn(),
            BarColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[left]}"),
            console=self.console,
            transient=True,
            disable=not self.console.is_terminal,
        )
        self._task = self._bar.add_task("", total=total_steps, completed=steps_done, left="")

    def __enter__(self) -> "Display":
        self._bar.start()
        return self

    def __exit__(self, *exception) -> None:
        self._bar.stop()

    def step(self, metrics: dict, health: str | None) -> None:
        step = metrics["step"]
        left = self._time_left(step)
        self._bar.update(self._task, completed=step, left=left)
        if step % self.every and step != self.total_steps:
            return
        total = f"/{self.total_steps}" if self.total_steps else ""
        self._print(
            f"step {step}{total}  reward {_number(metrics['reward_mean'])}  "
            f"clipped {metrics['clip_fraction']:.0%}  "
            f"response {metrics['response_tokens_mean']:.0f} tokens  "
            f"{metrics['tokens_per_second']:.0f} tokens/s  {left}".rstrip()
        )
        if health:
            self._print(f"  {health}")

    def _print(self, line: str) -> None:
        self.console.print(line, markup=False, soft_wrap=True)

    def _time_left(self, step: int) -> str:
        if not self.total_steps or step <= self.steps_done:
            return ""
        seconds = (time.monotonic() - self.started) / (step - self.steps_done)
        return f"{duration(seconds * (self.total_steps - step))} left"


def _number(value: float | None) -> str:
    return "none" if value is None else f"{value:.3f}"


def duration(seconds: float) -> str:
    """As a person says it: 45 s, 12 min, 3 h 20 min."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"
