"""Numbers in the prose about published experiments are those of their records.

Each claim is a text with gaps, and what the records say in the gaps. The text must stand in the page exactly once, so
that a changed sentence fails as a changed record does.
"""

import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
from published import (
    ARMS,
    BCCD,
    CIFAR,
    DDPM,
    DEMO,
    GROWN,
    IMAGENETTE,
    LONGER,
    RESULTS,
    ROOT,
    SMALLER,
    by_the_clock,
    delays,
    equal_quality_sentences,
    everything,
    examples,
    floor,
    flops,
    forward_share,
    gains,
    level,
    listed,
    longer_in_train,
    machine,
    median_reached,
    medians,
    minutes,
    of_seed_1,
    over,
    parameters,
    percent,
    percents,
    ratio,
    reached,
    records,
    report,
    runs,
    scores,
    sentence,
    spread,
    switched_off,
    target,
    teacher_flops_of_the_longer_training,
    teachers_epochs,
    teachers_flops,
    three,
    value_at,
    without_x,
)

from w2skd.report import units
from w2skd.report.crossing import last_position, with_flops

PAGE = RESULTS / "README.md"

Values = Callable[[], Iterable[Any]]
CLAIMS: list[tuple[Path, str, Values]] = [
    (PAGE, "is not met: {}. That is better", lambda: [sentence(report(GROWN).equal_quality["weak"])]),
    (PAGE, "{}. {}. So the advantage is a head start of some ten epochs", lambda: equal_quality_sentences(GROWN)),
    # cifar10_cpu
    (PAGE, "a ResNet-20 step with 128 images is {} GFLOP", lambda: [f"{3e-9 * 128 * flops(CIFAR):.0f}"]),
    (PAGE, "three quarters of an hour ({} minutes in the records)", lambda: [f"{everything(CIFAR):.1f}"]),
    (
        PAGE,
        "The plain baseline of seed 1 did so at epoch {} and the distilled run at {}; their best accuracies were {}% "
        "and {}%.",
        lambda: [
            *(f"{float(reached(CIFAR, 'teacher', arm)[0]):.1f}" for arm in ARMS),
            *(percent(scores(CIFAR, arm)[0]) for arm in ARMS),
        ],
    ),
    (PAGE, "reached {}, the teacher's level, at epoch", lambda: [level(CIFAR, "teacher")]),
    (
        PAGE,
        "the distilled runs were ahead at every target, by {:.2f} to {:.2f} times in the median, and their best "
        "accuracies were {} to {} points higher. In FLOPs the gain was small ({:.2f} to {:.2f} times). In seconds on "
        "this machine there was none ({:.2f} to {:.2f} times).",
        lambda: [
            *(medians(CIFAR, "epochs")[end] for end in (0, -1)),
            *gains(CIFAR),
            *(medians(CIFAR, quantity)[end] for quantity in ("flops", "seconds") for end in (0, -1)),
        ],
    ),
    (
        PAGE,
        "A ResNet-8 forward is {:.2f} of a ResNet-20 forward, so a distilled step costs {}% more in FLOPs; in time it "
        "cost {}% more (median",
        lambda: [forward_share(CIFAR), percent(floor(CIFAR)), percent(by_the_clock(CIFAR))],
    ),
    (
        PAGE,
        "the distilled runs of seeds 1 and 2 spent {}% and {}% longer than the baselines in the `train` segment",
        lambda: [longer_in_train(CIFAR, seed) for seed in (1, 2)],
    ),
    # imagenette_cpu
    (PAGE, "ResNet-20 at 48 px takes {:.2f} GFLOP per image", lambda: [3e-9 * flops(IMAGENETTE)]),
    (PAGE, "an epoch of 2,000 images is {:.1f} TFLOP", lambda: [3e-12 * 2000 * flops(IMAGENETTE)]),
    (
        PAGE,
        "{} times at {}, {} at {}, and {} at the teacher's {} and at {} (medians, in epochs). Their best accuracies "
        "were {} to {} points higher.",
        lambda: [
            *without_x(IMAGENETTE, "0.85*baseline", "0.90*baseline", "teacher"),
            level(IMAGENETTE, "0.95*baseline"),
            *gains(IMAGENETTE),
        ],
    ),
    (PAGE, "and {} at the teacher's 69.1% and at 69.8%", lambda: without_x(IMAGENETTE, "0.95*baseline")[:1]),
    (
        PAGE,
        "In FLOPs the speed-ups were {}, {} and {} times.",
        lambda: [ratio(IMAGENETTE, name, "flops")[:-1] for name in ("0.85*baseline", "0.90*baseline", "0.95*baseline")],
    ),
    (PAGE, "The switch came at epoch {} on all seeds", lambda: switched_off(IMAGENETTE)),
    (PAGE, "Including teacher training ({:.0f} epochs), there was", lambda: [teachers_epochs(IMAGENETTE)]),
    (PAGE, "| seed 1 | {} at epoch | {} at epoch | {} at epoch | {} at epoch | best |", lambda: of_seed_1(None)),
    (PAGE, "| baseline | {} | {} | {} | {} | {}% |", lambda: of_seed_1("baseline")),
    (PAGE, "| distilled | {} | {} | {} | {} | {}% |", lambda: of_seed_1("w2s")),
    (PAGE, "At {}, seed 1 crossed a single validation earlier", lambda: [level(IMAGENETTE, "0.95*baseline")]),
    (PAGE, "reports gains: on {:,} images", lambda: examples(IMAGENETTE)[:1]),
    # imagenette_cpu_teacher_32px
    (
        PAGE,
        "on the same kind of machine ({}, one thread, beside other work)",
        lambda: {machine(SMALLER), machine(IMAGENETTE)},
    ),
    (
        PAGE,
        "Its forward took {}% of the student's training time instead of {}%",
        lambda: [percent(by_the_clock(name)) for name in (SMALLER, IMAGENETTE)],
    ),
    (
        PAGE,
        "a distilled step cost {:.3f} instead of {:.3f} plain steps",
        lambda: [1 + floor(name) for name in (SMALLER, IMAGENETTE)],
    ),
    (
        PAGE,
        "at 32 px its accuracy was only {} instead of {}.",
        lambda: [level(name, "teacher") for name in (SMALLER, IMAGENETTE)],
    ),
    (
        PAGE,
        "surpassed it at epoch {} to {} instead of {} and crossed every level {} to {} epochs later",
        lambda: [
            *(switched_off(SMALLER)[end] for end in (0, -1)),
            *switched_off(IMAGENETTE),
            min(delays()),
            max(delays()),
        ],
    ),
    (
        PAGE,
        "{} at epoch {} instead of {}, {} at {} instead of {}, {} at {} instead of {} (medians)",
        lambda: [
            value
            for name in ("0.85*baseline", "0.90*baseline", "0.95*baseline")
            for value in (level(SMALLER, name), *(median_reached(one, name, "w2s") for one in (SMALLER, IMAGENETTE)))
        ],
    ),
    # bccd_cpu
    (PAGE, "all {} training and {} test images, resized", lambda: examples(BCCD)),
    (PAGE, "A run took {:.1f} to {:.1f} minutes, validations included.", lambda: [minutes(BCCD)[0], minutes(BCCD)[-1]]),
    *(
        (
            PAGE,
            "| {}{} | {}{} | {} | {} |",
            lambda threshold=threshold, after=after, word=word: [  # type: ignore[misc]  # mypy infers no defaults of lambdas
                level(BCCD, threshold).replace(".0%", "%"),
                after,
                word,
                listed(reached(BCCD, threshold, "w2s")),
                listed(reached(BCCD, threshold, "baseline")),
                spread(BCCD, threshold),
            ],
        )
        for threshold, after, word in (("0.6", "", "epochs "), ("teacher", " (teacher)", "epochs "))
    ),
    (PAGE, "| best | {} | {} | |", lambda: [percents(scores(BCCD, arm)) for arm in ("w2s", "baseline")]),
    (
        PAGE,
        "surpassed its teacher at epochs {} to {}, and the switch",
        lambda: [switched_off(BCCD)[end] for end in (0, -1)],
    ),
    (PAGE, "a third more in FLOPs ({}% by the clock)", lambda: [percent(by_the_clock(BCCD))]),
    (
        PAGE,
        "in FLOPs the speed-up is {} at 60% and {} at the teacher's level. The teacher's training ({:.1f} TFLOP)",
        lambda: [ratio(BCCD, "0.6", "flops"), ratio(BCCD, "teacher", "flops"), 1e-12 * (teachers_flops(BCCD))],
    ),
    (
        PAGE,
        "at the teacher's own level and at {} are such evidence ({} at {}, which the baseline of seed 1 never reached; "
        "the teacher is {}% weaker than that)",
        lambda: [
            level(BCCD, "0.95*baseline"),
            ratio(BCCD, "0.95*baseline"),
            level(BCCD, "0.95*baseline"),
            percent(-(target(BCCD, "0.95*baseline").teacher_gap or 0)),
        ],
    ),
    (PAGE, "so {} is one validation", lambda: [units.ratio(target(BCCD, "0.6").arms["w2s"].speedup["epochs"][2])]),
    (PAGE, "is not recovered within {:.0f} epochs", lambda: [records(BCCD).recipe.train.epochs]),
    (
        PAGE,
        "With {} on the test images, the teacher is better than the targets of {:.0%} and {:.0%}",
        lambda: [level(BCCD, "teacher"), *(target(BCCD, name).value for name in ("0.5", "0.6"))],
    ),
    # cifar10_ddpm_cpu
    (
        PAGE,
        "with 32 and 16 channels ({} and {} parameters)",
        lambda: [parameters(DDPM, role) for role in ("student", "teacher")],
    ),
    (
        PAGE,
        "the recorded runs took {:.1f} to {:.1f} minutes beside other work",
        lambda: [minutes(DDPM)[0], minutes(DDPM)[-1]],
    ),
    (
        PAGE,
        "The distilled runs reached the teacher's FID of {:.2f} at steps {}, against {} for every baseline;",
        lambda: [
            target(DDPM, "teacher").value,
            listed(reached(DDPM, "teacher", "w2s")),
            *set(reached(DDPM, "teacher", "baseline")),
        ],
    ),
    (
        PAGE,
        "At {:.2f} and {:.2f} the arms are level ({}), and at {:.2f} the distilled runs are no faster ({}): with "
        "seed {} the distilled run never reached it.",
        lambda: [
            *(target(DDPM, name).value for name in ("0.80*baseline", "0.90*baseline")),
            *{ratio(DDPM, name) for name in ("0.80*baseline", "0.90*baseline")},
            target(DDPM, "0.95*baseline").value,
            ratio(DDPM, "0.95*baseline"),
            *[seed for seed, place in target(DDPM, "0.95*baseline").first["w2s"].items() if place is None],
        ],
    ),
    (
        PAGE,
        "The final FIDs are {} with the teacher and {} without.",
        lambda: [three(scores(DDPM, arm, "final")) for arm in ("w2s", "baseline")],
    ),
    (
        PAGE,
        "({:.2f} to {:.2f} at step 300 against {:.2f} to {:.2f})",
        lambda: [
            end(value_at(run, 300) for run in records(DDPM).arm(arm).values())
            for arm in ("w2s", "baseline")
            for end in (min, max)
        ],
    ),
    (
        PAGE,
        "When it ended at step {}, the student",
        lambda: {run.distillation_off.step for run in runs(DDPM, "w2s") if run.distillation_off},
    ),
    (
        PAGE,
        "At a target of {:.2f} (0.90 of the baseline's best) the teacher is {}% weaker",
        lambda: [
            target(DDPM, "0.90*baseline").value,
            percent(-(target(DDPM, "0.90*baseline").teacher_gap or 0), 0),
        ],
    ),
    # cifar10_ddpm_cpu_longer_teacher
    (PAGE, "Its FID of {:.2f} is *better*", lambda: [target(LONGER, "teacher").value]),
    *(
        (
            PAGE,
            "| {:.2f} | steps {} | {} | {} |",
            lambda threshold=threshold: [  # type: ignore[misc]  # mypy infers no defaults of lambdas
                target(LONGER, threshold).value,
                *(listed(reached(LONGER, threshold, arm)) for arm in ("w2s", "baseline")),
                spread(LONGER, threshold),
            ],
        )
        for threshold in ("0.80*baseline", "0.90*baseline", "0.95*baseline")
    ),
    (PAGE, "| final | {} | {} | |", lambda: [three(scores(LONGER, arm, "final")) for arm in ("w2s", "baseline")]),
    (
        PAGE,
        "In FLOPs the speed-up is {:.2f}x to {:.2f}x, because a distilled step costs {}% more ({}% by the clock).",
        lambda: [
            *(medians(LONGER, "flops")[end] for end in (-1, 0)),
            percent(floor(LONGER)),
            percent(by_the_clock(LONGER)),
        ],
    ),
    (
        PAGE,
        "the teacher's training ({:.1f} TFLOP, about three quarters of a student run",
        lambda: [1e-12 * teacher_flops_of_the_longer_training()],
    ),
    # recipes
    (
        ROOT / "recipes" / "bccd_cpu.yaml",
        "{:.1f} to {:.1f} minutes a run beside other work (medians): AP50 60% at epoch {} instead of {} ({}), the "
        "teacher's {} at {} instead of {} ({}); best {} to {}% instead of {} to {}%.",
        lambda: [
            *(minutes(BCCD)[end] for end in (0, -1)),
            *(median_reached(BCCD, "0.6", arm) for arm in ("w2s", "baseline")),
            spread(BCCD, "0.6").replace(" (", ", ")[:-1],
            level(BCCD, "teacher"),
            *(median_reached(BCCD, "teacher", arm) for arm in ("w2s", "baseline")),
            spread(BCCD, "teacher").replace(" (", ", ")[:-1],
            *over(scores(BCCD, "w2s")),
            *over(scores(BCCD, "baseline")),
        ],
    ),
    (
        ROOT / "recipes" / "cifar10_cpu.yaml",
        "{:.0f} to {:.1f} minutes a run: {} (0.90 of the baseline's best) at epoch {} instead of {}, the teacher's {} "
        "at {} instead of {} to {}; best {} to {}% instead of {} to {}%.",
        lambda: [
            *(minutes(CIFAR)[end] for end in (0, -1)),
            level(CIFAR, "0.90*baseline"),
            *(median_reached(CIFAR, "0.90*baseline", arm) for arm in ("w2s", "baseline")),
            level(CIFAR, "teacher"),
            median_reached(CIFAR, "teacher", "w2s"),
            *(f"{end(float(one) for one in reached(CIFAR, 'teacher', 'baseline')):.1f}" for end in (min, max)),
            *over(scores(CIFAR, "w2s"), 1),
            *over(scores(CIFAR, "baseline"), 1),
        ],
    ),
    (
        ROOT / "recipes" / "cifar10_ddpm_cpu.yaml",
        "{:.0f} to {:.0f} minutes a run beside other runs: no speed-up. The teacher's FID of {:.2f} is reached within "
        "one validation of the baseline, {:.2f} no sooner ({}); best {:.1f} to {:.1f} against {:.1f} to {:.1f}. A "
        "teacher trained for longer gives {:.2f}x to {:.2f}x.",
        lambda: [
            *(minutes(DDPM)[end] for end in (0, -1)),
            target(DDPM, "teacher").value,
            target(DDPM, "0.95*baseline").value,
            ratio(DDPM, "0.95*baseline"),
            *(end(scores(DDPM, arm)) for arm in ("w2s", "baseline") for end in (min, max)),
            *(medians(LONGER, "steps")[end] for end in (0, -1)),
        ],
    ),
    (
        ROOT / "recipes" / "imagenette_cpu.yaml",
        "{} (0.85 of the baseline's best) at epoch {} instead of {}, {} at {} instead of {}, the teacher's {} at {} "
        "instead of {}; best {} to {}% instead of {} to {}%.",
        lambda: [
            *(
                value
                for name in ("0.85*baseline", "0.90*baseline", "teacher")
                for value in (
                    level(IMAGENETTE, name),
                    *(median_reached(IMAGENETTE, name, arm) for arm in ("w2s", "baseline")),
                )
            ),
            *over(scores(IMAGENETTE, "w2s"), 1),
            *over(scores(IMAGENETTE, "baseline"), 1),
        ],
    ),
    (
        ROOT / "recipes" / "demo.yaml",
        "the teacher's {} at epoch {} with both seeds instead of {}, best accuracy {} to {}% in both arms; {:.0f} "
        "minutes in total.",
        lambda: [
            level(DEMO, "teacher"),
            *set(reached(DEMO, "teacher", "w2s")),
            listed(reached(DEMO, "teacher", "baseline")),
            *over(scores(DEMO, "baseline") + scores(DEMO, "w2s")),
            everything(DEMO),
        ],
    ),
]


