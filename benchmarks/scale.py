"""Memory and time of listing and streaming a data set of ImageNet's or COCO's size.

The files are hard links to small JPEG files (about 1,300 links each by default), in a temporary folder that is deleted
at the end. A fresh process lists them, identifies them, opens the streaming feed and reads batches. Resident
memory is that of this process, which has loaded torch. Private memory of a data worker is the memory that it shares
with no other process; it should not grow once the worker has its buffers. The numbers come from /proc, which needs
Linux.

    python benchmarks/scale.py [--form folders] [--files 1281167] [--classes 1000] [--workers 2] [--seconds 60] [--json]
    python benchmarks/scale.py --form coco [--files 118000] [--boxes 7] [--workers 2] [--json]
"""

import argparse
import hashlib
import multiprocessing
import os
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from PIL import Image
from timing.alternating import build_parser, report

import w2skd.data.workers
from w2skd.data.feeds import ImageFeeds
from w2skd.data.order import BatchOrder
from w2skd.data.sources import IMAGENET
from w2skd.data.streaming import StreamingFeed
from w2skd.data.workers import Workers, start_method
from w2skd.recipe.data import ImageDataSection
from w2skd.recipe.train import TrainSection
from w2skd.tasks.detection.feed import DeliverBoxes, ReadBoxes
from w2skd.tasks.detection.recipe import DetectionData
from w2skd.tasks.detection.sources import identify_detection_data, list_detection_data
from w2skd.tasks.detection.transforms import DetectionTransform

SIDE_PX = 64
FILES = {"folders": 1_281_167, "coco": 118_000}
PER_SOURCE = 1_300
"""Links to one file of COCO's form. File systems limit them; a folder of ImageNet has as many files."""

EVAL_SHARE = 25
"""Training files per evaluation file."""

CATEGORIES = 80
OUTLINE = ", ".join(["123.45"] * 40)
FIRST_BATCHES = 8
"""Batches per worker before the first measurement, so that all buffers exist."""


