"""A polite stop: SIGTERM and SIGUSR1, as batch schedulers send them, and the first Ctrl-C."""

import signal
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from types import FrameType

from w2skd.errors import Interrupted, Stopped, UserError


class StopRequest:
    """Remembers which signal asked the run to stop.

    Attributes:
        signal: None until one came.
        again: what goes on with the run, for whoever reads that it was stopped.
    """

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None
        self.again = "the same command"

    def __call__(self) -> bool:
        """Whether somebody asked."""
        return self.signal is not None

    def receive(self, number: int, frame: FrameType | None) -> None:
        """Signal handler. A second Ctrl-C does not wait for the step to end."""
        if number == signal.SIGINT and self.signal is not None:
            raise KeyboardInterrupt
        self.signal = signal.Signals(number)

    def agree(self, heard: Iterable[signal.Signals | None]) -> None:
        """Take the first signal that any rank got for this one's own, so that all end in the same way."""
        self.signal = next((each for each in heard if each is not None), None)

    def error(self, where: str) -> UserError:
        """What to raise once the checkpoint is written: the exit code tells a scheduler to start the command again."""
        again = f"a checkpoint was written, {self.again} goes on from there"
        if self.signal in (signal.SIGINT, None):
            return Interrupted(f"interrupted {where}; {again}")
        assert self.signal is not None
        return Stopped(f"stopped by {self.signal.name} {where}; {again}")


@contextmanager
def stop_on_signals() -> Iterator[StopRequest]:
    """Listen for the block. Outside the main thread, where Python delivers no signals, nothing is ever requested."""
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
