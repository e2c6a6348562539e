"""Fitting a sum of harmonics: squared error, and the teacher's curve beside it."""

import csv
import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from w2skd.data.counter import normal, uniform
from w2skd.data.identity import DataIdentity
from w2skd.data.order import BatchOrder
from w2skd.data.streaming import Request, StreamingFeed
from w2skd.data.workers import Workers
from w2skd.errors import GrowthError
from w2skd.method.grow import Growth
from w2skd.method.teacher import FrozenTeacher
from w2skd.platform.ranks import Ranks
from w2skd.recipe.train import TrainSection
from w2skd.tasks.base import Evaluation, FittedModel, Losses, Preview, Role
from w2skd.weights.load import Weights, load_into, load_weights
from w2skd_harmonics.recipe import HarmonicsRecipe

_WIDTHS = {"mlp_4": 4, "mlp_16": 16}


@dataclass(frozen=True, eq=False)
class Points:
    """One micro-batch: x and y float32 [N, 1], ids int64 [N]."""

    x: Tensor
    y: Tensor
    ids: Tensor

    @property
    def model_inputs(self) -> tuple[Tensor]:
        """The network's input."""
        return (self.x,)

    def pin_memory(self) -> "Points":
        """Copy to page-locked memory."""
        return Points(self.x.pin_memory(), self.y.pin_memory(), self.ids.pin_memory())

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True)
class Curve:
    """A sum of sines, with noise on its training points. Data workers run it, so it is picklable."""

    harmonics: int
    noise: float

    @property
    def plain(self) -> "Curve":
        """This curve: its training points have no augmentation."""
        return self

    def __call__(self, request: Request) -> Points:
        """Return the requested training points, each a function of its id."""
        numbers = torch.tensor(list(request.ids))
        x = uniform(1, numbers)[:, None]
        return Points(x, self.clean(x) + self.noise * normal(2, numbers)[:, None], numbers)

    def clean(self, x: Tensor) -> Tensor:
        """Return y without noise for x, [N, 1]."""
        return torch.stack([torch.sin(2 * torch.pi * k * x) / k for k in range(1, self.harmonics + 1)]).sum(0)


@dataclass(frozen=True)
class DeliverPoints:
    """Moves micro-batches to the device."""

    device: torch.device

    def __call__(self, made: Points, ids: Tensor, step: int = 0, number: int = 0) -> Points:
        """Return the batch of the points `ids`."""
        return Points(made.x.to(self.device), made.y.to(self.device), ids)


class HarmonicsTask:
    """See `w2skd.tasks.base.Task`."""

    open_weights = staticmethod(lambda checkpoint, model, key=None: load_weights(checkpoint, key))

    def __init__(
        self, recipe: HarmonicsRecipe, *, train: TrainSection, seed: int, device: torch.device, ranks: Ranks
    ) -> None:
        self.metric = recipe.metric
        self._recipe = recipe
        self._train = train
        self._device = device
        self._ranks = ranks
        self._curve = Curve(recipe.data.harmonics, recipe.noise)
        data = recipe.data
        order = BatchOrder(data.train_examples, train.batch_size, seed=seed)
        workers = Workers(data.workers, data.worker_timeout_s)
        self._feed = StreamingFeed(order, self._curve, DeliverPoints(device), workers)

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps per pass over the training points."""
        return self._feed.steps_per_epoch

    def describe_data(self) -> dict[str, Any]:
        """Return the identity and the size of the data."""
        data = self._recipe.data
        return {
            "data_fingerprint": hashlib.sha256(repr((data.harmonics, self._recipe.noise)).encode()).hexdigest()[:16],
            "train_examples": data.train_examples,
            "eval_examples": data.eval_examples,
        }

    def identify_data(self) -> DataIdentity:
        """Identify the data by what generates them."""
        data = self._recipe.data
        counts = {"training": data.train_examples, "evaluation": data.eval_examples}
        content = repr((data.harmonics, self._recipe.noise))
        return DataIdentity({part: {"images": count, "content": content} for part, count in counts.items()}, ())

    def describe_model(self) -> dict[str, Any]:
        """Return the number of harmonics that the network was fitted to."""
        return {"harmonics": self._recipe.data.harmonics}

    def build_model(self, role: Role) -> nn.Module:
        """Build a network of one hidden layer."""
        width = _WIDTHS[self._recipe.model_of(role)]
        return nn.Sequential(nn.Linear(1, width), nn.Tanh(), nn.Linear(width, 1))

    def initialize_model(self, model: nn.Module) -> None:
        """Do nothing: the initial weights do not depend on the data."""

    def grow(self, student: nn.Module, teacher: nn.Module, generator: torch.Generator) -> Growth:
        """Refuse to grow, because there is no plan for these networks."""
        raise GrowthError("student: networks for harmonics cannot be grown")

    def fit_model(self, role: Role, weights: Weights) -> FittedModel:
        """Build the network with these weights."""
        model = self.build_model(role)
        load_into(model, weights, expected=self._recipe.model_of(role))
        return FittedModel(model, (f"fitted to {weights.details.get('harmonics', 'unknown')} harmonics",))

    def example_batch(self) -> Points:
        """Return the first point."""
        return self._feed.example()

    def preview(self) -> Preview:
        """Return grey squares as bright as y."""
        batch = next(self.train_batches(0))
        grey = ((batch.y.cpu() + 2) * 63).clamp(0, 255).to(torch.uint8)
        captions = tuple(f"x = {x:.2f}" for x in batch.x.flatten().tolist())
        return Preview(grey[:, :, None, None].expand(-1, 3, 8, 8).contiguous(), captions)

    def train_batches(self, first_step: int) -> Iterator[Points]:
        """Yield this rank's micro-batches."""
        return self._feed.micro_batches(first_step, self._ranks, self._train.accumulate)

    def losses(self, student: nn.Module, teacher: FrozenTeacher | None, batch: Points) -> Losses:
        """Return the squared error, and with a teacher the squared distance from its curve."""
        y = student(batch.x)
        task = {"mse": (y - batch.y).square().mean()}
        return Losses(task, {} if teacher is None else {"mse": (y - teacher(batch.x)).square().mean()})

    def doubt(self, metrics: Mapping[str, float]) -> str | None:
        """Trust every model."""
        return None

    def evaluate(self, model: nn.Module, *, with_predictions: bool = False) -> Evaluation:
        """Return errors at evenly spaced points, each scored by one rank."""
        count, ranks = self._recipe.data.eval_examples, self._ranks
        x = torch.linspace(0, 1, count, device=self._device)[ranks.rank :: ranks.world, None]
        y = model(x)
        parts = ranks.gather(torch.cat([x, y, self._curve.clean(x)], dim=1).cpu())
        found = torch.cat(parts)[torch.cat(parts)[:, 0].argsort()]
        errors = (found[:, 1] - found[:, 2]).abs().double()
        metrics = {"rmse": errors.square().mean().sqrt().item(), "max_error": errors.max().item()}
        files = {"curve": partial(_write_curve, found)} if with_predictions else {}
        return Evaluation(metrics, notes=(f"scored at {len(found)} points",), files=files)


def _write_curve(found: Tensor, path: Path) -> None:
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("x", "fitted", "true"))
        writer.writerows(found.tolist())
