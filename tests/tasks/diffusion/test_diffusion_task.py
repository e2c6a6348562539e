"""The diffusion task."""

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from known import build_task
from PIL import Image
from safetensors.torch import load_file
from tiny import assert_same_weights
from tiny_noise import read_recipe
from torch import Tensor, nn

from w2skd.data.shapes import CLASSES
from w2skd.errors import CheckpointError
from w2skd.method.teacher import FrozenTeacher
from w2skd.platform.ranks import Ranks
from w2skd.recipe.evaluation import Metric
from w2skd.tasks.base import Evaluation, Role
from w2skd.tasks.diffusion.noise_schedule import Converted
from w2skd.tasks.diffusion.task import DiffusionTask
from w2skd.tasks.diffusion.unet import build_unet
from w2skd.training.engine import evaluate
from w2skd.weights.load import Weights, load_weights, save_model

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Holds the classifier and the cache of these tests."""
    return tmp_path_factory.mktemp("noise")


def make_task(folder: Path, *overrides: str, ranks: Ranks | None = None) -> DiffusionTask:
    recipe = read_recipe(folder, *overrides)
    task = build_task(recipe, train=recipe.train, seed=0, device=CPU, ranks=ranks or Ranks())
    assert isinstance(task, DiffusionTask)
    return task


def network(task: DiffusionTask, role: Role = Role.STUDENT, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return task.build_model(role).eval()


class Spy(nn.Module):
    """Predicts a multiple of its input and records all calls."""

    def __init__(self, gain: float):
        super().__init__()
        self.gain = nn.Parameter(torch.tensor(gain))
        self.calls: list[tuple[Any, ...]] = []

    def forward(self, noisy: Tensor, timesteps: Tensor, labels: Tensor | None = None) -> Tensor:
        self.calls.append((noisy, timesteps, labels))
        return self.gain * noisy


# Losses


@pytest.mark.parametrize("conditional", ["true", "false"])
def test_teacher_and_student_see_the_same_noised_image_timestep_and_class(conditional: str, folder: Path) -> None:
    task = make_task(folder, f"diffusion.class_conditional={conditional}")
    student, weak = Spy(0.7), Spy(0.3)
    batch = next(task.train_batches(0))
    task.losses(student, FrozenTeacher(weak, device=CPU), batch)
    [call], [weak_call] = student.calls, weak.calls
    assert all(ours is theirs for ours, theirs in zip(call, weak_call, strict=True))
    noisy, timesteps, labels = call
    assert noisy.shape == batch.images.shape == (4, 3, 8, 8)
    assert (timesteps.dtype, timesteps.shape) == (torch.int64, (4,))
    assert labels is batch.labels
    assert (labels is None) == (conditional == "false")


def scales(beta: str, timesteps: int) -> tuple[Tensor, Tensor]:
    """Scales of image and noise in noised images, float64 [timesteps] each, from the papers' formulas."""
    if beta == "linear":
        bars = (1 - torch.linspace(0.0001, 0.02, timesteps, dtype=torch.float64)).cumprod(0)
    else:
        steps = torch.arange(timesteps + 1, dtype=torch.float64) / timesteps
        heights = ((steps + 0.008) / 1.008 * math.pi / 2).cos() ** 2
        bars = (heights[1:] / heights[:-1]).clamp(min=0.001).cumprod(0)
    return bars.sqrt(), (1 - bars).sqrt()


