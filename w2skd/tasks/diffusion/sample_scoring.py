"""What generated images are compared by: one network, one set of real images, the same for teacher and student."""

import hashlib
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from w2skd.data.feeds import ImageFeeds
from w2skd.data.images import Normalization
from w2skd.data.normalize import Normalizer
from w2skd.data.sources import Listing, load_image_data
from w2skd.errors import CheckpointError
from w2skd.method.teacher import state_fingerprint
from w2skd.models.catalog import build_classifier
from w2skd.platform.ranks import Ranks
from w2skd.tasks.diffusion.features import Extractor, classifier_extractor, open_extractor
from w2skd.tasks.diffusion.fid import FidScorer, too_few
from w2skd.tasks.diffusion.recipe import DiffusionRecipe
from w2skd.tasks.diffusion.reference import Reference, open_reference
from w2skd.weights.load import load_into, load_weights

_READ_AT_ONCE = 512
"""Real images that are in memory together where a feed does not keep them all."""

_LOOKED_AT = 64
"""Images by which a set is known whose pixels are not in memory, and by which its mixture is judged."""

_GREY = ("1", "L", "I;16")
_WITH_ALPHA = ("RGBA", "LA", "PA")
"""What Pillow's names of modes begin with."""


class SampleScoring:
    """FID and KID as a recipe wants them.

    The network's weights are read, and checked, at once; the real images when the first samples are scored.

    Args:
        recipe: the experiment.
        feeds: its images.
        device: where the network runs.
        ranks: this process among its peers.

    Raises:
        CheckpointError: the network's weights are missing, damaged, or another network's.
    """

    def __init__(self, recipe: DiffusionRecipe, feeds: ImageFeeds, *, device: torch.device, ranks: Ranks):
        self._recipe = recipe
        self._feeds = feeds
        self._ranks = ranks
        self._listing = feeds.train_listing if recipe.fid.reference == "train" else feeds.evaluation_listing
        fid, (prefix, _, run) = recipe.fid, recipe.fid.extractor.partition(":")
        self._extractor = (
            _of_classifier(Path(run), feeds.size_px, device, fid.batch_size)
            if prefix == "checkpoint"
            else open_extractor(fid.extractor, fid.weights, device=device, batch_size=fid.batch_size)
        )

    def describe(self) -> dict[str, Any]:
        """All that two scores must share to be comparable."""
        fid, sampler = self._recipe.fid, self._recipe.sampler
        return {
            "extractor": self._extractor.name,
            "weights": self._extractor.weights[:16],
            "samples": fid.samples,
            "reference": f"{len(self._listing):,} images of {fid.reference}, {self._feeds.size_px} px",
            "reference_images": self._identity[:16],
            "seed": sampler.seed,
            "sampler": f"DDIM, {sampler.steps} steps, {sampler.spacing}" + ("" if sampler.clip else ", not clipped"),
            "kid_subsets": fid.kid_subsets,
            "kid_subset_size": min(fid.kid_subset_size, fid.samples, len(self._listing)),
        }

    @property
    def told(self) -> str:
        """The same in one line, for people."""
        about = self.describe()
        return (
            f"{about['samples']:,} samples (seed {about['seed']}; {about['sampler']}) against {about['reference']}, "
            f"in features of {about['extractor']} ({about['weights']})"
        )

    @cached_property
    def account(self) -> tuple[str, ...]:
        """What a reader must know before anything is trained; a line each."""
        few = too_few(self._recipe.fid.samples, len(self._listing), self._extractor.dimensions)
        if self._recipe.data.source != "image_folder":  # the others' images are all alike
            return few
        listings = dict.fromkeys([self._feeds.train_listing, self._listing])
        return (*few, *(line for listing in listings for line in _mixture(listing, self._feeds.size_px)))

    @property
    def notes(self) -> tuple[str, ...]:
        """What became of the cache of the real images' features; known to rank 0 after the first scoring."""
        note = self._reference.note if self._ranks.is_main else None
        return () if note is None else (note,)

    def scorer(self) -> FidScorer:
        """A fresh one. Rank 0 alone holds what the real images yield, and alone can ask it for the result."""
        self._ranks.on_main(self._prepare)
        fid = self._recipe.fid
        return FidScorer(
            self._reference if self._ranks.is_main else None,
            self._extractor,
            kid_subsets=fid.kid_subsets,
            kid_subset_size=fid.kid_subset_size,
        )

    def _prepare(self) -> None:
        assert self._reference.count == len(self._listing), (self._reference.count, len(self._listing))

    @cached_property
    def _reference(self) -> Reference:
        return open_reference(self._extractor, self._real_images, key=self._reference_key, cache=self._recipe.fid.cache)

    @property
    def _reference_key(self) -> dict[str, Any]:
        """What the real images' features depend on, but for the network; all pixels where they are in memory."""
        pixels = None
        if self._feeds.resident:
            data = load_image_data(self._recipe.data.images())
            pixels = (data.train if self._recipe.fid.reference == "train" else data.evaluation).fingerprint()
        return {"images": self._identity, "pixels": pixels, "size_px": self._feeds.size_px}

    @cached_property
    def _identity(self) -> str:
        """Of all names and of some images spread over the set, in hex: the same whichever feed a device allows."""
        digest = hashlib.sha256(self._listing.fingerprint().encode())
        digest.update(self._listing.examples.read(_spread(self._listing), self._feeds.size_px).numpy().data)
        return digest.hexdigest()

    def _real_images(self) -> Iterator[Tensor]:
        for places in torch.split(torch.arange(len(self._listing)), _READ_AT_ONCE):
            yield self._listing.examples.read(places, self._feeds.size_px)


