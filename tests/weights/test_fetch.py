"""Published files are read from torch's cache or downloaded; errors explain how to provide them."""

import hashlib
import socket
from pathlib import Path

import pytest
import torch.hub

from w2skd.errors import CheckpointError
from w2skd.weights import fetch
from w2skd.weights.fetch import cached_or_fetched, file_name, file_sum, one_line, patience, sum_differs


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "home"))
    content = b"weights"
    file = tmp_path / f"net-{hashlib.sha256(content).hexdigest()[:8]}.pth"
    file.write_bytes(content)
    return file


def test_a_file_is_downloaded_once(served: Path) -> None:
    for _ in range(2):
        file = cached_or_fetched(served.as_uri(), wanted="a net", instead="or go without")
        assert file == Path(torch.hub.get_dir()) / "checkpoints" / served.name
        assert file.read_bytes() == b"weights"
        served.unlink(missing_ok=True)


def test_the_name_in_the_cache_can_differ(served: Path) -> None:
    name = f"other-{served.name.removeprefix('net-')}"
    assert cached_or_fetched(served.as_uri(), wanted="a net", instead="", name=name).name == name


def test_the_error_names_the_file_to_provide(served: Path) -> None:
    served.unlink()
    with pytest.raises(
        CheckpointError, match=r"^a net: mine.pth is not in .*folder as mine.pth \(set by TORCH.*, or go.*out$"
    ):
        cached_or_fetched(served.as_uri(), wanted="a net", instead="or go without", name="mine.pth")
    with pytest.raises(CheckpointError, match=r"copy it into that folder \(set by TORCH_HOME"):
        cached_or_fetched(served.as_uri(), wanted="a net", instead="or go without")


def test_the_checksum_is_compared_with_the_name(served: Path) -> None:
    assert file_sum(served) == hashlib.sha256(b"weights").hexdigest()
    assert sum_differs(served) is None
    served.write_bytes(b"others")
    assert sum_differs(served) == hashlib.sha256(b"others").hexdigest()[:8]
    assert sum_differs(served.rename(served.with_name("plain.pth"))) is None


def test_the_timeout_is_restored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch, "PATIENCE_S", 3.0)
    before = socket.getdefaulttimeout()
    with patience():
        assert socket.getdefaulttimeout() == 3.0
    assert socket.getdefaulttimeout() == before


def test_names_and_reasons_are_short() -> None:
    assert file_name("https://a.test/b/net-12345678.pth?x=1") == "net-12345678.pth"
    assert one_line(OSError("first\nsecond")) == "first"
    assert one_line(TimeoutError()) == "TimeoutError"
