"""The command line: parse, call, print, exit code. Nothing heavy is imported before a command runs."""

import dataclasses
import functools
import json
import math
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, ParamSpec, TypeVar

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from w2skd import __version__
from w2skd.errors import DeviceError, TargetNotReached, UsageError, UserError, suggest
from w2skd.recipe.load import dump_recipe, find_recipe, load_recipe, shipped_recipes
from w2skd.recipe.schema import LARGEST_SEED, Recipe
from w2skd.records import without_nan
from w2skd.run.options import RunOptions
from w2skd.rundir import Arm, find_teacher

P = ParamSpec("P")
R = TypeVar("R")

app = typer.Typer(
    name="w2skd",
    help="Train strong vision models to a target quality sooner, with a weaker teacher early on; measure by how much.",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

_SPEAKS = os.environ.get("RANK", "0") == "0"
"""Under torchrun only rank 0 talks."""

_out = Console(quiet=not _SPEAKS)
_err = Console(stderr=True, quiet=not _SPEAKS)

RecipeName = Annotated[
    str, typer.Option("--recipe", "-r", metavar="FILE_OR_NAME", help="A recipe file, or the name of a shipped recipe.")
]
Overrides = Annotated[
    list[str],
    typer.Option(
        "--set",
        metavar="A.B=C",
        default_factory=list,
        show_default=False,
        help="Change a value of the recipe; may be repeated.",
    ),
]
Out = Annotated[
    Path | None,
    typer.Option("--out", "-o", metavar="DIR", help="The experiment's folder; runs/<recipe name> if left out."),
]
Seed = Annotated[int | None, typer.Option("--seed", min=0, max=LARGEST_SEED, help="Instead of the recipe's seed.")]
Resume = Annotated[
    str,
    typer.Option(
        "--resume",
        metavar="auto|never|PATH",
        help="Go on with the run that is there, refuse it, or take this checkpoint of it.",
    ),
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Discard the run that is there.")]
InitFrom = Annotated[Path | None, typer.Option("--init-from", metavar="CKPT", help="Start from these weights.")]
Device = Annotated[str, typer.Option("--device", help="auto, cpu, cuda or cuda:N.")]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Do everything up to the first step, tell sizes and costs, write nothing.")
]
PrintRecipe = Annotated[bool, typer.Option("--print-recipe", help="Print the resolved recipe and stop.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Events and results only.")]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON object on standard output, and nothing else there.")]


def _complain(message: str, everywhere: bool = False) -> None:
    """Say what went wrong; `everywhere` lets other ranks speak too, of what rank 0 need not have met itself."""
    if everywhere and not _SPEAKS:
        Console(stderr=True).print(Text(f"w2skd: rank {os.environ['RANK']}: {message}"), soft_wrap=True)
    else:
        _err.print(Text.assemble(("w2skd:", "bold red"), " ", message), soft_wrap=True)


def _plainly(command: Callable[P, R]) -> Callable[P, R]:
    """Turn a `UserError` into its message and its exit code."""

    @functools.wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return command(*args, **kwargs)
        except UserError as error:
            _complain(str(error), everywhere=isinstance(error, DeviceError))
            raise typer.Exit(error.exit_code) from None
        except KeyboardInterrupt:
            _complain("interrupted at once; the last checkpoint stands")
            raise typer.Exit(130) from None

    return run


@app.callback(invoke_without_command=True)
def _root(
    version: Annotated[bool, typer.Option("--version", help="Print the version and stop.", is_eager=True)] = False,
) -> None:
    if version:
        typer.echo(f"w2skd {__version__}")
        raise typer.Exit


@app.command("train-teacher", epilog="Example:  w2skd train-teacher --recipe demo --out runs/demo")
@_plainly
def train_teacher(
    *,
    recipe: RecipeName,
    set_: Overrides,
    out: Out = None,
    seed: Seed = None,
    resume: Resume = "auto",
    overwrite: Overwrite = False,
    init_from: InitFrom = None,
    device: Device = "auto",
    dry_run: DryRun = False,
    print_recipe: PrintRecipe = False,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Train the recipe's weak teacher, for those who own no older checkpoint."""
    resolved = _resolve(recipe, set_, seed)
    options = RunOptions(_experiment(resolved, out), resume, overwrite, init_from, device, quiet)
    _train(resolved, "teacher", options, dry_run, print_recipe, as_json)


@app.command(
    epilog="Example:  w2skd distill --recipe demo --baseline; torchrun --nproc-per-node 8 -m w2skd distill -r demo"
)
@_plainly
def distill(
    *,
    recipe: RecipeName,
    teacher: Annotated[
        Path | None, typer.Option("--teacher", metavar="CKPT", help="A finished run, model.safetensors or checkpoint.")
    ] = None,
    baseline: Annotated[bool, typer.Option("--baseline", help="The same training without a teacher.")] = False,
    set_: Overrides,
    out: Out = None,
    seed: Seed = None,
    resume: Resume = "auto",
    overwrite: Overwrite = False,
    init_from: InitFrom = None,
    device: Device = "auto",
    dry_run: DryRun = False,
    print_recipe: PrintRecipe = False,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Train the student, with the teacher's help early on; tell when each threshold was crossed."""
    if baseline and teacher is not None:
        raise UsageError("--baseline trains without a teacher: leave out --teacher")
    resolved = _resolve(recipe, set_, seed, teacher)
    options = RunOptions(_experiment(resolved, out), resume, overwrite, init_from, device, quiet)
    _train(resolved, "baseline" if baseline else "w2s", options, dry_run, print_recipe, as_json)


@app.command(epilog="Example:  w2skd evaluate --checkpoint runs/demo/w2s/seed0")
@_plainly
def evaluate(
    *,
    checkpoint: Annotated[
        Path, typer.Option("--checkpoint", "-c", help="A finished run, model.safetensors or .pt file.")
    ],
    recipe: Annotated[
        str | None,
        typer.Option("--recipe", "-r", metavar="FILE_OR_NAME", help="Instead of the checkpoint's own recipe."),
    ] = None,
    set_: Overrides,
    role: Annotated[
        str | None, typer.Option("--role", metavar="teacher|student", help="Which of the recipe's models.")
    ] = None,
    device: Device = "auto",
    require: Annotated[
        list[str],
        typer.Option(
            "--require",
            metavar="METRIC>=X",
            default_factory=list,
            show_default=False,
            help="Exit with 3 unless this holds; may be repeated.",
        ),
    ],
    as_json: AsJson = False,
) -> None:
    """Score a model on its recipe's evaluation set."""
    from w2skd.distributed import ranks_from_environment
    from w2skd.score import score_checkpoint

    if role not in (None, "teacher", "student"):
        raise UsageError(f"--role {role}: teacher or student")
    targets = [_parse_requirement(text) for text in require]
    scored = score_checkpoint(
        checkpoint, recipe_name=recipe, overrides=set_, role=role, device_name=device, ranks=ranks_from_environment()
    )
    metrics = scored.evaluation.metrics
    if as_json:
        tables = {name: list(rows) for name, rows in scored.evaluation.tables.items()}
        _print_json({"checkpoint": str(scored.checkpoint), "model": scored.model, "metrics": metrics, "tables": tables})
    else:
        _out.print(Text.assemble(scored.model, "  ", (str(scored.checkpoint), "dim")), soft_wrap=True)
        for name, value in metrics.items():
            _out.print(f"  {name:<6} {value:.4f}", style="bold" if name == scored.metric else None, highlight=False)
        for name, rows in scored.evaluation.tables.items():
            _out.print(_table(name, rows))
    for name, sign, level in targets:
        if name not in metrics:
            raise UsageError(f"--require {name}: no such metric{suggest(name, metrics)}; known: {', '.join(metrics)}")
        if not (metrics[name] >= level if sign == ">=" else metrics[name] <= level):
            raise TargetNotReached(f"{name} is {metrics[name]:.4f}, required was {sign}{level:g}")


@app.command("speedup-report", epilog="Example:  w2skd speedup-report runs/demo --require 1.2")
@_plainly
def speedup_report(
    experiment: Annotated[Path, typer.Argument(metavar="EXPERIMENT", help="The folder with baseline/ and w2s/.")],
    require: Annotated[
        float | None,
        typer.Option(
            "--require", metavar="X", help="Exit with 3 unless the first threshold's median speed-up is at least X."
        ),
    ] = None,
    records: Annotated[
        Path | None,
        typer.Option("--records", metavar="DIR", help="Copy the runs' records, without weights, and report there."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Report when baseline and accelerated runs crossed each threshold, and the speed-up; print and save it."""
    if require is not None and math.isnan(require):
        raise UsageError("--require nan: nothing is above or below it")
    from w2skd.report.publish import publish
    from w2skd.report.render import as_json as report_as_json
    from w2skd.report.render import as_terminal, write_report

    report = write_report(experiment) if records is None else publish(experiment, records)
    if as_json:
        typer.echo(report_as_json(report), nl=False)
    else:
        _out.print(as_terminal(report))
        _out.print(Text(f"saved under {(records or experiment) / 'report'}", "dim"), soft_wrap=True)
    if require is not None:
        if not report.thresholds:
            raise UsageError("--require: the recipe has no thresholds")
        threshold = report.thresholds[0]
        spread = threshold.speedup_over_seeds["epochs" if report.unit == "epoch" else "steps"]
        if spread is None or spread.median < require or len(threshold.pairs) < len(threshold.seeds):
            raise TargetNotReached(f"required was a speed-up of {require:g} at {threshold.name}: {threshold.verdict}")


@app.command(epilog="Example:  w2skd compare --recipe demo --seeds 0,1,2")
@_plainly
def compare(
    *,
    recipe: RecipeName,
    seeds: Annotated[str, typer.Option("--seeds", metavar="0,1,2", help="Seeds of the pairs of runs.")] = "0,1,2",
    teacher: Annotated[
        Path | None, typer.Option("--teacher", metavar="CKPT", help="Use this teacher instead of training one.")
    ] = None,
    set_: Overrides,
    out: Out = None,
    device: Device = "auto",
    print_recipe: PrintRecipe = False,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Run the whole experiment: teacher, baseline and accelerated runs, report. Finished parts are skipped."""
    numbers = _parse_seeds(seeds)
    resolved = _resolve(recipe, set_, None, teacher)
    if print_recipe:
        typer.echo(dump_recipe(resolved), nl=False)
        return
    from w2skd.compare import compare as run_experiment
    from w2skd.distributed import ranks_from_environment

    options = RunOptions(_experiment(resolved, out), device=device, quiet=quiet)
    ranks = ranks_from_environment()
    run_experiment(resolved, numbers, options, ranks, lambda text: _err.print(Text(text, "bold"), soft_wrap=True))
    if ranks.is_main:
        speedup_report(options.out, as_json=as_json)


@app.command(epilog="Example:  w2skd recipes demo > my_recipe.yaml")
@_plainly
def recipes(
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="Print this recipe as it was written.")] = None,
) -> None:
    """List the shipped recipes, or print one to start from."""
    if name is not None:
        typer.echo(find_recipe(name).read_text(encoding="utf-8"), nl=False)
        return
    table = Table(box=None, show_header=False, pad_edge=False)
    for stem, path in shipped_recipes().items():
        first = path.read_text(encoding="utf-8").splitlines()[0]
        table.add_row(f"[bold]{stem}[/]", escape(first.removeprefix("#").strip()))
    _out.print(table)


def _train(recipe: Recipe, arm: Arm, options: RunOptions, dry_run: bool, print_recipe: bool, as_json: bool) -> None:
    if print_recipe:
        typer.echo(dump_recipe(recipe), nl=False)
        return
    if arm == "w2s":  # before torch is imported, let alone data loaded
        find_teacher(recipe, options.out)
    from w2skd.distributed import ranks_from_environment
    from w2skd.run.arm import train_arm
    from w2skd.run.setup import set_up

    ranks = ranks_from_environment()
    if dry_run:
        _print_setup(set_up(recipe, arm, options, ranks).describe(), recipe, arm, as_json)
        return
    path = train_arm(recipe, arm, options, ranks)
    if ranks.is_main:
        _print_summary(path, options.out, as_json)


def _resolve(name: str, overrides: list[str], seed: int | None, teacher: Path | None = None) -> Recipe:
    recipe = load_recipe(name, overrides)
    if seed is not None:
        recipe = recipe.model_copy(update={"seed": seed})
    if teacher is not None:
        recipe = recipe.model_copy(update={"teacher": recipe.teacher.model_copy(update={"checkpoint": teacher})})
    return recipe


def _experiment(recipe: Recipe, out: Path | None) -> Path:
    return out or Path("runs") / recipe.name


def _print_summary(path: Path, experiment: Path, as_json: bool) -> None:
    from w2skd.report.render import summary_as_terminal
    from w2skd.report.summary import crossing_summary
    from w2skd.rundir import read_run

    summary = crossing_summary(read_run(path), experiment)
    if as_json:
        _print_json(dataclasses.asdict(summary))
    else:
        _out.print(summary_as_terminal(summary))


def _print_setup(facts: dict[str, Any], recipe: Recipe, arm: str, as_json: bool) -> None:
    if as_json:
        _print_json({"recipe": recipe.name, "arm": arm, **facts})
        return
    table = Table(
        box=None, show_header=False, pad_edge=False, title=f"{recipe.name}, {arm}: dry run", title_justify="left"
    )
    table.add_row("data", f"{facts['train_examples']:,} training, {facts['eval_examples']:,} evaluation examples")
    table.add_row("length", f"{facts['total_steps']:,} steps of {facts['steps_per_epoch']:,} an epoch")
    for role, count in facts["parameters"].items():
        flops = facts["forward_flops"][role]
        name = recipe.model_of("teacher" if arm == "teacher" else role)
        table.add_row(
            f"{'teacher' if arm == 'teacher' else role}",
            f"{name}: {count:,} parameters, {flops / 1e6:,.1f} MFLOPs forward an example",
        )
    if "distilled_step_floor" in facts:
        table.add_row("cost", f"a distilled step takes at least {facts['distilled_step_floor']:.2f} times a plain one")
        switch = recipe.distill.switch
        table.add_row(
            "switch",
            f"off for good when the student's {recipe.report.metric} is better than the teacher's"
            f"{f' by {switch.margin:g}' if switch.margin else ''} at {switch.patience} validations in a row, "
            f"every {recipe.train.validate_every}",
        )
    _out.print(table)


def _table(title: str, rows: list[dict[str, Any]]) -> Table:
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    for column in rows[0] if rows else ():
        table.add_column(column, justify="left" if isinstance(rows[0][column], str) else "right")
    for row in rows:
        table.add_row(*(f"{value:.4f}" if isinstance(value, float) else escape(str(value)) for value in row.values()))
    return table


def _print_json(values: Any) -> None:
    if _SPEAKS:
        typer.echo(json.dumps(without_nan(values), indent=2, allow_nan=False))


def _parse_seeds(text: str) -> list[int]:
    try:
        seeds = [int(part) for part in text.split(",")]
    except ValueError:
        raise UsageError(f"--seeds {text}: write them as 0,1,2") from None
    if not 0 <= min(seeds) <= max(seeds) <= LARGEST_SEED or len(set(seeds)) < len(seeds):
        raise UsageError(f"--seeds {text}: each seed once, from 0 to {LARGEST_SEED}")
    return seeds


def _parse_requirement(text: str) -> tuple[str, str, float]:
    match = re.fullmatch(r"\s*(\w+)\s*(>=|<=)\s*([-+.\deE]+)\s*", text)
    try:
        if match is None:
            raise ValueError
        return match[1], match[2], float(match[3])
    except ValueError:
        raise UsageError(f"--require {text}: write it as top1>=0.9 or loss<=0.5") from None


def main() -> None:
    """Entry point of the ``w2skd`` command."""
    app(prog_name="w2skd")
