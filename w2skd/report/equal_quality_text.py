"""The speed-up at equal final quality in words, with its caveats."""

import itertools
import math
from collections.abc import Mapping

from w2skd.report import units
from w2skd.report.ends import Ends, Pairing
from w2skd.report.equal_quality_contract import AtLength, EqualQuality, Estimate, Plan
from w2skd.report.replicates import FEWEST_TEACHERS

WIDE_GAP = 1.5
"""Lengths of the reference further apart than this factor are reported, as interpolation overestimates the speed-up."""


def sentence(found: EqualQuality, at: AtLength | None = None) -> str:
    """Return the result at one length in one sentence.

    Args:
        found: the comparison.
        at: one of its lengths; None selects the primary one.
    """
    at = at or found.primary
    if at is None:
        return f"no speed-up at equal quality: no length of {found.arm} can be compared with {found.reference}"
    length, there = _length(at.length, found.unit), at.reference_length
    if there.value is not None:
        ends = f"as well as {found.reference} after {_length(there.value, found.unit, short=True)}"
    elif there.more_than is not None:
        longest = _length(there.more_than, found.unit, short=True)
        ends = f"better than {found.reference} after {longest}, the longest compared"
    else:
        shortest = _length(there.less_than, found.unit, short=True)
        ends = f"worse than {found.reference} after {shortest}, the shortest compared"
    parts = [f"{found.arm} after {length} ends {ends}: {_ratio(at.speedup)}{_interval(at.speedup, found.level)}"]
    if at.with_teacher:
        parts.append(f"{_ratio(at.with_teacher)} including teacher training")
    parts += [f"{_ratio(estimate)} with the teacher shared by {count}" for count, estimate in at.shared.items()]
    seeds = f"{len(at.seeds)} seeds" if len(at.seeds) > 1 else "one seed"
    teachers = "" if at.teachers is None else f", {_teachers(at.teachers)}"
    return f"{', '.join(parts)}; {seeds}{teachers}"


def line_sentence(found: EqualQuality) -> str | None:
    """Return the line in one sentence, with intervals if there are any."""
    line = found.line
    if line is None:
        return None
    head, rate = line.head_start, line.rate
    head_range = rate_range = ""
    if head.interval and rate.interval:
        head_range = f" ({_plain(head.interval.low)} to {_plain(head.interval.high)})"
        rate_range = f" ({_plain(rate.interval.low)} to {_plain(rate.interval.high)})"
    return (
        f"to end as well, {found.reference} needs {_plain(rate.value)}{rate_range} {found.unit}s for each {found.unit} "
        f"of {found.arm}, plus {_plain(head.value)}{head_range} {found.unit}s"
    )


def notes(
    reference: Ends, arm: Ends, pairings: Mapping[float, Pairing | None], found: EqualQuality, plan: Plan
) -> list[str]:
    """Return the caveats of a comparison, in sentences, each once.

    Args:
        reference: as given to `equal_quality`.
        arm: as given to `equal_quality`.
        pairings: pairing by length of the arm.
        found: the comparison.
        plan: as given to `equal_quality`.
    """
    lines = _missing(pairings, arm, plan.unit)
    for length, pairing in pairings.items():
        where = f"{arm.arm} at {_length(length, plan.unit)}"
        if pairing is None:
            lines.append(f"{where} is not compared: no seed has this run and those of {reference.arm}.")
            continue
        lines += _unused(pairing, reference, plan.unit)
        lines += _curve(pairing, reference, plan.unit)
        at = next(at for at in found.lengths if at.length == length)
        lines += _gap(where, at, pairing, plan.unit)
    lines += _error(found)
    costs = [cost for cost in arm.teacher_costs or () if math.isfinite(cost)]
    if arm.teachers is not None and len(costs) < len(arm.seeds):
        lines.append("The cost of training some teachers is unknown, so results including it may be missing.")
    elif costs and max(costs) > 1.01 * min(costs):
        bounds = f"{units.epochs(min(costs))} to {units.epochs(max(costs))} {plan.unit}s"
        lines.append(f"Training a teacher costs {bounds}; the mean is used, and the intervals ignore its error.")
    if plan.primary_length is None and found.primary:
        lines.append("The primary length was not declared in advance: it is the longest one with a speed-up.")
    return list(dict.fromkeys(lines + _about_line(found)))


