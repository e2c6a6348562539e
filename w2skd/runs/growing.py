"""Running statistics of the norms that a grown student has and its teacher lacks."""

from w2skd.data.counter import seed_from
from w2skd.method.grow import fill_running_statistics
from w2skd.method.teacher import autocast
from w2skd.platform.device import seed_generators
from w2skd.runs.setup import Setup

STATISTICS_BATCHES = 20
"""Number of training batches over which the statistics of added norms are averaged."""


def fill_new_statistics(setup: Setup) -> None:
    """Average the statistics of added norms over the first training batches; other norms keep the teacher's."""
    assert setup.growth is not None
    batches = setup.task.train_batches(0)
    seed_generators(setup.device, seed_from(setup.recipe.seed, 0, 0))
    with autocast(setup.device, setup.train.precision):
        fill_running_statistics(
            setup.model,
            setup.growth.new_norms,
            lambda: setup.task.losses(setup.model, None, next(batches)),
            STATISTICS_BATCHES,
        )
