"""Throughput of the streaming feed against a bare DataLoader with the same v2 transforms, in examples per second.

The DataLoader has a dataset that opens JPEG files, RandomResizedCrop, RandomHorizontalFlip, PILToTensor, ToDtype and
Normalize, shuffling and persistent workers. A second DataLoader returns bytes, which the main process normalises per
batch, as the feed does. All produce augmented, normalised float32 batches with the same number of workers, which stay
alive throughout. A block has more batches than are prefetched. The files are generated (120 x 96 px) or those under
--root. CPU time is that of the main process only. Target: at least 0.97.

    python benchmarks/streaming.py [--root FOLDER] [--size 96] [--workers 1] [--trivial-augment] [--json]
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from PIL import Image
from timing.alternating import build_parser, detail_rows, report, take_turns
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

from w2skd.data.image_stream import DeliverImages, ReadImages
from w2skd.data.images import Normalization
from w2skd.data.normalize import Normalizer
from w2skd.data.order import BatchOrder
from w2skd.data.streaming import StreamingFeed
from w2skd.data.transforms import TrainTransform
from w2skd.data.workers import Workers

NORMALIZATION = Normalization((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
NORMALIZE = (v2.ToDtype(torch.float32, scale=True), v2.Normalize(NORMALIZATION.mean, NORMALIZATION.std))
GENERATED = 600


@dataclass(frozen=True)
class Files:
    """Image files, opened in the same way by both sides. Implements `w2skd.data.examples.Examples`."""

    paths: tuple[Path, ...]

    def __len__(self) -> int:
        return len(self.paths)

    def open(self, index: int) -> Image.Image:
        with Image.open(self.paths[index]) as image:
            return image.convert("RGB")

    def read(self, indices: Tensor, size_px: int) -> Tensor:
        raise NotImplementedError

    def name(self, index: int) -> str:
        return str(self.paths[index])


class Augmented(Dataset[tuple[Tensor, int]]):
    def __init__(self, files: Files, size_px: int, trivial_augment: bool, as_bytes: bool):
        self._files = files
        self._transform = v2.Compose(
            [
                v2.RandomResizedCrop(size_px, antialias=True),
                v2.RandomHorizontalFlip(),
                *([v2.TrivialAugmentWide(interpolation=v2.InterpolationMode.BILINEAR)] if trivial_augment else []),
                v2.PILToTensor(),
                *([] if as_bytes else NORMALIZE),
            ]
        )

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self._transform(self._files.open(index)), index % 10

    def __len__(self) -> int:
        return len(self._files)


def write_photos(folder: Path) -> None:
    """Write smooth shapes with some noise, about as many bytes as photographs."""
    draw = np.random.default_rng(0)
    for number in range(GENERATED):
        coarse = Image.fromarray(draw.integers(0, 256, (9, 12, 3), dtype=np.uint8))
        smooth = np.asarray(coarse.resize((120, 96), Image.Resampling.BICUBIC), dtype=np.int16)
        noisy = np.clip(smooth + draw.normal(0, 8, smooth.shape), 0, 255).astype(np.uint8)
        Image.fromarray(noisy).save(folder / f"{number}.jpg", quality=90)


def streaming(files: Files, options) -> Iterator[object]:
    kinds = ("random_resized_crop", "flip", *(["trivial_augment"] if options.trivial_augment else []))
    feed = StreamingFeed(
        BatchOrder(len(files), options.batch_size),
        ReadImages(files, TrainTransform(kinds)),
        DeliverImages(torch.arange(len(files)) % 10, Normalizer(NORMALIZATION, torch.device("cpu"), False)),
        Workers(options.workers),
        options.size,
    )
    return feed.micro_batches(0)


def bare(files: Files, options, as_bytes: bool) -> Iterator[object]:
    normalize = v2.Compose(NORMALIZE)
    loader = DataLoader(
        Augmented(files, options.size, options.trivial_augment, as_bytes),
        options.batch_size,
        shuffle=True,
        drop_last=True,
        num_workers=options.workers,
        persistent_workers=options.workers > 0,
    )
    while True:
        for images, labels in loader:
            yield (normalize(images) if as_bytes else images), labels


def block(batches: Iterator[object], count: int) -> Callable[[], None]:
    def take() -> None:
        for _ in range(count):
            next(batches)

    return take


def main() -> None:
    parser = build_parser(__doc__, rounds=30)
    parser.add_argument("--root", type=Path, help="folder with JPEG files, at any depth")
    parser.add_argument("--size", type=int, default=96)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--batches", type=int, default=16, help="per block [16]")
    parser.add_argument("--trivial-augment", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    with TemporaryDirectory() as folder:
        if options.root is None:
            write_photos(Path(folder))
        paths = sorted(
            path for path in Path(options.root or folder).rglob("*") if path.suffix.lower() in (".jpg", ".jpeg")
        )
        files = Files(tuple(paths))
        turns = take_turns(
            {
                "streaming": lambda: block(streaming(files, options), options.batches),
                "bare": lambda: block(bare(files, options, as_bytes=False), options.batches),
                "bytes": lambda: block(bare(files, options, as_bytes=True), options.batches),
            },
            options.rounds,
            builds=3,
        )
    examples = options.batches * options.batch_size
    ratios = {name: turns.ratio(name, "streaming") for name in ("bare", "bytes")}
    rates = {name: examples / turns.seconds(name) for name in ("streaming", "bare", "bytes")}
    rows = [
        ("streaming feed / bare DataLoader, examples/s", f"{ratios['bare']}", "target at least 0.97"),
        ("streaming feed / DataLoader of bytes", f"{ratios['bytes']}", ""),
        *detail_rows(rates, "{:,.0f} examples/s"),
    ]
    report(options, rows, {"ratios": ratios, "examples_per_s": rates, "files": len(files)})


if __name__ == "__main__":
    main()
