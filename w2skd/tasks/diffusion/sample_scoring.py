"""How a recipe scores generated images: one feature extractor and one set of real images for teacher and student."""

import hashlib
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from w2skd.data.feeds import ImageFeeds
from w2skd.data.sources import Listing, load_image_data
from w2skd.platform.ranks import Ranks
from w2skd.tasks.diffusion.classifier_features import classifier_extractor, read_classifier, untrained_classifier
from w2skd.tasks.diffusion.features import open_extractor
from w2skd.tasks.diffusion.fid import FidScorer, rank_deficiency
from w2skd.tasks.diffusion.recipe import UNTRAINED, DiffusionRecipe
from w2skd.tasks.diffusion.reference import Reference, open_reference

_BATCH_SIZE = 512
"""Real images read at once."""

_INSPECTED = 64
"""Images whose pixels identify a set, and whose sizes and modes are checked."""

_GREY = ("1", "L", "I")
_WITH_ALPHA = ("RGBA", "LA", "PA")
"""Prefixes of Pillow's modes."""


class SampleScoring:
    """FID and KID as a recipe defines them.

    The extractor's weights are read and checked at construction; the real images when the first samples are scored.

    Args:
        recipe: the experiment.
        feeds: its images.
        device: where the extractor runs.
        ranks: this process among its peers.

    Raises:
        CheckpointError: the extractor's weights are missing, damaged, or those of another network.
    """

    def __init__(self, recipe: DiffusionRecipe, feeds: ImageFeeds, *, device: torch.device, ranks: Ranks):
        self._recipe = recipe
        self._feeds = feeds
        self._ranks = ranks
        self._listing = feeds.train_listing if recipe.fid.reference == "train" else feeds.evaluation_listing
        fid, (prefix, _, run) = recipe.fid, recipe.fid.extractor.partition(":")
        if prefix in ("checkpoint", UNTRAINED):
            classifier = (
                untrained_classifier(feeds.size_px, device)
                if prefix == UNTRAINED
                else read_classifier(Path(run), size_px=feeds.size_px, device=device)
            )
            self._extractor = classifier_extractor(
                classifier, device=device, batch_size=fid.batch_size, size_px=feeds.size_px
            )
        else:
            self._extractor = open_extractor(fid.extractor, fid.weights, device=device, batch_size=fid.batch_size)

    def describe(self) -> dict[str, Any]:
        """Return everything that two scores must share to be comparable."""
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

    @cached_property
    def warnings(self) -> tuple[str, ...]:
        """Caveats that are known before training, one line each."""
        few = rank_deficiency(self._recipe.fid.samples, len(self._listing), self._extractor.dimensions)
        if self._recipe.fid.extractor == UNTRAINED:
            few = ("fid and kid in features of an untrained network mean nothing: for smoke tests only", *few)
        if self._recipe.data.source not in ("image_folder", "packed"):  # all images of the other sources are alike
            return few
        listings = dict.fromkeys([self._feeds.train_listing, self._listing])
        return (*few, *(line for listing in listings for line in _mixture(listing, self._feeds.size_px)))

    def scorer(self) -> FidScorer:
        """Return a fresh scorer. Only rank 0 holds the real images' features and can compute the result."""
        count = self._ranks.on_main(lambda: len(self._reference))
        assert count == len(self._listing), (count, len(self._listing))
        fid = self._recipe.fid
        return FidScorer(
            self._reference if self._ranks.is_main else None,
            self._extractor,
            kid_subsets=fid.kid_subsets,
            kid_subset_size=fid.kid_subset_size,
        )

    def notes(self) -> tuple[str, ...]:
        """Return what readers of a score should know, one line each; on rank 0 including problems with the cache."""
        facts = self.describe()
        summary = (
            f"{facts['samples']:,} samples (seed {facts['seed']}; {facts['sampler']}) against {facts['reference']}, "
            f"in features of {facts['extractor']} ({facts['weights']})"
        )
        problem = self._reference.note if self._ranks.is_main else None
        return (summary, *self.warnings, *([] if problem is None else [problem]))

    @cached_property
    def _reference(self) -> Reference:
        pixels = None
        if self._feeds.resident:  # all pixels are in memory
            data = load_image_data(self._recipe.data)
            pixels = (data.train if self._recipe.fid.reference == "train" else data.evaluation).fingerprint()
        key = {"images": self._identity, "pixels": pixels, "size_px": self._feeds.size_px}
        batches = torch.split(torch.arange(len(self._listing)), _BATCH_SIZE)
        return open_reference(
            self._extractor,
            lambda: (self._listing.examples.read(indices, self._feeds.size_px) for indices in batches),
            key=key,
            cache=self._recipe.fid.cache,
        )

    @cached_property
    def _identity(self) -> str:
        """Hash of all names and of some images, in hexadecimal; the same for resident and streaming feeds."""
        digest = hashlib.sha256(self._listing.fingerprint().encode())
        digest.update(self._listing.examples.read(_spread(self._listing), self._feeds.size_px).numpy().data)
        return digest.hexdigest()


def _mixture(listing: Listing, size_px: int) -> tuple[str, ...]:
    """Report, in one line, that some images differ in size, are grey, or have transparency; else empty."""
    indices, examples = _spread(listing).tolist(), listing.examples
    sizes = {examples.open(index).size for index in indices}
    modes = [examples.mode(index) for index in indices]
    grey, transparent = (sum(mode.startswith(kinds) for mode in modes) for kinds in (_GREY, _WITH_ALPHA))
    found = [f"{len(sizes)} sizes"] if len(sizes) > 1 else []
    found += [f"{grey} greyscale"] if grey else []
    found += [f"{transparent} with transparency, which is dropped"] if transparent else []
    if not found:
        return ()
    return (
        f"{listing.name}: {len(indices)} images inspected: {'; '.join(found)}. Each is cropped to its central square, "
        f"resized to {size_px} px and converted to RGB",
    )


def _spread(listing: Listing) -> Tensor:
    """Indices, int64, spread evenly from the first example to the last."""
    last = len(listing) - 1
    return torch.tensor(sorted({last * part // (_INSPECTED - 1) for part in range(_INSPECTED)}))
