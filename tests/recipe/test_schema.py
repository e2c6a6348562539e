from collections.abc import Callable
from typing import Any

import pytest
from known import load_recipe
from pydantic import ValidationError

from w2skd.recipe.duration import Duration
from w2skd.recipe.train import AdamWSection, EmaSection, MultiStepSection, SgdSection, TrainSection
from w2skd.tasks.classification.recipe import ClassificationData, ClassificationRecipe, NormalizationSection

Write = Callable[..., str]


def test_a_recipe_cannot_be_changed(recipe_file: Write) -> None:
    recipe = load_recipe(recipe_file())
    with pytest.raises(ValidationError, match="frozen"):
        recipe.seed = 3
    with pytest.raises(ValidationError, match="frozen"):
        recipe.train.optimizer.lr = 3.0


def test_the_teacher_trains_like_the_student_except_for_its_own_keys(recipe_file: Write) -> None:
    recipe = load_recipe(recipe_file(), ["teacher.train={steps: 30, optimizer: {lr: 0.05}}"])
    assert recipe.train_of("teacher") == TrainSection(
        steps=30,
        batch_size=8,
        optimizer=SgdSection(name="sgd", lr=0.05, nesterov=True),
        lr_schedule=recipe.train.lr_schedule,
    )
    assert load_recipe(recipe_file()).train_of("teacher") == recipe.train


def test_an_average_has_a_decay_or_a_half_life() -> None:
    assert EmaSection(decay=0.9) == EmaSection.model_validate({"decay": 0.9, "half_life": None, "ramp_up": None})
    section = EmaSection.model_validate({"half_life": "500step", "ramp_up": 0.05})
    assert section == EmaSection(half_life=Duration(500, "step"), ramp_up=0.05)
    assert EmaSection.model_validate(section.model_dump(mode="json")) == section


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ({}, "set either decay or half_life"),
        ({"decay": 0.9, "half_life": "5ep"}, "set either decay or half_life"),
        ({"ramp_up": 0.05}, "set either decay or half_life"),
        ({"decay": 0.9, "ramp_up": 0.05}, "ramp_up: requires half_life instead of decay"),
        ({"half_life": "0step"}, "half_life: 0step averages nothing; use ema: null"),
        ({"half_life": "5ep", "ramp_up": 0.0}, "greater than 0"),
        ({"half_life": 500}, "write epochs as 5ep"),
        ({"decay": 1.0}, "less than 1"),
    ],
)
def test_an_impossible_average_is_refused(values: dict[str, Any], problem: str) -> None:
    with pytest.raises(ValidationError, match=problem):
        EmaSection.model_validate(values)


def test_another_optimizer_for_the_teacher_drops_the_options_of_the_old_one(recipe_file: Write) -> None:
    recipe = load_recipe(recipe_file(), ["teacher.train={optimizer: {name: adamw, lr: 0.01}}"])
    assert recipe.train_of("teacher").optimizer == AdamWSection(name="adamw", lr=0.01)
    assert recipe.train.optimizer == SgdSection(name="sgd", lr=0.1, nesterov=True)


def test_lists_become_tuples(recipe_file: Write) -> None:
    recipe = load_recipe(recipe_file(), ["train.lr_schedule={name: multi_step, milestones: [2ep, 300step]}"])
    assert isinstance(recipe.train.lr_schedule, MultiStepSection)
    assert [str(milestone) for milestone in recipe.train.lr_schedule.milestones] == ["2ep", "300step"]


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_defaults_keep_the_behaviour_of_older_recipes(name: str) -> None:
    section = TrainSection.model_validate(
        {"steps": 1, "batch_size": 8, "optimizer": {"name": name, "lr": 0.1}, "lr_schedule": {"name": "constant"}}
    )
    assert (section.precision, section.compile, section.optimizer.decay_norms_and_biases) == ("fp32", False, True)


@pytest.mark.parametrize(
    ("length", "steps"), [({"epochs": 3.0}, 300), ({"epochs": 0.25}, 25), ({"epochs": 0.001}, 1), ({"steps": 7}, 7)]
)
def test_length_in_steps(length: dict[str, Any], steps: int) -> None:
    rest = {"batch_size": 8, "optimizer": {"name": "sgd", "lr": 0.1}, "lr_schedule": {"name": "constant"}}
    assert TrainSection.model_validate({**rest, **length}).total_steps(steps_per_epoch=100) == steps


@pytest.mark.parametrize(
    ("keys", "reasons"),
    [
        ({}, []),
        ({"augment": ["crop", "flip", "cutout"], "eval_resize": 64}, []),
        ({"augment": ["random_resized_crop", "flip", "random_erasing"]}, ["random_resized_crop", "random_erasing"]),
        ({"eval_resize": 72}, ["eval_resize"]),
        ({"interpolation": "bilinear"}, ["interpolation: bilinear"]),
        ({"decode": "reduced", "augment": ["crop", "flip"]}, ["decode: reduced"]),
        ({"interpolation": "bilinear", "source": "cifar10"}, ["interpolation: bilinear"]),
        ({"interpolation": "bilinear", "source": "cifar10", "image_size": None}, []),
    ],
)
def test_options_that_require_a_streaming_feed_are_listed(keys: dict[str, Any], reasons: list[str]) -> None:
    data = ClassificationData.model_validate({"source": "image_folder", "image_size": 64, **keys})
    assert data.needs_streaming == reasons


def test_preprocessing_of_a_library_may_crop_more_than_the_resized_image(recipe_file: Write) -> None:
    """The crop then has black borders; in a recipe this is an error."""
    recipe = load_recipe(recipe_file(), ["teacher.image_size=24"])
    assert isinstance(recipe, ClassificationRecipe)
    preprocessing = {"resize_px": 389, "crop_px": 448, "interpolation": "bicubic"}
    details = {"preprocessing": preprocessing, "normalization": [0.1, 0.2, 0.3, 0.4, 0.5, 0.6]}
    prepared, _ = recipe.prepared_as(details)
    data = prepared.data
    assert (data.eval_resize, data.image_size, data.interpolation, data.feed) == (389, 448, "bicubic", "streaming")
    assert data.normalization == NormalizationSection(mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6))
    assert prepared.teacher.image_size is None
    assert recipe.teacher.image_size == 24


def test_published_weights_are_scored_on_fully_decoded_images(recipe_file: Write) -> None:
    recipe = load_recipe(recipe_file(), ["data={source: image_folder, image_size: 32, decode: reduced}"])
    assert isinstance(recipe, ClassificationRecipe)
    preprocessing = {"resize_px": 256, "crop_px": 224, "interpolation": "bilinear"}
    details = {"preprocessing": preprocessing, "normalization": [0.1, 0.2, 0.3, 0.4, 0.5, 0.6]}
    assert recipe.data.decode == "reduced"
    assert recipe.prepared_as(details)[0].data.decode == "full"
