"""What samples are compared by: which network, which images, and what is told of both beforehand."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from tiny_noise import read_recipe
from torch import Tensor
from torch.nn import functional

from w2skd.data.feeds import ImageFeeds
from w2skd.data.shapes import CLASSES
from w2skd.data.sources import list_image_data, load_image_data
from w2skd.errors import CheckpointError
from w2skd.models.catalog import build_classifier
from w2skd.platform.ranks import Ranks
from w2skd.tasks.diffusion.recipe import DiffusionRecipe
from w2skd.tasks.diffusion.sample_scoring import SampleScoring
from w2skd.weights.load import load_into, load_weights, save_model

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the classifier and the cache of these tests are."""
    return tmp_path_factory.mktemp("noise")


def make_scoring(recipe: DiffusionRecipe) -> SampleScoring:
    train = recipe.train
    feeds = ImageFeeds(
        recipe.data.images(),
        batch_size=train.batch_size,
        seed=0,
        device=CPU,
        channels_last=False,
        run_steps=train.total_steps,
    )
    return SampleScoring(recipe, feeds, device=CPU, ranks=Ranks())


def scoring(folder: Path, *overrides: str) -> SampleScoring:
    return make_scoring(read_recipe(folder, *overrides))


def image_folder(root: Path, images: list[Image.Image]) -> str:
    """One class for training and one picture to evaluate on, as a setting of a recipe."""
    for part, pictures in (("train", images), ("test", [Image.new("RGB", (8, 8))])):
        (root / part / "thing").mkdir(parents=True)
        for number, picture in enumerate(pictures):
            picture.save(root / part / "thing" / f"{number:02}.png")
    return f"data={{source: image_folder, root: {root}, image_size: 8, workers: 0}}"


def pictures(count: int, seed: int = 0) -> list[Image.Image]:
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (count, 8, 8, 3), dtype=torch.uint8, generator=generator)
    return [Image.fromarray(each.numpy()) for each in pixels]


# Which network


def features_by_hand(folder: Path, pixels: Tensor, size_px: int) -> Tensor:
    """Of the classifier, its layers called one by one."""
    weights = load_weights(folder / "classifier.safetensors")
    model = build_classifier("small_cnn_weak", len(CLASSES), size_px).eval()
    load_into(model, weights, expected="small_cnn_weak")
    images = (pixels.float() / 255 - 0.4) / 0.2
    if images.shape[2] != size_px:
        images = functional.interpolate(images, (size_px, size_px), mode="bicubic", antialias=True)
    with torch.no_grad():
        return model.features(images).mean(dim=(2, 3))


@pytest.mark.parametrize("size_px", [8, 16])
def test_a_classifier_sees_images_normalised_and_sized_as_it_learned(size_px: int, folder: Path) -> None:
    judge = scoring(folder, f"data.image_size={size_px}")
    reference = judge._reference
    listing = list_image_data(read_recipe(folder, f"data.image_size={size_px}").data.images()).train
    expected = features_by_hand(folder, listing.load(size_px).images, 8)
    assert reference.features.shape == (24, 64)
    torch.testing.assert_close(reference.features, expected, rtol=1e-4, atol=1e-5)


def test_what_is_no_classifier_of_ours_is_refused(folder: Path, tmp_path: Path) -> None:
    said = r"^fid.extractor: .*missing: no such checkpoint; it takes the run of a classifier"
    with pytest.raises(CheckpointError, match=said):
        scoring(folder, f"fid.extractor='checkpoint:{tmp_path}/missing'")
    judge = load_weights(folder / "classifier.safetensors")
    foreign = tmp_path / "foreign.pt"
    torch.save(dict(judge.state), foreign)
    generator = tmp_path / "generator.safetensors"
    save_model(generator, judge.state, read_recipe(folder), "student", {})
    for file in (foreign, generator):
        with pytest.raises(CheckpointError) as raised:
            scoring(folder, f"fid.extractor='checkpoint:{file}'")
        assert str(raised.value) == f"{file}: fid.extractor: no classifier that w2skd trained"
    assert judge.recipe is not None
    other = tmp_path / "other.safetensors"
    state = {name: value[:9] if name.startswith("head") else value for name, value in judge.state.items()}
    save_model(other, state, judge.recipe, "student", judge.details)
    with pytest.raises(CheckpointError, match=r"other\.safetensors: its small_cnn_weak has 9 classes, the data has 10"):
        scoring(folder, f"fid.extractor='checkpoint:{other}'")


# Which images


def test_all_that_scores_depend_on_is_described(folder: Path) -> None:
    about = scoring(folder).describe()
    assert json.loads(json.dumps(about)) == about
    assert about | {"weights": "", "reference_images": ""} == {
        "extractor": "checkpoint:small_cnn_weak",
        "weights": "",
        "samples": 12,
        "reference": "24 images of train, 8 px",
        "reference_images": "",
        "seed": 0,
        "sampler": "DDIM, 2 steps, trailing",
        "kid_subsets": 4,
        "kid_subset_size": 12,
    }
    assert all(len(about[key]) == 16 for key in ("weights", "reference_images"))


