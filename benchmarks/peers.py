"""w2skd against its alternatives: a bare PyTorch loop, torchdistill and timm.

All contenders train the same student with the same teacher, loss, optimizer and batch size. Each has its own process,
and only one works at a time. Before the timing, each contender takes 20 steps from the same initial weights on the same
batches. A contender whose weights then differ from the bare loop's is not timed. Cases:

- ``step``: training on premade batches. Targets: at least 0.97 of the bare loop's rate, and at least that of each peer.
- ``data``: a network so small that reading 32 px JPEG files dominates, each contender with its own loader. w2skd runs
  twice, with its resident feed and its streaming feed. Target: at least 1.5 times the rate of each peer.
- ``accuracy``: seconds to a fixed accuracy on the image files, including building the loader, without evaluations.

CPU time includes data workers. Peak memory is the growth of the main process on a CPU, and the memory of tensors on a
GPU. The peers are installed into a separate environment, which uses the current environment's torch.

    python benchmarks/peers.py [--cases step,data,accuracy] [--data FOLDER] [--device cuda] [--compile] [--json]
"""

import argparse
import json
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from contenders import environment
from contenders.handle import ContenderFailed, Handle
from contenders.setting import TINY, Setting
from contenders.stage import count_images, train_teacher, write_shapes, write_weights
from timing.alternating import Rounds, Row, build_parser, report, take_turns

BARE, OURS, STREAMING = "bare", "w2skd", "w2skd streaming"
PEERS = ("torchdistill", "timm")
KINDS = {BARE: "bare", **{peer: peer for peer in PEERS}, OURS: "w2skd", STREAMING: "w2skd"}
CHECK_STEPS, TOLERANCE = 20, 1e-5
CHECK_LR = 1e-3
"""Low, because a high learning rate amplifies rounding to differences of 0.01 within 20 steps."""
QUICK = {
    "rounds": 4,
    "builds": 1,
    "data_steps": 20,
    "epochs": 1,
    "teacher_epochs": 1,
    "examples": 640,
    "batch_size": 32,
}


@dataclass(frozen=True)
class Blocks:
    """Steps per block, and steps before each block that are not timed."""

    steps: int
    lead: int


@dataclass
class Outcome:
    """Results so far: the table, values for JSON, and the state of each contender."""

    rows: list[Row] = field(default_factory=list)
    values: dict[str, Any] = field(default_factory=dict)
    contenders: dict[str, dict[str, Any]] = field(default_factory=dict)

    def drop(self, name: str, reason: str) -> None:
        self.contenders[name] = {**self.contenders.get(name, {}), "ran": False, "reason": reason}
        self.rows.append((f"{name}: no times", reason, ""))


@contextmanager
def started(
    python: Path, threads: int, folder: Path, names: list[str], outcome: Outcome
) -> Iterator[dict[str, Handle]]:
    """Start one process per contender, and drop those that cannot import their packages."""
    with ExitStack() as stack:
        handles: dict[str, Handle] = {}
        for name in names:
            handle = Handle(KINDS[name], python, threads, folder / f"{name}.log")
            stack.callback(handle.close)
            try:
                handle.wait()
            except ContenderFailed as error:
                outcome.drop(name, str(error))
                continue
            handles[name] = handle
            outcome.contenders[name] = {"ran": True}
        yield handles


def check_weights(handles: dict[str, Handle], setting: Setting, folder: Path, outcome: Outcome) -> None:
    """Remove contenders whose weights after 20 steps, in float32 and not compiled, differ from the bare loop's."""
    setting = replace(setting, data=None, precision="fp32", compile=False, lr=CHECK_LR, log_every=CHECK_STEPS)
    states: dict[str, dict[str, torch.Tensor]] = {}
    checked = [name for name in handles if name != STREAMING]  # differs from `OURS` in its feed only
    for name in checked:
        path = folder / f"{name}.pt"
        try:
            handles[name].build(setting)
            handles[name].run(CHECK_STEPS)
            handles[name].ask("save", path=str(path))
        except ContenderFailed as error:
            handles.pop(name).close()
            outcome.drop(name, str(error))
            continue
        states[name] = torch.load(path, weights_only=True)
    for name in states:
        difference = largest_difference(states[name], states[BARE])
        outcome.contenders[name]["weights_differ_by"] = difference
        if not difference <= TOLERANCE:
            handles.pop(name).close()
            outcome.drop(name, f"weights differ by {difference:.2g} from the bare loop's after {CHECK_STEPS} steps")


