"""FID and KID against closed forms and slow references, over ranks, and with non-finite samples."""

import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from processes import run_ranks, values
from torch import Tensor

from w2skd.errors import DataError
from w2skd.platform.ranks import Ranks, process_group
from w2skd.tasks.diffusion.fid import FidResult, FidScorer, rank_deficiency
from w2skd.tasks.diffusion.reference import Reference

ALONE = Ranks()


class Table:
    """Stands in for an extractor: an image's pixels encode the row that holds its features."""

    name = "table"

    def __init__(self, features: Tensor):
        self.features = features
        self.dimensions = features.shape[1]

    def __call__(self, images: Tensor) -> Tensor:
        low, high = images[:, 0, 0, 0].long(), images[:, 1, 0, 0].long()
        return self.features[low + 256 * high]


def pictures(ids: Tensor) -> Tensor:
    """Images [n, 3, 1, 1] that encode their ids."""
    return torch.stack([ids % 256, ids // 256, ids * 0], dim=1).to(torch.uint8)[:, :, None, None]


def scorer(real: Tensor, fake: Tensor, **options: int) -> FidScorer:
    features = real.numpy()
    reference = Reference(features.mean(0), np.cov(features, rowvar=False), real)
    return FidScorer(reference, Table(fake), **options)  # type: ignore[arg-type]


def result(real: Tensor, fake: Tensor, **options: int) -> FidResult:
    scored = scorer(real, fake, **options)
    scored.add(torch.arange(len(fake)), pictures(torch.arange(len(fake))))
    return scored.result()


def drawn(count: int, dimensions: int, seed: int) -> Tensor:
    return torch.randn(count, dimensions, generator=torch.Generator().manual_seed(seed))


def with_moments(mean: Tensor, root: Tensor, seed: int, count: int = 400) -> Tensor:
    """Features with mean `mean` and covariance root root^T, exact up to rounding to float32."""
    free = drawn(count, len(mean), seed).double()
    free -= free.mean(0)
    white = free @ torch.linalg.inv(torch.linalg.cholesky(torch.cov(free.T))).T
    return (white @ root.T + mean).float()


def test_fid_of_gaussians_with_diagonal_covariance_has_a_closed_form() -> None:
    mean_1, mean_2 = torch.tensor([0.0, 1.0, -2.0]).double(), torch.tensor([0.5, 1.0, 1.0]).double()
    deviation_1, deviation_2 = torch.tensor([1.0, 2.0, 0.5]).double(), torch.tensor([3.0, 2.0, 0.1]).double()
    expected = float(((mean_1 - mean_2) ** 2 + (deviation_1 - deviation_2) ** 2).sum())
    real, fake = with_moments(mean_1, deviation_1.diag(), 0), with_moments(mean_2, deviation_2.diag(), 1)
    assert result(real, fake).fid == pytest.approx(expected, rel=1e-5)


def test_fid_of_any_gaussians_equals_a_slow_reference() -> None:
    mean_1, mean_2 = drawn(2, 6, 2).double()
    root_1, root_2 = drawn(6, 6, 3).double(), drawn(6, 6, 4).double()
    real, fake = with_moments(mean_1, root_1, 5), with_moments(mean_2, root_2, 6)
    sigma_1, sigma_2 = root_1 @ root_1.T, root_2 @ root_2.T
    values_1, vectors_1 = torch.linalg.eigh(sigma_1)
    half = vectors_1 @ values_1.sqrt().diag() @ vectors_1.T
    between = torch.linalg.eigvalsh(half @ sigma_2 @ half).clamp(min=0).sqrt().sum()
    expected = float(((mean_1 - mean_2) ** 2).sum() + sigma_1.trace() + sigma_2.trace() - 2 * between)
    assert result(real, fake).fid == pytest.approx(expected, rel=1e-4)


def test_fid_of_the_reference_itself_is_zero() -> None:
    real = drawn(50, 4, 0)
    assert result(real, real).fid == pytest.approx(0, abs=1e-4)


def slow_kid(fake: Tensor, real: Tensor) -> float:
    """The unbiased estimate of the squared discrepancy, pair by pair, in float64."""

    def kernel(x: Tensor, y: Tensor) -> float:
        return float((x.double() @ y.double() / len(x) + 1) ** 3)

    def within(rows: Tensor) -> float:
        pairs = [kernel(x, y) for i, x in enumerate(rows) for j, y in enumerate(rows) if i != j]
        return sum(pairs) / len(pairs)

    across = sum(kernel(x, y) for x in fake for y in real) / (len(fake) * len(real))
    return within(fake) + within(real) - 2 * across


def test_kid_over_all_images_equals_a_double_loop() -> None:
    real, fake = drawn(25, 5, 0), drawn(25, 5, 1) * 1.5 + 0.3
    scored = result(real, fake, kid_subsets=3, kid_subset_size=25)
    assert scored.kid == pytest.approx(slow_kid(fake, real), rel=1e-4)
    assert scored.kid_std == pytest.approx(0, abs=1e-5)  # every subset holds all images


def test_kid_is_averaged_over_subsets() -> None:
    real, fake = drawn(30, 5, 0), drawn(20, 5, 1) + 0.5
    draws = np.random.RandomState(2020)  # torch-fidelity's own seed
    slow = []
    for _ in range(4):
        first = torch.from_numpy(draws.choice(20, 10, replace=False))
        slow.append(slow_kid(fake[first], real[torch.from_numpy(draws.choice(30, 10, replace=False))]))
    scored = result(real, fake, kid_subsets=4, kid_subset_size=10)
    assert scored.kid == pytest.approx(np.mean(slow), rel=1e-4)
    assert scored.kid_std == pytest.approx(np.std(slow), rel=1e-3)


@pytest.mark.parametrize(("real", "fake"), [(40, 30), (30, 40)])
def test_kid_subsets_are_limited_by_the_number_of_images(real: int, fake: int) -> None:
    few, fitting = (result(drawn(real, 4, 0), drawn(fake, 4, 1), kid_subset_size=size) for size in (1000, 30))
    assert few[:3] == fitting[:3]
    assert few.notes == ("kid uses subsets of 30 images instead of 1,000: there are no more images",)
    assert fitting.notes == ()


def test_fewer_samples_than_features_are_reported_and_kid_is_suggested() -> None:
    assert rank_deficiency(20, 500, 20) == (
        "fid of 20 samples in 20 features is too high: each covariance needs at least 21 images to have full rank; kid "
        "has no such bias (report.metric: kid)",
    )
    assert rank_deficiency(21, 21, 20) == ()
    assert "fid of 9 real images in 20" in rank_deficiency(99, 9, 20)[0]


@pytest.mark.parametrize("count", [0, 1])
def test_fewer_than_two_samples_are_refused(count: int) -> None:
    with pytest.raises(DataError, match=rf"fid.samples: {count} generated images, .* need at least two"):
        result(drawn(9, 3, 0), drawn(count, 3, 1))


def test_non_finite_samples_have_no_score() -> None:
    scored = scorer(drawn(50, 3, 0), drawn(40, 3, 1))
    finite = torch.ones(40, dtype=torch.bool)
    finite[[3, 17]] = False
    scored.add(torch.arange(40), pictures(torch.arange(40)), finite)
    fid, kid, kid_std, notes = scored.result()
    assert all(math.isnan(value) for value in (fid, kid, kid_std))
    assert notes == ("2 of 40 samples are non-finite: fid and kid are undefined",)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_samples_with_non_finite_features_have_no_score(value: float) -> None:
    fake = drawn(40, 3, 1)
    fake[7, 1] = value
    scored = result(drawn(50, 3, 0), fake)
    assert math.isnan(scored.fid)
    assert "1 of 40 samples are non-finite" in scored.notes[0]


def test_samples_are_sorted_by_id() -> None:
    fake = drawn(300, 3, 1)
    shuffled = torch.randperm(300, generator=torch.Generator().manual_seed(0))
    scored = scorer(drawn(50, 3, 0), fake)
    for ids in shuffled.split(70):
        scored.add(ids, pictures(ids))
    assert torch.equal(scored.samples()[1], fake)
    assert scored.result() == result(drawn(50, 3, 0), fake)


def test_a_single_batch_is_sorted() -> None:
    scored = scorer(drawn(9, 2, 0), drawn(4, 2, 1))
    scored.add(torch.tensor([2, 0, 3, 1]), pictures(torch.tensor([2, 0, 3, 1])))
    assert torch.equal(scored.samples()[1], drawn(4, 2, 1))


def test_adding_a_sample_twice_fails() -> None:
    scored = scorer(drawn(9, 2, 0), drawn(4, 2, 1))
    scored.add(torch.tensor([0, 1]), pictures(torch.tensor([0, 1])))
    scored.add(torch.tensor([1, 2]), pictures(torch.tensor([1, 2])))
    with pytest.raises(AssertionError, match="added twice"):
        scored.result()


def rank_part(ranks: Ranks) -> tuple[FidResult | None, NDArray[np.float32]]:
    with process_group(ranks, torch.device("cpu")):
        ids = torch.arange(40)[ranks.rank :: ranks.world]
        scored = scorer(drawn(50, 3, 0), drawn(40, 3, 1), kid_subset_size=20)
        if ranks.rank:
            scored = FidScorer(None, Table(drawn(40, 3, 1)))  # type: ignore[arg-type]
        for part in ids.split(6):
            scored.add(part, pictures(part))
        scored.merge(ranks)
        return (scored.result() if ranks.is_main else None), scored.samples()[1].numpy()


def test_two_ranks_give_the_numbers_of_one() -> None:
    (main, features), (other, same) = values(run_ranks(rank_part))
    assert other is None
    assert main == result(drawn(50, 3, 0), drawn(40, 3, 1), kid_subset_size=20)
    assert np.array_equal(features, drawn(40, 3, 1).numpy())
    assert np.array_equal(same, features)


def test_a_rank_without_samples_takes_part() -> None:
    scored = scorer(drawn(50, 3, 0), drawn(40, 3, 1))
    scored.merge(ALONE)
    assert scored.samples()[1].shape == (0, 3)


def test_scoring_is_silent(capfd: pytest.CaptureFixture[str]) -> None:
    result(drawn(50, 3, 0), drawn(40, 3, 1))
    assert capfd.readouterr() == ("", "")
