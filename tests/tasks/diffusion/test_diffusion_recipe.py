"""Recipe sections of the diffusion task: defaults and error messages."""

import pytest
from known import load_recipe
from recipe_problems import Write, problems

from w2skd.recipe.load import dump_recipe
from w2skd.tasks.diffusion.recipe import DENOISERS, FEATURE_EXTRACTORS, DiffusionRecipe, DiffusionReport

RECIPE = """
name: pictures
task: diffusion
data: {source: cifar10}
teacher: {model: unet_nc64_rb2}
student: {model: unet_nc128_rb3}
train:
  steps: 100
  batch_size: 128
  optimizer: {name: adamw, lr: 2.0e-4}
  lr_schedule: {name: constant}
"""


def problems_of(write: Write, *overrides: str) -> list[str]:
    return problems(write, *overrides, content=RECIPE)


def load(write: Write, *overrides: str) -> DiffusionRecipe:
    recipe = load_recipe(write(RECIPE), overrides)
    assert isinstance(recipe, DiffusionRecipe)
    return recipe


def test_defaults_are_the_fields_standard(recipe_file: Write) -> None:
    recipe = load(recipe_file)
    process, sampler, fid = recipe.diffusion, recipe.sampler, recipe.fid
    assert (process.timesteps, process.beta_schedule, process.prediction) == (1000, "linear", "epsilon")
    assert not process.class_conditional
    assert (sampler.steps, sampler.spacing, sampler.clip, sampler.seed) == (50, "trailing", True, 0)
    assert (fid.samples, fid.reference, fid.extractor, fid.weights) == (10_000, "train", "inception-v3-compat", None)
    assert (recipe.report.metric, recipe.data.augment) == ("fid", ("flip",))
    assert (recipe.loss.timestep_weighting, recipe.distill.timestep_weighting) == ("uniform", "uniform")


def test_a_dumped_recipe_loads_as_the_same_recipe(recipe_file: Write) -> None:
    recipe = load(
        recipe_file,
        "data.augment=[]",
        "diffusion.prediction=v",
        "fid={extractor: 'checkpoint:runs/judge', cache: cache}",
        "teacher={model: 'diffusers:some/folder', checkpoint: pretrained}",
        "train.ema={half_life: 0.05run, ramp_up: 0.05}",
        "distill.timestep_weighting=min_snr",
    )
    assert load_recipe(recipe_file(dump_recipe(recipe))) == recipe


def test_pixels_are_scaled_to_minus_one_to_one(recipe_file: Write) -> None:
    images = load(recipe_file, "data={source: shapes, image_size: 16, train_examples: 9, split_seed: 4}").data
    assert (images.source, images.image_size, images.train_examples, images.split_seed) == ("shapes", 16, 9, 4)
    assert images.preparation.normalization is not None
    assert (images.preparation.normalization.mean, images.preparation.normalization.std) == ((0.5,) * 3, (0.5,) * 3)


@pytest.mark.parametrize("metric", [metric.name for metric in DiffusionReport.metrics])
def test_both_scores_can_be_the_metric_and_thresholds_are_unbounded(metric: str, recipe_file: Write) -> None:
    report = load(recipe_file, f"report={{metric: {metric}, thresholds: [60, teacher, 1.05*baseline]}}").report
    assert report.metric == metric
    assert len(report.thresholds) == 3


@pytest.mark.parametrize("name", ["clip-vit-b-32", "dinov2-vit-s-14", "vgg16", "checkpoint:runs/judge/baseline/seed0"])
def test_other_extractors_can_be_chosen(name: str, recipe_file: Write) -> None:
    assert load(recipe_file, f"fid.extractor='{name}'").fid.extractor == name