@pytest.mark.parametrize("beta", ["linear", "cosine"])
@pytest.mark.parametrize("prediction", ["epsilon", "v"])
@pytest.mark.parametrize(("own", "taught"), [("uniform", "min_snr"), ("min_snr", "uniform")])
def test_losses_equal_a_float64_reference(beta: str, prediction: str, own: str, taught: str, folder: Path) -> None:
    task = make_task(
        folder,
        f"diffusion={{timesteps: 40, beta_schedule: {beta}, prediction: {prediction}}}",
        f"loss.timestep_weighting={own}",
        f"distill.timestep_weighting={taught}",
    )
    student, weak = Spy(0.7), Spy(0.3)
    batch = next(task.train_batches(0))
    torch.manual_seed(5)
    found = task.losses(student, FrozenTeacher(weak, device=CPU), batch)
    torch.manual_seed(5)
    timesteps = torch.randint(40, (4,))
    noise, images = torch.randn(4, 3, 8, 8).double(), batch.images.double()
    a, s = (scale[timesteps][:, None, None, None] for scale in scales(beta, 40))
    noisy = a * images + s * noise
    target = noise if prediction == "epsilon" else a * noise - s * images
    ratio = (a / s).flatten() ** 2
    weights = {
        "uniform": torch.ones(4).double(),
        "min_snr": ratio.clamp(max=5) / (ratio if prediction == "epsilon" else ratio + 1),
    }

    def error(wanted: Tensor, weighting: str) -> float:
        return float((weights[weighting] * ((0.7 * noisy - wanted) ** 2).mean(dim=(1, 2, 3))).mean())

    assert torch.equal(student.calls[0][1], timesteps)
    assert {name: value.item() for name, value in found.task.items()} == {
        "mse": pytest.approx(error(target, own), rel=1e-4)
    }
    assert {name: value.item() for name, value in found.distill.items()} == {
        "mse": pytest.approx(error(0.3 * noisy, taught), rel=1e-4)
    }


def test_identical_networks_have_no_distillation_loss(folder: Path) -> None:
    task = make_task(folder)
    student, weak = network(task), network(task)
    found = task.losses(student, FrozenTeacher(weak, device=CPU), next(task.train_batches(0)))
    assert found.distill["mse"].item() == 0
    assert found.task["mse"].item() > 0


def test_a_teacher_does_not_advance_the_generator(folder: Path) -> None:
    """So all arms see the same noise at the same step."""
    task = make_task(folder)
    batch, ends, losses = next(task.train_batches(0)), [], []
    for teacher in (None, FrozenTeacher(network(task, Role.TEACHER, seed=1), device=CPU)):
        torch.manual_seed(3)
        losses.append(task.losses(Spy(0.7), teacher, batch))
        ends.append(torch.get_rng_state())
    assert torch.equal(*ends)
    assert losses[0].task["mse"] == losses[1].task["mse"]
    assert (losses[0].distill, [*losses[1].distill]) == ({}, ["mse"])


def test_only_the_student_gets_gradients(folder: Path) -> None:
    task = make_task(folder)
    student, weak = network(task), network(task, Role.TEACHER, seed=1)
    found = task.losses(student, FrozenTeacher(weak, device=CPU), next(task.train_batches(0)))
    found.distill["mse"].backward()
    assert all(parameter.grad is None for parameter in weak.parameters())
    assert all(parameter.grad is not None for parameter in student.parameters())


def test_losses_are_float32_under_autocast(folder: Path) -> None:
    task = make_task(folder)
    teacher = FrozenTeacher(network(task, Role.TEACHER, seed=1), device=CPU, precision="bf16")
    torch.manual_seed(0)
    plain = task.losses(network(task), teacher, next(task.train_batches(0)))
    torch.manual_seed(0)
    with torch.autocast("cpu", torch.bfloat16):
        half = task.losses(network(task), teacher, next(task.train_batches(0)))
    for ours, theirs in ((plain.task, half.task), (plain.distill, half.distill)):
        assert theirs["mse"].dtype == torch.float32
        assert theirs["mse"].item() == pytest.approx(ours["mse"].item(), rel=0.05)


# Batches


@pytest.mark.parametrize(("conditional", "inputs"), [("true", 3), ("false", 2)])
def test_batches_hold_images_in_minus_one_to_one_and_classes_if_conditional(
    conditional: str, inputs: int, folder: Path
) -> None:
    task = make_task(folder, f"diffusion.class_conditional={conditional}")
    batch = next(task.train_batches(0))
    assert -1.0001 < batch.images.min() < -0.3
    assert 0.3 < batch.images.max() < 1.0001
    assert (batch.labels is None) == (conditional == "false")
    assert [len(value) for value in task.example_batch().model_inputs] == [1] * inputs
    preview = task.preview()
    torch.testing.assert_close(preview.images.float(), (batch.images + 1) * 127.5, atol=0.5, rtol=0)
    assert set(preview.captions) <= set(CLASSES)


