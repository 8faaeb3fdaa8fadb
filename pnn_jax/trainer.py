"""What all seeds of a config share: the network, the optimizer, the compiled programs and the data."""

import dataclasses
from collections.abc import Callable
from functools import cached_property, partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from pnn_jax.data import Dataset, load_data
from pnn_jax.data.augment import preprocess
from pnn_jax.data.batches import steps_per_epoch
from pnn_jax.data.feeds import BATCH_AXIS, DeviceFeed, StreamFeed
from pnn_jax.data.streams import Stream
from pnn_jax.errors import StoppedEarly
from pnn_jax.evaluate import Evaluation, make_evaluate
from pnn_jax.hosts import agreed, replicate
from pnn_jax.models.registry import create_model
from pnn_jax.models.variables import draw_variables, init_variables
from pnn_jax.optim import Schedule, create_optimizer, learning_rate_schedule
from pnn_jax.run.console import say
from pnn_jax.run.result import DataSummary
from pnn_jax.runtime import release_unused
from pnn_jax.train_step import TrainState, Variables, create_train_state, fixed_collections, train_steps
from pnn_jax.validate import check_builds, check_fits_data, check_platform, validate_config

STEPS_PER_DISPATCH = 20  # on accelerators, where launching a program takes as long as a small step


@dataclasses.dataclass(frozen=True)
class Trainer:
    """Made by `create`. `config.num_seeds` and the seeds themselves are not looked at.

    Attributes:
        feed: yields the batches of the training set and of the test set.
        data: what a run records of the data set.
    """

    config: Any
    model: nn.Module
    mesh: jax.sharding.Mesh
    feed: DeviceFeed | StreamFeed
    data: DataSummary
    schedule: Schedule
    optimizer: optax.GradientTransformation

    @classmethod
    def create(cls, config, data: Dataset | Stream | None = None) -> 'Trainer':
        """Loads the data, if they are not given, and checks that config, data and machine go together.

        Raises:
            InputError: they do not.
        """
        validate_config(config)
        check_platform(config.platform)
        data = read_data(config.data) if data is None else data
        mesh = jax.make_mesh((jax.device_count(),), (BATCH_AXIS,), axis_types=(AxisType.Auto,))
        feed = create_feed(data, mesh, config)
        check_fits_data(config, feed.image_shape)
        schedule = learning_rate_schedule(
            config.schedule, config.optimizer.learning_rate, steps_per_epoch(feed.num_train, config.batch_size)
        )
        trainer = cls(
            config=config,
            model=create_model(config.model, len(data.class_names)),
            mesh=mesh,
            feed=feed,
            data=DataSummary(data.name, data.digest, feed.num_train, feed.num_test, data.class_names),
            schedule=schedule,
            optimizer=create_optimizer(config.optimizer, schedule),
        )
        check_builds(config, trainer.shapes)
        return trainer

    @property
    def steps_per_epoch(self) -> int:
        return steps_per_epoch(self.feed.num_train, self.config.batch_size)

    @property
    def replicated(self) -> NamedSharding:
        """A copy on every device."""
        return NamedSharding(self.mesh, PartitionSpec())

    def preprocess(self, key: jax.Array | None, images: jax.Array, *, augment: str | None = None) -> jax.Array:
        """What the network sees of uint8 images, augmented as `config.data` says or as named."""
        data, dtype = self.config.data, jnp.dtype(self.config.model.dtype)
        return preprocess(images, data.mean, data.std, augment=augment or data.augment, key=key, dtype=dtype)

    def predict(self, variables: Variables, images: jax.Array) -> jax.Array:
        """Logits of uint8 images, in evaluation mode."""
        logits = self.model.apply(variables, self.preprocess(None, images, augment='none'), train=False)
        assert isinstance(logits, jax.Array)  # without `mutable`, apply returns the output alone
        return logits

    @cached_property
    def train_steps(self) -> Any:
        """The compiled `train_steps(state, fixed, batches)`; donates the buffers of `state`."""
        parts = {'model': self.model, 'optimizer': self.optimizer, 'preprocess': self.preprocess}
        return jax.jit(partial(train_steps, **parts), donate_argnums=0)

    def compile(self) -> None:
        """Compiles `train_steps` for every shape of batches of an epoch.

        Call it before `init`: the compiler needs about as much memory as training does.
        """
        on_mesh = lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=self.replicated)
        state, fixed = jax.tree.map(on_mesh, self.shapes)
        for batches in self.feed.shapes():
            self.train_steps.lower(state, fixed, batches).compile()
        release_unused()

    def init(self, seed: int, mask_seed: int) -> tuple[TrainState, Variables]:
        """A fresh state and the fixed collections, on all devices."""
        state, fixed = replicate(self._init(init_variables, seed, mask_seed), self.replicated)
        release_unused()
        return state, fixed

    @cached_property
    def shapes(self) -> tuple[TrainState, Variables]:
        """What `init` returns, as shapes and types; nothing is computed."""
        return jax.eval_shape(lambda: self._init(draw_variables, 0, 0))

    def _init(self, draw: Callable[..., Variables], seed: int, mask_seed: int) -> tuple[TrainState, Variables]:
        init_key, run_key = jax.random.split(jax.random.key(seed))
        variables = draw(self.model, self.feed.image_shape, key=init_key, mask_key=jax.random.key(mask_seed))
        return create_train_state(variables, self.optimizer, run_key), fixed_collections(variables)

    @cached_property
    def _evaluate(self) -> Callable[..., Evaluation]:
        return make_evaluate(self.predict)

    def evaluate(self, variables: Variables, should_stop: Callable[[], str] = lambda: '') -> Evaluation:
        """Exact outcomes on the test set; raises StoppedEarly where `should_stop`, asked at every batch, says so."""

        def batches():
            for batch in self.feed.eval_batches(self.config.eval_batch_size):
                if reason := agreed(should_stop()):
                    raise StoppedEarly(reason)
                yield batch

        return self._evaluate(variables, batches(), self.feed.num_test)


def read_data(data_config) -> Dataset | Stream:
    """`load_data` that says what it reads, and what is notable about it."""
    say(f'reading data: {data_config.source} {data_config.path}'.rstrip())
    data = load_data(data_config)
    for note in data.notes:
        say(f'note: {note}')
    return data


def create_feed(data: Dataset | Stream, mesh: jax.sharding.Mesh, config) -> DeviceFeed | StreamFeed:
    """The feed of a data set. A CPU runs one step a dispatch: within a loop XLA makes its convolutions slow."""
    if isinstance(data, Stream):
        return StreamFeed(data, mesh, batch_size=config.batch_size)
    default = 1 if jax.default_backend() == 'cpu' else STEPS_PER_DISPATCH
    num_steps = config.steps_per_dispatch or default
    return DeviceFeed(data, mesh, batch_size=config.batch_size, steps_per_dispatch=num_steps)
