"""Image classification behind the seam."""

import csv
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from known import build_task, validate_recipe
from torch import Tensor, nn
from torch.nn import functional

from w2skd.errors import RecipeError, UsageError
from w2skd.method.losses import distillation_kl
from w2skd.method.teacher import FrozenTeacher
from w2skd.models.catalog import build_classifier
from w2skd.models.plugin import forget_plugins, load_plugin
from w2skd.models.whitened_cnn import WhitenedCnn, whitening_filters
from w2skd.platform.ranks import Ranks
from w2skd.tasks.base import Role
from w2skd.tasks.classification.task import ClassificationTask
from w2skd.weights.load import Weights

CPU = torch.device("cpu")


def make_task(ranks: Ranks | None = None, **sections: Any) -> ClassificationTask:
    values = {
        "name": "tiny",
        "task": "classification",
        "data": {"source": "shapes", "image_size": 16, "train_examples": 40, "eval_examples": 33},
        "teacher": {"model": "small_cnn_weak"},
        "student": {"model": "small_cnn_strong"},
        "train": {
            "steps": 10,
            "batch_size": 8,
            "optimizer": {"name": "sgd", "lr": 0.1},
            "lr_schedule": {"name": "constant"},
        },
        **sections,
    }
    recipe = validate_recipe(values, "test")
    task = build_task(recipe, train=recipe.train, seed=0, device=CPU, ranks=ranks or Ranks())
    assert isinstance(task, ClassificationTask)
    return task


