"""How samples are scored: the extractor, the real images, and the warnings about both."""

import json
from pathlib import Path

import pytest
import torch
import yaml
from known import validate_recipe
from PIL import Image
from tiny_noise import CLASSIFIER, read_recipe
from torch import Tensor
from torch.nn import functional

from w2skd.data.feeds import ImageFeeds
from w2skd.data.shapes import CLASSES
from w2skd.data.sources import list_image_data, load_image_data
from w2skd.errors import CheckpointError, RecipeError
from w2skd.models.catalog import build_classifier
from w2skd.platform.ranks import Ranks
from w2skd.tasks.diffusion.recipe import DiffusionRecipe
from w2skd.tasks.diffusion.sample_scoring import SampleScoring
from w2skd.weights.load import load_into, load_weights, save_model

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Holds the classifier and the cache of these tests."""
    return tmp_path_factory.mktemp("noise")


def make_scoring(recipe: DiffusionRecipe) -> SampleScoring:
    feeds = ImageFeeds(recipe.data, recipe.train, seed=0, device=CPU)
    return SampleScoring(recipe, feeds, device=CPU, ranks=Ranks())


def scoring(folder: Path, *overrides: str) -> SampleScoring:
    return make_scoring(read_recipe(folder, *overrides))


def image_folder(root: Path, images: list[Image.Image]) -> str:
    """Write one training class and one evaluation image; return the recipe setting."""
    for part, pictures in (("train", images), ("test", [Image.new("RGB", (8, 8))])):
        (root / part / "thing").mkdir(parents=True)
        for number, picture in enumerate(pictures):
            picture.save(root / part / "thing" / f"{number:02}.png")
    return f"data={{source: image_folder, root: {root}, image_size: 8, workers: 0}}"


def pictures(count: int, seed: int = 0) -> list[Image.Image]:
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (count, 8, 8, 3), dtype=torch.uint8, generator=generator)
    return [Image.fromarray(each.numpy()) for each in pixels]


# The extractor


def features_by_hand(folder: Path, pixels: Tensor, size_px: int) -> Tensor:
    """Features of the classifier, layer by layer."""
    weights = load_weights(folder / "classifier.safetensors")
    model = build_classifier("small_cnn_weak", len(CLASSES), size_px).eval()
    load_into(model, weights, expected="small_cnn_weak")
    images = (pixels.float() / 255 - 0.4) / 0.2
    if images.shape[2] != size_px:
        images = functional.interpolate(images, (size_px, size_px), mode="bicubic", antialias=True)
    with torch.no_grad():
        return model.features(images).mean(dim=(2, 3))


@pytest.mark.parametrize("size_px", [8, 16])
def test_a_classifier_sees_images_with_its_own_normalisation_and_size(size_px: int, folder: Path) -> None:
    judge = scoring(folder, f"data.image_size={size_px}")
    reference = judge._reference
    listing = list_image_data(read_recipe(folder, f"data.image_size={size_px}").data).train
    expected = features_by_hand(folder, listing.load(size_px).images, 8)
    assert reference.features.shape == (24, 64)
    torch.testing.assert_close(reference.features, expected, rtol=1e-4, atol=1e-5)


def test_anything_but_a_classifier_of_w2skd_is_refused(folder: Path, tmp_path: Path) -> None:
    problem = r"^fid.extractor: .*missing: no such checkpoint; give the run of a classifier trained with w2skd$"
    with pytest.raises(CheckpointError, match=problem):
        scoring(folder, f"fid.extractor='checkpoint:{tmp_path}/missing'")
    judge = load_weights(folder / "classifier.safetensors")
    foreign = tmp_path / "foreign.pt"
    torch.save(dict(judge.state), foreign)
    generator = tmp_path / "generator.safetensors"
    save_model(generator, judge.state, read_recipe(folder), "student", {})
    for file in (foreign, generator):
        with pytest.raises(CheckpointError) as raised:
            scoring(folder, f"fid.extractor='checkpoint:{file}'")
        assert str(raised.value) == f"{file}: fid.extractor: not a classifier trained with w2skd"
    plan = validate_recipe(yaml.safe_load(CLASSIFIER), "judge")
    other = tmp_path / "other.safetensors"
    state = {name: value[:9] if name.startswith("head") else value for name, value in judge.state.items()}
    save_model(other, state, plan, "student", judge.details)
    with pytest.raises(CheckpointError, match=r"other\.safetensors: its small_cnn_weak has 9 classes, the data has 10"):
        scoring(folder, f"fid.extractor='checkpoint:{other}'")


# The real images


def test_everything_that_scores_depend_on_is_described(folder: Path) -> None:
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
def test_the_description_changes_with_what_changes_scores(setting: str, changed: set[str], folder: Path) -> None:
    ours, theirs = scoring(folder).describe(), scoring(folder, setting).describe()
    assert {key for key in ours if ours[key] != theirs[key]} == changed


def test_the_reference_is_the_recipes_set_without_augmentation(folder: Path) -> None:
    for name, count in (("train", 24), ("eval", 20)):
        judge = scoring(folder, f"fid.reference={name}")
        data = load_image_data(read_recipe(folder).data)
        expected = features_by_hand(folder, (data.train if name == "train" else data.evaluation).images, 8)
        assert len(judge._reference) == count
        torch.testing.assert_close(judge._reference.features, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("feed", ["resident", "streaming"])
def test_the_reference_depends_on_pixels_but_not_on_the_feed(feed: str, folder: Path, tmp_path: Path) -> None:
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


# Warnings before training


def test_too_few_samples_are_reported_before_training_and_kid_is_suggested(folder: Path) -> None:
    assert scoring(folder).warnings == (
        "fid of 12 samples and 24 real images in 64 features is too high: each covariance needs at least 65 images to "
        "have full rank; kid has no such bias (report.metric: kid)",
    )
    assert scoring(folder, "fid.samples=65", "data.train_examples=70").warnings == ()


@pytest.mark.parametrize(
    ("odd", "problem"),
    [
        ([], None),
        ([Image.new("RGB", (12, 8)), Image.new("RGB", (9, 30))], "3 sizes"),
        ([Image.new("L", (8, 8)), Image.new("1", (8, 8)), Image.new("I;16", (8, 8))], "3 greyscale"),
        ([Image.new("RGBA", (8, 8))], "1 with transparency, which is dropped"),
        (
            [Image.new("LA", (8, 16)), Image.new("RGB", (8, 8)).quantize(4)],
            "2 sizes; 1 greyscale; 1 with transparency, which is dropped",
        ),
    ],
)
def test_files_of_mixed_size_or_mode_are_reported(
    odd: list[Image.Image], problem: str | None, folder: Path, tmp_path: Path
) -> None:
    source = image_folder(tmp_path, [*pictures(64 - len(odd)), *odd])
    judge = scoring(folder, source)
    mixture = [line for line in judge.warnings if not line.startswith("fid of ")]
    line = (
        f"{tmp_path}/train: 64 images inspected: {problem}. Each is cropped to its central square, resized to 8 px and "
        "converted to RGB"
    )
    assert mixture == ([] if problem is None else [line])
    assert judge._reference.features.isfinite().all()


def test_training_images_are_inspected_too(folder: Path, tmp_path: Path) -> None:
    source = image_folder(tmp_path, [*pictures(3), Image.new("L", (8, 8))])
    warnings = scoring(folder, source, "fid.reference=eval").warnings
    assert [line for line in warnings if line.startswith(f"{tmp_path}/train: 4 images inspected: 1 greyscale. ")]


# Notes on a score


def test_a_damaged_cache_is_reported_once(folder: Path, tmp_path: Path) -> None:
    def cache_notes() -> list[str]:
        return [note for note in scoring(folder, f"fid.cache={tmp_path}").notes() if note.startswith(str(tmp_path))]

    assert cache_notes() == []
    [file] = tmp_path.iterdir()
    good = file.read_bytes()
    file.write_bytes(good[:1000])
    [note] = cache_notes()
    assert note.startswith(f"{file}: damaged or truncated (")
    assert note.endswith("): recomputed the features of the real images")
    assert len(file.read_bytes()) == len(good)
    assert cache_notes() == []


def test_the_first_note_summarises_the_scoring_and_the_warnings_follow(folder: Path) -> None:
    judge = scoring(folder, "sampler.clip=false")
    assert judge.notes() == (
        "12 samples (seed 0; DDIM, 2 steps, trailing, not clipped) against 24 images of train, 8 px, in features of "
        f"checkpoint:small_cnn_weak ({judge.describe()['weights']})",
        *judge.warnings,
    )


def test_an_untrained_extractor_needs_no_file_and_says_that_it_means_nothing(folder: Path) -> None:
    first, second = scoring(folder, "fid.extractor=untrained"), scoring(folder, "fid.extractor=untrained")
    assert first.describe()["extractor"] == "untrained"
    assert first.describe() == second.describe()
    assert first.warnings[0] == "fid and kid in features of an untrained network mean nothing: for smoke tests only"
    with pytest.raises(RecipeError, match=r"untrained has its own weights: remove fid\.weights"):
        scoring(folder, "fid.extractor=untrained", "fid.weights=x.pth")