def test_data_and_model_descriptions_survive_json(folder: Path) -> None:
    task = make_task(folder, "diffusion.class_conditional=true")
    for facts in (task.describe_data(), task.describe_model()):
        assert json.loads(json.dumps(facts)) == facts, "a resume compares what it reads with this"
    assert task.describe_model() == {
        "timesteps": 40,
        "beta_schedule": "linear",
        "prediction": "epsilon",
        "image_size": 8,
        "classes": list(CLASSES),
    }
    assert make_task(folder).describe_model()["classes"] == []
    assert (task.describe_data()["train_examples"], task.describe_data()["eval_examples"]) == (24, 20)
    assert task.steps_per_epoch == 6


@pytest.mark.parametrize("metric", ["fid", "kid"])
def test_lower_scores_are_better(metric: str, folder: Path) -> None:
    assert make_task(folder, f"report.metric={metric}").metric == Metric(metric, higher_is_better=False)


# Evaluation


def scored(task: DiffusionTask, model: nn.Module, **options: bool) -> Evaluation:
    with torch.inference_mode():
        return task.evaluate(model, **options)


def samples(evaluation: Evaluation, folder: Path) -> Tensor:
    """The images that it writes, uint8 [n, 3, S, S]."""
    evaluation.files["samples"](folder)
    files = sorted(folder.iterdir())
    assert [file.name for file in files] == [f"{number:06}.png" for number in range(len(files))]
    pixels = [torch.frombuffer(bytearray(Image.open(file).tobytes()), dtype=torch.uint8) for file in files]
    return torch.stack(pixels).view(len(files), 8, 8, 3).permute(0, 3, 1, 2)


def test_an_evaluation_is_repeatable(folder: Path) -> None:
    """Also with cached features of the real images, and after other random draws."""
    task = make_task(folder)
    model = network(task)
    first = scored(task, model)
    torch.manual_seed(99)
    assert scored(task, model).metrics == first.metrics
    assert scored(make_task(folder), model).metrics == first.metrics
    assert set(first.metrics) == {"fid", "kid"}
    assert all(math.isfinite(value) for value in first.metrics.values())


def test_samples_depend_on_seed_and_id_only(folder: Path, tmp_path: Path) -> None:
    whole = make_task(folder)
    model = network(whole)
    expected = samples(scored(whole, model, with_predictions=True), tmp_path / "whole").int()
    assert expected.shape == (12, 3, 8, 8)
    assert len({image.numpy().tobytes() for image in expected}) == 12
    for name, settings in (("batch", ["sampler.batch_size=5"]), ("fewer", ["fid.samples=5"])):
        found = samples(scored(make_task(folder, *settings), model, with_predictions=True), tmp_path / name).int()
        assert (found - expected[: len(found)]).abs().max() <= 1, "differences from rounding only"
        assert len(found) == (5 if name == "fewer" else 12)
    other = samples(scored(make_task(folder, "sampler.seed=1"), model, with_predictions=True), tmp_path / "seed").int()
    assert (other - expected).abs().amax(dim=(1, 2, 3)).min() > 9


def test_an_evaluation_draws_pictures(folder: Path, tmp_path: Path) -> None:
    task = make_task(folder)
    model = network(task)
    plain, whole = scored(task, model), scored(task, model, with_predictions=True)
    assert (plain.files, plain.pictures) == ({}, None)
    assert set(whole.files) == {"samples"}
    for name, evaluation in (("plain", plain), ("whole", whole)):
        assert evaluation.snapshot is not None
        evaluation.snapshot(tmp_path / f"{name}.png")
    assert (tmp_path / "plain.png").read_bytes() == (tmp_path / "whole.png").read_bytes()
    assert whole.pictures is not None
    [drawn] = whole.pictures(tmp_path, 4)
    assert drawn == tmp_path / "samples.png"
    assert Image.open(drawn).height < Image.open(tmp_path / "whole.png").height


