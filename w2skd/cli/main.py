"""The ``w2skd`` command. Nothing heavy is imported before a command runs."""

import multiprocessing
import os
import sys
from collections.abc import Callable
from typing import Annotated

import typer

from w2skd import __version__
from w2skd.cli.compare import compare
from w2skd.cli.distill import distill
from w2skd.cli.evaluate import evaluate
from w2skd.cli.options import spread
from w2skd.cli.pack import pack
from w2skd.cli.printing import errors_as_exit_codes
from w2skd.cli.recipes import recipes
from w2skd.cli.speedup_report import speedup_report
from w2skd.cli.train_teacher import train_teacher

app = typer.Typer(
    name="w2skd",
    help="Train strong vision models to a target quality sooner, with a weaker teacher early on; measure by how much.",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

_COMMANDS: dict[Callable[..., None], str] = {
    train_teacher: "w2skd train-teacher --recipe demo --out runs/demo",
    distill: "torchrun --nproc-per-node 8 -m w2skd distill --recipe demo --baseline",
    evaluate: "w2skd evaluate --model torchvision:mobilenet_v2 --recipe imagenet_resnet50",
    speedup_report: "w2skd speedup-report runs/demo --require 1.2",
    compare: "w2skd compare --recipe demo --seeds 0,1,2",
    pack: "w2skd pack --recipe imagenet_resnet50 --set data.root=DIR --out imagenet-256",
    recipes: "w2skd recipes demo > my_recipe.yaml",
}
"""Command -> example for its help."""

for _command, _example in _COMMANDS.items():
    _name = _command.__name__.replace("_", "-")
    app.command(_name, epilog=f"Example:  {_example}")(spread(errors_as_exit_codes(_command)))


@app.callback(invoke_without_command=True)
def _root(
    version: Annotated[
        bool, typer.Option("--version", metavar="", help="Print the version and exit.", is_eager=True)
    ] = False,
) -> None:
    if version:
        typer.echo(f"w2skd {__version__}")
        raise typer.Exit


def main() -> None:
    """Run the ``w2skd`` command.

    One of several ranks ends at once, without tearing down the interpreter: there torch's communication threads now and
    then abort a rank that has finished (``terminate called without an active exception``), and torchrun would report a
    failure.
    """
    try:
        app(prog_name="w2skd")
    except SystemExit as end:
        if int(os.environ.get("WORLD_SIZE", 1)) == 1 or not isinstance(end.code, int):
            raise
        for child in multiprocessing.active_children():
            child.kill()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(end.code)
