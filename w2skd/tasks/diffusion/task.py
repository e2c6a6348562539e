"""The diffusion task: denoising loss, and distance from the teacher's prediction for the same noised image."""

from collections.abc import Iterator, Mapping
from functools import cached_property, partial
from operator import itemgetter
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from w2skd.data.batch import LabelledImages
from w2skd.data.feeds import ImageFeeds
from w2skd.data.identity import DataIdentity
from w2skd.data.normalize import to_bytes
from w2skd.data.parts import equal_parts
from w2skd.errors import CheckpointError, RecipeError
from w2skd.method.grow import Growth
from w2skd.method.teacher import FrozenTeacher
from w2skd.platform.ranks import Ranks
from w2skd.recipe.schema import published_weights
from w2skd.recipe.train import TrainSection
from w2skd.tasks.base import Evaluation, FittedModel, Losses, Preview, Role
from w2skd.tasks.diffusion.batch import ImagesToNoise
from w2skd.tasks.diffusion.from_diffusers import build_from_folder, load_folder
from w2skd.tasks.diffusion.growth import grow_unet
from w2skd.tasks.diffusion.loss import weighted_squared_error
from w2skd.tasks.diffusion.noise_schedule import Converted, NoiseSchedule
from w2skd.tasks.diffusion.recipe import DiffusionRecipe, TimestepWeighting
from w2skd.tasks.diffusion.sample_pictures import draw_samples, write_samples
from w2skd.tasks.diffusion.sample_scoring import SampleScoring
from w2skd.tasks.diffusion.sampling import generate
from w2skd.tasks.diffusion.starting_noise import starting_noise
from w2skd.tasks.diffusion.unet import DenoisingUNet, build_unet
from w2skd.weights.load import Weights, load_into, load_weights

_FOLDER = "diffusers:"
"""Prefix of model names that stand for a folder written by diffusers."""

_MUST_AGREE = {
    "timesteps": "another diffusion.timesteps",
    "beta_schedule": "another diffusion.beta_schedule",
    "image_size": "another data.image_size",
    "classes": "other classes (diffusion.class_conditional)",
}
"""Details of a checkpoint that must equal the recipe's -> wording of the error."""

_NOISE_SHARE = 0.9
"""A model whose FID is above this share of that of pure noise has learnt nothing."""

_SHOWN = 64
"""Samples in the picture that every validation draws."""


