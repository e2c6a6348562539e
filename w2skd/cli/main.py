"""The command line: parse, call, print, exit code. Nothing heavy is imported before a command runs."""

import dataclasses
import functools
import json
import math
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ParamSpec, TypeVar

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from w2skd import __version__
from w2skd.errors import CheckpointError, DeviceError, TargetNotReached, UsageError, UserError, suggest
from w2skd.platform.files import writing
from w2skd.recipe.arms import Arm
from w2skd.recipe.load import dump_recipe, find_recipe, load_recipe, shipped_recipes
from w2skd.recipe.schema import LARGEST_SEED, Recipe, published_weights
from w2skd.records.rows import without_nan
from w2skd.records.rundir import find_teacher
from w2skd.runs.options import RunOptions

if TYPE_CHECKING:
    from w2skd.runs.score import ScoredModel
    from w2skd.runs.setup import Setup

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

_MOST_ROWS = 40
"""Rows of a table that a terminal gets."""

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
Seed = Annotated[
    int | None, typer.Option("--seed", metavar="N", min=0, max=LARGEST_SEED, help="Instead of the recipe's seed.")
]
Resume = Annotated[
    str,
    typer.Option(
        "--resume",
        metavar="auto|never|PATH",
        help="Go on with the run that is there, refuse it, or take this checkpoint of it.",
    ),
]
Overwrite = Annotated[bool, typer.Option("--overwrite", metavar="", help="Discard the run that is there.")]
InitFrom = Annotated[Path | None, typer.Option("--init-from", metavar="CKPT", help="Start from these weights.")]
Device = Annotated[str, typer.Option("--device", metavar="NAME", help="auto, cpu, cuda or cuda:N.")]
DryRun = Annotated[
    bool,
    typer.Option(
        "--dry-run",
        metavar="",
        help="Do all that comes before the first step; tell sizes, costs and what the switch compares; draw a batch.",
    ),
]
Plugin = Annotated[
    Path | None, typer.Option("--plugin", metavar="FILE", help="Your own Python file, whose models are plugin:<name>.")
]
PrintRecipe = Annotated[bool, typer.Option("--print-recipe", metavar="", help="Print the resolved recipe and stop.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", metavar="", help="Events and results only.")]
AsJson = Annotated[
    bool, typer.Option("--json", metavar="", help="One JSON object on standard output, and nothing else there.")
]


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
            _complain("interrupted at once; what was saved before stands")
            raise typer.Exit(130) from None

    return run


