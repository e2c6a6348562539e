import os
from pathlib import Path

# Before torch is loaded: several test processes share few cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest

SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if SHARED_DATA.is_dir():
        return
    for item in items:
        if item.get_closest_marker("shared_data"):
            item.add_marker(pytest.mark.skip(reason="no real images in ../shared/data"))


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder with archives of real images; for tests marked ``shared_data``."""
    return SHARED_DATA
