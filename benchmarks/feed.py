"""Throughput of the resident feed against a DataLoader with PIL transforms, on CIFAR-10-sized data and one core.

The DataLoader has a dataset of PIL images, RandomCrop with reflection padding, RandomHorizontalFlip, ToTensor,
Normalize and `num_workers=0` (a worker process would use a second core). Both produce shuffled, augmented, normalised
float32 batches of 128. A block is a whole epoch of the resident feed, including shuffling, and a hundredth of an epoch
of the DataLoader; the ratio compares examples per second. Target: at least 10.

    python benchmarks/feed.py [--examples 50000] [--augment crop,flip] [--json]
"""

from collections.abc import Callable

import torch
from PIL import Image
from timing.alternating import build_parser, detail_rows, report, take_turns
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from w2skd.data.images import ImageSet, Normalization
from w2skd.data.normalize import Normalizer
from w2skd.data.order import BatchOrder
from w2skd.data.resident import ResidentFeed

BATCH_SIZE = 128
SHARE = 100
NORMALIZATION = Normalization((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616))


class PilImages(Dataset[tuple[Tensor, int]]):
    """An array of pixels that becomes a PIL image at every access, as in `torchvision.datasets.CIFAR10`."""

    def __init__(self, images: Tensor, labels: Tensor, augment: list[str]):
        self._pixels = images.permute(0, 2, 3, 1).contiguous().numpy()
        self._labels = labels.tolist()
        chosen = {
            "crop": transforms.RandomCrop(32, padding=4, padding_mode="reflect"),
            "flip": transforms.RandomHorizontalFlip(),
        }
        last = [transforms.ToTensor(), transforms.Normalize(NORMALIZATION.mean, NORMALIZATION.std)]
        self._transform = transforms.Compose([*(chosen[name] for name in augment), *last])

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self._transform(Image.fromarray(self._pixels[index])), self._labels[index]

    def __len__(self) -> int:
        return len(self._labels)


def resident(images: ImageSet, augment: list[str]) -> Callable[[], None]:
    order = BatchOrder(len(images), BATCH_SIZE)
    feed = ResidentFeed(images, order, Normalizer(NORMALIZATION, torch.device("cpu"), False), augment)
    batches = feed.micro_batches(0)

    def epoch() -> None:
        for _ in range(feed.steps_per_epoch):
            next(batches)

    return epoch


def loader(images: ImageSet, augment: list[str], batches: int) -> Callable[[], None]:
    dataset = PilImages(images.images, images.labels, augment)

    def part() -> None:
        for _, _ in zip(range(batches), DataLoader(dataset, BATCH_SIZE, shuffle=True), strict=False):
            pass

    return part


def main() -> None:
    parser = build_parser(__doc__, rounds=30)
    parser.add_argument("--examples", type=int, default=50_000)
    parser.add_argument("--augment", default="crop,flip")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    augment = options.augment.split(",") if options.augment else []
    torch.manual_seed(0)
    pixels = torch.randint(0, 256, (options.examples, 3, 32, 32), dtype=torch.uint8)
    images = ImageSet(pixels, torch.arange(options.examples) % 10, tuple("abcdefghij"))

    epoch = -(-options.examples // BATCH_SIZE)
    part = max(1, epoch // SHARE)
    turns = take_turns(
        {"resident": lambda: resident(images, augment), "loader": lambda: loader(images, augment, part)},
        options.rounds,
        builds=3,
    )
    ratio = turns.ratio("loader", "resident").times(epoch / part)
    rates = {
        "resident": epoch * BATCH_SIZE / turns.seconds("resident"),
        "loader": part * BATCH_SIZE / turns.seconds("loader"),
    }
    rows = [
        ("resident feed / DataLoader, examples/s", f"{ratio}", "target at least 10"),
        *detail_rows(rates, "{:,.0f} examples/s"),
    ]
    report(options, rows, {"ratios": {"feed": ratio}, "examples_per_s": rates})


if __name__ == "__main__":
    main()