@pytest.mark.parametrize(
    ("override", "start"),
    [
        ("data.image_size=4", "data.image_size: should be greater than or equal to 8"),
        ("data.image_size=2048", "data.image_size: should be less than or equal to 1024"),
        ("data.train_examples=0", "data.train_examples: should be greater than 0"),
        ("data.augment=[crop]", "data.augment.0: should be 'flip', not 'crop'"),
        ("data.normalization={mean: [0, 0, 0], std: [1, 1, 1]}", "data.normalization: unknown key"),
        ("diffusion.timesteps=1", "diffusion.timesteps: should be greater than or equal to 2"),
        ("diffusion.timesteps=20000", "diffusion.timesteps: should be less than or equal to 10000"),
        ("diffusion.class_conditionals=true", "diffusion.class_conditionals: unknown key (did you mean 'class_cond"),
        ("sampler.steps=0", "sampler.steps: should be greater than 0"),
        ("sampler.seed=-1", "sampler.seed: should be greater than or equal to 0"),
        ("fid.samples=1", "fid.samples: should be greater than or equal to 2"),
        ("fid.kid_subset_size=1", "fid.kid_subset_size: should be greater than or equal to 2"),
        ("distill.temperature=2", "distill.temperature: unknown key"),
        ("loss.label_smoothing=0.1", "loss.label_smoothing: unknown key"),
        ("teacher.image_size=16", "teacher.image_size: unknown key"),
        ("eval={backend: auto}", "eval: unknown key"),
    ],
)
def test_values_out_of_range_and_unknown_keys_are_refused(recipe_file: Write, override: str, start: str) -> None:
    (problem,) = problems_of(recipe_file, override)
    assert problem.startswith(start)


@pytest.mark.parametrize(
    ("override", "start"),
    [
        (
            "student.model=unet_nc128_rb2",
            "student.model: unknown model 'unet_nc128_rb2' (did you mean 'unet_nc128_rb3'",
        ),
        ("teacher.model=cifar_resnet8", "teacher.model: unknown model 'cifar_resnet8'"),
        ("teacher.model='diffusers:'", "teacher.model: unknown model 'diffusers:'"),
        ("fid.extractor=inception", "fid.extractor: unknown extractor 'inception'"),
        ("fid.extractor='checkpoint:'", "fid.extractor: unknown extractor 'checkpoint:'"),
        ("report.metric=fit", "report.metric: unknown metric 'fit' (did you mean 'fid'?)"),
        ("report.metric=top1", "report.metric: unknown metric 'top1'"),
        (
            "diffusion.beta_schedule=quadratic",
            "diffusion.beta_schedule: should be 'linear' or 'cosine', not 'quadratic'",
        ),
        ("diffusion.prediction=v_prediction", "diffusion.prediction: should be 'epsilon' or 'v', not 'v_prediction'"),
        ("sampler.spacing=linspace", "sampler.spacing: should be 'trailing' or 'leading', not 'linspace'"),
        ("fid.reference=test", "fid.reference: should be 'train' or 'eval', not 'test'"),
        ("loss.timestep_weighting=snr", "loss.timestep_weighting: should be 'uniform' or 'min_snr', not 'snr'"),
    ],
)
def test_an_unknown_name_is_refused_with_suggestions(recipe_file: Write, override: str, start: str) -> None:
    (problem,) = problems_of(recipe_file, override)
    assert problem.startswith(start)


def test_errors_list_all_known_networks(recipe_file: Write) -> None:
    (model,) = problems_of(recipe_file, "student.model=transformer")
    assert model.endswith(f"known: {', '.join(DENOISERS)}, diffusers:<folder>")
    (extractor,) = problems_of(recipe_file, "fid.extractor=resnet50")
    assert extractor.endswith(f"known: {', '.join(FEATURE_EXTRACTORS)}, untrained, checkpoint:<run>")


@pytest.mark.parametrize(
    ("override", "problem"),
    [
        (
            "data.source=image_folder",
            "data: source: image_folder needs image_size, the side in px of its resized images",
        ),
        (
            "data={source: shapes, download: true}",
            "data: download: true is for cifar10, cifar100, fashion_mnist, not for shapes",
        ),
        ("diffusion.timesteps=49", "sampler.steps: 50 is larger than diffusion.timesteps: 49"),
        (
            "fid={extractor: 'checkpoint:runs/judge', weights: judge.pt}",
            "fid: weights: checkpoint:runs/judge has its own weights: remove fid.weights",
        ),
        (
            "teacher.checkpoint=pretrained",
            "teacher: checkpoint: pretrained needs a model diffusers:<folder>, not unet_nc64_rb2",
        ),
    ],
)
def test_a_contradiction_is_refused(recipe_file: Write, override: str, problem: str) -> None:
    assert problems_of(recipe_file, override) == [problem]


def test_all_problems_are_reported_together(recipe_file: Write) -> None:
    overrides = ("data.image_size=4", "student.model=unet", "fid.samples=1", "sampler.spacing=x")
    assert sorted(problem.split(": ")[0] for problem in problems_of(recipe_file, *overrides)) == [
        "data.image_size",
        "fid.samples",
        "sampler.spacing",
        "student.model",
    ]