def largest_difference(ours: Mapping[str, torch.Tensor], theirs: Mapping[str, torch.Tensor]) -> float:
    """Return the largest absolute difference of two state dicts, including running statistics."""
    assert ours.keys() == theirs.keys(), ours.keys() ^ theirs.keys()
    return max(float((ours[name].double() - theirs[name].double()).abs().max()) for name in ours)


def compare(
    case: str,
    handles: Mapping[str, Handle],
    settings: Mapping[str, Setting],
    blocks: Blocks,
    options: argparse.Namespace,
    outcome: Outcome,
) -> None:
    """Time blocks of steps in turn and add rates, ratios, CPU time and memory to the outcome."""
    steps = blocks.steps
    builders = {
        name: lambda name=name: handles[name].block(settings[name], steps, blocks.lead)
        for name in settings
        if name in handles
    }
    turns = take_turns(builders, options.rounds, builds=options.builds)
    add_ratios(case, turns, outcome)
    examples = steps * settings[BARE].batch_size
    result = outcome.values[case] | {
        "examples_per_s": {name: examples / turns.seconds(name) for name in builders},
        "cpu_ms_per_step": {name: median_cpu(turns, name) / steps * 1e3 for name in builders},
        "peak_mib": {name: handles[name].ask("memory")["mib"] for name in builders},
    }
    outcome.values[case] = result
    for name in builders:
        text = (
            f"{result['examples_per_s'][name]:,.0f} examples/s, {result['cpu_ms_per_step'][name]:.2f} ms CPU per step, "
            f"{result['peak_mib'][name]:,.0f} MiB"
        )
        outcome.rows.append((f"  {case}, {name}", text, ""))


