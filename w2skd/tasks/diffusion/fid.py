"""FID and KID of generated images, computed from features by torch-fidelity.

FID (Heusel et al. 2017) is the Fréchet distance between two Gaussians with the means and covariances of the features;
with few samples it is biased upwards. KID (Bińkowski et al. 2018) is the squared maximum mean discrepancy with a cubic
kernel; its estimate is unbiased and may therefore be slightly negative.

Shapes: n images of a batch, N of all batches, D features.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch_fidelity.metric_fid import KEY_METRIC_FID, fid_features_to_statistics, fid_statistics_to_metric
from torch_fidelity.metric_kid import KEY_METRIC_KID_MEAN, KEY_METRIC_KID_STD, kid_features_to_metric

from w2skd.errors import DataError
from w2skd.platform.ranks import Ranks
from w2skd.tasks.diffusion.features import Extractor
from w2skd.tasks.diffusion.reference import Reference


class FidResult(NamedTuple):
    """Distance between generated and real images; lower is better.

    Attributes:
        fid: Fréchet distance; NaN if a sample is non-finite.
        kid: mean over the subsets; NaN if a sample is non-finite.
        kid_std: standard deviation over the subsets.
        notes: caveats for readers of the numbers, one line each.
    """

    fid: float
    kid: float
    kid_std: float
    notes: tuple[str, ...] = ()


class FidScorer:
    """Collects the features of generated images and compares them with those of real images.

    Args:
        reference: the real images; None on ranks that only add samples.
        extractor: the one that the reference was computed with.
        kid_subsets: number of subsets that KID is averaged over.
        kid_subset_size: images per subset and side; limited by the number of samples and of real images.
    """

    def __init__(
        self, reference: Reference | None, extractor: Extractor, *, kid_subsets: int = 100, kid_subset_size: int = 1000
    ):
        dimensions = extractor.dimensions
        assert reference is None or reference.features.shape[1] == dimensions, (reference.features.shape, dimensions)
        self._reference = reference
        self._extractor = extractor
        self._kid_subsets = kid_subsets
        self._kid_subset_size = kid_subset_size
        self._parts: list[tuple[Tensor, Tensor, Tensor]] = []

    def add(self, ids: Tensor, images: Tensor, finite: Tensor | None = None) -> None:
        """Add samples.

        Args:
            ids: int64 [n]; each id is added once.
            images: uint8 [n, 3, H, W].
            finite: bool [n], whether each sample was finite before its conversion to uint8; None: all were.
        """
        finite = torch.ones(len(ids), dtype=torch.bool) if finite is None else finite.cpu()
        assert len(ids) == len(images) == len(finite), (len(ids), len(images), len(finite))
        features = self._extractor(images)
        self._parts.append((ids.cpu(), features, finite & features.isfinite().all(dim=1)))

    def merge(self, ranks: Ranks) -> None:
        """Gather the samples of all ranks on every rank. All ranks call it once, after their last `add`."""
        self._parts = ranks.gather(self.samples())

    def samples(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return ids (int64 [N], ascending), features (float32 [N, D]) and whether each sample is finite (bool [N])."""
        if not self._parts:
            empty = torch.empty(0, self._extractor.dimensions)
            return torch.empty(0, dtype=torch.int64), empty, torch.empty(0, dtype=torch.bool)
        ids, features, finite = (torch.cat(column) for column in zip(*self._parts, strict=True))
        order = ids.argsort()
        if not torch.equal(order, torch.arange(len(ids))):
            ids, features, finite = ids[order], features[order], finite[order]
        assert bool((ids.diff() > 0).all()), "a sample was added twice"
        self._parts = [(ids, features, finite)]
        return self._parts[0]

    def result(self) -> FidResult:
        """Compute FID and KID of the added samples; takes seconds of CPU time for thousands of features.

        Raises:
            DataError: there are fewer than two samples.
        """
        reference = self._reference
        assert reference is not None, "this rank has no reference"
        _, features, finite = self.samples()
        count = len(features)
        if count < 2:
            raise DataError(f"fid.samples: {count} generated images, but FID and KID need at least two")
        bad = count - int(finite.sum())
        if bad:
            note = f"{bad:,} of {count:,} samples are non-finite: fid and kid are undefined"
            return FidResult(math.nan, math.nan, math.nan, (note,))
        subset_size = min(self._kid_subset_size, count, len(reference))
        statistics = {"mu": reference.mu, "sigma": reference.sigma}
        fid = fid_statistics_to_metric(fid_features_to_statistics(features), statistics, verbose=False)
        kid = kid_features_to_metric(
            features, reference.features, kid_subsets=self._kid_subsets, kid_subset_size=subset_size, verbose=False
        )
        note = (
            f"kid uses subsets of {subset_size:,} images instead of {self._kid_subset_size:,}: there are no more images"
        )
        notes = (note,) if subset_size < self._kid_subset_size else ()
        return FidResult(fid[KEY_METRIC_FID], kid[KEY_METRIC_KID_MEAN], kid[KEY_METRIC_KID_STD], notes)


def rank_deficiency(samples: int, real: int, dimensions: int) -> tuple[str, ...]:
    """Warn, in one line, where FID is biased because a covariance of so few images lacks full rank; else empty."""
    needed = dimensions + 1
    few = [f"{count:,} {what}" for count, what in ((samples, "samples"), (real, "real images")) if count < needed]
    if not few:
        return ()
    return (
        f"fid of {' and '.join(few)} in {dimensions:,} features is too high: each covariance needs at least {needed:,} "
        "images to have full rank; kid has no such bias (report.metric: kid)",
    )
