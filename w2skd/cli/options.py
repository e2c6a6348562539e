"""The options that commands share, each declared once, and how a command takes a whole group of them."""

import functools
import inspect
from collections.abc import Callable, Sequence
from dataclasses import MISSING, Field, dataclass, fields, is_dataclass
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer

from w2skd.recipe.load import load_recipe
from w2skd.recipe.schema import LARGEST_SEED, Recipe
from w2skd.runs.options import RunOptions
from w2skd.tasks.catalog import recipe_types

RecipeName = Annotated[
    str,
    typer.Option("--recipe", "-r", metavar="FILE_OR_NAME", help="A recipe file, or the name of a shipped recipe."),
]
Overrides = Annotated[
    list[str],
    typer.Option(
        "--set",
        metavar="A.B=C",
        default_factory=list,
        show_default=False,
        help="Change a value of the recipe; repeatable.",
    ),
]
Device = Annotated[str, typer.Option("--device", metavar="NAME", help="auto, cpu, cuda or cuda:N.")]
Plugin = Annotated[
    Path | None, typer.Option("--plugin", metavar="FILE", help="Your own Python file; its models are plugin:<name>.")
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", metavar="", help="Print events and results only.")]
AsJson = Annotated[bool, typer.Option("--json", metavar="", help="Print one JSON object to standard output.")]
PrintRecipe = Annotated[bool, typer.Option("--print-recipe", metavar="", help="Print the resolved recipe and exit.")]
AllowChangedData = Annotated[
    bool, typer.Option("--allow-changed-data", metavar="", help="Continue although the data changed.")
]
Teacher = Annotated[
    Path | None,
    typer.Option("--teacher", metavar="CKPT", help="A finished run, a file with weights, or pretrained[:TAG]."),
]
WeightsKey = Annotated[
    str | None,
    typer.Option("--weights", metavar="KEY", help="Which weights of the file to use, such as model_ema."),
]


@dataclass(frozen=True)
class RecipeFlags:
    """Which recipe, and what to change in it."""

    recipe: RecipeName
    set_: Overrides
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", metavar="DIR", help="Directory of the experiment; default runs/<recipe name>."),
    ] = None

    def resolve(
        self,
        *,
        seed: int | None = None,
        teacher: Path | None = None,
        weights: str | None = None,
        more: Sequence[str] = (),
    ) -> Recipe:
        """Load the recipe with all overrides, including `more`; the other arguments replace its values unless None."""
        recipe = load_recipe(self.recipe, [*self.set_, *more], recipe_types())
        if seed is not None:
            recipe = recipe.model_copy(update={"seed": seed})
        own = {"checkpoint": teacher, "weights": weights}
        changed = {key: value for key, value in own.items() if value is not None}
        if changed:
            recipe = recipe.model_copy(update={"teacher": recipe.teacher.model_copy(update=changed)})
        return recipe

    def experiment(self, recipe: Recipe) -> Path:
        """Return the directory of the experiment."""
        return self.out or Path("runs") / recipe.name


@dataclass(frozen=True)
class TrainFlags:
    """How one arm is trained."""

    seed: Annotated[
        int | None,
        typer.Option("--seed", metavar="N", min=0, max=LARGEST_SEED, help="Replace the recipe's seed."),
    ] = None
    resume: Annotated[
        str,
        typer.Option(
            "--resume",
            metavar="auto|never|PATH",
            help="auto resumes an existing run, never refuses it, PATH resumes from this checkpoint of it.",
        ),
    ] = "auto"
    overwrite: Annotated[bool, typer.Option("--overwrite", metavar="", help="Discard an existing run.")] = False
    init_from: Annotated[Path | None, typer.Option("--init-from", metavar="CKPT", help="Start from these weights.")] = (
        None
    )
    allow_changed_data: AllowChangedData = False
    init_weights: Annotated[
        str | None, typer.Option("--init-weights", metavar="KEY", help="As --weights, for the file of --init-from.")
    ] = None
    length: Annotated[
        float,
        typer.Option("--length", metavar="X", help="Share of the full schedule to train; one of the recipe's lengths."),
    ] = 1.0
    teacher_seed: Annotated[
        int | None,
        typer.Option("--teacher-seed", metavar="N", min=0, max=LARGEST_SEED, help="Seed of one of several teachers."),
    ] = None
    device: Device = "auto"
    plugin: Plugin = None
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run",
            metavar="",
            help="Stop before the first step; print sizes, costs and the switch rule; draw the first batch.",
        ),
    ] = False
    print_recipe: PrintRecipe = False
    quiet: Quiet = False
    as_json: AsJson = False

    def options(self, experiment: Path) -> RunOptions:
        """Return the options of the run."""
        return RunOptions(
            experiment,
            resume=self.resume,
            overwrite=self.overwrite,
            init_from=self.init_from,
            init_weights=self.init_weights,
            device=self.device,
            quiet=self.quiet,
            plugin=self.plugin,
            allow_changed_data=self.allow_changed_data,
            length=self.length,
            teacher_seed=self.teacher_seed,
        )


def spread(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command one option for every field of its dataclass parameters.

    Typer reads options from a function's parameters and has no notion of groups. The returned function has the fields
    as keyword parameters, collects them into the dataclasses, and calls `command`.
    """
    hints = get_type_hints(command, include_extras=True)
    groups: dict[str, Any] = {name: kind for name, kind in hints.items() if is_dataclass(kind)}
    parameters: list[inspect.Parameter] = []
    for parameter in inspect.signature(command).parameters.values():
        if parameter.name in groups:
            kind = groups[parameter.name]
            types = get_type_hints(kind, include_extras=True)
            parameters += [_parameter(field.name, _default(field), types[field.name]) for field in fields(kind)]
        else:
            parameters.append(_parameter(parameter.name, parameter.default, hints[parameter.name]))

    @functools.wraps(command)
    def run(**values: Any) -> None:
        collected = {
            name: kind(**{field.name: values.pop(field.name) for field in fields(kind)})
            for name, kind in groups.items()
        }
        command(**collected, **values)

    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    del run.__wrapped__  # typing would look for the annotations there
    return run


def _parameter(name: str, default: Any, annotation: Any) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def _default(field: Field[Any]) -> Any:
    return inspect.Parameter.empty if field.default is MISSING else field.default
