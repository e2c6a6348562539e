"""Sources of images with boxes: files in COCO format, or generated scenes."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

from w2skd.data.counter import seed_from
from w2skd.data.identity import DataIdentity, identify, identify_set
from w2skd.data.images import Normalization
from w2skd.data.sources import IMAGENET
from w2skd.errors import DataError
from w2skd.tasks.detection.coco_files import read_coco
from w2skd.tasks.detection.image_files import describe_unlisted
from w2skd.tasks.detection.listing import CocoListing, check_same_categories
from w2skd.tasks.detection.recipe import DetectionData
from w2skd.tasks.detection.scenes import NORMALIZATION, list_scenes

_TRAIN_SCENES = 1024
_EVAL_SCENES = 256


@dataclass(frozen=True, eq=False)
class DetectionListing:
    """Training and evaluation examples whose pixels are not read yet; notes about both sets, one line each."""

    train: CocoListing
    evaluation: CocoListing
    normalization: Normalization
    notes: tuple[str, ...] = ()


@lru_cache(maxsize=2)
def list_detection_data(section: DetectionData) -> DetectionListing:
    """List the examples of a recipe's ``data`` section without reading images; runs in one process share the result.

    Raises:
        DataError: files are missing, damaged, too few or inconsistent, or one of the sets has no boxes.
    """
    train, evaluation, normalization = SOURCES[section.source](section)
    check_same_categories(train, evaluation)
    notes = describe_unlisted((train, evaluation))
    train = train.subset(section.train_examples, section.split_seed)
    evaluation = evaluation.subset(section.eval_examples, section.split_seed)
    for listing, purpose in ((train, "training"), (evaluation, "scoring")):
        if not len(listing.table.boxes):
            raise DataError(
                f"{listing.name}: no boxes for {purpose} in {len(listing)} images; crowd regions do not count"
            )
    return DetectionListing(train, evaluation, normalization, tuple(notes))


@lru_cache(maxsize=2)
def identify_detection_data(section: DetectionData) -> DataIdentity:
    """Identify the sets of a recipe's ``data`` section; runs in one process share the result.

    Raises:
        DataError: an image cannot be read.
    """
    data = list_detection_data(section)
    training, evaluation = (
        identify_set(part.examples, part.categories, boxes=part.annotations) for part in (data.train, data.evaluation)
    )
    return identify(training, evaluation)


def _coco(section: DetectionData) -> tuple[CocoListing, CocoListing, Normalization]:
    train, evaluation = (
        read_coco(section.root / annotations, section.root / images)
        for annotations, images in (
            (section.train_annotations, section.train_images),
            (section.eval_annotations, section.eval_images),
        )
    )
    return train, evaluation, IMAGENET


def _shapes(section: DetectionData) -> tuple[CocoListing, CocoListing, Normalization]:
    """Generate the requested number of scenes; `split_seed` is the seed of the scenes, too."""
    counts = (section.train_examples or _TRAIN_SCENES, section.eval_examples or _EVAL_SCENES)
    train, evaluation = (
        list_scenes(f"the {part} set of shapes", seed_from(section.split_seed, number), count, section.min_size)
        for number, (part, count) in enumerate(zip(("training", "evaluation"), counts, strict=True))
    )
    return train, evaluation, NORMALIZATION


SOURCES: dict[str, Callable[[DetectionData], tuple[CocoListing, CocoListing, Normalization]]] = {
    "coco": _coco,
    "shapes": _shapes,
}
