"""TensorBoard events. The only file that imports tensorboard."""

from pathlib import Path


class TensorBoard:
    """Writes each number of a metrics line as a scalar; raises ImportError where not installed.

    Steps from `first_step` on replace what an interrupted run has written of them.
    """

    def __init__(self, folder: Path, first_step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(folder, purge_step=first_step)

    def write(self, metrics: dict) -> None:
        for name, value in metrics.items():
            if isinstance(value, int | float) and name != "step":
                self._writer.add_scalar(name, value, metrics["step"])

    def close(self) -> None:
        self._writer.close()
