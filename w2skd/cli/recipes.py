"""``w2skd recipes``."""

from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from w2skd.cli.printing import out, print_line
from w2skd.recipe.load import find_recipe, shipped_recipes


def recipes(
    name: Annotated[str | None, typer.Argument(metavar="NAME", help="Print this recipe as it was written.")] = None,
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
    out().print(table)
    print_line("To try one first, run NAME_smoke: a few steps on a few of its examples.", "dim")