@app.callback(invoke_without_command=True)
def _root(
    version: Annotated[
        bool, typer.Option("--version", metavar="", help="Print the version and stop.", is_eager=True)
    ] = False,
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
    plugin: Plugin = None,
    dry_run: DryRun = False,
    print_recipe: PrintRecipe = False,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Train the recipe's weak teacher, for those who own no older checkpoint."""
    resolved = _resolve(recipe, set_, seed)
    options = RunOptions(_experiment(resolved, out), resume, overwrite, init_from, device, quiet, plugin)
    _train(resolved, "teacher", options, dry_run, print_recipe, as_json)


@app.command(
    epilog="Example:  w2skd distill --recipe demo --baseline; torchrun --nproc-per-node 8 -m w2skd distill -r demo"
)
@_plainly
def distill(
    *,
    recipe: RecipeName,
    teacher: Annotated[
        Path | None,
        typer.Option("--teacher", metavar="CKPT", help="A finished run, a file with weights, or pretrained[:TAG]."),
    ] = None,
    baseline: Annotated[
        bool, typer.Option("--baseline", metavar="", help="The same training without a teacher.")
    ] = False,
    set_: Overrides,
    out: Out = None,
    seed: Seed = None,
    resume: Resume = "auto",
    overwrite: Overwrite = False,
    init_from: InitFrom = None,
    device: Device = "auto",
    plugin: Plugin = None,
    dry_run: DryRun = False,
    print_recipe: PrintRecipe = False,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Train the student, with the teacher's help early on; tell when each threshold was crossed."""
    if baseline and teacher is not None:
        raise UsageError("--baseline trains without a teacher: leave out --teacher")
    resolved = _resolve(recipe, set_, seed, teacher)
    options = RunOptions(_experiment(resolved, out), resume, overwrite, init_from, device, quiet, plugin)
    _train(resolved, "baseline" if baseline else "w2s", options, dry_run, print_recipe, as_json)


@app.command(
    epilog="Example:  w2skd evaluate --checkpoint runs/demo/w2s/seed0; "
    "w2skd evaluate --model torchvision:mobilenet_v2 --recipe imagenet_resnet50"
)
@_plainly
def evaluate(
    *,
    checkpoint: Annotated[
        Path | None,
        typer.Option(
            "--checkpoint",
            "-c",
            metavar="CKPT",
            help="A finished run, a file with weights, or pretrained[:TAG].",
            show_default=False,
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            "--model", "-m", metavar="NAME", help="The architecture; without --checkpoint, with its published weights."
        ),
    ] = None,
    recipe: Annotated[
        str | None,
        typer.Option("--recipe", "-r", metavar="FILE_OR_NAME", help="Instead of the checkpoint's own recipe."),
    ] = None,
    set_: Overrides,
    role: Annotated[
        str | None, typer.Option("--role", metavar="teacher|student", help="Which of the recipe's models.")
    ] = None,
    device: Device = "auto",
    plugin: Plugin = None,
    predictions: Annotated[
        Path | None, typer.Option("--predictions", metavar="FILE", help="Write what each example got: .csv or .jsonl.")
    ] = None,
    confusion: Annotated[
        Path | None, typer.Option("--confusion", metavar="FILE", help="Draw which classes are taken for which: .png.")
    ] = None,
    results: Annotated[
        Path | None, typer.Option("--results", metavar="FILE", help="Write all detections as COCO's results: .json.")
    ] = None,
    samples: Annotated[
        Path | None,
        typer.Option("--samples", metavar="DIR", help="Write all generated images into this new or empty folder."),
    ] = None,
    pictures: Annotated[
        int,
        typer.Option(
            "--pictures", metavar="N", min=0, help="Draw the first N images with their boxes, or N generated ones."
        ),
    ] = 0,
    pictures_to: Annotated[Path, typer.Option("--pictures-to", metavar="DIR", help="Where these go.")] = Path(
        "pictures"
    ),
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
    if checkpoint is None and model is None:
        raise UsageError("say what to score: --checkpoint CKPT, or --model NAME for published weights")
    if checkpoint is not None and not published_weights(checkpoint)[0] and not checkpoint.exists():
        raise CheckpointError(f"{checkpoint}: no such checkpoint")  # before torch is imported
    if role not in (None, "teacher", "student"):
        raise UsageError(f"--role {role}: teacher or student")
    targets = [_parse_requirement(text) for text in require]
    from w2skd.models.plugin import load_plugin
    from w2skd.pictures.sheet import check_picture_path
    from w2skd.platform.ranks import ranks_from_environment
    from w2skd.runs.score import score_checkpoint
    from w2skd.tasks.classification.predictions import check_predictions_path
    from w2skd.tasks.detection.coco_scores import check_results_path
    from w2skd.tasks.diffusion.sample_pictures import check_samples_folder

    files = {
        "predictions": (predictions, check_predictions_path),
        "confusion": (confusion, check_picture_path),
        "results": (results, check_results_path),
        "samples": (samples, check_samples_folder),
    }
    asked = {name: (path, check) for name, (path, check) in files.items() if path is not None}
    for path, check in asked.values():
        check(path)
    if plugin is not None:
        load_plugin(plugin)
    ranks = ranks_from_environment()
    scored = score_checkpoint(
        checkpoint or Path("pretrained"),
        model_name=model,
        recipe_name=recipe,
        overrides=set_,
        role=role,
        device_name=device,
        ranks=ranks,
        wanted=[*asked, *(["pictures"] if pictures else [])],
    )
    evaluation = scored.evaluation
    if ranks.is_main:
        for name, (path, _) in asked.items():
            evaluation.files[name](path)
        if pictures:
            assert evaluation.pictures is not None
            with writing(pictures_to):
                pictures_to.mkdir(parents=True, exist_ok=True)
            evaluation.pictures(pictures_to, pictures)
    _print_score(scored, as_json)
    if not as_json:
        saved = [str(path) for path, _ in asked.values()] + ([str(pictures_to)] if pictures else [])
        for where in saved:
            _out.print(Text(f"saved {where}", "dim"), soft_wrap=True)
    for name, sign, level in targets:
        if name not in evaluation.metrics:
            known = ", ".join(evaluation.metrics)
            raise UsageError(f"--require {name}: no such metric{suggest(name, evaluation.metrics)}; known: {known}")
        value = evaluation.metrics[name]
        if not (value >= level if sign == ">=" else value <= level):
            raise TargetNotReached(f"{name} is {_measured(name, value)}, required was {sign}{level:g}")


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
    plugin: Plugin = None,
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
    from w2skd.platform.ranks import ranks_from_environment
    from w2skd.runs.experiment import compare as run_experiment

    options = RunOptions(_experiment(resolved, out), device=device, quiet=quiet, plugin=plugin)
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
    shipped = shipped_recipes()
    for stem, path in shipped.items():
        if stem.removesuffix("_smoke") == stem or stem.removesuffix("_smoke") not in shipped:
            first = path.read_text(encoding="utf-8").splitlines()[0]
            table.add_row(f"[bold]{stem}[/]", escape(first.removeprefix("#").strip()))
    _out.print(table)
    _out.print(Text("Each has a few steps on a few of its images to try first: NAME_smoke.", "dim"))


def _train(recipe: Recipe, arm: Arm, options: RunOptions, dry_run: bool, print_recipe: bool, as_json: bool) -> None:
    if print_recipe:
        typer.echo(dump_recipe(recipe), nl=False)
        return
    if options.init_from is not None and published_weights(options.init_from)[0]:
        raise UsageError(
            f"--init-from {options.init_from}: takes a finished run or a file with weights; published ones only teach"
        )
    if arm == "w2s":  # before torch is imported, let alone data loaded
        find_teacher(recipe, options.out)
    from w2skd.platform.ranks import ranks_from_environment
    from w2skd.runs.arm import train_arm
    from w2skd.runs.setup import set_up

    ranks = ranks_from_environment()
    if dry_run:
        setup = set_up(recipe, arm, options, ranks)
        facts = {**setup.describe(), "memory_bytes": setup.memory(ranks)}
        if ranks.is_main:
            facts["first_batch"] = str(_draw_first_batch(setup, options.out))
            _print_setup(facts, recipe, arm, as_json)
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
    from w2skd.records.rundir import read_run
    from w2skd.report.render import summary_as_terminal
    from w2skd.report.summary import crossing_summary

    summary = crossing_summary(read_run(path), experiment)
    if as_json:
        _print_json(dataclasses.asdict(summary))
    else:
        _out.print(summary_as_terminal(summary))


def _draw_first_batch(setup: "Setup", experiment: Path) -> Path:
    from w2skd.pictures.batch import draw_batch

    preview = setup.task.preview()
    path = experiment / f"first_batch_{setup.arm}.png"
    with writing(experiment):
        experiment.mkdir(parents=True, exist_ok=True)
    draw_batch(preview.images, preview.captions, path, title=f"{setup.recipe.name}: the first batch")
    return path


def _print_setup(facts: dict[str, Any], recipe: Recipe, arm: str, as_json: bool) -> None:
    if as_json:
        _print_json({"recipe": recipe.name, "arm": arm, **facts})
        return
    table = Table(
        box=None, show_header=False, pad_edge=False, title=f"{recipe.name}, {arm}: dry run", title_justify="left"
    )
    table.add_column()
    table.add_column(overflow="fold")
    feed = f", {facts['feed']}" if "feed" in facts else ""
    examples = f"{facts['train_examples']:,} training, {facts['eval_examples']:,} evaluation examples"
    table.add_row("data", f"{examples}{feed}")
    table.add_row("length", f"{facts['total_steps']:,} steps of {facts['steps_per_epoch']:,} an epoch")
    for role, count in facts["parameters"].items():
        flops = facts["forward_flops"][role]
        name = recipe.model_of("teacher" if arm == "teacher" else role)
        table.add_row(
            f"{'teacher' if arm == 'teacher' else role}",
            f"{name}: {count:,} parameters, {flops / 1e6:,.1f} MFLOPs forward an example",
        )
    for line in facts.get("data_account", ()):
        table.add_row("", line)
    if "scoring" in facts:
        from w2skd.report.scoring import in_one_line

        table.add_row("scores", in_one_line(facts["scoring"]))
    memory = {name: size for name, size in facts["memory_bytes"].items() if size}
    parts = ", ".join(f"{name} {_size(size)}" for name, size in memory.items())
    table.add_row("memory", f"about {_size(sum(memory.values()))} for training: {parts}")
    table.add_row("picture", f"the first batch as the models see it: {facts['first_batch']}")
    for number, line in enumerate(facts.get("teacher_account", ())):
        table.add_row("" if number else "teacher", line)
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


def _print_score(scored: "ScoredModel", as_json: bool) -> None:
    metrics, tables = scored.evaluation.metrics, scored.evaluation.tables
    if as_json:
        facts = {"checkpoint": str(scored.checkpoint), "model": scored.model, "account": list(scored.account)}
        _print_json({**facts, "metrics": metrics, "tables": {name: list(rows) for name, rows in tables.items()}})
        return
    _out.print(Text.assemble(scored.model, "  ", (str(scored.checkpoint), "dim")), soft_wrap=True)
    for line in scored.account:
        _out.print(Text(f"  {line}", "dim"), soft_wrap=True)
    for name, value in metrics.items():
        style = "bold" if name == scored.metric else None
        _out.print(f"  {name:<6} {_measured(name, value)}", style=style, highlight=False)
    for name, rows in tables.items():
        _out.print(_table(name, rows))
        if len(rows) > _MOST_ROWS:
            _out.print(Text(f"the lowest {_MOST_ROWS} of {len(rows):,}; --json has all", "dim"))


def _measured(name: str, value: float) -> str:
    """Four decimals; of what is small and no share, such as KID, four digits."""
    from w2skd.report.units import PERCENT

    return f"{value:.4f}" if name in PERCENT or not 0 < abs(value) < 0.1 else f"{value:.4g}"


def _table(title: str, rows: list[dict[str, Any]]) -> Table:
    """A table for a terminal: of many rows those that are lowest in the last column, which is the score."""
    if len(rows) > _MOST_ROWS:

        def level(row: dict[str, Any]) -> float:
            value = row[list(row)[-1]]
            return value if isinstance(value, int | float) and not math.isnan(value) else math.inf

        rows = sorted(rows, key=level)[:_MOST_ROWS]
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    for column in rows[0] if rows else ():
        table.add_column(column, justify="left" if isinstance(rows[0][column], str) else "right")
    for row in rows:
        table.add_row(*(f"{value:.4f}" if isinstance(value, float) else escape(str(value)) for value in row.values()))
    return table


def _print_json(values: Any) -> None:
    if _SPEAKS:
        typer.echo(json.dumps(without_nan(values), indent=2, allow_nan=False))


def _size(count: float) -> str:
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.1f} MiB"


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
