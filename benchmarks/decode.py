"""Ways to make a random-resized crop of a JPEG file: speed on one core, and pixel differences.

All ways process the same files with the same windows. The rates include reading the header, drawing the window and
cropping, but not reading from the disk. Ratios and pixel differences are relative to `full`: Pillow decodes, crops and
resizes, as ``data.decode: full`` does.

    fused           one Image.resize(box=...) instead of crop and resize
    fused, gap 2    the same with reducing_gap=2
    reduced         ``data.decode: reduced``
    reduced, gap 2  the same with reducing_gap=2
    torchvision     decode_jpeg, then crop and resize as uint8 tensors, as ``data.decode: nvjpeg`` does on a CPU
    decode only     Pillow decodes, without crop and resize

PSNR (dB) and mean absolute difference (of 255) are averaged over the images whose pixels differ. The files are those
under --root, or generated (640 x 480 px, smooth with noise). Prefer --root with photographs, which compress better than
noise.

    python benchmarks/decode.py [--root FOLDER] [--size 224] [--crop-scale 0.08 1] [--evaluation 256] [--json]
"""

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from io import BytesIO
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from timing.alternating import Block, build_parser, report, take_turns
from torchvision.io import ImageReadMode, decode_jpeg
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional

from w2skd.data.image_stream import ReadImages, seed_example
from w2skd.data.jpeg import Jpeg, open_jpeg
from w2skd.data.streaming import Request
from w2skd.data.transforms import EvalTransform, TrainTransform
from w2skd.data.window import Window

GENERATED = 40
Pixels = np.ndarray
"""uint8 [S, S, 3]."""


@dataclass(frozen=True)
class Files:
    """JPEG files in memory. Implements the part of `w2skd.data.examples.Examples` that `ReadImages` uses."""

    contents: tuple[bytes, ...]

    def __len__(self) -> int:
        return len(self.contents)

    def content(self, index: int) -> bytes:
        return self.contents[index]

    def open(self, index: int) -> Image.Image:
        return self.jpeg(index).full()

    def jpeg(self, index: int) -> Jpeg:
        jpeg = open_jpeg(self.contents[index])
        assert jpeg is not None
        return jpeg


