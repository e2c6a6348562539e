"""Runs commands of w2skd in forked processes and sends them a signal at a chosen moment.

Started as a program, this file imports torch once and then forks a process for every command, so that each process
really dies and none waits for the import of torch. The moment is chosen by patching: the signal comes before or after
the n-th call of a function.
"""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from w2skd.cli.main import main


@dataclass(frozen=True)
class Blow:
    """A signal that a process sends itself.

    Attributes:
        target: function or method that is being called, such as ``w2skd.training.engine:Engine._take_step``.
        call: which of the calls, counted from 1.
        argument: counts only calls of which some argument, as text, ends in this.
        after: the call is done first.
        number: the signal.
    """

    target: str
    call: int
    argument: str = ""
    after: bool = False
    number: int = signal.SIGKILL


class Nursery:
    """Runs commands in forked processes, for as long as the block lasts.

    Args:
        packages: more folders from which Python imports.
    """

    def __init__(self, packages: Sequence[Path] = ()) -> None:
        repository = Path(__file__).resolve().parent.parent
        self._path = os.pathsep.join(str(folder) for folder in (repository, *packages))

    def __enter__(self) -> "Nursery":
        environment = os.environ | {"PYTHONPATH": self._path, "OMP_NUM_THREADS": "1"}
        self._program = subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
            start_new_session=True,
        )
        return self

    def kill(self) -> None:
        """Kill the program and every command that it runs."""
        os.killpg(self._program.pid, signal.SIGKILL)

    def __exit__(self, *_: object) -> None:
        self._program.communicate(timeout=300)

    def run(self, blow: Blow | None, said: Path, *arguments: object, variables: Mapping[str, str] | None = None) -> int:
        """Run a command with its output in a file; return its exit code, or minus the signal that killed it.

        Args:
            blow: the signal that hits the command, if any.
            said: the file.
            arguments: of the command.
            variables: of the environment, on top of this process's own.
        """
        assert self._program.stdin
        assert self._program.stdout
        values = [str(argument) for argument in arguments]
        request = {"blow": blow and asdict(blow), "said": str(said), "arguments": values, "variables": variables or {}}
        print(json.dumps(request), file=self._program.stdin, flush=True)
        return int(self._program.stdout.readline())


def _strike(blow: Blow) -> None:
    module, _, path = blow.target.partition(":")
    *owners, name = path.split(".")
    owner: Any = import_module(module)
    for part in owners:
        owner = getattr(owner, part)
    original = getattr(owner, name)
    calls = 0

    def struck(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        counts = not blow.argument or any(str(value).endswith(blow.argument) for value in args)
        calls += counts
        due = counts and calls == blow.call
        if due and not blow.after:
            os.kill(os.getpid(), blow.number)
        result = original(*args, **kwargs)
        if due and blow.after:
            os.kill(os.getpid(), blow.number)
        return result

    setattr(owner, name, struck)


def _run(request: dict[str, Any]) -> None:
    with Path(request["said"]).open("w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    sys.argv = ["w2skd", *request["arguments"]]
    os.environ |= request["variables"]
    if request["blow"] is not None:
        _strike(Blow(**request["blow"]))
    main()


def _serve() -> None:
    import_module("w2skd.runs.arm")  # slow imports, before the first command
    answers = os.dup(1)
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            os.close(answers)
            _run(json.loads(line))
            sys.exit(0)
        _, how = os.waitpid(child, 0)
        os.write(answers, f"{os.waitstatus_to_exitcode(how)}\n".encode())


if __name__ == "__main__":
    _serve()
