"""Object detection behind the seam."""

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from known import build_task, validate_recipe
from tiny_boxes import FAMILIES, RECIPE, coco_files
from torch import Tensor, nn
from torchvision.models import mobilenet_v2

from w2skd.data.streaming import stream_once
from w2skd.errors import CheckpointError, RecipeError, UsageError
from w2skd.method.teacher import FrozenTeacher
from w2skd.platform.ranks import Ranks
from w2skd.recipe.evaluation import Metric
from w2skd.recipe.load import dump_recipe, with_overrides
from w2skd.tasks.base import Role
from w2skd.tasks.detection import coco_scores as coco
from w2skd.tasks.detection.losses import dense_distillation, proposal_distillation
from w2skd.tasks.detection.models.bodies import BODIES
from w2skd.tasks.detection.models.output import Detections, DetectorOutput
from w2skd.tasks.detection.sources import list_detection_data
from w2skd.tasks.detection.task import DetectionTask
from w2skd.weights.load import Weights

CPU = torch.device("cpu")
PARTS = {"retinanet": {"class", "box"}, "fasterrcnn": {"class", "box", "objectness", "rpn_box"}}
WEIGHTS = {"class": 3.0, "box": 0.5, "objectness": 2.0, "rpn_box": 0.25}


def make_task(family: str = "retinanet", *overrides: str, ranks: Ranks | None = None) -> DetectionTask:
    recipe = with_overrides(validate_recipe(yaml.safe_load(RECIPE.replace("FAMILY", family)), "test"), overrides)
    task = build_task(recipe, train=recipe.train, seed=0, device=CPU, ranks=ranks or Ranks())
    assert isinstance(task, DetectionTask)
    return task


def make_models(task: DetectionTask) -> tuple[nn.Module, nn.Module]:
    """A student in train mode and a teacher, both confident enough for many detections."""
    models = []
    for seed, role in enumerate((Role.STUDENT, Role.TEACHER)):
        torch.manual_seed(seed)
        model = task.build_model(role)
        if task._recipe.student.model.startswith("retinanet"):
            nn.init.zeros_(model.head.classification_head.cls_logits.bias)
        models.append(model)
    return models[0].train(), models[1]


def watched(model: nn.Module) -> list[tuple[tuple[Any, ...], DetectorOutput]]:
    """Inputs and outputs of its forward calls from now on."""
    calls: list[tuple[tuple[Any, ...], DetectorOutput]] = []
    model.register_forward_hook(lambda _, inputs, output: calls.append((inputs, output)))
    return calls


# Losses


@pytest.mark.parametrize("family", FAMILIES)
def test_both_get_the_same_pixels_once_and_a_second_stage_the_students_proposals(family: str) -> None:
    task = make_task(family)
    student, weak = make_models(task)
    ours, theirs = watched(student), watched(weak)
    batch = next(task.train_batches(0))
    task.losses(student, FrozenTeacher(weak, device=CPU), batch)
    [(asked, answer)], [(weak_asked, weak_answer)] = ours, theirs
    assert asked[0] is weak_asked[0] is batch.images
    assert asked[1] is weak_asked[1] is batch.sizes
    assert weak_asked[2] is None, "a teacher needs no truth"
    assert weak_answer.detections == []
    if family == "fasterrcnn":
        for here, there in zip(answer.heads["proposals"], weak_answer.heads["proposals"], strict=True):
            assert torch.equal(here, there)
        assert len(weak_answer.heads["class_logits"]) == sum(map(len, answer.heads["proposals"])) > 0


@pytest.mark.parametrize("family", FAMILIES)
def test_each_part_counts_with_its_weight_once(family: str) -> None:
    task = make_task(family, *(f"distill.{name}_weight={weight}" for name, weight in WEIGHTS.items()))
    student, weak = make_models(task)
    calls, batch = watched(student), next(task.train_batches(0))
    found = task.losses(student, FrozenTeacher(weak, device=CPU), batch)
    heads = calls[0][1].heads
    with torch.no_grad():
        said = weak.eval()(batch.images, batch.sizes, None, heads.get("proposals"), False).heads
    if family == "fasterrcnn":
        parts = proposal_distillation(heads, said, temperature=2.0)
    else:
        parts = dense_distillation(heads["class_logits"], said["class_logits"], heads["box_deltas"], said["box_deltas"])
    assert found.distill.keys() == parts.keys() == PARTS[family]
    for name, value in parts.items():
        assert value > 0
        torch.testing.assert_close(found.distill[name], WEIGHTS[name] * value)
    assert found.task == calls[0][1].losses


