"""``w2skd pack``."""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from w2skd.cli.options import AsJson, Overrides, Quiet, RecipeName
from w2skd.cli.printing import on_rank_0, print_json, print_line
from w2skd.errors import Interrupted, UsageError
from w2skd.recipe.data import ImageDataSection
from w2skd.recipe.load import load_recipe
from w2skd.tasks.catalog import recipe_types

if TYPE_CHECKING:
    from w2skd.data.packed import PackRecord

_FORMATS = ("jpeg", "raw")
_LINES = 10
"""Number of progress lines if standard error is not a terminal."""


@dataclass(frozen=True)
class PackFlags:
    """Options of ``w2skd pack``."""

    recipe: RecipeName
    set_: Overrides
    out: Annotated[Path, typer.Option("--out", "-o", metavar="DIR", help="Folder to write.")]
    side: Annotated[
        int,
        typer.Option(
            "--side",
            metavar="PX",
            min=8,
            max=8192,
            help="Maximum length of the shorter side; smaller images keep their size.",
        ),
    ] = 256
    format_: Annotated[
        str, typer.Option("--format", metavar="jpeg|raw", help="jpeg is smaller, raw needs no decoding.")
    ] = "jpeg"
    quality: Annotated[int, typer.Option("--quality", metavar="Q", min=1, max=100, help="JPEG quality.")] = 95
    workers: Annotated[
        int | None, typer.Option("--workers", metavar="N", min=1, help="Number of threads; default: all cores.")
    ] = None
    overwrite: Annotated[bool, typer.Option("--overwrite", metavar="", help="Replace an existing pack.")] = False
    quiet: Quiet = False
    as_json: AsJson = False


def pack(flags: PackFlags) -> None:
    """Resize the images of an image folder once and store them in files that training reads much faster."""
    section = _section(flags)
    if not on_rank_0():
        raise UsageError("w2skd pack runs in one process: start it without torchrun")
    from w2skd.data.packing import PackOptions
    from w2skd.data.packing import pack as write_pack

    workers = flags.workers or len(os.sched_getaffinity(0))
    options = PackOptions(flags.side, "raw" if flags.format_ == "raw" else "jpeg", flags.quality, workers)
    began = time.monotonic()
    try:
        with _progress(flags.quiet) as progress:
            record = write_pack(section, flags.out, options, overwrite=flags.overwrite, progress=progress)
    except KeyboardInterrupt:
        raise Interrupted("interrupted; nothing was written") from None
    _print_result(record, flags, time.monotonic() - began)


def _section(flags: PackFlags) -> ImageDataSection:
    """Return the recipe's ``data`` section, after checks that need no torch."""
    if flags.format_ not in _FORMATS:
        raise UsageError(f"--format {flags.format_}: use {' or '.join(_FORMATS)}")
    recipe = load_recipe(flags.recipe, flags.set_, recipe_types())
    section: Any = getattr(recipe, "data", None)
    if not isinstance(section, ImageDataSection) or section.source != "image_folder":
        found = getattr(section, "source", None)
        raise UsageError(
            f"data.source: {recipe.name} has {found}, but w2skd pack reads image_folder only; use another recipe"
        )
    return section


@contextmanager
def _progress(quiet: bool) -> Iterator[Callable[[int, int], None]]:
    """Show progress on standard error: a bar on a terminal, a few lines elsewhere."""
    console = Console(stderr=True, highlight=False)
    if quiet:
        yield lambda done, total: None
    elif console.is_terminal and not console.is_dumb_terminal:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (TextColumn("packing"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=console, transient=True, redirect_stdout=False) as bar:
            task = bar.add_task("packing", total=None)
            yield lambda done, total: bar.update(task, completed=done, total=total)
    else:

        def show(done: int, total: int) -> None:
            if done * _LINES // total > (done - 1) * _LINES // total:
                print_line(f"packed {done:,} of {total:,} images", stderr=True)

        yield show


def _print_result(record: "PackRecord", flags: PackFlags, seconds: float) -> None:
    count = sum(part.examples for part in record.parts.values())
    size = sum(file.size_bytes for part in record.parts.values() for file in part.shards)
    if flags.as_json:
        notes = {name: record.notes(part) for name, part in record.parts.items()}
        print_json({"out": str(flags.out), "examples": count, "bytes": size, "seconds": seconds, "notes": notes})
        return
    for name, part in record.parts.items():
        for line in record.notes(part):
            print_line(f"{name}: {line}")
    mean = f"{size / 2**20:,.1f} MiB, {size / count / 1024:.1f} KiB per image"
    print_line(f"saved {flags.out}: {count:,} images, {mean}, in {seconds:.0f} s")
    print_line(f"train on it with --set data.source=packed --set data.root={flags.out}", "dim")
