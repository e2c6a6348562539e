"""Results of one part of the GPU benchmark, written to disk after every measurement."""

import argparse
import json
import os
import time
from pathlib import Path
from typing import Any


def read_options(description: str | None) -> argparse.Namespace:
    """Read ``--out`` and ``--tiny``, and add the device and the precision of the steps."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write")
    parser.add_argument("--tiny", action="store_true", help="rehearse on the CPU")
    options = parser.parse_args()
    options.device = "cpu" if options.tiny else "cuda"
    options.precision = "fp32" if options.tiny else "bf16"
    return options


class Results:
    """Measurements of a part. An interrupted part keeps the measurements that it has added.

    Args:
        path: JSON file to write.
        **facts: facts about all measurements, such as the version of torch.
    """

    def __init__(self, path: Path, **facts: Any):
        self._path = path
        self._began = time.monotonic()
        self._values: dict[str, Any] = {"n": 0, "seconds": 0.0, **facts, "measured": {}}
        self._write()

    @property
    def seconds(self) -> float:
        """Seconds since the part began."""
        return time.monotonic() - self._began

    def add(self, name: str, value: Any, *, counts: int = 1) -> None:
        """Add a measurement and write the file. `counts` is added to ``n``; 0 marks a failure or a remark."""
        self._values["measured"][name] = value
        self._values["n"] += counts
        self._write()

    def fail(self, name: str, error: Exception) -> None:
        """Add the reason why a measurement failed."""
        reason = (str(error).splitlines() or [""])[0]
        self._values.setdefault("failed", {})[name] = f"{type(error).__name__}: {reason}"
        self._write()
        print(f"{name}: {type(error).__name__}: {reason}", flush=True)

    def _write(self) -> None:
        self._values["seconds"] = round(self.seconds, 1)
        partial = self._path.with_suffix(".partial")
        partial.write_text(json.dumps(self._values, indent=1))
        os.replace(partial, self._path)