class DiffusionTask:
    """See `w2skd.tasks.base.Task`.

    Noise and timesteps come from torch's global generators, which the engine reseeds for every micro-batch.

    Args:
        recipe: the experiment.
        train: the section of this arm (the teacher's differs from the student's).
        seed: of data order and augmentation.
        device: where batches live.
        ranks: this process among its peers.

    Raises:
        DataError: the images are missing or contradictory.
        CheckpointError: the weights of the feature extractor are missing or wrong.
    """

    def __init__(self, recipe: DiffusionRecipe, *, train: TrainSection, seed: int, device: torch.device, ranks: Ranks):
        self.metric = recipe.metric
        self._recipe = recipe
        self._train = train
        self._device = device
        self._ranks = ranks
        self._feeds = ImageFeeds(recipe.data, train, seed=seed, device=device)
        self._schedule = NoiseSchedule(recipe.diffusion, device)
        self._scoring = SampleScoring(recipe, self._feeds, device=device, ranks=ranks)

    @staticmethod
    def open_weights(checkpoint: Path, model: str, key: str | None = None) -> Weights:
        """See `w2skd.tasks.base.Task.open_weights`; ``pretrained`` stands for the weights in diffusers' folder."""
        published, tag = published_weights(checkpoint)
        if not published:
            return load_weights(checkpoint, key)
        if not model.startswith(_FOLDER):
            raise RecipeError(f"{model}: has no published weights")
        if tag is not None:
            raise RecipeError(f"{model}: the folder's weights have no tags; replace pretrained:{tag} by pretrained")
        return load_folder(Path(model.removeprefix(_FOLDER)))

    @cached_property
    def steps_per_epoch(self) -> int:
        """Optimizer steps per pass over the training set."""
        return self._feeds.train.steps_per_epoch

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes that the networks are conditioned on; empty if they are unconditional."""
        return self._feeds.train_listing.classes if self._recipe.diffusion.class_conditional else ()

    def describe_data(self) -> dict[str, Any]:
        """Describe the examples and the scoring, for the run's records."""
        return {
            "data_fingerprint": self._feeds.fingerprint(),
            "train_examples": len(self._feeds.train_listing),
            "eval_examples": len(self._feeds.evaluation_listing),
            "feed": self._feeds.kind,
            "scoring": self._scoring.describe(),
            "data_account": [*self._feeds.notes, *self._scoring.warnings],
        }

    def identify_data(self) -> DataIdentity:
        """Identify the images and labels of both sets."""
        return self._feeds.identity()

    def describe_model(self) -> dict[str, Any]:
        """Describe noising process, kind of prediction, image size and classes."""
        return {
            **self._recipe.diffusion.model_dump(include={"timesteps", "beta_schedule", "prediction"}),
            "image_size": self._feeds.size_px,
            "classes": list(self.classes),
        }

    def preview(self) -> Preview:
        """Return the first training batch, without noise."""
        batch = next(self._feeds.train.micro_batches(0, self._ranks, self._train.accumulate))
        captions = tuple(self._feeds.train_listing.classes[label] for label in batch.labels.tolist())
        return Preview(to_bytes(batch.images, self._feeds.normalization), captions)

    def build_model(self, role: Role) -> DenoisingUNet:
        """Build the recipe's U-Net of that role, freshly initialised.

        Raises:
            RecipeError: it does not accept the data's image size, or its folder was not written by diffusers.
        """
        name, size_px, classes = self._recipe.model_of(role), self._feeds.size_px, len(self.classes) or None
        if name.startswith(_FOLDER):
            return build_from_folder(Path(name.removeprefix(_FOLDER)), size_px=size_px, classes=classes)
        return build_unet(name, size_px=size_px, classes=classes)

    def initialize_model(self, model: nn.Module) -> None:
        """Do nothing: the initial weights of U-Nets do not depend on the data."""

    def grow(self, student: nn.Module, teacher: nn.Module, generator: torch.Generator) -> Growth:
        """Grow a U-Net; see `grow_unet`."""
        assert isinstance(student, DenoisingUNet), type(student)
        return grow_unet(student, teacher, generator)

    def fit_model(self, role: Role, weights: Weights) -> FittedModel:
        """Build the recipe's U-Net of that role with these weights; its predictions are of the recipe's kind.

        A network with the other kind of prediction is converted, which is mathematically exact.

        Raises:
            CheckpointError: the weights are those of another architecture, or were trained with another noising
                process, image size, or set of classes.
        """
        name, model = self._recipe.model_of(role), self.build_model(role)
        ours = self.describe_model()
        # Loading checks the number of classes, and a diffusers folder is built for its own image size.
        implied = ["classes"] * (not ours["classes"]) + ["image_size"] * name.startswith(_FOLDER)
        theirs = {**{key: ours[key] for key in implied}, **weights.details}
        if weights.recipe is None or weights.recipe["task"] == self._recipe.task:
            for key, what in _MUST_AGREE.items():
                if key in theirs and theirs[key] != ours[key]:
                    actual, expected = _difference(theirs[key], ours[key])
                    raise CheckpointError(f"{weights.path}: was trained with {what}: {actual}, not {expected}")
        notes = list(load_into(model, weights, expected=name))
        if missing := [key for key in ours if key not in theirs]:
            source = theirs.get("source", weights.path.name)
            notes.append(f"{source} does not record {', '.join(missing)}: assuming the recipe's values")
        prediction = theirs.get("prediction", self._schedule.prediction)
        if prediction == self._schedule.prediction:
            return FittedModel(model, tuple(notes))
        conversion = f"its {prediction} predictions are converted to {self._schedule.prediction}"
        if prediction == "epsilon":
            largest = self._schedule.alpha_bars[-1].item() ** -0.5
            conversion += f", which multiplies their errors by up to {largest:,.0f} at the noisiest timesteps"
            if role is Role.TEACHER and self._recipe.distill.timestep_weighting == "uniform":
                conversion += "; distill.timestep_weighting=min_snr reduces the weight of these"
        return FittedModel(Converted(model, self._schedule), (*notes, conversion))

    def example_batch(self) -> ImagesToNoise:
        """Return a batch of one training image."""
        return self._to_noise(self._feeds.train.example())

    def train_batches(self, first_step: int) -> Iterator[ImagesToNoise]:
        """Iterate over this rank's augmented micro-batches."""
        return map(self._to_noise, self._feeds.train.micro_batches(first_step, self._ranks, self._train.accumulate))

    def losses(self, student: nn.Module, teacher: FrozenTeacher | None, batch: ImagesToNoise) -> Losses:
        """Squared error of the prediction and, with a teacher, its squared distance from the teacher's prediction."""
        schedule = self._schedule
        timesteps = torch.randint(schedule.timesteps, (len(batch),), device=self._device)
        noise = torch.randn_like(batch.images)
        noisy = schedule.add_noise(batch.images, noise, timesteps)
        predicted = student(noisy, timesteps, batch.labels).float()

        def distance(target: Tensor, weighting: TimestepWeighting) -> Tensor:
            return weighted_squared_error(predicted, target, schedule.weights(timesteps, weighting))

        task = {"mse": distance(schedule.target(batch.images, noise, timesteps), self._recipe.loss.timestep_weighting)}
        if teacher is None:
            return Losses(task, {})
        taught = teacher(noisy, timesteps, batch.labels).float()
        return Losses(task, {"mse": distance(taught, self._recipe.distill.timestep_weighting)})

    def evaluate(self, model: nn.Module, *, with_predictions: bool = False) -> Evaluation:
        """Compute FID and KID of generated images; every model starts from the same noise."""
        scorer, scoring = self._scoring.scorer(), self._scoring
        wanted = self._recipe.fid.samples if with_predictions else _SHOWN
        kept: list[tuple[int, Tensor]] = []
        for ids in self._sample_ids():
            pixels, finite = self._generate(model, ids)
            scorer.add(ids, pixels, finite)
            kept += zip(ids[ids < wanted].tolist(), pixels, strict=False)
        scorer.merge(self._ranks)
        found = sorted((pair for part in self._ranks.gather(kept) for pair in part), key=itemgetter(0))
        samples = torch.stack([pixels for _, pixels in found])
        result = self._ranks.on_main(scorer.result)
        return Evaluation(
            {"fid": result.fid, "kid": result.kid},
            notes=(*scoring.notes(), *result.notes),
            files={"samples": partial(write_samples, samples)} if with_predictions else {},
            pictures=partial(self._draw, samples) if with_predictions else None,
            snapshot=partial(self._draw_grid, samples[:_SHOWN]),
        )

    def doubt(self, metrics: Mapping[str, float]) -> str | None:
        """Compare FID with that of the noise that generation starts from, which an untrained network hardly changes."""
        noise = self._fid_of_noise
        if not metrics["fid"] >= _NOISE_SHARE * noise:  # also if it is NaN
            return None
        return f"fid {metrics['fid']:.1f} is close to that of pure noise ({noise:.1f}): it generates no images"

    @cached_property
    def _fid_of_noise(self) -> float:
        """FID of the starting noise as images; costs the extractor's time for the samples, but no generation."""
        scorer, sampler = self._scoring.scorer(), self._recipe.sampler
        for ids in self._sample_ids():
            noise = starting_noise(sampler.seed, ids, self._feeds.size_px).to(self._device)
            scorer.add(ids, to_bytes(noise.clamp(-1, 1), self._feeds.normalization))
        scorer.merge(self._ranks)
        return self._ranks.on_main(scorer.result).fid

    def _sample_ids(self) -> Iterator[Tensor]:
        """Iterate over the ids of this rank's samples, int64, batch by batch."""
        parts = equal_parts(range(self._recipe.fid.samples), self._recipe.sampler.batch_size)
        return map(torch.tensor, self._ranks.share(parts))

    def _generate(self, model: nn.Module, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Generate samples, uint8 [n, 3, S, S] on the CPU, and flag the finite ones, bool [n]; classes alternate."""
        sampler = self._recipe.sampler
        noise = starting_noise(sampler.seed, ids, self._feeds.size_px).to(self._device)
        labels = (ids % len(self.classes)).to(self._device) if self.classes else None
        images = generate(model, noise, schedule=self._schedule, sampler=sampler, labels=labels)
        finite = images.isfinite().flatten(1).all(1).cpu()
        return to_bytes(images.nan_to_num(), self._feeds.normalization), finite

    def _draw(self, samples: Tensor, folder: Path, count: int) -> list[Path]:
        path = folder / "samples.png"
        self._draw_grid(samples[:count], path)
        return [path]

    def _draw_grid(self, samples: Tensor, path: Path) -> None:
        draw_samples(samples, path, title=f"{self._recipe.name}: generated images")

    def _to_noise(self, batch: LabelledImages) -> ImagesToNoise:
        return ImagesToNoise(batch.images, batch.labels if self.classes else None, batch.ids)


def _difference(actual: Any, expected: Any) -> tuple[str, str]:
    """Format two unequal values; lists of classes by their lengths or, if equally long, by their first difference."""
    if not (isinstance(actual, list) and isinstance(expected, list)):
        return str(actual), str(expected)
    if len(actual) != len(expected):
        return str(len(actual) or "none"), str(len(expected) or "none")
    index = next(index for index, pair in enumerate(zip(actual, expected, strict=True)) if pair[0] != pair[1])
    return f"number {index} is {actual[index]!r}", repr(expected[index])
