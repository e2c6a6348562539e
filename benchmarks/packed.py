"""Throughput of the streaming feed from image files and from packed folders (`w2skd pack`), in images per second.

All feeds apply the training transform (random resized crop and flip) to the same examples in the same order with the
same number of workers, and deliver normalised float32 batches. The files are those under --root/--train-folder, in one
folder per class. --enlarge N takes N of them, evenly spread, and enlarges them to JPEG files with a longer side of
500 px: the usual size in ImageNet, though smoother than photographs. Without --root, 200 files of this size are
generated. The files are packed at --side px, once as JPEG and once raw. The script also reports sizes on disk and the
rate of packing with one thread. All files are in the page cache.

    python benchmarks/packed.py [--root FOLDER] [--enlarge 500] [--side 256] [--size 224] [--workers 1] [--json]
"""

import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from PIL import Image
from timing.alternating import build_parser, detail_rows, report, take_turns

from w2skd.data.feeds import ImageFeeds
from w2skd.data.packing import PackOptions, pack
from w2skd.recipe.train import TrainSection
from w2skd.tasks.classification.recipe import ClassificationData

LONGER_PX = 500
QUALITY = 90
GENERATED = 200


def enlarge(folder: Path, target: Path, count: int) -> None:
    """Write enlarged copies of `count` images, evenly spread over the classes."""
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg"))
    for path in (paths[place * len(paths) // count] for place in range(count)):
        with Image.open(path) as image:
            scale = LONGER_PX / max(image.size)
            size = tuple(round(side * scale) for side in image.size)
            large = image.convert("RGB").resize(size, Image.Resampling.BICUBIC)
        (target / path.parent.name).mkdir(parents=True, exist_ok=True)
        large.save(target / path.parent.name / path.name, "JPEG", quality=QUALITY)


def generate(target: Path, count: int) -> None:
    """Write smooth random colours with some noise, in two classes."""
    draw = np.random.default_rng(0)
    for number in range(count):
        coarse = Image.fromarray(draw.integers(0, 256, (9, 12, 3), dtype=np.uint8))
        smooth = np.asarray(coarse.resize((LONGER_PX, 375), Image.Resampling.BICUBIC), dtype=np.int16)
        noisy = np.clip(smooth + draw.normal(0, 8, smooth.shape), 0, 255).astype(np.uint8)
        folder = target / f"class{number % 2}"
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(noisy).save(folder / f"{number}.jpg", quality=QUALITY)


def section(root: Path, source: str, options) -> ClassificationData:
    return ClassificationData(
        source=source,
        root=root,
        train_folder=options.train_folder if source == "image_folder" else "train",
        validation_share=0.05,
        image_size=options.size,
        interpolation="bilinear",
        augment=("random_resized_crop", "flip"),
        feed="streaming",
        workers=options.workers,
    )


def block(data: ClassificationData, options) -> Callable[[], None]:
    train = TrainSection.model_validate(
        {
            "steps": 10,
            "batch_size": options.batch_size,
            "optimizer": {"name": "sgd", "lr": 0.1},
            "lr_schedule": {"name": "constant"},
        }
    )
    batches = ImageFeeds(data, train, seed=0, device=torch.device("cpu")).train.micro_batches(0)

    def take() -> None:
        for _ in range(options.batches):
            next(batches)

    return take


def main() -> None:
    parser = build_parser(__doc__, rounds=12)
    parser.add_argument("--root", type=Path)
    parser.add_argument("--train-folder", default="train", help="folder below --root [train]")
    parser.add_argument("--enlarge", type=int, default=0, metavar="N")
    parser.add_argument("--side", type=int, default=256)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--batches", type=int, default=8, help="per block [8]")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    with TemporaryDirectory() as folder:
        root = options.root
        if options.root is None:
            root = Path(folder) / "files"
            generate(root / options.train_folder, GENERATED)
        elif options.enlarge:
            root = Path(folder) / "files"
            enlarge(options.root / options.train_folder, root / options.train_folder, options.enlarge)
        sections = {"files": section(root, "image_folder", options)}
        files = [path for path in (root / options.train_folder).rglob("*") if path.is_file()]
        kib, pack_rate = {"files": sum(path.stat().st_size for path in files) / len(files) / 1024}, {}
        for form in ("jpeg", "raw"):
            began = time.perf_counter()
            record = pack(
                sections["files"],
                Path(folder) / form,
                PackOptions(options.side, form),
                progress=lambda done, total: None,
            )
            pack_rate[form] = len(files) / (time.perf_counter() - began)
            kib[form] = sum(file.size_bytes for file in record.parts["train"].shards) / len(files) / 1024
            sections[form] = section(Path(folder) / form, "packed", options)
        turns = take_turns(
            {name: lambda name=name: block(sections[name], options) for name in sections}, options.rounds, builds=2
        )
    examples = options.batches * options.batch_size
    ratios = {form: turns.ratio("files", form) for form in ("jpeg", "raw")}
    rates = {name: examples / turns.seconds(name) for name in sections}
    rows = [
        *((f"packed {form} / files, images/s", f"{ratio}", "") for form, ratio in ratios.items()),
        *detail_rows(rates, "{:,.0f} images/s"),
        ("on disk", "", ""),
        *detail_rows(kib, "{:,.1f} KiB per image"),
        ("packing with one thread", "", ""),
        *detail_rows(pack_rate, "{:,.0f} images/s"),
    ]
    report(options, rows, {"ratios": ratios, "images_per_s": rates, "kib": kib, "packed_images_per_s": pack_rate})


if __name__ == "__main__":
    main()