@pytest.mark.parametrize(
    ("setting", "changed"),
    [
        ("sampler.batch_size=3", set()),
        ("fid.batch_size=3", set()),
        ("data.feed=resident", set()),
        ("data.augment=[]", set()),
        ("fid.samples=11", {"samples", "kid_subset_size"}),
        ("fid.reference=eval", {"reference", "reference_images"}),
        ("data.train_examples=23", {"reference", "reference_images"}),
        ("data.split_seed=1", {"reference_images"}),
        ("data.image_size=16", {"reference", "reference_images"}),
        ("sampler.seed=1", {"seed"}),
        ("sampler.steps=3", {"sampler"}),
        ("sampler.spacing=leading", {"sampler"}),
        ("sampler.clip=false", {"sampler"}),
        ("fid.kid_subsets=5", {"kid_subsets"}),
        ("fid.kid_subset_size=5", {"kid_subset_size"}),
    ],
)
def test_scores_are_known_apart_by_what_changes_them(setting: str, changed: set[str], folder: Path) -> None:
    ours, theirs = scoring(folder).describe(), scoring(folder, setting).describe()
    assert {key for key in ours if ours[key] != theirs[key]} == changed


def test_the_reference_is_the_set_that_the_recipe_names_without_augmentation(folder: Path) -> None:
    for name, count in (("train", 24), ("eval", 20)):
        judge = scoring(folder, f"fid.reference={name}")
        data = load_image_data(read_recipe(folder).data.images())
        expected = features_by_hand(folder, (data.train if name == "train" else data.evaluation).images, 8)
        assert judge._reference.count == count
        torch.testing.assert_close(judge._reference.features, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("feed", ["resident", "streaming"])
def test_a_feed_changes_no_feature_and_other_pixels_are_other_images(feed: str, folder: Path, tmp_path: Path) -> None:
    source = image_folder(tmp_path / "data", pictures(70))
    judge = scoring(folder, source, f"data.feed={feed}", f"fid.cache={tmp_path / 'cache'}")
    pixels = torch.stack([torch.frombuffer(bytearray(each.tobytes()), dtype=torch.uint8) for each in pictures(70)])
    expected = features_by_hand(folder, pixels.view(70, 8, 8, 3).permute(0, 3, 1, 2), 8)
    torch.testing.assert_close(judge._reference.features, expected, rtol=1e-4, atol=1e-5)
    before = judge.describe()["reference_images"]
    for other in ("resident", "streaming"):
        assert scoring(folder, source, f"data.feed={other}").describe()["reference_images"] == before
    pictures(1, seed=1)[0].save(tmp_path / "data" / "train" / "thing" / "00.png")
    list_image_data.cache_clear()
    load_image_data.cache_clear()
    assert scoring(folder, source, f"data.feed={feed}").describe()["reference_images"] != before


# What is told beforehand


def test_too_few_samples_are_told_before_anything_is_trained_and_kid_is_offered(folder: Path) -> None:
    assert scoring(folder).account == (
        "fid of 12 samples and 24 real images in 64 features is too high: a covariance needs at least 65 of each to "
        "have full rank; kid has no such bias (report.metric: kid)",
    )
    assert scoring(folder, "fid.samples=65", "data.train_examples=70").account == ()


@pytest.mark.parametrize(
    ("odd", "told"),
    [
        ([], None),
        ([Image.new("RGB", (12, 8)), Image.new("RGB", (9, 30))], "3 sizes"),
        ([Image.new("L", (8, 8)), Image.new("1", (8, 8)), Image.new("I;16", (8, 8))], "3 without colours"),
        ([Image.new("RGBA", (8, 8))], "1 with transparency, which is dropped"),
        (
            [Image.new("LA", (8, 16)), Image.new("RGB", (8, 8)).quantize(4)],
            "2 sizes; 1 without colours; 1 with transparency, which is dropped",
        ),
    ],
)
def test_files_of_mixed_size_or_colours_are_told(
    odd: list[Image.Image], told: str | None, folder: Path, tmp_path: Path
) -> None:
    source = image_folder(tmp_path, [*pictures(64 - len(odd)), *odd])
    judge = scoring(folder, source)
    mixture = [line for line in judge.account if not line.startswith("fid of ")]
    line = f"{tmp_path}/train: among 64 images looked at {told}: the middle of each becomes an RGB square of 8 px"
    assert mixture == ([] if told is None else [line])
    assert judge._reference.features.isfinite().all()


def test_the_images_that_are_learned_are_looked_at_too(folder: Path, tmp_path: Path) -> None:
    source = image_folder(tmp_path, [*pictures(3), Image.new("L", (8, 8))])
    account = scoring(folder, source, "fid.reference=eval").account
    assert [line for line in account if line.startswith(f"{tmp_path}/train: among 4 images looked at 1 without ")]


def test_a_damaged_cache_is_told_once_it_was_mended(folder: Path, tmp_path: Path) -> None:
    setting = f"fid.cache={tmp_path}"
    assert scoring(folder, setting).notes == ()
    [file] = tmp_path.iterdir()
    good = file.read_bytes()
    file.write_bytes(good[:1000])
    [note] = scoring(folder, setting).notes
    assert note.startswith(f"{file}: damaged or cut off (")
    assert note.endswith("): the features of the real images were computed anew")
    assert len(file.read_bytes()) == len(good)
    assert scoring(folder, setting).notes == ()


def test_a_line_tells_people_what_a_score_is_of(folder: Path) -> None:
    judge: Any = scoring(folder, "sampler.clip=false")
    assert judge.told == (
        "12 samples (seed 0; DDIM, 2 steps, trailing, not clipped) against 24 images of train, 8 px, in features of "
        f"checkpoint:small_cnn_weak ({judge.describe()['weights']})"
    )
