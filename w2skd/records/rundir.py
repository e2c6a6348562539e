"""The directory of a run: create, lock, append, truncate on resume, and read.

recipe.yaml        the resolved recipe
environment.json   versions, device, threads, commit, data fingerprint, model sizes
status.json        arm, seed, state (running, finished, stopped, failed) and why
metrics.jsonl      rows, see `w2skd.records.rows`
checkpoints/       last.pt, previous.pt, best.pt
pictures/          outputs at validations, for tasks that draw them; the teacher's as well
model.safetensors  the final model, with its recipe inside
"""

import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from w2skd.errors import CheckpointError, RecipeError, RunDirError, RunHeld, UsageError
from w2skd.platform.files import remove_unfinished, write_atomically, write_json, writing
from w2skd.platform.lease import Lease, Watch, take_lease
from w2skd.recipe.arms import TEACHER, Arm, Help
from w2skd.recipe.load import RecipeTypes, dump_recipe, validate_recipe
from w2skd.recipe.schema import Recipe, published_weights
from w2skd.recipe.yaml_text import parse_yaml
from w2skd.records.names import RunName
from w2skd.records.rows import EvalRow, Row, decode, encode
from w2skd.records.schema import (
    AMOUNT,
    FLAG,
    OBJECT,
    TEXT,
    WHOLE,
    Kind,
    SchemaError,
    check_object,
    object_of,
    one_of,
    or_null,
    parse,
)

State = Literal["running", "finished", "stopped", "failed"]

_STATUS = {"arm": TEXT, "seed": WHOLE, "state": one_of(*get_args(State))}
_STATUS_DETAILS = {"length": AMOUNT, "step": or_null(WHOLE), "total_steps": or_null(WHOLE), "reason": or_null(TEXT)}
_ENVIRONMENT: dict[str, Kind] = {
    **dict.fromkeys(("w2skd", "torch", "device", "data_fingerprint"), TEXT),
    **dict.fromkeys(("commit", "device_name"), or_null(TEXT)),
    **dict.fromkeys(("threads", "ranks"), WHOLE),
    **dict.fromkeys(("scoring", "init_from"), or_null(OBJECT)),
    "forward_flops": or_null(object_of(or_null(AMOUNT))),
    "image_sizes_vary": FLAG,
}
"""Facts that reports and resumes read. All are optional, because the task decides which exist."""


