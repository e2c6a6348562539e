"""FID and KID of generated images: features in, torch-fidelity's numbers out.

FID (Heusel et al. 2017) is the Fréchet distance between two Gaussians that have the means and covariances of the
features; with few samples it is biased upwards. KID (Bińkowski et al. 2018) is the squared maximum mean discrepancy
with a cubic kernel, an unbiased estimate, so that it may be slightly negative.

Legend: n images, N of them in all, D features.
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
    """How far generated images are from real ones; lower is better.

    Attributes:
        fid: Fréchet distance; NaN where samples are not finite.
        kid: mean over the subsets; NaN where samples are not finite.
        kid_std: standard deviation over the subsets.
        account: what a reader of the numbers must know; a line each.
    """

    fid: float
    kid: float
    kid_std: float
    account: tuple[str, ...]


class FidScorer:
    """Collects the features of generated images and has them compared with the reference.

    Args:
        reference: the real images; None on a process that adds samples but asks for no result.
        extractor: the reference's own.
        kid_subsets: over how many subsets KID is averaged.
        kid_subset_size: images of each, of both sides; fewer where there are fewer.
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
        """Take in some samples.

        Args:
            ids: int64 [n], which samples these are; each is added once.
            images: uint8 [n, 3, H, W].
            finite: bool [n], which of them were finite before they became bytes; None: all.
        """
        finite = torch.ones(len(ids), dtype=torch.bool) if finite is None else finite.cpu()
        assert len(ids) == len(images) == len(finite), (len(ids), len(images), len(finite))
        features = self._extractor(images)
        self._parts.append((ids.cpu(), features, finite & features.isfinite().all(dim=1)))

    def merge(self, ranks: Ranks) -> None:
        """Bring together what all ranks have added, on every rank. All of them call it once, after the last `add`."""
        self._parts = ranks.gather(self._joined())

    @property
    def features(self) -> Tensor:
        """float32 [N, D], in the order of ids."""
        return self._joined()[1]

    def result(self) -> FidResult:
        """Compare what was added; it takes a processor for seconds where D is in the thousands.

        Raises:
            DataError: there are fewer than two samples.
        """
        reference = self._reference
        assert reference is not None, "this process has no reference"
        _, features, finite = self._joined()
        count = len(features)
        if count < 2:
            raise DataError(f"fid.samples: {count} generated images: FID and KID need at least two")
        lost = count - int(finite.sum())
        if lost:
            said = f"{lost:,} of {count:,} samples are not finite: there is no fid and no kid of them"
            return FidResult(math.nan, math.nan, math.nan, (said,))
        subset_size = min(self._kid_subset_size, count, reference.count)
        statistics = {"mu": reference.mu, "sigma": reference.sigma}
        fid = fid_statistics_to_metric(fid_features_to_statistics(features), statistics, verbose=False)
        kid = kid_features_to_metric(
            features, reference.features, kid_subsets=self._kid_subsets, kid_subset_size=subset_size, verbose=False
        )
        return FidResult(
            fid[KEY_METRIC_FID],
            kid[KEY_METRIC_KID_MEAN],
            kid[KEY_METRIC_KID_STD],
            self._account(count, reference.count, subset_size),
        )

    def _joined(self) -> tuple[Tensor, Tensor, Tensor]:
        """All ids in rising order, with features and whether they are finite."""
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

    def _account(self, samples: int, real: int, subset_size: int) -> tuple[str, ...]:
        account = list(too_few(samples, real, self._extractor.dimensions))
        if subset_size < self._kid_subset_size:
            account.append(
                f"kid is over subsets of {subset_size:,} images, not {self._kid_subset_size:,}: no more are there"
            )
        return tuple(account)


def too_few(samples: int, real: int, dimensions: int) -> tuple[str, ...]:
    """What to know of a FID of so many images in so many features, which can be told beforehand; a line or none."""
    needed = dimensions + 1
    few = [f"{count:,} {what}" for count, what in ((samples, "samples"), (real, "real images")) if count < needed]
    if not few:
        return ()
    return (
        f"fid of {' and '.join(few)} in {dimensions:,} features is too high: a covariance needs at least {needed:,} of "
        "each to have full rank; kid has no such bias (report.metric: kid)",
    )
