"""Leases: one writer at a time, takeover from holders that ended or do not respond, and no write after a takeover."""

import json
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from w2skd.errors import LeaseLost
from w2skd.platform.lease import Lease, Watch, is_held, take_lease

TIMEOUT_S = 0.4


@pytest.fixture
def held(tmp_path: Path) -> Iterator[Lease]:
    lease = take_lease(tmp_path, Watch(TIMEOUT_S))
    assert lease is not None
    yield lease
    lease.release()


def silence(lease: Lease, folder: Path) -> None:
    """Stop the renewals, as if the holder were suspended on another host."""
    lease._over.set()
    lease._renewing.join()
    values = json.loads((folder / ".lease").read_bytes())
    (folder / ".lease").write_text(json.dumps({**values, "host": "elsewhere"}))


def taken_over(folder: Path) -> Lease:
    watch, end = Watch(TIMEOUT_S), time.monotonic() + 30
    while time.monotonic() < end:
        lease = take_lease(folder, watch)
        if lease is not None:
            return lease
        time.sleep(0.05)
    raise AssertionError("never free")


def test_a_directory_is_held_by_one_at_a_time(held: Lease, tmp_path: Path) -> None:
    assert take_lease(tmp_path) is None
    assert take_lease(tmp_path, Watch(TIMEOUT_S)) is None
    assert is_held(tmp_path, Watch(TIMEOUT_S))
    held.release()
    assert not is_held(tmp_path, Watch(TIMEOUT_S))
    again = take_lease(tmp_path)
    assert again is not None
    again.release()
    assert sorted(path.name for path in tmp_path.iterdir()) == [".lock"]


def test_a_renewed_lease_is_never_taken_over(held: Lease, tmp_path: Path) -> None:
    watch, end = Watch(TIMEOUT_S), time.monotonic() + 4 * TIMEOUT_S
    while time.monotonic() < end:
        assert take_lease(tmp_path, watch) is None
        time.sleep(0.02)
    with held.guard():
        pass


def test_a_silent_holder_is_replaced_and_can_no_longer_write(held: Lease, tmp_path: Path) -> None:
    silence(held, tmp_path)
    assert take_lease(tmp_path) is None, "without a watch nobody is replaced"
    new = taken_over(tmp_path)
    with (
        pytest.raises(LeaseLost, match=r"another process took over this run, .* did not respond for 0\.4 s"),
        held.guard(),
    ):
        raise AssertionError("must not be reached")
    held.release()
    with new.guard():
        (tmp_path / "row").write_text("mine")
    new.release()


def test_a_dead_holder_of_this_host_is_replaced_at_once(tmp_path: Path) -> None:
    child = os.fork()
    if child == 0:
        take_lease(tmp_path)
        os._exit(0)
    os.waitpid(child, 0)
    assert (tmp_path / ".lease").exists()
    assert not is_held(tmp_path, Watch())
    lease = take_lease(tmp_path)
    assert lease is not None
    lease.release()


def test_nobody_takes_over_in_the_middle_of_a_write(held: Lease, tmp_path: Path) -> None:
    with held.guard(), held.guard():
        silence_later = threading.Thread(target=held._over.set)
        silence_later.start()
        silence_later.join()
        watch = Watch(0.0)
        take_lease(tmp_path, watch)
        assert take_lease(tmp_path, watch) is None
        (tmp_path / "row").write_text("whole")
    silence(held, tmp_path)
    taken_over(tmp_path).release()


def test_a_forked_child_does_not_keep_the_lock(held: Lease, tmp_path: Path) -> None:
    with held.guard():
        child = os.fork()
        if child == 0:
            time.sleep(2)
            os._exit(0)
    began = time.monotonic()
    held.release()
    lease = take_lease(tmp_path)
    assert lease is not None
    assert time.monotonic() - began < 1.5
    lease.release()
    os.waitpid(child, 0)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"{}", b'{"token": 7}', b"\xff"])
def test_a_damaged_lease_is_no_obstacle(content: bytes, tmp_path: Path) -> None:
    (tmp_path / ".lease").write_bytes(content)
    lease = taken_over(tmp_path)
    with lease.guard():
        pass
    lease.release()