class RunDir:
    """Writer of a run directory, held by rank 0 during training."""

    def __init__(self, path: Path):
        self.path = path
        self.metrics_path = path / "metrics.jsonl"
        self.checkpoints = path / "checkpoints"
        self.pictures = path / "pictures"
        self.model_path = path / "model.safetensors"
        self._lease: Lease | None = None
        self._made: list[Path] = []

    def holds_a_run(self) -> bool:
        """Return whether the directory has files other than hidden ones, such as the lock or unfinished writes."""
        return self.path.is_dir() and any(not entry.name.startswith(".") for entry in self.path.iterdir())

    def lock(self, watch: Watch | None = None) -> None:
        """Lock the directory for this process until `close` or the end of the process.

        Args:
            watch: finds expired leases, so that runs of suspended processes and of other hosts can be taken over.

        Raises:
            RunHeld: another process holds it.
            OutputError: the directory cannot be made.
        """
        self._made = [folder for folder in (self.path, *self.path.parents) if not folder.exists()]
        with writing(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
        self._lease = take_lease(self.path, watch)
        if self._lease is None:
            raise RunHeld(f"{self.path}: another process is training here")

    def guard(self) -> AbstractContextManager[None]:
        """Return the context manager in which every write into the directory must happen.

        Raises:
            LeaseLost: another process has taken the run over.
        """
        return nullcontext() if self._lease is None else self._lease.guard()

    def clear(self) -> None:
        """Remove all files of an earlier run except those of the lease."""
        with self.guard(), writing(self.path):
            for entry in self.path.iterdir():
                if entry.is_dir() and not entry.is_symlink():
                    shutil.rmtree(entry)
                elif entry.name not in (".lock", ".lease"):
                    entry.unlink()

    def start(self, recipe: Recipe, environment: dict[str, Any]) -> None:
        """Write recipe and environment. The recipe comes first, because it marks the directory as a run's."""
        with self.guard():
            write_atomically(self.path / "recipe.yaml", dump_recipe(recipe).encode())
            with writing(self.checkpoints):
                self.checkpoints.mkdir(exist_ok=True)
            for folder in (self.path, self.checkpoints, self.pictures):
                remove_unfinished(folder)
            write_json(self.path / "environment.json", environment)

    def environment(self) -> dict[str, Any]:
        """Return what `start` wrote; empty if missing.

        Raises:
            RunDirError: the file is damaged.
        """
        return self._known(_read_environment)

    def set_status(self, arm: Arm, seed: int, state: State, *, length: float = 1.0, **details: Any) -> None:
        """Write the state of the run to ``status.json``."""
        own = {"arm": arm, "seed": seed} | ({} if length == 1.0 else {"length": length})
        with self.guard():
            write_json(self.path / "status.json", {**own, "state": state, **details})

    def status(self) -> dict[str, Any]:
        """Return what `set_status` last wrote; empty if missing.

        Raises:
            RunDirError: the file is damaged.
        """
        return self._known(_read_status)

    def truncate_metrics(self, offset: int) -> list[Row]:
        """Truncate ``metrics.jsonl`` to a checkpoint's offset in bytes; return the removed rows."""
        if not self.metrics_path.exists():
            return []
        lost: list[Row] = []
        with suppress(SchemaError):  # unreadable rows are removed as well
            lost.extend(decode(line) for line in self.metrics_path.read_bytes()[offset:].split(b"\n")[:-1])
        with self.guard(), writing(self.metrics_path), self.metrics_path.open("r+b") as file:
            file.truncate(offset)
        return lost

    def append(self, row: Row) -> None:
        """Append a row to ``metrics.jsonl``."""
        # The file is closed after every row, because a network file system may write an open file after the guard ends.
        with self.guard(), writing(self.metrics_path), self.metrics_path.open("ab") as file:
            file.write(encode(row).encode() + b"\n")

    def metrics_offset(self) -> int:
        """Return the length of ``metrics.jsonl`` in bytes, for the checkpoint."""
        return self.metrics_path.stat().st_size if self.metrics_path.exists() else 0

    def has_rows_up_to(self, offset: int) -> bool:
        """Return whether a row of ``metrics.jsonl`` ends at a checkpoint's `metrics_offset`."""
        if offset == 0:
            return True
        return self.metrics_path.exists() and self.metrics_path.read_bytes()[offset - 1 : offset] == b"\n"

    def _known(self, read: Callable[[Path], dict[str, Any]]) -> dict[str, Any]:
        try:
            return read(self.path)
        except FileNotFoundError:
            return {}
        except RunDirError as error:
            raise RunDirError(
                f"{error}; delete the file to resume without it, or discard the run (--overwrite)"
            ) from None

    def close(self) -> None:
        """Release the lease, and remove the folders created for a run that never started."""
        if self._lease is not None:
            self._lease.release()
            if self._made and not self.holds_a_run():
                with suppress(OSError):
                    (self.path / ".lock").unlink()
                    for folder in self._made:
                        folder.rmdir()
        self._lease = None


@dataclass(frozen=True)
class RunRecord:
    """The records of a run, as reports read them.

    Attributes:
        recipe: the recipe with the changes of its arm and its length.
        length: length of the schedule as a share of the arm's.
        picture: picture of the last validation, relative to `path`; None if missing.
    """

    path: Path
    arm: Arm
    seed: int
    recipe: Recipe
    environment: dict[str, Any]
    status: dict[str, Any]
    rows: Sequence[Row]
    picture: str | None = None
    length: float = 1.0

    def helped(self, *kinds: Help) -> bool:
        """Return whether a teacher helps this run, in one of these ways if any are given."""
        return self.recipe.helps(self.arm, *kinds)


def read_run(path: Path, types: RecipeTypes) -> RunRecord:
    """Read a run directory, finished or not; an incomplete last line of the metrics is skipped.

    Raises:
        RunDirError: the directory holds no run, or its records are damaged.
    """
    try:
        recipe = read_recipe(path, types)
        status, environment = _read_status(path), _read_environment(path)
    except FileNotFoundError as error:
        raise RunDirError(f"{path}: not a run directory, {Path(error.filename).name} is missing") from None
    except RecipeError as error:
        problems = "; ".join(line.strip() for line in str(error).splitlines())
        raise RunDirError(f"{path}: its records are damaged: {problems}") from None
    rows = _read_rows(path)
    return RunRecord(
        path,
        status["arm"],
        status["seed"],
        recipe,
        environment,
        status,
        rows,
        _last_picture(path, rows),
        float(status.get("length", 1.0)),
    )


def read_recipe(path: Path, types: RecipeTypes) -> Recipe:
    """Read the resolved recipe of a run directory.

    Raises:
        FileNotFoundError: the recipe is missing.
        RunDirError: the recipe cannot be read.
        RecipeError: the recipe is damaged.
    """
    file = path / "recipe.yaml"
    try:
        values = parse_yaml(_content(path, file.name).decode(), str(file))
    except UnicodeDecodeError:
        raise RecipeError(f"{file}: not UTF-8 text") from None
    return validate_recipe(values if isinstance(values, dict) else {}, str(file), types)


def find_runs(experiment: Path) -> list[RunName]:
    """Return the runs of an experiment: teachers first, then every arm, sorted by length (longest first) and seed.

    Arms are sorted by name, because only the recipe knows their order.
    """
    patterns = (f"{TEACHER}/status.json", "*/seed*/status.json", "*/length*/seed*/status.json")
    found = [path.parent.relative_to(experiment) for pattern in patterns for path in experiment.glob(pattern)]
    names = {name for path in found if (name := RunName.parse(path)) is not None}  # skips w2s/seed0_old
    return sorted(names, key=lambda name: (name.arm != TEACHER, name.arm, -name.length, name.seed or 0))


def readable_runs(experiment: Path, types: RecipeTypes) -> list[RunRecord]:
    """Read an experiment's runs, skipping damaged ones and those still being created."""
    runs = []
    for name in find_runs(experiment):
        with suppress(RunDirError):
            runs.append(read_run(name.within(experiment), types))
    return runs


def find_teacher(recipe: Recipe, experiment: Path, seed: int | None = None) -> Path:
    """Return the teacher's checkpoint: the recipe's (a path or ``pretrained``), or one trained in this experiment.

    Args:
        recipe: the recipe.
        experiment: directory of the experiment.
        seed: seed of one of the experiment's teachers; None if it has only one.

    Raises:
        UsageError: there is none; the message lists three ways to provide one.
        CheckpointError: the recipe's checkpoint does not exist.
    """
    if (given := recipe.teacher.checkpoint) is not None:
        if not published_weights(given)[0] and not given.exists():
            raise CheckpointError(f"teacher {given}: no such checkpoint")
        return given
    own = RunName(TEACHER, seed).within(experiment)
    if (own / "model.safetensors").exists():
        return own
    several = [name.seed for name in find_runs(experiment) if name.arm == TEACHER and name.seed is not None]
    if several and seed is None:
        raise UsageError(f"{experiment}: has several teachers; choose one of {several} with --teacher-seed")
    raise UsageError(
        f"no teacher: give --teacher CHECKPOINT, set teacher.checkpoint in the recipe, "
        f"or train one with `w2skd train-teacher --recipe ... --out {experiment}`"
    )


def _content(run: Path, name: str) -> bytes:
    try:
        return (run / name).read_bytes()
    except (FileNotFoundError, NotADirectoryError) as error:
        raise FileNotFoundError(error.errno, error.strerror, str(run / name)) from None
    except OSError as error:
        raise RunDirError(f"{run}: cannot read {name}: {error.strerror}") from None


def _read_status(run: Path) -> dict[str, Any]:
    return _read_object(run, "status.json", _STATUS, _STATUS_DETAILS)


def _read_environment(run: Path) -> dict[str, Any]:
    return _read_object(run, "environment.json", {}, _ENVIRONMENT)


def _read_object(run: Path, name: str, required: Mapping[str, Kind], optional: Mapping[str, Kind]) -> dict[str, Any]:
    """Read a JSON file of a run and check its fields.

    Raises:
        FileNotFoundError: the file is missing.
        RunDirError: the file cannot be read or is damaged.
    """
    content = _content(run, name)
    try:
        return check_object(parse(content), required, optional)
    except SchemaError as error:
        raise RunDirError(f"{run}: its records are damaged: {name}: {error}") from None


def _read_rows(run: Path) -> list[Row]:
    """Read ``metrics.jsonl``; empty if missing. Text after the last newline is an interrupted write."""
    try:
        lines = _content(run, "metrics.jsonl").split(b"\n")[:-1]
    except FileNotFoundError:
        return []
    rows = []
    for number, line in enumerate(lines, start=1):
        try:
            rows.append(decode(line))
        except SchemaError as error:
            raise RunDirError(f"{run}: its records are damaged: metrics.jsonl, line {number}: {error}") from None
    return rows


def _last_picture(path: Path, rows: Sequence[Row]) -> str | None:
    """Return the picture of the last recorded validation; a resumed run may have left later pictures."""
    steps = [row.step for row in rows if isinstance(row, EvalRow)]
    name = f"pictures/step_{steps[-1]:08d}.png" if steps else None
    return name if name is not None and (path / name).is_file() else None
