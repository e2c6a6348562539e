"""The resident feed against a DataLoader that augments image by image, on CIFAR-10-sized data and one core.

The loader is the usual one: a dataset of PIL images, RandomCrop with reflected padding, RandomHorizontalFlip, ToTensor,
Normalize, `num_workers=0` (a worker process would be a second core). Both give shuffled, augmented, normalised float32
batches of 128. A block is a whole epoch of the resident feed, order and augmentation of the epoch included, and a
hundredth of an epoch of the loader; the ratio is of examples a second. Target: at least 10.

    python benchmarks/feed.py [--examples 50000] [--augment crop,flip] [--json]
"""

from collections.abc import Callable

import torch
from PIL import Image
from timing.alternating import parser, report, take_turns
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from w2skd.data.images import ImageSet, Normalization
from w2skd.data.resident import ResidentFeed

BATCH_SIZE = 128
SHARE = 100
NORMALIZATION = Normalization((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616))


class PilImages(Dataset[tuple[Tensor, int]]):
    """As `torchvision.datasets.CIFAR10` holds them: an array, an image made at every access."""

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
    feed = ResidentFeed(
        images, NORMALIZATION, batch_size=BATCH_SIZE, augment=augment, seed=0, device=torch.device("cpu")
    )
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
    arguments = parser(__doc__, rounds=30)
    arguments.add_argument("--examples", type=int, default=50_000)
    arguments.add_argument("--augment", default="crop,flip")
    options = arguments.parse_args()
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
        ("resident feed / DataLoader, examples a second", f"{ratio}", "target at least 10"),
        *((f"  {name}", f"{rate:,.0f} examples a second", "") for name, rate in rates.items()),
    ]
    report(options, rows, {"ratios": {"feed": ratio.as_dict()}, "examples_per_s": rates})


if __name__ == "__main__":
    main()
