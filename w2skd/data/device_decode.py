"""Decoding of JPEG files on the GPU by nvJPEG. The workers only read the files and draw the windows.

Windows, flips, ids and order are those of `ReadImages`. The pixels differ: on COCO photographs, decoded on a CPU, by
0.02 of 255 levels on average, and by at most 1 with bilinear and 9 with bicubic interpolation. nvJPEG rounds in yet
another way.

The workers decode unusual JPEG files and other formats with `ReadImages`. The main process decodes files that nvJPEG
refuses with Pillow and, without a GPU, all other files with torchvision's libjpeg.

Shapes: n examples of a micro-batch, m of them decoded by the workers, N of the set; S side in px.
"""

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from io import BytesIO

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision import io
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional

from w2skd.data.batch import LabelledImages
from w2skd.data.examples import Examples
from w2skd.data.image_stream import DeliverImages, ReadImages, seed_example
from w2skd.data.jpeg import open_jpeg
from w2skd.data.normalize import Normalizer
from w2skd.data.streaming import Request
from w2skd.data.transforms import EvalTransform, TrainTransform
from w2skd.data.window import Window
from w2skd.errors import DataError

KINDS = ("random_resized_crop", "flip")
"""Supported augmentations."""

_BYTES_AT_ONCE = 16 * 2**20
"""Maximum size of the files of one call of the decoder. The decoded images take about 20 times as much memory."""

_UPRIGHT = 1


@dataclass(frozen=True, eq=False)
class EncodedImages:
    """A micro-batch of JPEG files with their windows.

    Attributes:
        content: uint8 [bytes], the concatenated files of the n - m examples that the workers did not decode.
        lengths: int64 [n], bytes of each file; 0 for an example that is in `decoded`.
        orientations: int64 [n], EXIF orientations.
        windows: int64 [n, 8], the numbers of each `Window`.
        flips: bool [n], whether to mirror the square.
        decoded: uint8 [m, 3, S, S], the squares that the workers decoded.
    """

    content: Tensor
    lengths: Tensor
    orientations: Tensor
    windows: Tensor
    flips: Tensor
    decoded: Tensor

    def pin_memory(self) -> "EncodedImages":
        """Return a copy with `decoded` in page-locked memory. The host uses the other tensors."""
        return replace(self, decoded=self.decoded.pin_memory())

    def to(self, device: torch.device, *, non_blocking: bool) -> "EncodedImages":
        """Return a copy with `decoded` on a device."""
        return replace(self, decoded=self.decoded.to(device, non_blocking=non_blocking))

    def record_stream(self, stream: torch.cuda.Stream) -> None:
        """See `Tensor.record_stream`."""
        self.decoded.record_stream(stream)


@dataclass(frozen=True)
class _Plan:
    """A file to decode on the device, and the window to cut from the upright image."""

    content: bytes
    orientation: int
    window: Window
    flip: bool


@dataclass(frozen=True)
class ReadEncoded:
    """Reads the files of a micro-batch and draws their augmentation.

    Attributes:
        examples: the images.
        transform: applied to each image; its augmentations must be in `KINDS`.
        seed: seed of random transforms.
    """

    examples: Examples
    transform: TrainTransform | EvalTransform
    seed: int = 0

    def __post_init__(self) -> None:
        kinds = self.transform.kinds if isinstance(self.transform, TrainTransform) else ()
        assert set(kinds) <= set(KINDS), f"kinds {kinds}"

    @property
    def plain(self) -> "ReadEncoded":
        """The same reader without augmentation."""
        return replace(self, transform=self.transform.plain)

    def __call__(self, request: Request) -> EncodedImages | DataError:
        """Return the files, or the error of an image that cannot be read."""
        # The draws use the global generator, which belongs to the main process if there are no workers.
        before = torch.default_generator.get_state()
        try:
            plans = [self._plan(request, place) for place in range(len(request.ids))]
        except DataError as error:
            return error
        finally:
            torch.default_generator.set_state(before)
        decoded = ReadImages(self.examples, self.transform, seed=self.seed)(_left_out(request, plans))
        if isinstance(decoded, DataError):
            return decoded
        files = b"".join(plan.content for plan in plans if plan is not None)
        rows = [(0,) * 8 if plan is None else _flat(plan.window) for plan in plans]
        return EncodedImages(
            torch.frombuffer(bytearray(files), dtype=torch.uint8) if files else torch.empty(0, dtype=torch.uint8),
            torch.tensor([0 if plan is None else len(plan.content) for plan in plans]),
            torch.tensor([_UPRIGHT if plan is None else plan.orientation for plan in plans]),
            torch.tensor(rows),
            torch.tensor([plan is not None and plan.flip for plan in plans]),
            decoded.contiguous(),
        )

    def _plan(self, request: Request, place: int) -> _Plan | None:
        """Draw the window and flip of an example; None if `ReadImages` has to decode it."""
        content = self.examples.content(request.ids[place])
        jpeg = open_jpeg(content)
        if jpeg is None or not jpeg.is_common:
            return None
        seed_example(self.seed, request, place)
        window = self.transform.window(jpeg.size, request.size_px)
        if window is None:
            return None
        flips = isinstance(self.transform, TrainTransform) and "flip" in self.transform.kinds
        return _Plan(content, jpeg.orientation, window, flips and _draw_flip())


