"""``w2skd speedup-report``."""

import math
from pathlib import Path
from typing import Annotated

import typer

from w2skd.cli.options import AsJson
from w2skd.cli.printing import on_rank_0, out, print_saved
from w2skd.errors import TargetNotReached, UsageError
from w2skd.tasks.catalog import recipe_types


def speedup_report(
    experiment: Annotated[
        Path, typer.Argument(metavar="EXPERIMENT", help="Directory of the experiment, with one folder per arm.")
    ],
    require: Annotated[
        float | None,
        typer.Option(
            "--require",
            metavar="X",
            help="Exit with code 3 if the first threshold's median speed-up is below X.",
        ),
    ] = None,
    arm: Annotated[
        str | None, typer.Option("--arm", metavar="NAME", help="Arm for --require; default: first after the reference.")
    ] = None,
    records: Annotated[
        Path | None,
        typer.Option("--records", metavar="DIR", help="Copy the runs' records, without weights, and report there."),
    ] = None,
    as_json: AsJson = False,
    allow_different: Annotated[
        list[str] | None,
        typer.Option(
            "--allow-different",
            metavar="KEY",
            show_default=False,
            help="Compare runs although this setting differs; repeatable.",
        ),
    ] = None,
) -> None:
    """Report when each run crossed each threshold, and the speed-up; print and save the report."""
    if require is not None and math.isnan(require):
        raise UsageError("--require nan: give a number")
    from w2skd.report.publish import publish
    from w2skd.report.render import as_json as report_as_json
    from w2skd.report.render import as_terminal, write_report

    types = recipe_types()
    allowed = allow_different or ()
    if records is None:
        report = write_report(experiment, types, allow_different=allowed)
    else:
        report = publish(experiment, records, types, allowed)
    if as_json:
        if on_rank_0():
            typer.echo(report_as_json(report), nl=False)
    else:
        out().print(as_terminal(report))
        print_saved((records or experiment) / "report")
    if require is not None:
        if not report.thresholds:
            raise UsageError("--require: the recipe has no thresholds")
        threshold = report.thresholds[0]
        chosen = next(iter(threshold.arms), "") if arm is None else arm
        if chosen not in threshold.arms:
            known = ", ".join(threshold.arms)
            raise UsageError(f"--arm {chosen}: no runs to compare with {report.reference}; known: {known}")
        found = threshold.arms[chosen]
        spread = found.speedup_over_seeds["epochs" if report.unit == "epoch" else "steps"]
        # A ratio that the spacing of the validations leaves open is no speed-up.
        reached = None if spread is None else 1.0 if found.verdict == "no difference" else spread.low
        if reached is None or reached < require:
            raise TargetNotReached(f"required was a speed-up of {require:g} at {threshold.name}: {found.summary}")
