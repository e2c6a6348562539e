"""What the commands that train one arm share."""

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from w2skd.cli.options import TrainFlags
from w2skd.cli.printing import out, print_dry_run, print_json
from w2skd.errors import UsageError
from w2skd.platform.files import writing
from w2skd.recipe.arms import Arm
from w2skd.recipe.load import dump_recipe
from w2skd.recipe.schema import Recipe, published_weights
from w2skd.records.rundir import find_teacher

if TYPE_CHECKING:
    from w2skd.runs.setup import Setup


def train(recipe: Recipe, arm: Arm, experiment: Path, flags: TrainFlags) -> None:
    """Train one arm and print its crossings, or stop earlier where the flags say so."""
    if flags.print_recipe:
        typer.echo(dump_recipe(recipe), nl=False)
        return
    if flags.init_from is not None and published_weights(flags.init_from)[0]:
        raise UsageError(
            f"--init-from {flags.init_from}: published weights can only teach; give a finished run or a file"
        )
    no_teacher = None
    options = flags.options(experiment)
    if recipe.helps(arm):  # before torch is imported
        try:
            find_teacher(recipe, experiment, options.teacher_seed)
        except UsageError as error:
            if not flags.dry_run:
                raise
            no_teacher = str(error)
    from w2skd.platform.ranks import Ranks, ranks_from_environment
    from w2skd.records.rundir import read_run
    from w2skd.report.render_summary import summary_as_terminal
    from w2skd.report.summary import crossing_summary
    from w2skd.runs.arm import train_arm
    from w2skd.runs.setup import set_up
    from w2skd.tasks.catalog import recipe_types

    ranks = ranks_from_environment()
    if flags.dry_run:
        recipe = recipe.for_arm(arm, options.length)
        setup = set_up(recipe, arm, options, ranks, needs_teacher=no_teacher is None)
        facts = {**setup.describe(ranks), "memory_bytes": setup.memory(ranks)}
        if no_teacher is not None:
            facts["teacher_account"] = [f"{no_teacher}. Its cost is unknown until then"]
        if ranks.is_main:
            facts = setup.with_identity(facts, Ranks())  # the others have no part in a dry run
            facts["first_batch"] = str(_draw_first_batch(setup, experiment))
            if flags.as_json:
                print_json({"recipe": recipe.name, "arm": arm, **facts})
            else:
                print_dry_run(facts, recipe, arm)
        return
    path = train_arm(recipe, arm, options, ranks)
    if ranks.is_main:
        summary = crossing_summary(read_run(path, recipe_types()), experiment, recipe_types())
        if flags.as_json:
            print_json({**dataclasses.asdict(summary), "metric": summary.metric.name})
        else:
            out().print(summary_as_terminal(summary))


def _draw_first_batch(setup: "Setup", experiment: Path) -> Path:
    from w2skd.pictures.batch import draw_batch

    preview = setup.task.preview()
    path = experiment / f"first_batch_{setup.arm}.png"
    with writing(experiment):
        experiment.mkdir(parents=True, exist_ok=True)
    draw_batch(preview.images, preview.captions, path, title=f"{setup.recipe.name}: the first batch")
    return path
