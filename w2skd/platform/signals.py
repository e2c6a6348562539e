"""Signal handlers that stop a run with a checkpoint on SIGTERM, SIGUSR1 (batch schedulers) and the first Ctrl-C."""

import signal
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from types import FrameType

from w2skd.errors import Interrupted, Stopped, UserError


class StopRequest:
    """The first signal that asked the run to stop.

    Attributes:
        signal: None until a signal arrives.
        again: the command that resumes the run, for the error message.
    """

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None
        self.again = "the same command"

    def __call__(self) -> bool:
        """Return whether a stop was requested."""
        return self.signal is not None

    def receive(self, number: int, frame: FrameType | None) -> None:
        """Handle a signal. A Ctrl-C after an earlier signal raises `KeyboardInterrupt` at once."""
        if number == signal.SIGINT and self.signal is not None:
            raise KeyboardInterrupt
        self.signal = signal.Signals(number)

    def agree(self, heard: Iterable[signal.Signals | None]) -> None:
        """Adopt the first signal received by any rank, so that all ranks end with the same error."""
        self.signal = next((each for each in heard if each is not None), None)

    def error(self, where: str) -> UserError:
        """Return the error to raise after the checkpoint. Its exit code tells a scheduler to requeue the job."""
        again = f"a checkpoint was written, resume with {self.again}"
        if self.signal is None or self.signal == signal.SIGINT:
            return Interrupted(f"interrupted {where}; {again}")
        return Stopped(f"stopped by {self.signal.name} {where}; {again}")


@contextmanager
def stop_on_signals() -> Iterator[StopRequest]:
    """Handle signals inside the block. Outside the main thread Python delivers none, so no stop is ever requested."""
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    numbers = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
    before = {number: signal.signal(number, request.receive) for number in numbers}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
