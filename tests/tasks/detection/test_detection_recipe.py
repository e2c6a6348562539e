"""Recipe sections of detection: defaults and errors."""

import pytest
from known import load_recipe
from recipe_problems import Write, problems

from w2skd.recipe.load import dump_recipe
from w2skd.tasks.detection.recipe import DetectionRecipe, DetectionReport

RECIPE = """
name: boxes
task: detection
data: {source: coco}
teacher: {model: retinanet_resnet34}
student: {model: retinanet_resnet50}
train:
  epochs: 12
  batch_size: 16
  optimizer: {name: sgd, lr: 0.01}
  lr_schedule: {name: multi_step, milestones: [8ep, 11ep]}
"""


def problems_of(write: Write, *overrides: str) -> list[str]:
    return problems(write, *overrides, content=RECIPE)


def load(write: Write, *overrides: str) -> DetectionRecipe:
    recipe = load_recipe(write(RECIPE), overrides)
    assert isinstance(recipe, DetectionRecipe)
    return recipe


def test_files_and_sizes_default_to_those_of_coco(recipe_file: Write) -> None:
    recipe = load(recipe_file)
    data = recipe.data
    assert data.root / data.train_annotations == data.root / "annotations" / "instances_train2017.json"
    assert (data.train_images, data.eval_images) == ("train2017", "val2017")
    assert (data.min_size, data.max_size, data.augment) == (800, 1333, ("flip",))
    assert (recipe.report.metric, recipe.detector.max_detections, recipe.eval.backend) == ("ap50", 100, "auto")
    assert recipe.model_of("teacher") == "retinanet_resnet34"


def test_a_recipe_written_out_is_the_same_recipe(recipe_file: Write) -> None:
    recipe = load(recipe_file, "data.augment=[scale, flip]", "data.scale_range=[0.5, 2.0]", "student.backbone=r50.pt")
    assert load_recipe(recipe_file(dump_recipe(recipe))) == recipe


@pytest.mark.parametrize("metric", [metric.name for metric in DetectionReport.metrics])
def test_every_coco_metric_can_be_the_metric(recipe_file: Write, metric: str) -> None:
    assert load(recipe_file, f"report.metric={metric}").report.metric == metric


@pytest.mark.parametrize(
    ("override", "start"),
    [
        ("data.min_size=16", "data.min_size: should be greater than or equal to 32"),
        ("data.max_size=10000", "data.max_size: should be less than or equal to 8192"),
        ("data.min_size=64.5", "data.min_size: should be a valid integer"),
        ("data.train_examples=0", "data.train_examples: should be greater than 0"),
        ("data.workers=-1", "data.workers: should be greater than or equal to 0"),
        ("data.worker_timeout_s=0", "data.worker_timeout_s: should be greater than 0"),
        ("data.scale_range=[0.0, 1.0]", "data.scale_range.0: should be greater than 0"),
        ("data.scale_range=[1.0]", "data.scale_range.1: missing"),
        ("data.augment=[mirror]", "data.augment.0: should be 'crop', 'scale' or 'flip', not 'mirror'"),
        ("data.image_size=32", "data.image_size: unknown key"),
        ("data.train_anotations=x", "data.train_anotations: unknown key (did you mean 'train_annotations'?)"),
        ("detector.anchor_scale=0", "detector.anchor_scale: should be greater than 0"),
        ("detector.max_detections=0", "detector.max_detections: should be greater than 0"),
        ("detector.frozen_norms=true", "detector.frozen_norms: unknown key (did you mean 'frozen_norm'?)"),
        ("distill.class_weight=-1", "distill.class_weight: should be greater than or equal to 0"),
        ("distill.temperature=0", "distill.temperature: should be greater than 0"),
        ("eval.backend=fast", "eval.backend: should be 'auto', 'pycocotools' or 'faster', not 'fast'"),
        ("eval=faster", "eval: should be a section with keys of its own, not 'faster'"),
        ("loss.label_smoothing=0.1", "loss: unknown key"),
        ("report.thresholds=[20]", "report: thresholds: 20 is out of range; ap50 lies between 0 and 1"),
    ],
)
def test_a_value_out_of_range_or_place_is_refused(recipe_file: Write, override: str, start: str) -> None:
    (problem,) = problems_of(recipe_file, override)
    assert problem.startswith(start)