def test_classes_alternate(folder: Path) -> None:
    task = make_task(folder, "diffusion.class_conditional=true")
    spy = Spy(0.5)
    scored(task, spy)
    labels = torch.cat([labels for _, timesteps, labels in spy.calls if timesteps[0] == 39])
    assert labels.tolist() == [number % len(CLASSES) for number in range(12)]


def test_a_class_conditional_network_learns_its_classes(folder: Path) -> None:
    task = make_task(folder, "diffusion.class_conditional=true")
    model = network(task)
    found = task.losses(model, FrozenTeacher(network(task, Role.TEACHER, 1), device=CPU), next(task.train_batches(0)))
    found.distill["mse"].backward()
    assert model.class_embedding.weight.grad.abs().sum() > 0
    assert math.isfinite(scored(task, model).metrics["fid"])


def test_non_finite_samples_have_no_score_and_are_reported(folder: Path, tmp_path: Path) -> None:
    task = make_task(folder)
    model = network(task)
    next(model.parameters()).data.fill_(math.nan)
    found = scored(task, model)
    assert all(math.isnan(value) for value in found.metrics.values())
    assert "12 of 12 samples are non-finite: fid and kid are undefined" in found.notes
    assert found.snapshot is not None
    found.snapshot(tmp_path / "nan.png")
    assert not task.metric.is_better(found.metrics["fid"], 1e9)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_features_are_float32_in_any_precision(precision: str, folder: Path, tmp_path: Path) -> None:
    """The precision changes the samples slightly, but not the real images' features of the same call."""
    task, half = make_task(folder), make_task(folder, f"fid.cache={tmp_path}")
    model = network(task)
    plain = evaluate(task, model, CPU, "fp32")
    found = evaluate(half, model, CPU, precision)
    assert found.metrics != plain.metrics
    assert found.metrics["fid"] == pytest.approx(plain.metrics["fid"], rel=0.1)
    [reference] = tmp_path.glob("*.safetensors")
    ours, theirs = load_file(reference), load_file(folder / "cache" / reference.name)
    assert_same_weights(ours, theirs)
    assert ours["features"].dtype == torch.float32


class Collected(Exception):
    """Raised once a rank has handed over its samples."""