def _missing(pairings: Mapping[float, Pairing | None], arm: Ends, unit: str) -> list[str]:
    """Return which seeds are excluded, in one line for all lengths that exclude the same seeds."""
    lengths: dict[str, list[float]] = {}
    for length, pairing in pairings.items():
        seeds = [] if pairing is None else [str(seed) for seed in arm.seeds if seed not in pairing.seeds]
        if seeds:
            lengths.setdefault(", ".join(seeds), []).append(length)
    lines = []
    for missing, those in lengths.items():
        *others, last = [_length(each, unit, short=each != those[-1]) for each in those]
        texts = f"{', '.join(others)} and {last}" if others else last
        excluded = f"seeds {missing} are" if "," in missing else f"seed {missing} is"
        lines.append(f"{arm.arm} at {texts}: {excluded} excluded because a run is missing in one of the arms.")
    return lines


def _unused(pairing: Pairing, reference: Ends, unit: str) -> list[str]:
    unused = [length for length in reference.lengths if length not in pairing.reference_lengths]
    if not unused:
        return []
    texts = ", ".join(_length(length, unit, short=True) for length in unused)
    return [f"{reference.arm} at {texts} {unit}s is not used: fewer than half of the seeds have finished it."]


def _curve(pairing: Pairing, reference: Ends, unit: str) -> list[str]:
    curve, lengths = pairing.raw_curve, pairing.reference_lengths
    falls = [index for index in range(1, len(curve)) if curve[index] < curve[index - 1]]
    return [
        f"On average, {reference.arm} ends worse after {_length(lengths[index], unit)} than after "
        f"{_length(lengths[index - 1], unit, short=True)}; these lengths are pooled."
        for index in falls
    ]


def _gap(where: str, at: AtLength, pairing: Pairing, unit: str) -> list[str]:
    value, lengths = at.reference_length.value, pairing.reference_lengths
    for left, right in itertools.pairwise(lengths):
        if value is not None and left < value < right and right > WIDE_GAP * left * (1 + 1e-9):
            bounds = f"{_length(left, unit, short=True)} and {_length(right, unit)}"
            factor = f"{right / left:.2g}x"
            return [f"{where}: interpolation between {bounds}, {factor} apart, slightly overestimates the speed-up."]
    return []


def _error(found: EqualQuality) -> list[str]:
    lines = []
    without = [at for at in found.lengths if at.speedup.interval is None]
    if without:
        texts = ", ".join(_length(at.length, found.unit, short=True) for at in without)
        lines.append(f"No interval at {texts} {found.unit}s: it requires 3 seeds, or 4 seeds that share 2 teachers.")
    few = {at.teachers for at in found.lengths if at.teachers is not None and at.teachers < FEWEST_TEACHERS}
    for count in sorted(few):
        them = "this teacher" if count == 1 else "these teachers"
        lines.append(f"The seeds share {_teachers(count)}: the intervals hold only for {them}.")
    return lines


def _about_line(found: EqualQuality) -> list[str]:
    line, lines = found.line, []
    if line is None:
        numbered = [at for at in found.lengths if at.speedup.value is not None]
        return ["No line is fitted: too few seeds have the runs of all lengths."] if len(numbered) > 1 else []
    if line.left_out:
        count = "1 length" if line.left_out == 1 else f"{line.left_out} lengths"
        lines.append(f"The line leaves out {count} of {found.arm} with only a bound, which biases it.")
    if line.rate.interval is None:
        if len(line.lengths) < 3:
            lines.append("The line has no intervals: it passes through two lengths.")
        else:
            lines.append(
                "The line has no intervals: there are too few seeds, or a length is out of range without one of them."
            )
    return lines


def _ratio(estimate: Estimate) -> str:
    if estimate.more_than is not None:
        return f"> {units.ratio(estimate.more_than)}"
    return f"< {units.ratio(estimate.less_than)}" if estimate.less_than is not None else units.ratio(estimate.value)


def _interval(estimate: Estimate, level: float) -> str:
    interval = estimate.interval
    if interval is None:
        return ""
    text = units.between((interval.low or 0.0, interval.high))
    return f" ({100 * level:.4g}% interval {'unbounded' if text == 'unknown' else text})"


def _length(value: float | None, unit: str, short: bool = False) -> str:
    text = units.epochs(value) if unit == "epoch" else units.count(value)
    return text if short else f"{text} {unit}{'' if value == 1 else 's'}"


def _plain(value: float | None) -> str:
    return units.NONE if value is None else f"{value:.3g}"


def _teachers(count: int) -> str:
    return "one teacher" if count == 1 else f"{count} teachers"
