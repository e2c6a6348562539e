"""A classifier from elsewhere made to answer as one of ours: other normalisation, other image size, other classes.

Shape letters: N images, H and W pixels, C classes of ours, K classes of theirs.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from w2skd.errors import CheckpointError, suggest

MeanStd = tuple[Sequence[float], Sequence[float]]
"""Means and standard deviations per colour, of pixels scaled to [0, 1]."""

_IMAGENET_ID = re.compile(r"n\d{8}")
_TOLD = 3
"""Classes that an error names before it only counts."""


class AdaptedClassifier(nn.Module):
    """Another model, answering in our classes to images that are prepared our way.

    It has no state of its own: parameters and buffers in its state dict are the inner model's, under ``model.``.

    Args:
        model: from images [N, 3, H, W], normalised its way, to logits [N, K].
        ours: the normalisation of the images that come in.
        theirs: the normalisation that the model was trained with.
        image_size_px: side of the squares that the model sees; None leaves images as they come.
        interpolation: of the resizing, which is antialiased.
        columns: of every class of ours, its index in the model's logits; None takes all as they are.
    """

    scale: Tensor | None
    shift: Tensor | None
    columns: Tensor | None

    def __init__(
        self,
        model: nn.Module,
        *,
        ours: MeanStd,
        theirs: MeanStd,
        image_size_px: int | None = None,
        interpolation: Literal["bilinear", "bicubic"] = "bilinear",
        columns: Sequence[int] | None = None,
    ):
        super().__init__()
        self.model = model
        self.image_size_px = image_size_px
        self.interpolation = interpolation
        scale, shift = _renormalization(ours, theirs)
        same = torch.equal(scale, torch.ones(3)) and torch.equal(shift, torch.zeros(3))
        self._keep("scale", None if same else scale.reshape(1, 3, 1, 1))
        self._keep("shift", None if same else shift.reshape(1, 3, 1, 1))
        self._keep("columns", None if columns is None else torch.tensor(columns, dtype=torch.int64))

    def forward(self, images: Tensor) -> Tensor:
        """[N, 3, H, W], normalised our way, to logits [N, C]; images to be resized must be squares."""
        if self.image_size_px is not None and images.shape[-1] != self.image_size_px:
            assert images.shape[-2] == images.shape[-1], f"not squares: {tuple(images.shape)}"
            images = functional.interpolate(
                images, (self.image_size_px, self.image_size_px), mode=self.interpolation, antialias=True
            )
        if self.scale is not None and self.shift is not None:
            images = torch.addcmul(self.shift, images, self.scale)
        logits: Tensor = self.model(images)
        return logits if self.columns is None else logits.index_select(1, self.columns)

    def _keep(self, name: str, values: Tensor | None) -> None:
        # Known from the outside at every start, so no checkpoint needs it.
        self.register_buffer(name, values, persistent=False)


def _renormalization(ours: MeanStd, theirs: MeanStd) -> tuple[Tensor, Tensor]:
    """Scale and shift, float32 [3] each, from images normalised our way to images normalised theirs."""
    our_mean, our_std, their_mean, their_std = (
        torch.tensor(values, dtype=torch.float64) for pair in (ours, theirs) for values in pair
    )
    return (our_std / their_std).float(), ((our_mean - their_mean) / their_std).float()


@dataclass(frozen=True)
class ClassMatch:
    """How a model's classes and the data's meet.

    Attributes:
        columns: of every class of the data, its index in the model's logits; None: they are the same as they stand.
        account: one line for people that says so.
        assumed: nothing was known to match by.
    """

    columns: tuple[int, ...] | None
    account: str
    assumed: bool = False


def match_classes(
    theirs: Sequence[str] | None, their_ids: Sequence[str] | None, ours: Sequence[str], their_count: int
) -> ClassMatch:
    """Find every class of the data among a model's: by id, else by its exact name, else by a name that means the same.

    Names mean the same when they differ in case, underscores, hyphens, spaces, apostrophes or full stops only; where
    a name lists synonyms after commas, each counts. Both libraries and folders write names in such ways.

    Args:
        theirs: names of the model's classes, in the order of its logits, if they are known.
        their_ids: their ids, such as ImageNet's, if they are known.
        ours: names of the data's classes: ids may stand among them, as folders are often called by them.
        their_count: how many logits the model has.

    Raises:
        CheckpointError: the model doesn't know a class, or could mean several by it; or nothing is known of its
            classes and they are not as many.
    """
    for known in (theirs, their_ids):
        if known is not None and len(known) != their_count:
            raise CheckpointError(f"the teacher names {len(known):,} classes, but its head has {their_count:,}")
    if theirs is None and their_ids is None:
        if their_count != len(ours):
            raise CheckpointError(
                f"the teacher has {their_count:,} classes of unknown names, the data has {len(ours):,}: they can't be "
                "matched; give a teacher that was trained on these classes, or whose file names its own"
            )
        return ClassMatch(None, f"unknown names: assumed to be the data's {len(ours):,} in the same order", True)
    columns, ways = _find_all(theirs or (), their_ids or (), ours)
    if len(columns) < their_count:
        account = f"its {their_count:,} classes contain the data's {len(ours):,}, matched by {' and '.join(ways)}"
        return ClassMatch(columns, account)
    if columns == tuple(range(their_count)):
        return ClassMatch(None, f"the same {their_count:,} classes")
    return ClassMatch(columns, f"the same {their_count:,} classes in another order")


def _find_all(
    theirs: Sequence[str], their_ids: Sequence[str], ours: Sequence[str]
) -> tuple[tuple[int, ...], list[str]]:
    """Index of each of our classes among theirs, and the ways in which they were found, the most frequent first."""
    is_imagenet = all(_IMAGENET_ID.fullmatch(known) for known in their_ids)
    by_way: dict[str, Mapping[str, Sequence[int]]] = {
        "ImageNet id" if is_imagenet else "id": _places((known,) for known in their_ids),
        "name": _places((name,) for name in theirs),
        "similar name": _places(_meanings(name) for name in theirs),
    }
    columns: list[int] = []
    unknown: list[str] = []
    ways: Counter[str] = Counter()
    for name in ours:
        for way, places in by_way.items():
            words = _meanings(name) if way == "similar name" else (name,)
            found = sorted({place for word in words for place in places.get(word, ())})
            if len(found) > 1:
                could_be = " or ".join(_called(place, theirs, their_ids) for place in found[:_TOLD])
                raise CheckpointError(
                    f"class '{name}' of the data could be the teacher's {could_be}: call it by the teacher's id "
                    "or by its whole name"
                )
            if found:
                columns += found
                ways[way] += 1
                break
        else:
            unknown.append(name)
    if unknown:
        raise CheckpointError(_unknown(unknown, len(ours), [*theirs, *their_ids]))
    _refuse_twins(columns, theirs, their_ids, ours)
    return tuple(columns), [way for way, _ in ways.most_common()]


def _refuse_twins(columns: Sequence[int], theirs: Sequence[str], their_ids: Sequence[str], ours: Sequence[str]) -> None:
    first: dict[int, str] = {}
    for column, name in zip(columns, ours, strict=True):
        if column in first:
            raise CheckpointError(
                f"classes '{first[column]}' and '{name}' of the data are both the teacher's "
                f"{_called(column, theirs, their_ids)}: it can't tell them apart"
            )
        first[column] = name


def _unknown(unknown: Sequence[str], count: int, known: Sequence[str]) -> str:
    # A few are slips of the pen; among many, what happens to look alike would only mislead.
    slips = len(unknown) <= _TOLD
    told = ", ".join(f"'{name}'{suggest(name, known) if slips else ''}" for name in unknown[:_TOLD])
    more = ", ..." if len(unknown) > _TOLD else ""
    return (
        f"the teacher doesn't know {len(unknown):,} of the data's {count:,} classes: {told}{more}; call them by its "
        "names or ids, or take a teacher that was trained on them"
    )


def _called(place: int, theirs: Sequence[str], their_ids: Sequence[str]) -> str:
    called = [f"'{theirs[place]}'"] if theirs else []
    return " ".join([f"number {place}", *called, *([f"({their_ids[place]})"] if their_ids else [])])


def _places(words_of_each: Iterable[Iterable[str]]) -> dict[str, list[int]]:
    """Word -> the classes that it can stand for."""
    places: defaultdict[str, list[int]] = defaultdict(list)
    for place, words in enumerate(words_of_each):
        for word in set(words):
            places[word].append(place)
    return dict(places)


def _meanings(name: str) -> set[str]:
    """A name and its synonyms, in plain small words."""
    plain = re.sub(r"[\s_-]+", " ", re.sub(r"['\u2019.]", "", name.casefold()))
    return {word for word in (" ".join(part.split()) for part in (plain, *plain.split(","))) if word}