@pytest.mark.parametrize("world", [2, 5])
def test_ranks_split_the_samples_without_overlap(world: int, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also with fewer samples than ranks."""
    parts: list[Any] = []

    def collect(self: Ranks, part: Any) -> list[Any]:
        parts.append(part)
        raise Collected

    monkeypatch.setattr(Ranks, "on_main", lambda self, action: action())
    monkeypatch.setattr(Ranks, "gather", collect)
    for rank in range(world):
        with pytest.raises(Collected):
            scored(make_task(folder, "fid.samples=3", "sampler.batch_size=1", ranks=Ranks(rank, world)), Spy(0.5))
    assert sorted(number for ids, _, _ in parts for number in ids.tolist()) == [0, 1, 2]
    assert max(len(ids) for ids, _, _ in parts) <= math.ceil(3 / world)


# Weights from elsewhere


def weights_of(task: DiffusionTask, path: Path, **details: Any) -> Weights:
    """Weights as a teacher's run of this task writes them."""
    known = {name: value for name, value in {**task.describe_model(), **details}.items() if value is not None}
    return Weights(
        path, network(task, Role.TEACHER, seed=1).state_dict(), task._recipe.model_dump(mode="json"), "teacher", known
    )


@pytest.mark.parametrize("conditional", ["true", "false"])
def test_a_finished_model_fits_its_own_task(conditional: str, folder: Path, tmp_path: Path) -> None:
    task = make_task(folder, f"diffusion.class_conditional={conditional}")
    made = weights_of(task, tmp_path / "teacher.safetensors")
    save_model(made.path, made.state, task._recipe, "teacher", made.details)
    weights = load_weights(made.path)
    assert weights.details == task.describe_model()
    fitted = task.fit_model(Role.TEACHER, weights)
    assert fitted.notes == ()
    assert all(torch.equal(value, made.state[name]) for name, value in fitted.model.state_dict().items())


@pytest.mark.parametrize(
    ("theirs", "problem"),
    [
        ("diffusion.timesteps=1000", "another diffusion.timesteps: 1000, not 40"),
        ("diffusion.beta_schedule=cosine", "another diffusion.beta_schedule: cosine, not linear"),
        ("data.image_size=16", "another data.image_size: 16, not 8"),
        ("diffusion.class_conditional=true", "other classes (diffusion.class_conditional): 10, not none"),
    ],
)
def test_a_teacher_with_another_process_size_or_classes_is_refused(
    theirs: str, problem: str, folder: Path, tmp_path: Path
) -> None:
    weights = weights_of(make_task(folder, theirs), tmp_path / "teacher.pt")
    with pytest.raises(CheckpointError) as raised:
        make_task(folder).fit_model(Role.TEACHER, weights)
    assert str(raised.value) == f"{tmp_path}/teacher.pt: was trained with {problem}"


@pytest.mark.parametrize(
    ("classes", "problem"),
    [
        ([], "none, not 10"),
        (list(CLASSES[:4]), "4, not 10"),
        (["pentagram", *CLASSES[1:]], f"number 0 is 'pentagram', not '{CLASSES[0]}'"),
        ([*CLASSES[:8], CLASSES[9], CLASSES[8]], f"number 8 is '{CLASSES[9]}', not '{CLASSES[8]}'"),
    ],
)
def test_a_teacher_of_other_classes_is_refused(classes: list[str], problem: str, folder: Path, tmp_path: Path) -> None:
    task = make_task(folder, "diffusion.class_conditional=true")
    weights = weights_of(task, tmp_path / "teacher.pt", classes=classes)
    with pytest.raises(CheckpointError) as raised:
        task.fit_model(Role.TEACHER, weights)
    assert str(raised.value).endswith(f": was trained with other classes (diffusion.class_conditional): {problem}")


def test_weights_of_another_network_are_refused(folder: Path, tmp_path: Path) -> None:
    weights = weights_of(make_task(folder, "teacher.model=unet_mini_nc24_rb1"), tmp_path / "teacher.pt")
    with pytest.raises(CheckpointError, match=r"teacher\.pt: made for unet_mini_nc24_rb1, not for unet_mini_nc16_rb1$"):
        make_task(folder).fit_model(Role.TEACHER, weights)
    classifier = load_weights(folder / "classifier.safetensors")
    with pytest.raises(CheckpointError, match=r"made for small_cnn_weak, not for unet_mini_nc16_rb1$"):
        make_task(folder).fit_model(Role.TEACHER, classifier)


def test_details_that_bare_weights_lack_are_assumed_and_reported(folder: Path, tmp_path: Path) -> None:
    task = make_task(folder)
    bare = Weights(tmp_path / "teacher.pt", network(task).state_dict())
    assert task.fit_model(Role.TEACHER, bare).notes == (
        "teacher.pt does not record timesteps, beta_schedule, prediction, image_size: assuming the recipe's values",
    )


def test_an_epsilon_teachers_prediction_is_converted_to_v(folder: Path, tmp_path: Path) -> None:
    task = make_task(folder, "diffusion.prediction=v")
    weights = weights_of(task, tmp_path / "teacher.pt", prediction="epsilon")
    fitted = task.fit_model(Role.TEACHER, weights)
    [line] = fitted.notes
    assert line.startswith(
        "its epsilon predictions are converted to v, which multiplies their errors by up to 1 at the "
    )
    assert isinstance(fitted.model, Converted)
    silent = Spy(0.0)
    found = task.losses(silent, FrozenTeacher(fitted.model, device=CPU), next(task.train_batches(0)))
    [(noisy, timesteps, _)] = silent.calls
    with torch.no_grad():
        epsilon = fitted.model.model(noisy, timesteps).double()
    a, s = (scale[timesteps][:, None, None, None] for scale in scales("linear", 40))
    expected = (((epsilon - s * noisy.double()) / a) ** 2).mean()
    assert found.distill["mse"].item() == pytest.approx(float(expected), rel=1e-5)


@pytest.mark.parametrize(("beta", "factor"), [("linear", "157"), ("cosine", "20,291")])
def test_the_conversions_error_factor_and_its_remedy_are_reported(
    beta: str, factor: str, folder: Path, tmp_path: Path
) -> None:
    process = f"diffusion={{timesteps: 1000, beta_schedule: {beta}, prediction: v}}"
    task = make_task(folder, process)
    weights = weights_of(task, tmp_path / "teacher.pt", prediction="epsilon")
    plain = (
        "its epsilon predictions are converted to v, which multiplies their errors by up to "
        f"{factor} at the noisiest timesteps"
    )
    advised = f"{plain}; distill.timestep_weighting=min_snr reduces the weight of these"
    assert task.fit_model(Role.TEACHER, weights).notes == (advised,)
    assert task.fit_model(Role.STUDENT, weights).notes == (plain,)
    weighed = make_task(folder, process, "distill.timestep_weighting=min_snr")
    assert weighed.fit_model(Role.TEACHER, weights).notes == (plain,)


def test_a_v_teachers_prediction_is_converted_to_epsilon(folder: Path, tmp_path: Path) -> None:
    task = make_task(folder)
    fitted = task.fit_model(Role.TEACHER, weights_of(task, tmp_path / "teacher.pt", prediction="v"))
    assert fitted.notes == ("its v predictions are converted to epsilon",)
    assert isinstance(fitted.model, Converted)
    found = scored(task, fitted.model.eval())
    own = scored(make_task(folder, "diffusion.prediction=v"), fitted.model.model)
    assert found.metrics["fid"] == pytest.approx(own.metrics["fid"], rel=1e-3), "the same images"


# Networks in diffusers' folders


@pytest.fixture
def pipeline(tmp_path: Path) -> Iterator[Path]:
    """A pipeline's folder as diffusers writes it."""
    torch.manual_seed(2)
    build_unet("unet_mini_nc16_rb1", size_px=8, classes=None).save_pretrained(tmp_path / "ddpm" / "unet")
    config = tmp_path / "ddpm" / "unet" / "config.json"
    config.write_text(config.read_text().replace("DenoisingUNet", "UNet2DModel"))
    DDPMScheduler(num_train_timesteps=40).save_pretrained(tmp_path / "ddpm" / "scheduler")
    return tmp_path / "ddpm"


def test_a_network_of_diffusers_can_be_the_teacher(pipeline: Path, folder: Path) -> None:
    model = f"diffusers:{pipeline}"
    task = make_task(folder, f"teacher={{model: '{model}', checkpoint: pretrained}}")
    weights = DiffusionTask.open_weights(Path("pretrained"), model)
    fitted = task.fit_model(Role.TEACHER, weights)
    assert fitted.notes == ()
    assert all(torch.equal(value, weights.state[name]) for name, value in fitted.model.state_dict().items())
    found = task.losses(network(task), FrozenTeacher(fitted.model, device=CPU), next(task.train_batches(0)))
    assert found.distill["mse"].item() > 0
    as_v = make_task(folder, f"teacher.model='{model}'", "diffusion.prediction=v")
    assert as_v.fit_model(Role.TEACHER, weights).notes[0].startswith("its epsilon predictions are converted to v, ")


def test_a_network_of_diffusers_with_another_process_is_refused(pipeline: Path, folder: Path) -> None:
    model = f"diffusers:{pipeline}"
    task = make_task(folder, f"teacher.model='{model}'", "diffusion.beta_schedule=cosine")
    with pytest.raises(CheckpointError) as raised:
        task.fit_model(Role.TEACHER, DiffusionTask.open_weights(Path("pretrained"), model))
    assert str(raised.value) == (
        f"{pipeline}/unet/diffusion_pytorch_model.safetensors: was trained with another diffusion.beta_schedule: "
        "linear, not cosine"
    )


def test_a_network_of_diffusers_without_a_scheduler_is_assumed_to_match(pipeline: Path, folder: Path) -> None:
    model = f"diffusers:{pipeline}/unet"
    (pipeline / "scheduler" / "scheduler_config.json").unlink()
    task = make_task(folder, f"teacher.model='{model}'")
    assert task.fit_model(Role.TEACHER, DiffusionTask.open_weights(Path("pretrained"), model)).notes == (
        f"{model.replace(':', ' ')} does not record timesteps, beta_schedule, prediction: assuming the recipe's values",
    )