@pytest.mark.parametrize("left_out", ["class", "box", "objectness", "rpn_box"])
def test_a_part_of_weight_0_is_left_out(left_out: str) -> None:
    task = make_task("fasterrcnn", f"distill.{left_out}_weight=0.0")
    student, weak = make_models(task)
    found = task.losses(student, FrozenTeacher(weak, device=CPU), next(task.train_batches(0)))
    assert found.distill.keys() == PARTS["fasterrcnn"] - {left_out}


def test_the_temperature_of_proposals_falls_as_the_recipe_says() -> None:
    task = make_task("fasterrcnn", "distill.temperature=4.0", "distill.final_temperature=1.0", "distill.decay=2step")
    student, weak = make_models(task)
    calls, teacher = watched(student), FrozenTeacher(weak, device=CPU)
    batches = task.train_batches(0)
    for temperature in (4.0, 3.5, 3.0):
        batch = next(batches)
        found = task.losses(student, teacher, batch).distill["class"]
        heads = calls[-1][1].heads
        said = teacher(batch.images, batch.sizes, None, heads["proposals"], False).heads
        torch.testing.assert_close(found, proposal_distillation(heads, said, temperature=temperature)["class"])


@pytest.mark.parametrize("family", FAMILIES)
def test_without_a_teacher_there_are_the_architectures_own_losses_alone(family: str) -> None:
    task = make_task(family)
    found = task.losses(make_models(task)[0], None, next(task.train_batches(0)))
    assert found.distill == {}
    assert found.task.keys() == PARTS[family]
    assert all(value.shape == () and value.requires_grad for value in found.task.values())


@pytest.mark.parametrize("family", FAMILIES)
def test_a_teacher_gets_no_gradient_and_its_student_does(family: str) -> None:
    task = make_task(family)
    student, weak = make_models(task)
    before = {name: value.clone() for name, value in weak.state_dict().items()}
    found = task.losses(student, FrozenTeacher(weak, device=CPU), next(task.train_batches(0)))
    sum(found.distill.values()).backward()
    assert all(parameter.grad is None for parameter in weak.parameters())
    assert all(torch.equal(value, before[name]) for name, value in weak.state_dict().items())
    assert sum(parameter.grad is not None for parameter in student.parameters()) > 20


# Batches


def test_baseline_and_accelerated_arm_draw_the_same_batches() -> None:
    augmented = "data.augment=[crop, scale, flip]"
    first, second = make_task("retinanet", augmented), make_task("retinanet", augmented, "distill.weight=3.0")
    for ours, theirs, _ in zip(first.train_batches(3), second.train_batches(3), range(3), strict=False):
        assert torch.equal(ours.images, theirs.images)
        assert torch.equal(ours.ids, theirs.ids)
        assert (ours.step, ours.sizes) == (theirs.step, theirs.sizes)
        assert all(torch.equal(a.boxes, b.boxes) for a, b in zip(ours.targets, theirs.targets, strict=True))


def test_a_batch_that_ranks_cannot_share_is_refused() -> None:
    with pytest.raises(UsageError, match="4 examples cannot be divided equally among 3 ranks"):
        make_task(ranks=Ranks(0, 3)).train_batches(0)


def test_a_preview_shows_pixels_and_counts_boxes() -> None:
    task = make_task()
    preview, batch = task.preview(), next(task.train_batches(0))
    assert preview.images.shape == (4, 3, 64, 64)
    assert preview.images.dtype == torch.uint8
    assert [int(caption.split()[0]) for caption in preview.captions] == [len(target) for target in batch.targets]
    torch.testing.assert_close(preview.images.float(), (batch.images * 0.2 + 0.4) * 255, atol=0.6, rtol=0)