class Watching(nn.Module):
    """A linear classifier that records its input."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3 * 16 * 16, 10)
        self.seen: list[Tensor] = []

    def forward(self, images: Tensor) -> Tensor:
        self.seen.append(images)
        return self.layer(images.flatten(1))


def test_student_and_teacher_see_the_same_pixels() -> None:
    task, student, weak = make_task(), Watching(), Watching()
    task.losses(student, FrozenTeacher(weak, device=CPU), next(task.train_batches(0)))
    [theirs], [ours] = weak.seen, student.seen
    assert theirs is ours


def test_label_smoothing_affects_the_task_loss_only() -> None:
    student, weak = Watching(), Watching()
    teacher = FrozenTeacher(weak, device=CPU)
    plain, smooth = make_task(), make_task(loss={"label_smoothing": 0.3})
    batch = next(plain.train_batches(0))
    without, with_ = plain.losses(student, teacher, batch), smooth.losses(student, teacher, batch)
    assert torch.equal(without.distill["kl"], with_.distill["kl"])
    logits = student(batch.images)
    expected = functional.cross_entropy(logits, batch.labels, label_smoothing=0.3)
    torch.testing.assert_close(with_.task["cross_entropy"], expected)
    assert not torch.equal(without.task["cross_entropy"], with_.task["cross_entropy"])


def test_the_distillation_term_is_the_kl_of_teacher_to_student_at_the_recipes_temperature() -> None:
    student, weak = Watching(), Watching()
    task = make_task(
        distill={"temperature": 4.0, "final_temperature": 1.0, "warmup": "0step", "hold": "5step", "decay": "5step"}
    )
    batches = task.train_batches(0)
    for temperature in (4.0, 3.7, 3.4):
        batch = next(batches)
        found = task.losses(student, FrozenTeacher(weak, device=CPU), batch).distill["kl"]
        expected = distillation_kl(student(batch.images), weak(batch.images), temperature)
        torch.testing.assert_close(found, expected)


def test_without_a_teacher_there_is_no_distillation_term() -> None:
    task = make_task()
    assert task.losses(Watching(), None, next(task.train_batches(0))).distill == {}


@pytest.mark.parametrize("world", [2, 3])
def test_ranks_share_the_evaluation_set_without_overlap(world: int, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model = make_task().build_model(Role.STUDENT).eval()
    with torch.inference_mode():
        whole = make_task().evaluate(model)
        parts: list[Tensor] = []
        monkeypatch.setattr(Ranks, "sum_", lambda self, tensor: parts.append(tensor.clone()) or tensor)
        for rank in range(world):
            make_task(Ranks(rank, world)).evaluate(model)
        monkeypatch.setattr(Ranks, "sum_", lambda self, tensor: tensor.copy_(sum(parts)))
        assert make_task(Ranks(0, world)).evaluate(model).metrics == pytest.approx(whole.metrics)
    assert sum(row["examples"] for row in whole.tables["classes"]) == 33


def test_baseline_and_accelerated_arm_draw_the_same_batches() -> None:
    first, second = make_task(), make_task(distill={"weight": 3.0})
    for ours, theirs, _ in zip(first.train_batches(3), second.train_batches(3), range(4), strict=False):
        assert torch.equal(ours.images, theirs.images)
        assert ours.step == theirs.step


def test_a_batch_that_ranks_cannot_share_is_rejected() -> None:
    with pytest.raises(UsageError, match="8 examples cannot be divided equally among 3 ranks"):
        make_task(Ranks(0, 3)).train_batches(0)


@pytest.mark.parametrize("share", [0.25, 0.75])
def test_a_mixed_image_is_captioned_by_its_larger_part_first(share: float, monkeypatch: pytest.MonkeyPatch) -> None:
    task = make_task()
    batch = next(task.train_batches(0))
    mixed = replace(batch, labels=batch.labels * 0, partner_labels=batch.labels * 0 + 1, share=share)
    monkeypatch.setattr(task, "train_batches", lambda first_step: iter([mixed]))
    first, second = task.classes[:2] if share > 0.5 else task.classes[1::-1]
    assert task.preview().captions[0] == f"75% {first}, {second}"


def test_classes_and_data_are_described() -> None:
    task = make_task()
    assert task.describe_model()["classes"] == list(task.classes)
    assert task.describe_model()["normalization"] == [0.4, 0.4, 0.4, 0.2, 0.2, 0.2]
    assert task.describe_data()["eval_examples"] == 33
    assert task.metric == ("top1", True, True)
    assert len(task.example_batch()) == 1


GROWING = {"source": "shapes", "image_size": 32, "train_examples": 8, "progressive": {"from_px": 16}}


@pytest.mark.parametrize("role", list(Role))
def test_a_model_of_one_size_is_rejected_for_growing_images(role: Role, tmp_path: Path) -> None:
    """A ViT learns position embeddings for one number of patches; this fails at startup, not at the first step."""
    task = make_task(data=GROWING, teacher={"model": "cifar_vit"}, student={"model": "cifar_vit"})
    with pytest.raises(RecipeError, match=r"^data\.progressive: cifar_vit cannot process images of 16 px: "):
        task.build_model(role)
    weights = Weights(tmp_path / "teacher.pt", build_classifier("cifar_vit", 10, 32).state_dict())
    with pytest.raises(RecipeError, match=r"^data\.progressive: cifar_vit cannot process images of 16 px: "):
        task.fit_model(role, weights)


def test_a_teacher_of_one_size_may_see_growing_images_resized(tmp_path: Path) -> None:
    task = make_task(data=GROWING, teacher={"model": "cifar_vit", "image_size": 24})
    weights = Weights(tmp_path / "teacher.pt", build_classifier("cifar_vit", 10, 24).state_dict())
    teacher = FrozenTeacher(task.fit_model(Role.TEACHER, weights).model, device=CPU)
    for size_px in (16, 32):
        assert teacher(torch.zeros(2, 3, size_px, size_px)).shape == (2, 10)


def test_a_teacher_that_cannot_be_trained_on_the_datas_images_is_rejected() -> None:
    data = {"source": "shapes", "image_size": 32, "train_examples": 8}
    task = make_task(data=data, teacher={"model": "cifar_vit", "image_size": 16})
    with pytest.raises(RecipeError, match=r"^teacher\.image_size: cifar_vit cannot process images of 32 px: "):
        task.build_model(Role.TEACHER)


@pytest.mark.parametrize("feed", ["resident", "streaming"])
@pytest.mark.parametrize("role", list(Role))
def test_a_data_dependent_model_sees_unaugmented_training_images(role: Role, feed: str) -> None:
    data = {"source": "shapes", "image_size": 16, "train_examples": 40, "eval_examples": 10, "feed": feed, "workers": 0}
    model = {"model": "whitened_cnn_w16"}
    task = make_task(data=data, teacher=model, student=model)
    built = task.build_model(role)
    assert isinstance(built, WhitenedCnn)
    drawn = built.whiten.weight.clone()
    task.initialize_model(built)
    images = torch.cat([task._feeds.train.example().images, task._feeds.sample()[1:]])
    torch.testing.assert_close(built.whiten.weight[:12].double(), whitening_filters(images), rtol=1e-4, atol=1e-5)
    assert not torch.equal(built.whiten.weight, drawn)


def test_other_models_stay_as_they_were_drawn() -> None:
    task = make_task()
    model = task.build_model(Role.STUDENT)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    task.initialize_model(model)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_a_plugin_that_fails_on_the_images_is_reported_in_one_line(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(
        "from torch import nn\n"
        "class Mine(nn.Module):\n"
        "    def __init__(self, classes):\n"
        "        super().__init__()\n"
        "        self.layer = nn.Linear(3, classes)\n"
        "    def forward(self, images):\n"
        "        return self.layer(images.mean((2, 3)))\n"
        "    def initialize_from(self, images):\n"
        "        raise ZeroDivisionError('no')\n"
        "__all__ = ['Mine']\n"
    )
    load_plugin(file)
    try:
        task = make_task(student={"model": "plugin:Mine"})
        with pytest.raises(UsageError, match=r"cannot be initialised .*mine\.py, line 9: ZeroDivisionError: no$"):
            task.initialize_model(task.build_model(Role.STUDENT))
    finally:
        forget_plugins()


def test_predictions_agree_with_accuracy(tmp_path: Path) -> None:
    """Also for equal logits, where the first class ranks first."""
    task = make_task()
    model = Watching()
    with torch.no_grad():
        model.layer.weight.zero_()
        model.layer.bias.copy_(torch.tensor([0.0, 0.0, 1.0, 2.0, 1.0, 2.0, 2.0, 2.0, 1.0, 1.0]))
    found = task.evaluate(model, with_predictions=True)
    found.files["predictions"](tmp_path / "predictions.csv")
    with (tmp_path / "predictions.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {row["top5"] for row in rows} == {"|".join(task.classes[place] for place in (3, 5, 6, 7, 2))}
    right = [row["correct"] == "true" for row in rows]
    assert sum(right) / len(right) == pytest.approx(found.metrics["top1"])
    assert 0 < sum(right) < len(right)
