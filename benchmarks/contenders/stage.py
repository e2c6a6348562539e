"""Files for the contenders: generated images, initial weights, premade batches, a trained teacher."""

from itertools import islice
from pathlib import Path

import torch
from PIL import Image
from torch.nn import functional
from torchvision.datasets import ImageFolder

from contenders.setting import MEAN, MOMENTUM, STD, Setting, build
from w2skd.data.images import Normalization
from w2skd.data.normalize import Normalizer
from w2skd.data.shapes import CLASSES, ShapeExamples, labels_of

TEST_EXAMPLES = 1000
JPEG_QUALITY = 95
PREMADE = 8


def write_shapes(root: Path, examples: int, size_px: int) -> None:
    """Write generated images as JPEG files into one folder per class, below ``train`` and ``test``."""
    for seed, (part, number) in enumerate((("train", examples), ("test", TEST_EXAMPLES))):
        indices = torch.arange(number)
        pixels = ShapeExamples(seed, number, size_px).read(indices, size_px).permute(0, 2, 3, 1).numpy()
        for name in CLASSES:
            (root / part / name).mkdir(parents=True)
        for index, label in enumerate(labels_of(indices).tolist()):
            image = Image.fromarray(pixels[index])
            image.save(root / part / CLASSES[label] / f"{index:06}.jpg", quality=JPEG_QUALITY)


def count_images(root: Path) -> tuple[int, int]:
    """Return the number of training images and of classes."""
    folder = ImageFolder(root / "train")
    return len(folder), len(folder.classes)


def write_weights(setting: Setting) -> None:
    """Write fresh weights of both models, and premade batches of generated images with random labels."""
    folder = Path(setting.weights)
    folder.mkdir(parents=True, exist_ok=True)
    for seed, (role, name) in enumerate((("student", setting.student), ("teacher", setting.teacher))):
        torch.manual_seed(seed)
        torch.save(build(name, setting.classes).state_dict(), folder / f"{role}.pt")
    number = PREMADE * setting.batch_size
    pixels = ShapeExamples(2, number, setting.size_px).read(torch.arange(number), setting.size_px)
    images = Normalizer(Normalization(MEAN, STD), torch.device("cpu"), False)(pixels)
    labels = torch.randint(setting.classes, (number,))
    batches = zip(images.split(setting.batch_size), labels.split(setting.batch_size), strict=True)
    torch.save([(part.clone(), targets.clone()) for part, targets in batches], folder / "batches.pt")


def train_teacher(setting: Setting, steps: int) -> None:
    """Replace the teacher's weights by those after `steps` steps without distillation."""
    teacher, loader, device = setting.build("teacher").train(), setting.loader(), setting.torch_device
    optimizer = torch.optim.SGD(teacher.parameters(), setting.lr, MOMENTUM, nesterov=True, fused=True)
    batches = (batch for _ in range(steps) for batch in loader)
    for images, labels in islice(batches, steps):
        functional.cross_entropy(teacher(images.to(device)), labels.to(device)).backward()
        optimizer.step()
        optimizer.zero_grad()
    torch.save(teacher.cpu().state_dict(), Path(setting.weights) / "teacher.pt")