class DeliverEncoded:
    """Decodes micro-batches on the device, cuts and resizes the windows, and normalises the squares.

    On a GPU, decoding runs on a separate stream: the host waits for the decoding of the previous batch, but not for the
    model.

    Args:
        examples: the images; decodes the files that the device's decoder refuses.
        labels: int64 [N], of all examples.
        normalize: normalisation on the device.
        interpolation: ``bilinear`` or ``bicubic``.
    """

    def __init__(self, examples: Examples, labels: Tensor, normalize: Normalizer, interpolation: str):
        self.device = normalize.device
        self._deliver = DeliverImages(labels, normalize)
        self._examples = examples
        self._interpolation = v2.InterpolationMode(interpolation)
        is_gpu = self.device.type == "cuda"
        self._stream = torch.cuda.Stream(self.device) if is_gpu else None  # type: ignore[no-untyped-call]

    def __call__(self, made: EncodedImages, ids: Tensor, step: int = 0, number: int = 0) -> LabelledImages:
        """Return the batch of the examples `ids` (int64 [n], on the device).

        Raises:
            DataError: an image is damaged.
        """
        if self._stream is None:
            return self._deliver(self._squares(made, ids), ids, step, number)
        training = torch.cuda.current_stream(self.device)
        # nvJPEG writes, on a stream of its own, into memory that torch allocates for the current stream. Earlier work
        # of the current stream may still use that memory.
        self._stream.synchronize()
        with torch.cuda.stream(self._stream):
            squares = self._squares(made, ids)
        training.wait_stream(self._stream)
        squares.record_stream(training)
        return self._deliver(squares, ids, step, number)

    def _squares(self, made: EncodedImages, ids: Tensor) -> Tensor:
        """Return uint8 [n, 3, S, S] on the device."""
        squares = torch.empty((len(made.lengths), *made.decoded.shape[1:]), dtype=torch.uint8, device=self.device)
        is_file = made.lengths > 0
        finished = made.decoded.to(self.device, non_blocking=True)
        for source, place in enumerate((~is_file).nonzero().flatten().tolist()):
            squares[place] = finished[source]
        places = is_file.nonzero().flatten().tolist()
        windows, flips = made.windows.tolist(), made.flips.tolist()
        for place, image in zip(places, self._upright(made, places, ids), strict=True):
            square = self._cut(image, _window(windows[place]), squares.shape[-1])
            squares[place] = square.flip(2) if flips[place] else square
        return squares

    def _upright(self, made: EncodedImages, places: Sequence[int], ids: Tensor) -> Iterator[Tensor]:
        """Yield the upright images of the files at these places: uint8 [3, H, W] each."""
        files = made.content.split_with_sizes(made.lengths[made.lengths > 0].tolist()) if places else ()
        turns, first = made.orientations.tolist(), 0
        for group in _groups(files):
            members = places[first : first + len(group)]
            first += len(group)
            try:
                images: list[Tensor] = _decode(group, self.device)
            except RuntimeError:  # one refused file fails the whole group
                for file, place in zip(group, members, strict=True):
                    yield self._alone(file, turns[place], ids[place])
            else:
                yield from (_turned(image, turns[place]) for image, place in zip(images, members, strict=True))

    def _alone(self, file: Tensor, orientation: int, example: Tensor) -> Tensor:
        try:
            return _turned(_decode([file], self.device)[0], orientation)
        except RuntimeError:
            pixels = np.array(self._examples.open(int(example)))
            return torch.from_numpy(pixels).permute(2, 0, 1).to(self.device)

    def _cut(self, image: Tensor, window: Window, size_px: int) -> Tensor:
        """Return the window of uint8 [3, H, W] as uint8 [3, S, S]."""
        left, top, right, bottom = window.box
        width, height = window.resized
        part = image[:, top:bottom, left:right]
        resized: Tensor = functional.resize(part, [height, width], self._interpolation, antialias=True)
        x, y = window.offset
        return resized[:, y : y + size_px, x : x + size_px]