def median_cpu(turns: Rounds, name: str) -> float:
    return sorted(turns.cpu[name])[len(turns.cpu[name]) // 2]


def add_ratios(case: str, turns: Rounds, outcome: Outcome) -> None:
    """Add the rate of each of w2skd's runs divided by each other contender's."""
    ratios = {}
    for ours in (OURS, STREAMING):
        for other in (BARE, *PEERS):
            if ours in turns.wall and other in turns.wall:
                ratio = turns.ratio(ours, other).inverse
                target = 1.5 if case == "data" else 0.97 if other == BARE else 1.0
                ratios[f"{ours} / {other}"] = {**ratio.as_dict(), "target": target}
                outcome.rows.append((f"{case}: {ours} / {other}", f"{ratio}", f"target at least {target}"))
    outcome.values[case] = {"ratios": ratios}


def race(handles: Mapping[str, Handle], settings: Mapping[str, Setting], epoch_steps: int, options, outcome) -> None:
    """Train all contenders epoch by epoch in turn until they reach the target, and add their seconds."""
    seconds = {name: handles[name].build(settings[name]) for name in settings if name in handles}
    reached: dict[str, dict[str, Any]] = {}
    for epoch in range(1, options.epochs + 1):
        racing = [name for name in seconds if name not in reached]
        for name in racing[:: 1 if epoch % 2 else -1]:
            seconds[name] += handles[name].run(epoch_steps).wall
            top1 = handles[name].ask("score")["top1"]
            if top1 >= options.target or epoch == options.epochs:
                reached[name] = {
                    "reached": top1 >= options.target,
                    "top1": top1,
                    "epochs": epoch,
                    "seconds": seconds[name],
                    "seconds_per_epoch": seconds[name] / epoch,
                }
    outcome.values["accuracy"] = reached
    for name, result in reached.items():
        told = "" if result["reached"] else "not reached: "
        text = (
            f"{told}{result['top1']:.1%} after {result['seconds']:.1f} s, {result['epochs']} epochs of "
            f"{result['seconds_per_epoch']:.2f} s"
        )
        outcome.rows.append((f"accuracy of {options.target:.0%}: {name}", text, ""))


def read_options() -> argparse.Namespace:
    parser = build_parser(__doc__, rounds=48)
    parser.add_argument("--cases", default="step,data,accuracy")
    parser.add_argument("--student", default="small_cnn_strong")
    parser.add_argument("--teacher", default="small_cnn_weak")
    parser.add_argument("--data-student", default=TINY, help=f"student of the data case; its teacher is {TINY}, too")
    parser.add_argument("--data", type=Path, help="image folder with train/ and test/ [generated]")
    parser.add_argument("--examples", type=int, default=4096, help="generated training images")
    parser.add_argument("--size", type=int, default=32, help="side of the images in px")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--steps", type=int, default=2, help="steps per block of the step case")
    parser.add_argument("--data-steps", type=int, default=60, help="steps per block of the data case")
    parser.add_argument("--builds", type=int, default=3, help="how often the contenders are rebuilt")
    parser.add_argument("--workers", type=int, default=1, help="data workers of every loader")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--compile", action="store_true", help="compile as each contender does")
    parser.add_argument("--target", type=float, default=0.5, help="top-1 accuracy of the accuracy case")
    parser.add_argument("--epochs", type=int, default=12, help="maximum number of epochs of the accuracy case")
    parser.add_argument("--teacher-epochs", type=int, default=4, help="epochs of the teacher of the accuracy case")
    parser.add_argument("--peers-env", type=Path, default=environment.default_folder())
    parser.add_argument("--out", type=Path, help="also write the results to this JSON file")
    parser.add_argument("--quick", action="store_true", help="few and short blocks, for a rough result in a minute")
    options = parser.parse_args()
    if options.quick:
        vars(options).update(QUICK)
    return options


def main() -> None:
    options, outcome = read_options(), Outcome()
    torch.set_num_threads(options.threads)
    python, missing = environment.prepare(options.peers_env)
    names = list(KINDS) if options.cases != "step" else [name for name in KINDS if name != STREAMING]
    if missing is not None:
        names = [name for name in names if name not in PEERS]
        for peer in PEERS:
            outcome.drop(peer, missing)
    with TemporaryDirectory() as temporary:
        folder = Path(temporary)
        data = options.data or folder / "images"
        if options.data is None:
            write_shapes(data, options.examples, options.size)
        examples, classes = count_images(data)
        setting = Setting(
            options.student,
            options.teacher,
            str(folder / "weights"),
            classes,
            options.size,
            options.batch_size,
            options.steps,
            device=options.device,
            precision=options.precision,
            compile=options.compile,
            workers=options.workers,
        )
        write_weights(setting)
        with started(python, options.threads, folder, names, outcome) as handles:
            run_cases(handles, setting, data, examples, options, outcome)
    values = {**outcome.values, "contenders": outcome.contenders, "torch": torch.__version__}
    if options.out is not None:
        write_json(options.out, values)
    report(options, outcome.rows, values)


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Write the results, with the number of timed contenders as ``n`` and the reasons of the others as ``failed``."""
    contenders = values["contenders"]
    failed = {name: one["reason"] for name, one in contenders.items() if not one["ran"]}
    path.write_text(json.dumps({"n": len(contenders) - len(failed), "failed": failed, **values}, indent=1))


def run_cases(
    handles: dict[str, Handle],
    setting: Setting,
    data: Path,
    examples: int,
    options: argparse.Namespace,
    outcome: Outcome,
) -> None:
    cases = options.cases.split(",")
    check_weights(handles, setting, Path(setting.weights), outcome)
    if "step" in cases:
        settings = {name: setting for name in KINDS if name != STREAMING}
        compare("step", handles, settings, Blocks(options.steps, lead=0), options, outcome)
    if "data" in cases:
        small = replace(
            setting,
            student=options.data_student,
            teacher=TINY,
            weights=f"{setting.weights}-data",
            data=str(data),
            log_every=options.data_steps // 4,
        )
        write_weights(small)
        blocks = Blocks(options.data_steps, lead=options.data_steps // 4)  # more than the loaders prefetch
        compare("data", handles, with_feeds(small), blocks, options, outcome)
    if "accuracy" in cases:
        epoch_steps = examples // options.batch_size
        full = replace(setting, data=str(data), log_every=epoch_steps)
        train_teacher(full, options.teacher_epochs * epoch_steps)
        race(handles, with_feeds(full), epoch_steps, options, outcome)


def with_feeds(setting: Setting) -> dict[str, Setting]:
    """Return the setting of each contender on image files."""
    return {name: replace(setting, feed="streaming" if name == STREAMING else "auto") for name in KINDS}


if __name__ == "__main__":
    main()
