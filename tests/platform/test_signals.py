import os
import signal
import threading

import pytest

from w2skd.errors import Interrupted, Stopped
from w2skd.platform.signals import StopRequest, stop_on_signals

NUMBERS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)


@pytest.mark.parametrize("number", NUMBERS)
def test_a_signal_is_remembered_and_the_old_handler_restored(number: signal.Signals) -> None:
    before = {each: signal.getsignal(each) for each in NUMBERS}
    with stop_on_signals() as stop:
        assert not stop()
        os.kill(os.getpid(), number)
        assert stop()
        assert stop.signal is number
    assert {each: signal.getsignal(each) for each in NUMBERS} == before


def test_the_old_handlers_are_restored_after_an_error() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(ValueError, match="mine"), stop_on_signals():
        raise ValueError("mine")
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.parametrize("first", NUMBERS)
def test_ctrl_c_after_a_signal_does_not_wait(first: signal.Signals) -> None:
    with stop_on_signals():
        os.kill(os.getpid(), first)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_a_repeated_signal_of_a_scheduler_is_ignored() -> None:
    with stop_on_signals() as stop:
        os.kill(os.getpid(), signal.SIGUSR1)
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_schedulers_signal_exits_with_the_code_for_requeueing(number: signal.Signals) -> None:
    stop = StopRequest()
    stop.receive(number, None)
    error = stop.error("at step 3 of 9")
    assert isinstance(error, Stopped)
    assert error.exit_code == 75
    assert str(error).startswith(f"stopped by {number.name} at step 3 of 9; a checkpoint was written")


def test_ctrl_c_interrupts() -> None:
    stop = StopRequest()
    stop.receive(signal.SIGINT, None)
    error = stop.error("at step 3 of 9")
    assert isinstance(error, Interrupted)
    assert error.exit_code == 130
    assert str(error).startswith("interrupted at step 3 of 9; a checkpoint was written")


def test_ranks_agree_on_the_first_signal_that_any_got() -> None:
    stop = StopRequest()
    stop.agree([None, signal.SIGTERM, signal.SIGINT])
    assert stop.signal is signal.SIGTERM


def test_outside_the_main_thread_nothing_is_requested_and_nothing_breaks() -> None:
    before = signal.getsignal(signal.SIGTERM)
    found: list[object] = []

    def work() -> None:
        with stop_on_signals() as stop:
            found.extend([stop(), signal.getsignal(signal.SIGTERM) is before])

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [False, True]
