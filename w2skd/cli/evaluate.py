"""``w2skd evaluate``."""

import re
import tempfile
from dataclasses import dataclass, make_dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from w2skd.cli.options import AsJson, Device, Overrides, Plugin, WeightsKey
from w2skd.cli.printing import measured, print_saved, print_score
from w2skd.errors import CheckpointError, TargetNotReached, UsageError, suggest
from w2skd.platform.files import writing
from w2skd.recipe.evaluation import Output
from w2skd.recipe.schema import published_weights
from w2skd.runs.options import ScoreOptions
from w2skd.tasks.catalog import recipe_types

_OUTPUTS = {name: output for kind in recipe_types().values() for name, output in kind.outputs.items()}


def _option(name: str, output: Output) -> Any:
    metavar = "FILE" if output.suffixes else "DIR"
    return Annotated[Path | None, typer.Option(f"--{name}", metavar=metavar, help=output.help)]


Outputs: Any = make_dataclass(
    "Outputs", [(name, _option(name, output), None) for name, output in _OUTPUTS.items()], frozen=True
)
"""One option for every output that a task declares."""


@dataclass(frozen=True, kw_only=True)
class ModelFlags:
    """Which model, and on which data."""

    checkpoint: Annotated[
        Path | None,
        typer.Option(
            "--checkpoint",
            "-c",
            metavar="CKPT",
            help="A finished run, a file with weights, or pretrained[:TAG].",
            show_default=False,
        ),
    ] = None
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            "-m",
            metavar="NAME",
            help="Architecture; without --checkpoint, its published weights.",
        ),
    ] = None
    recipe: Annotated[
        str | None,
        typer.Option("--recipe", "-r", metavar="FILE_OR_NAME", help="Replace the checkpoint's own recipe."),
    ] = None
    set_: Overrides
    role: Annotated[
        str | None, typer.Option("--role", metavar="teacher|student", help="Score the recipe's teacher or its student.")
    ] = None
    weights: WeightsKey = None
    device: Device = "auto"
    plugin: Plugin = None

    def options(self, outputs: list[str]) -> ScoreOptions:
        """Check the flags, before torch is imported."""
        if self.checkpoint is None and self.model is None:
            raise UsageError("nothing to score: give --checkpoint CKPT, or --model NAME for published weights")
        if self.checkpoint is not None and not published_weights(self.checkpoint)[0] and not self.checkpoint.exists():
            raise CheckpointError(f"{self.checkpoint}: no such checkpoint")
        if self.role not in (None, "teacher", "student"):
            raise UsageError(f"--role {self.role}: use teacher or student")
        checkpoint = self.checkpoint or Path("pretrained")
        return ScoreOptions(
            checkpoint,
            model=self.model,
            recipe=self.recipe,
            overrides=self.set_,
            role=self.role,
            device=self.device,
            plugin=self.plugin,
            weights=self.weights,
            outputs=outputs,
        )


@dataclass(frozen=True)
class PictureFlags:
    """Pictures of single examples."""

    pictures: Annotated[
        int, typer.Option("--pictures", metavar="N", min=0, help="Draw N examples, such as images with their boxes.")
    ] = 0
    pictures_to: Annotated[Path, typer.Option("--pictures-to", metavar="DIR", help="Directory of the pictures.")] = (
        Path("pictures")
    )


def evaluate(
    flags: ModelFlags,
    outputs: Outputs,
    drawn: PictureFlags,
    require: Annotated[
        list[str],
        typer.Option(
            "--require",
            metavar="METRIC>=X",
            default_factory=list,
            show_default=False,
            help="Exit with code 3 unless this holds; repeatable.",
        ),
    ],
    as_json: AsJson = False,
) -> None:
    """Score a model on its recipe's evaluation set."""
    files = {name: path for name, path in vars(outputs).items() if path is not None}
    options = flags.options([*files, *(["pictures"] if drawn.pictures else [])])
    targets = [_parse_requirement(text) for text in require]
    for name, path in files.items():
        _check_writable(name, path)
    from w2skd.platform.ranks import ranks_from_environment
    from w2skd.runs.score import score_model

    ranks = ranks_from_environment()
    scored = score_model(options, ranks)
    evaluation = scored.evaluation
    if ranks.is_main:
        for name, path in files.items():
            evaluation.files[name](path)
        if drawn.pictures:
            assert evaluation.pictures is not None
            with writing(drawn.pictures_to):
                drawn.pictures_to.mkdir(parents=True, exist_ok=True)
            evaluation.pictures(drawn.pictures_to, drawn.pictures)
    print_score(scored, as_json)
    if not as_json:
        print_saved(*files.values(), *([drawn.pictures_to] if drawn.pictures else []))
    for name, sign, level in targets:
        if name not in evaluation.metrics:
            known = ", ".join(evaluation.metrics)
            raise UsageError(f"--require {name}: no such metric{suggest(name, evaluation.metrics)}; known: {known}")
        value = evaluation.metrics[name]
        if not (value >= level if sign == ">=" else value <= level):
            raise TargetNotReached(f"{name} is {measured(scored, name)}, required was {sign}{level:g}")


def _check_writable(name: str, path: Path) -> None:
    """Check an output's path at startup, not after the evaluation.

    Raises:
        UsageError: the file's ending is not supported, or the folder is not empty.
        OutputError: the place is missing or read-only.
    """
    suffixes = _OUTPUTS[name].suffixes
    if suffixes:
        if path.suffix.lower() not in suffixes:
            raise UsageError(f"--{name} {path}: the file must end in {' or '.join(suffixes)}")
        existing = path.parent
    else:
        if path.is_dir() and any(path.iterdir()):
            raise UsageError(f"--{name} {path}: the folder is not empty; give a new or an empty one")
        existing = next(place for place in (path, *path.parents, Path()) if place.exists())
    with writing(path), tempfile.TemporaryFile(dir=existing):
        pass


def _parse_requirement(text: str) -> tuple[str, str, float]:
    match = re.fullmatch(r"\s*(\w+)\s*(>=|<=)\s*([-+.\deE]+)\s*", text)
    try:
        if match is None:
            raise ValueError
        return match[1], match[2], float(match[3])
    except ValueError:
        raise UsageError(f"--require {text}: write it as top1>=0.9 or loss<=0.5") from None
