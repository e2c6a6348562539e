"""Reading and delivery of labelled images for the streaming feed.

The workers produce bytes. On the device they become (x / 255 - mean) / std in float32. ``cutout`` and
``random_erasing`` fill the erased part with the bytes nearest to the mean colour: at most 1 / (510 std) from 0, about
0.01.

Shapes: n examples of a micro-batch, N of the set; S side in px.
"""

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from w2skd.data.batch import LabelledImages
from w2skd.data.counter import seed_from
from w2skd.data.examples import Examples
from w2skd.data.images import Normalization
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
    """

    examples: Examples
    transform: TrainTransform | EvalTransform
    blank: Colour = (0, 0, 0)
    seed: int = 0

    @property
    def plain(self) -> "ReadImages":
        """The same reader without augmentation."""
        return replace(self, transform=self.transform.plain)

    def __call__(self, request: Request) -> Tensor | DataError:
        """Return the pixels, or the error of an image that cannot be read."""
        apply = self.transform.pipeline(request.size_px, self.blank)
        pixels = np.empty((len(request.ids), request.size_px, request.size_px, 3), dtype=np.uint8)
        # The transforms draw from the global generator, which belongs to the main process if there are no workers.
        before = torch.default_generator.get_state()
        try:
            for place, example in enumerate(request.ids):
                image = self.examples.open(example)
                if request.repeats:
                    counters = (request.epoch, example, request.repeats[place])
                    torch.default_generator.manual_seed(seed_from(self.seed, *counters))
                apply(image, pixels[place])
        except DataError as error:
            return error
        finally:
            torch.default_generator.set_state(before)
        return torch.from_numpy(pixels).permute(0, 3, 1, 2)


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
