"""The parent's end of a contender's process."""

import json
import os
import subprocess
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from timing.alternating import Spent

import w2skd
from contenders.setting import Setting

PATHS = (Path(__file__).resolve().parents[1], Path(w2skd.__file__).resolve().parents[1])


class ContenderFailed(Exception):
    """A contender cannot be imported, built or run."""


class Handle:
    """Starts the process of a contender and sends it commands.

    Args:
        name: key of `contenders.worker.CONTENDERS`.
        python: interpreter.
        threads: PyTorch threads.
        log: file for everything that the process prints.
    """

    def __init__(self, name: str, python: Path, threads: int, log: Path):
        paths = os.pathsep.join([*map(str, PATHS), os.environ.get("PYTHONPATH", "")]).strip(os.pathsep)
        with log.open("w") as output:
            self._process = subprocess.Popen(
                [python, "-m", "contenders.worker", name, str(threads)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=output,
                text=True,
                env={**os.environ, "PYTHONPATH": paths},
            )

    def wait(self) -> None:
        """Wait until the process has imported its packages.

        Raises:
            ContenderFailed: it cannot import them.
        """
        self._read()

    def ask(self, do: str, **arguments: Any) -> dict[str, Any]:
        """Send a command and wait for the answer.

        Raises:
            ContenderFailed: the command failed.
        """
        assert self._process.stdin is not None
        try:
            print(json.dumps({"do": do, **arguments}), file=self._process.stdin, flush=True)
        except BrokenPipeError:
            raise ContenderFailed("its process has ended") from None
        return self._read()

    def build(self, setting: Setting) -> float:
        """Build the contender anew and return the seconds that this took."""
        return float(self.ask("build", **asdict(setting))["wall"])

    def run(self, steps: int, lead: int = 0) -> Spent:
        """Take `lead` steps that do not count, then `steps` steps that do."""
        spent = self.ask("run", steps=steps, lead=lead)
        return Spent(spent["wall"], spent["cpu"])

    def block(self, setting: Setting, steps: int, lead: int = 0) -> Callable[[], Spent]:
        """Build the contender anew and return a block of its steps."""
        self.build(setting)
        return lambda: self.run(steps, lead)

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        answer = json.loads(line) if line else {"error": "its process has ended"}
        if "error" in answer:
            raise ContenderFailed(answer["error"])
        return dict(answer)
