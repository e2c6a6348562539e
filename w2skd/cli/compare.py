"""``w2skd compare``."""

from dataclasses import dataclass
from typing import Annotated

import typer

from w2skd.cli.options import (
    AllowChangedData,
    AsJson,
    Device,
    Plugin,
    PrintRecipe,
    Quiet,
    RecipeFlags,
    Teacher,
    WeightsKey,
)
from w2skd.cli.printing import print_line
from w2skd.cli.speedup_report import speedup_report
from w2skd.errors import UsageError
from w2skd.recipe.load import dump_recipe
from w2skd.recipe.schema import LARGEST_SEED
from w2skd.runs.options import RunOptions


@dataclass(frozen=True)
class CompareFlags:
    """How the runs of an experiment are trained."""

    seeds: Annotated[str, typer.Option("--seeds", metavar="0,1,2", help="Seeds of the student's runs.")] = "0,1,2"
    arms: Annotated[
        str | None, typer.Option("--arms", metavar="A,B", help="Arms to train; default: all arms of the recipe.")
    ] = None
    lengths: Annotated[
        str | None,
        typer.Option("--lengths", metavar="0.5,1", help="Schedule lengths to train, as shares of each arm's length."),
    ] = None
    teacher_seeds: Annotated[
        str | None,
        typer.Option("--teacher-seeds", metavar="0,1", help="Train several teachers and assign them to seeds in turn."),
    ] = None
    teacher: Teacher = None
    weights: WeightsKey = None
    allow_changed_data: AllowChangedData = False
    device: Device = "auto"
    plugin: Plugin = None
    print_recipe: PrintRecipe = False
    quiet: Quiet = False
    as_json: AsJson = False


def compare(recipe: RecipeFlags, flags: CompareFlags) -> None:
    """Run a whole experiment: teachers, every arm, seed and length, and the report. Finished runs are skipped."""
    seeds = _parse_seeds(flags.seeds, "--seeds")
    teacher_seeds = _parse_seeds(flags.teacher_seeds, "--teacher-seeds") if flags.teacher_seeds else []
    lengths = [] if flags.lengths is None else [f"lengths=[{flags.lengths}]"]
    resolved = recipe.resolve(teacher=flags.teacher, weights=flags.weights, more=lengths)
    if flags.print_recipe:
        typer.echo(dump_recipe(resolved), nl=False)
        return
    from w2skd.platform.ranks import ranks_from_environment
    from w2skd.runs.experiment import Plan, run_experiment

    options = RunOptions(
        recipe.experiment(resolved),
        device=flags.device,
        quiet=flags.quiet,
        plugin=flags.plugin,
        allow_changed_data=flags.allow_changed_data,
    )
    ranks = ranks_from_environment()
    plan = Plan(seeds, _parse_names(flags.arms), teacher_seeds)
    run_experiment(resolved, plan, options, ranks, lambda text: print_line(text, "bold", stderr=True))
    if ranks.is_main:
        speedup_report(options.out, as_json=flags.as_json)


def _parse_names(text: str | None) -> list[str]:
    return [name for part in (text or "").split(",") if (name := part.strip())]


def _parse_seeds(text: str, option: str) -> list[int]:
    try:
        seeds = [int(part) for part in text.split(",")]
    except ValueError:
        raise UsageError(f"{option} {text}: not a list of integers such as 0,1,2") from None
    if not 0 <= min(seeds) <= max(seeds) <= LARGEST_SEED or len(set(seeds)) < len(seeds):
        raise UsageError(f"{option} {text}: each seed once, from 0 to {LARGEST_SEED}")
    return seeds
