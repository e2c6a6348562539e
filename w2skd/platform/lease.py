"""Leases on directories: one process at a time may write, among all hosts that share a file system.

A holder renews its lease until it releases it. Another process may take the directory over if the holder has ended, or
if it has not renewed the lease for some time, for example because it was suspended. When a suspended holder wakes up,
its next write fails, because every write checks the lease's token under a file lock. So only the takeover depends on
time; safety does not.

.lease   token, host, process and number of renewals, while the directory is held
.lock    locked during every check, write and takeover
"""

import fcntl
import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import IO, Any

from w2skd.errors import LeaseLost, UserError
from w2skd.platform.files import write_atomically, writing

TIMEOUT_S = 60.0
"""Time without a renewal after which other processes may take a directory over."""

_RENEWALS_PER_TIMEOUT = 6
_LOCK_PATIENCE_S = 1.0


class Watch:
    """Observes the leases of other processes and tells which of them have expired.

    The clocks of hosts differ, so a lease expires once this process has seen it unchanged for `timeout_s`.
    """

    def __init__(self, timeout_s: float = TIMEOUT_S):
        self.timeout_s = timeout_s
        self._seen: dict[Path, tuple[bytes, float]] = {}

    def has_expired(self, folder: Path, content: bytes) -> bool:
        """Return whether the lease of a folder has had the given content for `timeout_s`."""
        now = time.monotonic()
        before, since = self._seen.get(folder, (b"", now))
        if before != content:
            self._seen[folder] = (content, now)
            return False
        return now - since >= self.timeout_s


class Lease:
    """The right to write into a directory; see `take_lease`.

    Args:
        folder: the directory.
        timeout_s: time without a renewal after which other processes may take the directory over.
    """

    def __init__(self, folder: Path, timeout_s: float):
        self._folder = folder
        self._timeout_s = timeout_s
        self._token = secrets.token_hex(16)
        self._renewals = 0
        self._depth = 0
        self._guarding = threading.RLock()
        self._over = threading.Event()
        self._renewing = threading.Thread(target=self._renew_until_over, daemon=True, name="lease")

    @contextmanager
    def guard(self) -> Iterator[None]:
        """Hold the directory's lock while the block writes. Nested guards share one lock.

        Raises:
            LeaseLost: another process has taken the directory over.
        """
        with self._guarding:
            if self._depth > 0:
                yield
                return
            with _locked(self._folder):
                if _token_of(_read(self._folder)) != self._token:
                    raise LeaseLost(
                        f"{self._folder}: another process took over this run, because this one did not respond for "
                        f"{self._timeout_s:g} s"
                    )
                self._depth += 1
                try:
                    yield
                finally:
                    self._depth -= 1

    def begin(self) -> None:
        """Write the lease and start renewing it. The caller holds the directory's lock."""
        self._write()
        self._renewing.start()

    def release(self) -> None:
        """Remove the lease, unless another process has taken the directory over."""
        self._over.set()
        with suppress(UserError, OSError), self.guard():
            _lease(self._folder).unlink()

    def _renew_until_over(self) -> None:
        while not self._over.wait(self._timeout_s / _RENEWALS_PER_TIMEOUT):
            try:
                with self.guard():
                    if not self._over.is_set():
                        self._write()
            except LeaseLost:
                return
            except (UserError, OSError):
                continue  # a full disk or an unreachable file system: the next write of the run reports it

    def _write(self) -> None:
        self._renewals += 1
        host, started = _host(), _start_of(os.getpid())
        values = {"token": self._token, "host": host, "pid": os.getpid(), "started": started, "renewed": self._renewals}
        write_atomically(_lease(self._folder), json.dumps(values).encode())


def take_lease(folder: Path, watch: Watch | None = None) -> Lease | None:
    """Take the lease of an existing directory; return None if another process holds it.

    If the holder ran on this host and has ended, its lease is replaced immediately.

    Args:
        folder: the directory.
        watch: finds expired leases. With None, leases of suspended processes and of other hosts are never replaced.

    Raises:
        OutputError: the directory cannot be written.
    """
    lease = Lease(folder, TIMEOUT_S if watch is None else watch.timeout_s)
    with writing(folder):
        try:
            with _locked(folder, patience_s=_LOCK_PATIENCE_S):
                content = _read(folder)
                held = _token_of(content) is not None and not _has_ended(content)
                if held and not (watch is not None and watch.has_expired(folder, content)):
                    return None
                lease.begin()
                return lease
        except BlockingIOError:  # the holder is writing
            return None


def is_held(folder: Path, watch: Watch) -> bool:
    """Return whether a process holds a directory and has neither ended nor stopped responding."""
    content = _read(folder)
    return _token_of(content) is not None and not _has_ended(content) and not watch.has_expired(folder, content)


@contextmanager
def _locked(folder: Path, patience_s: float | None = None) -> Iterator[None]:
    """Lock a directory against other guards.

    Raises:
        BlockingIOError: it stayed locked for `patience_s`. With None, the call waits without a limit.
    """
    while True:
        with (folder / ".lock").open("a") as file:
            if patience_s is None:
                fcntl.flock(file, fcntl.LOCK_EX)
            else:
                _lock_within(file.fileno(), patience_s)
            try:
                if not _is_current(file, folder / ".lock"):
                    continue  # the file was removed with the folder of a run that never started
                yield
                return
            finally:
                # Closing is not enough: a process that was forked in the meantime also has the file open.
                fcntl.flock(file, fcntl.LOCK_UN)


def _is_current(file: IO[str], path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _lock_within(handle: int, patience_s: float) -> None:
    end = time.monotonic() + patience_s
    while True:
        try:
            return fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= end:
                raise
            time.sleep(0.01)


def _lease(folder: Path) -> Path:
    return folder / ".lease"


def _read(folder: Path) -> bytes:
    try:
        return _lease(folder).read_bytes()
    except FileNotFoundError:
        return b""


def _values(content: bytes) -> dict[str, Any]:
    with suppress(ValueError):
        values = json.loads(content)
        if isinstance(values, dict):
            return values
    return {}


def _token_of(content: bytes) -> str | None:
    return _values(content).get("token")


def _has_ended(content: bytes) -> bool:
    """Return whether a lease's holder ran on this host and is gone."""
    values = _values(content)
    if values.get("host") != _host():
        return False
    if values.get("pid") == os.getpid():
        return False
    return _start_of(values.get("pid")) != values.get("started")


@cache
def _host() -> str:
    """Return an identifier of the host that processes share if they see each other: name, boot and PID namespace."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{socket.gethostname()} {boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return socket.gethostname()


def _start_of(pid: Any) -> str | None:
    """Return the start time of a process of this host, since PIDs are reused; None if there is no such process."""
    try:
        fields = Path(f"/proc/{int(pid)}/stat").read_text().rpartition(")")[2].split()
    except (OSError, ValueError, TypeError):
        return _start_without_proc(pid)
    return None if fields[0] in ("Z", "X") else fields[19]


def _start_without_proc(pid: Any) -> str | None:
    if Path("/proc/self/stat").exists():
        return None
    try:
        os.kill(int(pid), 0)
    except PermissionError:
        return "running"
    except (OSError, ValueError, TypeError):
        return None
    return "running"