def test_classes_and_data_are_described(tmp_path: Path) -> None:
    task = make_task()
    assert task.describe_model() == {"classes": list(task.classes), "normalization": [0.4, 0.4, 0.4, 0.2, 0.2, 0.2]}
    assert (task.describe_data()["train_examples"], task.describe_data()["eval_examples"]) == (16, 6)
    assert task.metric == Metric("ap50", higher_is_better=True, is_share=True)
    assert task.steps_per_epoch == 4
    assert len(task.example_batch()) == 1
    task = make_task("retinanet", f"data={{source: coco, root: {coco_files(tmp_path)}, workers: 0}}")
    assert task.classes == ("cat", "dog")
    [anchors] = task.describe_data()["data_account"]
    assert anchors.startswith("anchors: ")


# Evaluation


class Oracle(nn.Module):
    """Return the ground truth of image after image, with boxes in px of the input."""

    def __init__(self, truths: list[tuple[Tensor, Tensor]]):
        super().__init__()
        self.truths = iter(truths)

    def forward(self, images: Tensor, sizes: Any) -> DetectorOutput:
        found = [next(self.truths) for _ in sizes]
        return DetectorOutput({}, {}, [Detections(boxes, torch.ones(len(boxes)), labels) for boxes, labels in found])


def test_boxes_are_scored_in_the_px_of_the_originals(tmp_path: Path) -> None:
    """Pictures of 48 x 32 px are shown at 96 x 64."""
    source = f"data={{source: coco, root: {coco_files(tmp_path)}, min_size: 64, max_size: 96, workers: 0}}"
    task = make_task("retinanet", source)
    cat, dog = [8.0, 12.0, 48.0, 48.0], [56.0, 20.0, 88.0, 60.0]
    both = torch.tensor([cat, dog]), torch.tensor([0, 1])
    found = task.evaluate(Oracle([both, (torch.tensor([cat]), torch.tensor([0])), both]))
    assert found.metrics["ap"] == pytest.approx(1.0)
    assert [(row["class"], row["boxes"]) for row in found.tables["classes"]] == [("cat", 3), ("dog", 2)]
    assert found.notes[0].startswith("scored by pycocotools ")
    missed = task.evaluate(Oracle([(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64))] * 3))
    assert missed.metrics["ap50"] == 0.0


class Knowing(nn.Module):
    """Finds what is there in images that it knows, but for the last box of each, which it places a little off."""

    def __init__(self, task: DetectionTask):
        super().__init__()
        listing = task._listing.evaluation
        self.known = {}
        for batch in stream_once(task._read(listing).plain, task._deliver, [[i] for i in range(len(listing))]):
            for image, place in zip(batch.images, batch.ids.tolist(), strict=True):
                boxes = listing.boxes(place).boxes.clone()
                boxes[-1] += 4
                self.known[image.numpy().tobytes()] = (boxes, listing.boxes(place).labels, (place + 1) / 10)

    def forward(self, images: Tensor, sizes: Any) -> DetectorOutput:
        found = [self.known[image.numpy().tobytes()] for image in images]
        return DetectorOutput(
            {}, {}, [Detections(boxes, torch.full((len(boxes),), score), labels) for boxes, labels, score in found]
        )


class Collected(Exception):
    """A rank has said what it found."""


