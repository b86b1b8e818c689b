"""Log lines: the last training row as a live line on a terminal, each row a line elsewhere."""

import datetime
import shutil
import sys

from train.core.devices.busy import CLEAR, postpone
from train.core.devices.processes import unheard_if_stopping
from train.core.monitor.metric_rows import Row


class Display:
    """Prints rows, and the time that is left."""

    def __init__(self, total_steps: int):
        self._total_steps = total_steps
        self._live = sys.stdout.isatty()

    def show(self, row: Row, wall_seconds: float) -> None:
        """Prints a row.

        Args:
          row: Row of metrics, of a training step or an evaluation.
          wall_seconds: Seconds that the run has taken up to it.
        """
        left = wall_seconds / row["step"] * (self._total_steps - row["step"])
        parts = [
            f"{row['split']:5}",
            f"step {row['step']}/{self._total_steps}",
            f"epoch {row['epoch']:.2f}",
            f"loss {row['loss']:.4f}",
            f"error {row['top1_error']:.2f} %",
        ]
        if row["split"] == "train":
            parts.append(f"{row['images_per_second']:,.0f} images/s")
            parts.append(f"{datetime.timedelta(seconds=round(left))} left")
        line = "  ".join(parts)
        postpone()
        with unheard_if_stopping():
            self._print(line, is_over=row["split"] != "train")

    def _print(self, line: str, *, is_over: bool) -> None:
        if not self._live:
            print(line, flush=True)
        else:
            # A line that wraps could not be rewritten.
            line = line[: shutil.get_terminal_size().columns - 1]
            print(f"{CLEAR}{line}", end="\n" if is_over else "", flush=True)

    def close(self) -> None:
        """Leaves the live line where it is."""
        if self._live:
            with unheard_if_stopping():
                print(flush=True)