def check_decoder(device: torch.device) -> str | None:
    """Check that the device can decode JPEG files.

    Returns:
        A remark if the device is not a GPU, else None.

    Raises:
        DataError: torchvision has no decoder, or was built without nvJPEG.
    """
    if not hasattr(io, "decode_jpeg"):  # deprecated since torchvision 0.29
        raise DataError(
            "data.decode: nvjpeg needs torchvision.io.decode_jpeg, which this torchvision no longer has; "
            "set data.decode: full or reduced"
        )
    if device.type != "cuda":
        return "data.decode: nvjpeg: there is no CUDA device, so the main process decodes on the CPU, which is slow"
    file = BytesIO()
    Image.new("RGB", (16, 16)).save(file, "JPEG")
    try:
        _decode([torch.frombuffer(bytearray(file.getvalue()), dtype=torch.uint8)], device)
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        raise DataError(f"data.decode: nvjpeg cannot be used ({reason}); set data.decode: full or reduced") from None
    return None


def _decode(files: Sequence[Tensor], device: torch.device) -> list[Tensor]:
    """Decode JPEG files (uint8 [bytes]) to uint8 [3, H, W] each, as stored."""
    where = device if device.type == "cuda" else torch.device("cpu")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # since torchvision 0.29
        images: list[Tensor] = io.decode_jpeg(list(files), mode=io.ImageReadMode.RGB, device=where)
    return images


def _groups(files: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Yield groups of consecutive files of at most `_BYTES_AT_ONCE`. A larger file is a group of its own."""
    group: list[Tensor] = []
    for file in files:
        if group and sum(map(len, group)) + len(file) > _BYTES_AT_ONCE:
            yield group
            group = []
        group.append(file)
    if group:
        yield group


def _turned(image: Tensor, orientation: int) -> Tensor:
    """Put [3, H, W] upright."""
    match orientation:
        case 2:
            return image.flip(2)
        case 3:
            return image.flip(1, 2)
        case 4:
            return image.flip(1)
        case 5:
            return image.transpose(1, 2)
        case 6:
            return image.rot90(-1, (1, 2))
        case 7:
            return image.transpose(1, 2).flip(1, 2)
        case 8:
            return image.rot90(1, (1, 2))
        case _:
            return image


def _left_out(request: Request, plans: Sequence[_Plan | None]) -> Request:
    """Return the request for the examples without a plan."""
    places = [place for place, plan in enumerate(plans) if plan is None]
    repeats = [request.repeats[place] for place in places] if request.repeats else ()
    return request._replace(ids=[request.ids[place] for place in places], repeats=repeats)


def _draw_flip() -> bool:
    """Draw as v2.RandomHorizontalFlip does."""
    return bool(torch.rand(1) < 0.5)


def _flat(window: Window) -> tuple[int, ...]:
    return (*window.box, *window.resized, *window.offset)


def _window(numbers: Sequence[int]) -> Window:
    left, top, right, bottom, width, height, x, y = numbers
    return Window((left, top, right, bottom), (width, height), (x, y))