@dataclass(frozen=True)
class Ways:
    """The ways to make the square of one image."""

    files: Files
    transform: TrainTransform | EvalTransform
    size_px: int

    @property
    def resample(self) -> Image.Resampling:
        return Image.Resampling[self.transform.interpolation.upper()]

    def request(self, index: int) -> Request:
        return Request([index], self.size_px, 0, (0,) if isinstance(self.transform, TrainTransform) else ())

    def window(self, index: int, jpeg: Jpeg) -> Window:
        seed_example(0, self.request(index), 0)
        return self.transform.window(jpeg.size, self.size_px)

    def read(self, index: int, *, reduced: bool) -> Pixels:
        made = ReadImages(self.files, self.transform, reduced=reduced)(self.request(index))
        return made[0].permute(1, 2, 0).numpy()

    def fused(self, index: int, gap: float | None = None) -> Pixels:
        jpeg = self.files.jpeg(index)
        return self._at_once(jpeg.full(), self.window(index, jpeg).square(self.size_px), gap)

    def reduced_with_gap(self, index: int) -> Pixels:
        jpeg = self.files.jpeg(index)
        window = self.window(index, jpeg)
        by, (width, height) = window.reduction, jpeg.image.size
        if by > 1:
            jpeg.image.draft("RGB", (width // by, height // by))
        return self._at_once(jpeg.full(), tuple(place / by for place in window.square(self.size_px)), 2)

    def torchvision(self, index: int) -> Pixels:
        jpeg = self.files.jpeg(index)
        window = self.window(index, jpeg)
        left, top, right, bottom = window.box
        content = torch.frombuffer(bytearray(jpeg.content), dtype=torch.uint8)
        image = decode_jpeg(content, mode=ImageReadMode.RGB, apply_exif_orientation=True)[:, top:bottom, left:right]
        mode = v2.InterpolationMode(self.transform.interpolation)
        resized = functional.resize(image, list(window.resized[::-1]), mode, antialias=True)
        x, y = window.offset
        return resized[:, y : y + self.size_px, x : x + self.size_px].permute(1, 2, 0).numpy()

    def decode_only(self, index: int) -> Image.Image:
        return self.files.open(index)

    def _at_once(self, image: Image.Image, box: tuple[float, ...], gap: float | None) -> Pixels:
        size = (self.size_px, self.size_px)
        return np.asarray(image.resize(size, self.resample, box=box, reducing_gap=gap))

    def all(self) -> dict[str, Callable[[int], object]]:
        return {
            "full": partial(self.read, reduced=False),
            "fused": self.fused,
            "fused, gap 2": partial(self.fused, gap=2),
            "reduced": partial(self.read, reduced=True),
            "reduced, gap 2": self.reduced_with_gap,
            "torchvision": self.torchvision,
            "decode only": self.decode_only,
        }


def quality(make: Callable[[int], Pixels], full: Callable[[int], Pixels], count: int) -> Mapping[str, float]:
    """Return statistics of the pixel differences between two ways, over `count` images."""
    pairs = [(make(index).astype(float), full(index).astype(float)) for index in range(count)]
    different = [(one, other) for one, other in pairs if (one != other).any()]
    if not different:
        return {"differing": 0.0}
    squares = [((one - other) ** 2).mean() for one, other in different]
    decibels = 10 * np.log10(255**2 / np.array(squares))
    return {
        "differing": len(different) / count,
        "psnr_median": float(np.median(decibels)),
        "psnr_min": float(decibels.min()),
        "difference_mean": float(np.mean([np.abs(one - other).mean() for one, other in different])),
        "difference_max": float(max(np.abs(one - other).max() for one, other in different)),
    }


def describe(found: Mapping[str, float]) -> str:
    if found["differing"] == 0:
        return "same pixels"
    return (
        f"{found['differing']:.0%} differ: PSNR {found['psnr_median']:.1f} (min {found['psnr_min']:.1f}), "
        f"mean {found['difference_mean']:.2f}, max {found['difference_max']:.0f}"
    )


def contents(root: Path | None, count: int) -> tuple[bytes, ...]:
    if root is not None:
        paths = sorted(path for path in root.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg"))
        return tuple(content for path in paths if open_jpeg(content := path.read_bytes()) is not None)[:count]
    draw, files = np.random.default_rng(0), []
    for _ in range(min(count, GENERATED)):
        coarse = Image.fromarray(draw.integers(0, 256, (9, 12, 3), dtype=np.uint8))
        smooth = np.asarray(coarse.resize((640, 480), Image.Resampling.BICUBIC), dtype=np.int16)
        file = BytesIO()
        noisy = np.clip(smooth + draw.normal(0, 4, smooth.shape), 0, 255).astype(np.uint8)
        Image.fromarray(noisy).save(file, "JPEG", quality=90)
        files.append(file.getvalue())
    return tuple(files)


def block(make: Callable[[int], object], count: int) -> Block:
    def run() -> None:
        for index in range(count):
            make(index)  # not kept, because the memory of whole images would slow down the next block

    return run


def main() -> None:
    parser = build_parser(__doc__, rounds=9)
    parser.add_argument("--root", type=Path, help="folder with JPEG files, at any depth")
    parser.add_argument("--images", type=int, default=80, help="number of files [80]")
    parser.add_argument("--size", type=int, default=224, help="side of the squares in px [224]")
    parser.add_argument("--crop-scale", type=float, nargs=2, default=(0.08, 1.0), help="share of the area [0.08 1]")
    parser.add_argument("--evaluation", type=int, metavar="PX", help="resize the shorter side to PX, crop the centre")
    parser.add_argument("--interpolation", choices=("bilinear", "bicubic"), default="bilinear")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    warnings.simplefilter("ignore", DeprecationWarning)  # of torchvision's decoders
    files = Files(contents(options.root, options.images))
    transform: TrainTransform | EvalTransform = EvalTransform(options.evaluation or 0, options.interpolation)
    if options.evaluation is None:
        transform = TrainTransform(("random_resized_crop",), tuple(options.crop_scale), options.interpolation)
    ways, count = Ways(files, transform, options.size), len(files)
    made = ways.all()
    turns = take_turns({name: partial(block, make, count) for name, make in made.items()}, options.rounds, builds=3)
    ratios = {name: turns.ratio("full", name) for name in made if name != "full"}
    rates = {name: count / turns.seconds(name) for name in made}
    pixels = {name: quality(make, made["full"], count) for name, make in made.items() if name != "decode only"}
    reduced = sum(ways.window(index, files.jpeg(index)).reduction > 1 for index in range(count)) / count
    rows = [("full", f"{rates['full']:,.0f} images/s", f"{reduced:.0%} of {count} windows can be decoded reduced")]
    rows += [
        (name, f"{rates[name]:,.0f} images/s, {ratio}", describe(pixels[name]) if name in pixels else "")
        for name, ratio in ratios.items()
    ]
    report(options, rows, {"ratios": ratios, "images_per_s": rates, "pixels": pixels, "reduced": reduced})


if __name__ == "__main__":
    main()