def _of_classifier(run: Path, size_px: int, device: torch.device, batch_size: int) -> Extractor:
    """The last but one layer of a classifier that was trained with w2skd.

    Raises:
        CheckpointError: there is none, or it is no classifier of ours.
    """
    try:
        weights = load_weights(run)
    except CheckpointError as error:
        wanted = "the run of a classifier in whose features images are compared, trained with w2skd"
        raise CheckpointError(f"fid.extractor: {error}; it takes {wanted}") from None
    recipe = weights.recipe
    if recipe is None or recipe.get("task") != "classification" or weights.model_name is None:
        raise CheckpointError(f"{weights.path}: fid.extractor: no classifier that w2skd trained")
    data = recipe["data"]
    own_px = data["image_size"] or (28 if data["source"] == "fashion_mnist" else 32)
    model = build_classifier(weights.model_name, len(weights.details["classes"]), own_px)
    load_into(model, weights, expected=weights.model_name)
    values = weights.details["normalization"]
    normalize = Normalizer(Normalization(tuple(values[:3]), tuple(values[3:])), device, channels_last=False)

    def prepare(pixels: Tensor) -> Tensor:
        images = normalize(pixels)
        if own_px == size_px:
            return images
        return functional.interpolate(images, (own_px, own_px), mode="bicubic", antialias=True, align_corners=False)

    return classifier_extractor(
        model,
        name=f"checkpoint:{weights.model_name}",
        fingerprint=state_fingerprint(weights.state),
        prepare=prepare,
        device=device,
        batch_size=batch_size,
        size_px=size_px,
    )


def _mixture(listing: Listing, size_px: int) -> tuple[str, ...]:
    """A line where images differ in size, are grey, or have transparency, judged by some of them; or none."""
    places, examples = _spread(listing).tolist(), listing.examples
    sizes = {examples.open(place).size for place in places}
    modes = [examples.mode(place) for place in places]
    grey, clear = (sum(mode.startswith(kinds) for mode in modes) for kinds in (_GREY, _WITH_ALPHA))
    found = [f"{len(sizes)} sizes"] if len(sizes) > 1 else []
    found += [f"{grey} without colours"] if grey else []
    found += [f"{clear} with transparency, which is dropped"] if clear else []
    if not found:
        return ()
    return (
        f"{listing.name}: among {len(places)} images looked at {'; '.join(found)}: the middle of each becomes an RGB "
        f"square of {size_px} px",
    )


def _spread(listing: Listing) -> Tensor:
    """Some indices, int64, from the first example to the last."""
    last = len(listing) - 1
    return torch.tensor(sorted({last * part // (_LOOKED_AT - 1) for part in range(_LOOKED_AT)}))
