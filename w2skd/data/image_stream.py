"""Reading and delivery of labelled images for the streaming feed.

The workers produce bytes. On the device they become (x / 255 - mean) / std in float32. ``cutout`` and
``random_erasing`` fill the erased part with the bytes nearest to the mean colour: at most 1 / (510 std) from 0, about
0.01.

Shapes: n examples of a micro-batch, N of the set; S side in px.
"""

from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from w2skd.data.alternating_flip import is_mirrored
from w2skd.data.batch import LabelledImages
from w2skd.data.counter import seed_from
from w2skd.data.examples import Examples
from w2skd.data.images import Normalization
from w2skd.data.jpeg import open_jpeg
from w2skd.data.normalize import Normalizer
from w2skd.data.streaming import Request
from w2skd.data.transforms import Colour, EvalTransform, TrainTransform
from w2skd.errors import DataError


@dataclass(frozen=True)
class ReadImages:
    """Reads and transforms a micro-batch: request to uint8 [n, 3, S, S], strided like [n, S, S, 3].

    Attributes:
        examples: the images.
        transform: applied to each image.
        blank: colour of erased parts.
        seed: seed of random transforms.
        reduced: decode JPEG files at a half, a quarter or an eighth of their size if the window then still has at
            least the resolution of the output. The windows are the same; the pixels differ slightly.
        alternating_flip: whether to mirror training images in every second epoch, after the other transforms.
    """

    examples: Examples
    transform: TrainTransform | EvalTransform
    blank: Colour = (0, 0, 0)
    seed: int = 0
    reduced: bool = False
    alternating_flip: bool = False

    @property
    def plain(self) -> "ReadImages":
        """The same reader without augmentation."""
        return replace(self, transform=self.transform.plain, alternating_flip=False)

    def __call__(self, request: Request) -> Tensor | DataError:
        """Return the pixels, or the error of an image that cannot be read."""
        pixels = np.empty((len(request.ids), request.size_px, request.size_px, 3), dtype=np.uint8)
        # The transforms draw from the global generator, which belongs to the main process if there are no workers.
        before = torch.default_generator.get_state()
        try:
            for place, example in enumerate(request.ids):
                self._read(request, place, pixels[place])
                counters = (request.epoch, example, request.repeats[place] if request.repeats else 0)
                if self.alternating_flip and is_mirrored(self.seed, *counters):
                    pixels[place] = pixels[place, :, ::-1].copy()
        except DataError as error:
            return error
        finally:
            torch.default_generator.set_state(before)
        return torch.from_numpy(pixels).permute(0, 3, 1, 2)

    def _read(self, request: Request, place: int, out: NDArray[np.uint8]) -> None:
        """Write the pixels of one example into uint8 [S, S, 3]."""
        example, size_px = request.ids[place], request.size_px
        if self.reduced and (jpeg := open_jpeg(self.examples.content(example))) is not None:
            seed_example(self.seed, request, place)
            window = self.transform.window(jpeg.size, size_px)
            resample = Image.Resampling[self.transform.interpolation.upper()]
            square = None if window is None else jpeg.square(window, size_px, resample)
            if square is not None:
                self.transform.after_window(size_px, self.blank)(square, out)
                return
        image = self.examples.open(example)
        seed_example(self.seed, request, place)
        self.transform.pipeline(size_px, self.blank)(image, out)


def seed_example(seed: int, request: Request, place: int) -> None:
    """Seed torch's global generator for the augmentation of one example of a request, if it is augmented."""
    if request.repeats:
        counters = (request.epoch, request.ids[place], request.repeats[place])
        torch.default_generator.manual_seed(seed_from(seed, *counters))


class DeliverImages:
    """Moves micro-batches to the device and normalises them there.

    Args:
        labels: int64 [N], of all examples.
        normalize: normalisation on the device.
    """

    def __init__(self, labels: Tensor, normalize: Normalizer):
        self.device = normalize.device
        self._labels = labels.to(normalize.device)
        self._normalize = normalize

    def __call__(self, made: Tensor, ids: Tensor, step: int = 0, number: int = 0) -> LabelledImages:
        """Return the batch of the examples `ids` (int64 [n], on the device)."""
        images = self._normalize(made.to(self.device, non_blocking=True))
        return LabelledImages(images, self._labels[ids], ids, step, number)


def mean_colour(normalization: Normalization) -> Colour:
    """Return the bytes nearest to the mean."""
    red, green, blue = (min(255, max(0, round(255 * mean))) for mean in normalization.mean)
    return red, green, blue