def text_of(page: Path) -> str:
    """Return the text of a page in one line, without comment signs."""
    lines = page.read_text(encoding="utf-8").splitlines()
    return re.sub(r"\s+", " ", " ".join(line.removeprefix("#") for line in lines))


@pytest.mark.parametrize(("page", "template", "values"), CLAIMS, ids=[claim[1][:40] for claim in CLAIMS])
def test_a_claim_is_what_the_records_say(page: Path, template: str, values: Values) -> None:
    claim = template.format(*values())
    assert text_of(page).count(claim) == 1, f"{page.name} should say once: {claim}"


REPORTED = re.compile(r"### (?:Findings|Cost).*?(?=\n##)|## imagenette_cpu_teacher_32px.*?(?=\n## )", re.DOTALL)
KNOWN = re.compile(
    r"seeds? \d(?:, \d)*(?: (?:and|to) \d)*|ResNet-\d+|\d+ px|AP50|with seed \d|`[^`]*`|imagenette_cpu_teacher_32px"
    r"|2 cores|\[[^]]*\]\([^)]*\)|red cells 75%, white cells 97%, platelets 82%"
)
"""Names, what recipes set, and scores that the page itself says are not in the records."""


def test_no_number_about_reported_runs_is_left_unchecked() -> None:
    page = PAGE.read_text(encoding="utf-8")
    sections = [re.sub(r"\s+", " ", found[0]) for found in REPORTED.finditer(page)]
    assert len(sections) == 5
    for template, values in [(claim[1], claim[2]) for claim in CLAIMS if claim[0] == PAGE]:
        claim = template.format(*values())
        sections = [section.replace(claim, "") for section in sections]
    left = [re.findall(r".{0,40}\d.{0,20}", KNOWN.sub("", section)) for section in sections]
    assert [line for lines in left for line in lines] == []


def test_sentences_without_numbers_hold() -> None:
    assert all(
        target(DDPM, name).arms["w2s"].verdict == "no difference"
        for name in ("teacher", "0.80*baseline", "0.90*baseline")
    )
    first = records(LONGER).arm("baseline")[1]
    last = last_position(first.rows)
    assert last is not None
    student = with_flops(last, first).flops
    assert student is not None
    assert teacher_flops_of_the_longer_training() / student == pytest.approx(0.75, abs=0.03)
    assert floor(BCCD) == pytest.approx(1 / 3, abs=1e-4)
    for name in (CIFAR, IMAGENETTE):  # no distilled run was later at any target
        assert all(value >= 1 for one in report(name).thresholds for value in one.arms["w2s"].speedup["steps"].values())
