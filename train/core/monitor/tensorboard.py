"""The events of a run for TensorBoard.

Written by the thread that trains: tensorboardX's own SummaryWriter has another one do it, and
waits for it forever once that one has met a full disk or a clock that was set back.
"""

import time

from etils import epath
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.summary import scalar

from train.core.monitor.metric_rows import Row


class Events:
    """A file of events in a directory."""

    def __init__(self, directory: epath.Path, start_step: int):
        """Opens a file, and has TensorBoard forget what earlier ones hold after start_step.

        Args:
          directory: Directory for the files of all starts of a run; it is made.
          start_step: Number of updates done so far.
        """
        directory.mkdir(exist_ok=True)
        self._writer = EventsWriter(str(directory / "events"), f".{start_step}")
        begin = SessionLog(status=SessionLog.START)
        self._add(Event(step=start_step + 1, session_log=begin))

    def write(self, row: Row) -> None:
        """Writes the figures of a row, as `<split>/<name>`."""
        for name, value in row.items():
            if name not in ("step", "split"):
                summary = scalar(f"{row['split']}/{name}", value)
                self._add(Event(step=row["step"], summary=summary))

    def sync(self) -> None:
        """Hands all events to the operating system."""
        self._writer.flush()

    def close(self) -> None:
        """Ends the file."""
        self._writer.close()

    def _add(self, event: Event) -> None:
        event.wall_time = time.time()
        self._writer.write_event(event)