def write_sources(folder: Path, count: int) -> list[Path]:
    """Write noisy JPEG files of 2 to 4 KB."""
    folder.mkdir()
    draw = np.random.default_rng(0)
    for number in range(count):
        pixels = draw.integers(0, 256, (SIDE_PX, SIDE_PX, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.jpg", quality=60)
    return [folder / f"{number}.jpg" for number in range(count)]


def link_folders(root: Path, files: int, classes: int) -> None:
    """Link `files` training images and a share of them for evaluation, named like ImageNet's."""
    per_class = -(-files // classes)
    sources = write_sources(root / "sources", classes)
    for part, most in (("train", per_class), ("val", max(1, per_class // EVAL_SHARE))):
        left = files
        for label, source in enumerate(sources):
            folder = root / part / f"n{label:08d}"
            folder.mkdir(parents=True)
            for number in range(min(most, left)):
                os.link(source, folder / f"n{label:08d}_{number}.JPEG")
            left -= min(most, left)


def link_coco(root: Path, files: int, boxes: int) -> None:
    """Link images and write annotations with outlines of 20 points."""
    sources = write_sources(root / "sources", -(-files // PER_SOURCE))
    (root / "annotations").mkdir()
    for part, count in (("train2017", files), ("val2017", max(1, files // EVAL_SHARE))):
        (root / part).mkdir()
        for number in range(count):
            os.link(sources[number // PER_SOURCE], root / part / f"{number:012d}.jpg")
        images = (
            f'{{"id": {number}, "file_name": "{number:012d}.jpg", "height": {SIDE_PX}, "width": {SIDE_PX}}}'
            for number in range(count)
        )
        annotations = (
            f'{{"id": {number + 1}, "image_id": {number // boxes}, "category_id": {number % CATEGORIES}, "iscrowd": 0, '
            f'"area": 200.0, "bbox": [{number % 40}, {number % 37}, 20.5, 10.25], "segmentation": [[{OUTLINE}]]}}'
            for number in range(count * boxes)
        )
        categories = (f'{{"id": {number}, "name": "category {number}"}}' for number in range(CATEGORIES))
        with (root / "annotations" / f"instances_{part}.json").open("w") as file:
            for key, rows in (("images", images), ("annotations", annotations), ("categories", categories)):
                file.write(f'{"{" if key == "images" else ", "}"{key}": [')
                file.writelines(f"{', ' * bool(place)}{row}" for place, row in enumerate(rows))
                file.write("]")
            file.write("}")


def status_mb(key: str) -> float:
    """Return a memory entry of this process in MB: VmRSS, its part RssAnon without files, or its peak VmHWM."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(key):
            return int(line.split()[1]) * 1024 / 1e6
    raise AssertionError(key)


def private_mb() -> list[float]:
    """Return the private memory of each data worker in MB."""
    sums = []
    for process in sorted(multiprocessing.active_children(), key=lambda each: each.pid or 0):
        lines = Path(f"/proc/{process.pid}/smaps_rollup").read_text().splitlines()
        sums.append(sum(int(line.split()[1]) for line in lines if line.startswith("Private_")) * 1024 / 1e6)
    return sums


def folder_batches(root: Path, options: argparse.Namespace) -> tuple[dict[str, Any], Iterator[object]]:
    section = ImageDataSection(
        source="image_folder",
        root=root,
        eval_folder="val",
        image_size=SIDE_PX,
        feed="streaming",
        workers=options.workers,
    )
    train = TrainSection.model_validate(
        {
            "epochs": 1.0,
            "batch_size": options.batch_size,
            "optimizer": {"name": "sgd", "lr": 0.1},
            "lr_schedule": {"name": "constant"},
        }
    )
    times: dict[str, Any] = {}
    feeds = timed(times, "list_s", lambda: ImageFeeds(section, train, seed=0, device=torch.device("cpu")))
    facts = timed(times, "identify_s", lambda: (feeds.fingerprint(), feeds.identity().facts, feeds.notes))
    times["digest"] = digest_of(facts, root)
    return times, feeds.train.micro_batches(0)


def coco_batches(root: Path, options: argparse.Namespace) -> tuple[dict[str, Any], Iterator[object]]:
    section = DetectionData(source="coco", root=root, min_size=SIDE_PX, max_size=SIDE_PX)
    times: dict[str, Any] = {}
    listing = timed(times, "list_s", lambda: list_detection_data(section))
    sets = (listing.train, listing.evaluation)
    facts = timed(
        times,
        "identify_s",
        lambda: ([one.fingerprint() for one in sets], identify_detection_data(section).facts, listing.notes),
    )
    times["digest"] = digest_of(facts, root)
    feed = StreamingFeed(
        BatchOrder(len(listing.train), options.batch_size),
        ReadBoxes(listing.train.examples, listing.train.table, DetectionTransform(SIDE_PX, SIDE_PX, flip=True)),
        DeliverBoxes(IMAGENET, torch.device("cpu"), channels_last=False),
        Workers(options.workers),
    )
    return times, feed.micro_batches(0)


def timed(times: dict[str, Any], key: str, work):
    began = time.perf_counter()
    result = work()
    times[key] = time.perf_counter() - began
    stem = key.removesuffix("_s")
    for name, field in (("rss", "VmRSS"), ("anonymous", "RssAnon"), ("peak", "VmHWM")):
        times[f"{stem}_{name}_mb"] = status_mb(field)
    return result


def digest_of(facts: object, root: Path) -> str:
    """Return a hash of the facts that identify the data, to compare two versions of the package."""
    return hashlib.sha256(repr(facts).replace(str(root), "").encode()).hexdigest()[:16]


def measure(root: Path, options: argparse.Namespace) -> dict[str, Any]:
    """List, open the feed and read for `--seconds`, in a fresh process."""
    torch.set_num_threads(options.threads)
    if options.start_method is not None:
        w2skd.data.workers.start_method = lambda: options.start_method
    values: dict[str, Any] = {"import_rss_mb": status_mb("VmRSS"), "import_anonymous_mb": status_mb("RssAnon")}
    times, batches = (folder_batches if options.form == "folders" else coco_batches)(root, options)
    began = time.perf_counter()
    next(batches)
    values |= times | {"first_batch_s": time.perf_counter() - began, "after_first_rss_mb": status_mb("VmRSS")}
    for _ in range(FIRST_BATCHES * max(1, options.workers)):
        next(batches)
    values["workers_start_mb"] = private_mb()
    began, read = time.perf_counter(), 0
    while time.perf_counter() < began + options.seconds:
        next(batches)
        read += options.batch_size
    values["workers_end_mb"] = private_mb()
    return values | {"examples_read": read, "end_rss_mb": status_mb("VmRSS"), "peak_mb": status_mb("VmHWM")}


def main() -> None:
    parser = build_parser(__doc__, rounds=1)
    parser.add_argument("--form", choices=tuple(FILES), default="folders")
    parser.add_argument("--files", type=int, help="training images [1,281,167 in folders, 118,000 in COCO's form]")
    parser.add_argument("--classes", type=int, default=1000, help="class folders [1000]")
    parser.add_argument("--boxes", type=int, default=7, help="per image, in COCO's form [7]")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=60.0, help="of reading [60]")
    parser.add_argument("--start-method", choices=("fork", "forkserver"), help="of the workers [w2skd's choice]")
    parser.add_argument("--folder", type=Path, help="where the temporary folder is created")
    options = parser.parse_args()
    files = options.files or FILES[options.form]
    with TemporaryDirectory(dir=options.folder) as folder:
        root = Path(folder).resolve()
        if options.form == "folders":
            link_folders(root, files, options.classes)
        else:
            link_coco(root, files, options.boxes)
        # Not forked: the peak of a fresh process is its own.
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
            values = pool.submit(measure, root, options).result()
    added = values["list_peak_mb"] - values["import_rss_mb"]
    method = options.start_method or start_method()
    start, end = values["workers_start_mb"], values["workers_end_mb"]
    rows = [
        ("files", f"{files:,}", ""),
        ("listing", f"{values['list_s']:.1f} s", ""),
        ("identification, both sets", f"{values['identify_s']:.1f} s", ""),
        ("first batch", f"{values['first_batch_s']:.1f} s", ""),
        ("main process, packages loaded", f"{values['import_rss_mb']:.0f} MB", ""),
        ("main process, added at the peak of listing", f"{added:.0f} MB", ""),
        ("main process, peak after listing", f"{values['list_peak_mb']:.0f} MB", ""),
        ("main process, peak after identification", f"{values['identify_peak_mb']:.0f} MB", ""),
        ("main process, peak", f"{values['peak_mb']:.0f} MB", ""),
        ("main process, at the end", f"{values['end_rss_mb']:.0f} MB", ""),
        *(
            (
                f"worker {number} ({method}), private",
                f"{first:.1f} to {last:.1f} MB",
                "no growth",
            )
            for number, (first, last) in enumerate(zip(start, end, strict=True))
        ),
        ("examples read", f"{values['examples_read']:,}", ""),
    ]
    report(options, rows, {"files_made": files, **values})


if __name__ == "__main__":
    main()