@pytest.mark.parametrize(
    ("override", "start"),
    [
        ("student.model=retinanet_resnet5", "student.model: unknown model 'retinanet_resnet5' (did you mean 'retinan"),
        ("teacher.model=fasterrcnn_r18", "teacher.model: unknown model 'fasterrcnn_r18' (did you mean 'fasterrcnn_r"),
        ("teacher.model=cifar_resnet8", "teacher.model: unknown model 'cifar_resnet8'"),
        ("report.metric=ap5", "report.metric: unknown metric 'ap5' (did you mean 'ap"),
        ("report.metric=mAP", "report.metric: unknown metric 'mAP'"),
        ("data.source=coco2017", "data.source: should be 'coco' or 'shapes', not 'coco2017'"),
    ],
)
def test_an_unknown_name_is_refused_with_the_known_ones(recipe_file: Write, override: str, start: str) -> None:
    (problem,) = problems_of(recipe_file, override)
    assert problem.startswith(start)


def test_the_error_lists_all_models(recipe_file: Write) -> None:
    (problem,) = problems_of(recipe_file, "student.model=yolo")
    assert problem.endswith(
        "retinanet_slim, fasterrcnn_resnet18, fasterrcnn_resnet34, fasterrcnn_resnet50, "
        "fasterrcnn_resnet101, fasterrcnn_mobilenet_v2, fasterrcnn_slim"
    )


COMPILED = "compile: true would recompile for every image size: remove it"


@pytest.mark.parametrize(
    ("override", "problem"),
    [
        ("data.min_size=1400", "data: min_size: 1400 is larger than max_size: 1333"),
        ("data.augment=[flip, flip]", "data: augment: each kind once"),
        ("data.scale_range=[1.5, 0.5]", "data: scale_range: 1.5 is larger than 0.5"),
        (
            "teacher.model=fasterrcnn_resnet18",
            "teacher.model: a fasterrcnn cannot teach a retinanet: their outputs differ; use one family",
        ),
        ("train.compile=true", f"train.{COMPILED}"),
        ("teacher.compile=true", f"teacher.{COMPILED}"),
        ("teacher.train={compile: true}", f"teacher.train.{COMPILED}"),
        ("train.compile=reduce-overhead", f"train.{COMPILED.replace('true', 'reduce-overhead')}"),
        (
            "distill={class_weight: 0.0, box_weight: 0.0}",
            "distill: the weights of all parts are 0: raise one of them, or set weight: 0",
        ),
    ],
)
def test_a_contradiction_is_refused(recipe_file: Write, override: str, problem: str) -> None:
    assert problems_of(recipe_file, override) == [problem]


def test_what_a_part_of_weight_0_means_depends_on_the_family(recipe_file: Write) -> None:
    """A RetinaNet has no objectness."""
    nothing = "distill={class_weight: 0.0, box_weight: 0.0}"
    two_stages = ("student.model=fasterrcnn_resnet50", "teacher.model=fasterrcnn_resnet18")
    assert load(recipe_file, nothing, *two_stages).distill.objectness_weight == 1.0
    assert load(recipe_file, nothing, "distill.weight=0.0").distill.weight == 0.0


FRESH = "detector.frozen_norm: true needs initial weights, but {} null: give weights there, or remove frozen_norm"


@pytest.mark.parametrize(
    ("overrides", "fresh"),
    [
        ((), "student.backbone and teacher.backbone are"),
        (("student.backbone=pretrained",), "teacher.backbone is"),
        (("teacher.backbone=pretrained",), "student.backbone is"),
        (("teacher.checkpoint=teacher.pt",), "student.backbone is"),
        (("student.backbone=pretrained", "teacher.checkpoint=teacher.pt"), None),
        (("student.backbone=pretrained", "teacher.backbone=r34.pt"), None),
    ],
)
def test_a_frozen_norm_needs_weights_to_keep(recipe_file: Write, overrides: tuple[str, ...], fresh: str | None) -> None:
    """A randomly initialised backbone with frozen statistics would not be normalised at all."""
    frozen = (*overrides, "detector.frozen_norm=true")
    if fresh is None:
        assert load(recipe_file, *frozen).detector.frozen_norm
    else:
        assert problems_of(recipe_file, *frozen) == [FRESH.format(fresh)]


def test_all_problems_are_reported_together(recipe_file: Write) -> None:
    overrides = ("data.min_size=1400", "student.model=yolo", "distill.box_weight=-1", "eval.backend=x")
    assert sorted(problem.split(": ")[0] for problem in problems_of(recipe_file, *overrides)) == [
        "data",
        "distill.box_weight",
        "eval.backend",
        "student.model",
    ]