@pytest.mark.parametrize("world", [2, 3, 7])
def test_ranks_share_the_evaluation_set_without_overlap(world: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where there are fewer images than ranks."""
    model = Knowing(make_task())
    parts: list[Any] = []

    def collect(self: Ranks, part: Any) -> list[Any]:
        parts.append(part)
        raise Collected

    with torch.inference_mode():
        whole = make_task().evaluate(model)
        monkeypatch.setattr(Ranks, "gather", collect)
        for rank in range(world):
            with pytest.raises(Collected):
                make_task(ranks=Ranks(rank, world)).evaluate(model)
        monkeypatch.setattr(Ranks, "gather", lambda self, part: parts)
        monkeypatch.setattr(Ranks, "on_main", lambda self, action: action())
        together = make_task(ranks=Ranks(0, world)).evaluate(model)
    assert sorted(place for part in parts for place in part[0]) == list(range(6))
    assert 0.2 < whole.metrics["ap"] < 0.9
    assert together.metrics == pytest.approx(whole.metrics, nan_ok=True)
    for ours, theirs in zip(together.tables["classes"], whole.tables["classes"], strict=True):
        assert ours == pytest.approx(theirs, nan_ok=True)


def test_results_and_pictures_are_made_where_they_are_asked_for(tmp_path: Path) -> None:
    task = make_task("fasterrcnn", "data.eval_examples=2")
    model = make_models(task)[0].eval()
    with torch.inference_mode():
        plain = task.evaluate(model)
        assert (plain.files, plain.pictures) == ({}, None)
        found = task.evaluate(model, with_predictions=True)
    assert set(found.files) == {"results"}
    assert found.pictures is not None
    paths = found.pictures(tmp_path, 9)
    assert paths == sorted(tmp_path.iterdir())
    assert len(paths) == 2, "as many as there are"


def test_pictures_of_images_of_one_name_do_not_replace_each_other(tmp_path: Path) -> None:
    root = coco_files(tmp_path / "coco")
    file = root / "annotations" / "instances_val2017.json"
    file.write_text(file.read_text().replace("012.png", "deep/011.png"))
    (root / "val2017" / "deep").mkdir()
    (root / "val2017" / "012.png").rename(root / "val2017" / "deep" / "011.png")
    task = make_task("retinanet", f"data={{source: coco, root: {root}, min_size: 64, max_size: 96, workers: 0}}")
    with torch.inference_mode():
        found = task.evaluate(make_models(task)[0].eval(), with_predictions=True)
    assert found.pictures is not None
    (tmp_path / "pictures").mkdir()
    found.pictures(tmp_path / "pictures", 3)
    assert len(list((tmp_path / "pictures").iterdir())) == 3


def test_a_missing_scoring_package_is_reported_before_data_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(coco, "find_spec", lambda name: None)
    monkeypatch.setattr("w2skd.tasks.detection.task.list_detection_data", lambda section: pytest.fail("reads data"))
    with pytest.raises(UsageError, match=r"^eval\.backend: faster needs faster-coco-eval, but it is missing"):
        make_task("retinanet", "eval.backend=faster")


# Weights from elsewhere


def weights_of(task: DetectionTask, path: Path, **details: Any) -> Weights:
    """Weights as a teacher run of this task saves them."""
    known = {**task.describe_model(), **details}
    return Weights(path, make_models(task)[1].state_dict(), yaml.safe_load(dump_recipe(task._recipe)), "teacher", known)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_finished_model_fits_its_own_task(family: str, tmp_path: Path) -> None:
    task = make_task(family)
    weights = weights_of(task, tmp_path / "teacher.pt")
    fitted = task.fit_model(Role.TEACHER, weights)
    assert fitted.notes == ()
    assert all(torch.equal(value, weights.state[name]) for name, value in fitted.model.state_dict().items())


def test_a_teacher_of_another_label_map_is_refused(tmp_path: Path) -> None:
    task, path = make_task(), tmp_path / "teacher.pt"
    swapped = [task.classes[1], task.classes[0], *task.classes[2:]]
    with pytest.raises(CheckpointError) as raised:
        task.fit_model(Role.TEACHER, weights_of(task, path, classes=swapped))
    first, second = task.classes[:2]
    assert str(raised.value) == (
        f"{path}: its label map differs from the data's: category 1 is '{second}', in the data '{first}'"
    )
    with pytest.raises(CheckpointError, match=r"it has 2 categories, the data 10$"):
        task.fit_model(Role.TEACHER, weights_of(task, path, classes=["cat", "dog"]))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_nameless_teacher_of_other_categories_is_refused_by_their_number(family: str, tmp_path: Path) -> None:
    root = coco_files(tmp_path)
    other = make_task(family, f"data={{source: coco, root: {root}, workers: 0}}")
    state = make_models(other)[1].state_dict()
    with pytest.raises(CheckpointError, match=r"teacher\.pt: it has 2 categories, the data 10$"):
        make_task(family).fit_model(Role.TEACHER, Weights(tmp_path / "teacher.pt", state))
    fitted = other.fit_model(Role.TEACHER, Weights(tmp_path / "teacher.pt", state))
    assert fitted.notes == ("teacher.pt does not name its categories: assuming those of the data in the same order",)


def test_a_teacher_of_other_anchors_is_refused_and_a_model_to_be_scored_keeps_its_own(tmp_path: Path) -> None:
    """The weights alone do not show the anchors."""
    task = make_task()
    weights = weights_of(make_task("retinanet", "detector.anchor_scale=0.5"), tmp_path / "teacher.pt")
    with pytest.raises(RecipeError, match=r"^teacher: it has anchors of 16/20/25, .*: set the same anchors for both$"):
        task.fit_model(Role.TEACHER, weights)
    fitted = task.fit_model(Role.STUDENT, weights)
    assert fitted.model.grid.sizes_px[0] == (16, 20, 25)
    assert fitted.notes == ("keeping the anchors it was trained with (anchor_scale 0.5)",)


def test_a_teacher_of_the_other_family_or_of_a_classifier_is_refused(tmp_path: Path) -> None:
    weights = weights_of(make_task("fasterrcnn"), tmp_path / "teacher.pt")
    with pytest.raises(CheckpointError, match=r"teacher\.pt: made for fasterrcnn_slim, not for retinanet_slim$"):
        make_task().fit_model(Role.TEACHER, weights)
    with pytest.raises(CheckpointError, match="not the weights of retinanet_slim"):
        make_task().fit_model(Role.TEACHER, Weights(weights.path, {"fc.weight": torch.ones(10, 4)}))


def test_weights_of_another_normalisation_are_refused(tmp_path: Path) -> None:
    task = make_task()
    weights = weights_of(task, tmp_path / "teacher.pt", normalization=[0.5] * 6)
    with pytest.raises(CheckpointError, match=r"trained with another image normalisation than that of the data$"):
        task.fit_model(Role.TEACHER, weights)


# Backbones


def test_a_backbone_begins_with_a_classifiers_weights_and_a_frozen_norm_keeps_them(tmp_path: Path) -> None:
    body = BODIES["mobilenet_v2"]
    torch.manual_seed(3)
    state = mobilenet_v2(num_classes=7).state_dict()
    for name, value in state.items():
        if "running_mean" in name:
            value.uniform_(-0.1, 0.1)
    torch.save(state, tmp_path / "classifier.pt")
    task = make_task(
        "retinanet",
        "detector.frozen_norm=true",
        f"student={{model: retinanet_mobilenet_v2, backbone: {tmp_path / 'classifier.pt'}}}",
        f"teacher.backbone={tmp_path / 'classifier.pt'}",
    )
    student = task.build_model(Role.STUDENT).train()
    task.losses(student, None, next(task.train_batches(0)))
    taken = student.backbone.body.state_dict()
    assert any("running_mean" in name for name in taken)
    assert all(torch.equal(value, state[f"{body.prefix}{name}"]) for name, value in taken.items())
    with pytest.raises(CheckpointError, match=r"classifier\.pt: retinanet_slim: no classifier has its body"):
        task.build_model(Role.TEACHER)


def test_a_backbone_of_another_classifier_is_refused_with_its_file(tmp_path: Path) -> None:
    torch.save({"fc.weight": torch.ones(3, 4), "fc.bias": torch.ones(3)}, tmp_path / "other.pt")
    task = make_task("retinanet", f"student={{model: retinanet_mobilenet_v2, backbone: {tmp_path / 'other.pt'}}}")
    with pytest.raises(CheckpointError, match=r"other\.pt: not the weights of torchvision:mobilenet_v2: "):
        task.build_model(Role.STUDENT)


def test_the_listing_is_shared_by_the_arms_of_a_process() -> None:
    recipe = make_task()._recipe
    assert list_detection_data(recipe.data) is list_detection_data(make_task("fasterrcnn")._recipe.data)
