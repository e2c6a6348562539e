"""What commands print: results to standard output, messages to standard error, both from rank 0 only."""

import json
import math
import os
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from w2skd.errors import DeviceError, UserError
from w2skd.recipe.schema import Recipe
from w2skd.records.rows import without_nan

if TYPE_CHECKING:
    from w2skd.runs.score import ScoredModel

P = ParamSpec("P")
R = TypeVar("R")

_MOST_ROWS = 40
"""Rows of a table that a terminal gets."""


def on_rank_0() -> bool:
    """Return whether this process prints: under torchrun only rank 0 does."""
    return os.environ.get("RANK", "0") == "0"


def out() -> Console:
    """Return the console of standard output."""
    return Console(quiet=not on_rank_0())


def print_line(text: str | Text, style: str = "", *, stderr: bool = False) -> None:
    """Print one line, however long, without markup."""
    line = text if isinstance(text, Text) else Text(text, style)
    Console(stderr=stderr, quiet=not on_rank_0()).print(line, soft_wrap=True)


def print_json(values: Any) -> None:
    """Print one JSON object; non-finite numbers become null."""
    if on_rank_0():
        typer.echo(json.dumps(without_nan(values), indent=2, allow_nan=False))


def print_error(message: str, everywhere: bool = False) -> None:
    """Print an error. With `everywhere`, ranks other than 0 print too, because the failure may be local to them."""
    if everywhere and not on_rank_0():
        Console(stderr=True).print(Text(f"w2skd: rank {os.environ['RANK']}: {message}"), soft_wrap=True)
    else:
        print_line(Text.assemble(("w2skd:", "bold red"), " ", message), stderr=True)


def errors_as_exit_codes(command: Callable[P, R]) -> Callable[P, R]:
    """Print a `UserError` as one message and exit with its code; other exceptions keep their traceback."""

    @wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return command(*args, **kwargs)
        except UserError as error:
            print_error(str(error), everywhere=isinstance(error, DeviceError))
            raise typer.Exit(error.exit_code) from None
        except KeyboardInterrupt:
            print_error("interrupted at once; earlier checkpoints are kept")
            raise typer.Exit(130) from None

    return run


def print_dry_run(facts: dict[str, Any], recipe: Recipe, arm: str) -> None:
    """Print the sizes and costs of a run that has not started."""
    from w2skd.recipe.arms import TEACHER

    table = Table(
        box=None, show_header=False, pad_edge=False, title=f"{recipe.name}, {arm}: dry run", title_justify="left"
    )
    table.add_column()
    table.add_column(overflow="fold")
    feed = f", {facts['feed']}" if "feed" in facts else ""
    table.add_row("data", f"{facts['train_examples']:,} training, {facts['eval_examples']:,} evaluation examples{feed}")
    table.add_row("length", f"{facts['total_steps']:,} steps, {facts['steps_per_epoch']:,} per epoch")
    for role, count in facts["parameters"].items():
        shown = TEACHER if arm == TEACHER else role
        flops = facts["forward_flops"].get(role)
        cost = f", {flops / 1e6:,.1f} MFLOPs per example and forward pass" if flops else ""
        table.add_row(shown, f"{recipe.model_of(shown)}: {count:,} parameters{cost}")
    for line in facts.get("data_account", ()):
        table.add_row("", line)
    if "scoring" in facts:
        from w2skd.report.scoring import in_one_line

        table.add_row("scores", in_one_line(facts["scoring"]))
    memory = {name: size for name, size in facts["memory_bytes"].items() if size}
    parts = ", ".join(f"{name} {_size(size)}" for name, size in memory.items())
    table.add_row("memory", f"about {_size(sum(memory.values()))} for training: {parts}")
    table.add_row("picture", f"the first batch as the models see it: {facts['first_batch']}")
    for what in ("start", "teacher"):
        for number, line in enumerate(facts.get(f"{what}_account", ())):
            table.add_row("" if number else what, line)
    if "distilled_step_floor" in facts:
        table.add_row("cost", f"a distilled step takes at least {facts['distilled_step_floor']:.2f} times a plain one")
        switch = recipe.distill.switch
        table.add_row(
            "switch",
            f"off permanently once the student's {recipe.metric.name} is better than the teacher's"
            f"{f' by {switch.margin:g}' if switch.margin else ''} at {switch.patience} validations in a row, "
            f"every {recipe.train.validate_every}",
        )
    out().print(table)


def print_score(scored: "ScoredModel", as_json: bool) -> None:
    """Print the metrics and tables of an evaluation."""
    metrics, tables = scored.evaluation.metrics, scored.evaluation.tables
    if as_json:
        facts = {"checkpoint": str(scored.checkpoint), "model": scored.model, "account": list(scored.notes)}
        print_json({**facts, "metrics": metrics, "tables": {name: list(rows) for name, rows in tables.items()}})
        return
    print_line(Text.assemble(scored.model, "  ", (str(scored.checkpoint), "dim")))
    for line in scored.notes:
        print_line(f"  {line}", "dim")
    for name in metrics:
        style = "bold" if name == scored.recipe.metric.name else ""
        print_line(f"  {name:<6} {measured(scored, name)}", style)
    for name, rows in tables.items():
        out().print(_table(name, rows))
        if len(rows) > _MOST_ROWS:
            print_line(f"the lowest {_MOST_ROWS} of {len(rows):,}; --json prints all", "dim")


def measured(scored: "ScoredModel", name: str) -> str:
    """Format a metric: four decimals, or four significant digits if it is small and no share, such as KID."""
    value = scored.evaluation.metrics[name]
    is_share = any(metric.is_share for metric in scored.recipe.report.metrics if metric.name == name)
    return f"{value:.4f}" if is_share or not 0 < abs(value) < 0.1 else f"{value:.4g}"


def print_saved(*paths: Path) -> None:
    """Print where files were written."""
    for path in paths:
        print_line(f"saved {path}", "dim")


def _table(title: str, rows: list[dict[str, Any]]) -> Table:
    """Return a table for a terminal; of many rows the lowest by the last column, which holds the score."""
    if len(rows) > _MOST_ROWS:

        def score(row: dict[str, Any]) -> float:
            value = row[list(row)[-1]]
            return value if isinstance(value, int | float) and not math.isnan(value) else math.inf

        rows = sorted(rows, key=score)[:_MOST_ROWS]
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    for column in rows[0] if rows else ():
        table.add_column(column, justify="left" if isinstance(rows[0][column], str) else "right")
    for row in rows:
        table.add_row(*(f"{value:.4f}" if isinstance(value, float) else escape(str(value)) for value in row.values()))
    return table


def _size(count: float) -> str:
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.1f} MiB"
