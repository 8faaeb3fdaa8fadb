"""What all seeds of a config share: the network, the optimizer, the compiled programs and the data."""

import contextlib
import dataclasses
import math
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from functools import cached_property, partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from pnn_jax.data import Dataset, checked, load_data
from pnn_jax.data.augment import preprocess
from pnn_jax.data.batches import steps_per_epoch
from pnn_jax.data.feeds import BATCH_AXIS, Batches, DeviceFeed, StreamFeed
from pnn_jax.data.streams import Stream
from pnn_jax.errors import StoppedEarly
from pnn_jax.evaluate import Evaluation, make_evaluate
from pnn_jax.hosts import agreed, replicate
from pnn_jax.models.registry import create_model
from pnn_jax.models.variables import draw_variables, jit_draws
from pnn_jax.optim import Schedule, create_optimizer, learning_rate_schedule
from pnn_jax.run.console import say
from pnn_jax.run.result import DataSummary
from pnn_jax.runtime import release_unused
from pnn_jax.train_step import (
    TrainState,
    Variables,
    all_variables,
    create_train_state,
    fixed_collections,
    train_steps,
    train_together,
)
from pnn_jax.validate import check_fits_data, check_fits_memory, check_platform, validate_config

BYTES_BESIDE_COMPILER = 2**27  # what may be initialised while programs are compiled
STEPS_PER_DISPATCH = 20  # on accelerators, where launching a program takes as long as a small step


@dataclasses.dataclass(frozen=True)
class Trainer:
    """Made by `create`. It does not depend on the seeds in `config`; `init` takes them as arguments.

    Attributes:
        feed: yields the batches of the training set and of the splits to evaluate on.
        data: the description of the data set that goes into the files of a run.
        schedule: step -> learning rate.
    """

    config: Any
    model: nn.Module
    mesh: Mesh
    feed: DeviceFeed | StreamFeed
    data: DataSummary
    schedule: Schedule
    optimizer: optax.GradientTransformation

    @classmethod
    def create(cls, config, data: Dataset | Stream | None = None) -> 'Trainer':
        """Loads the data, unless they are given, and builds the network. Checks that config, data and machine agree.

        Raises:
            InputError: the config is not valid, the data cannot be read, break a rule or do not fit the network, or the
                network is larger than this machine's memory.
        """
        validate_config(config)
        check_platform(config.platform)
        if data is None:
            data = read_data(config.data)
        elif isinstance(data, Dataset):
            data = checked(data)
        # In the order of `jax.devices()`, as the evaluation's pmap and the hosts' parts of a batch.
        mesh = Mesh(np.array(jax.devices()), (BATCH_AXIS,), axis_types=(AxisType.Auto,))
        feed = create_feed(data, mesh, config)
        check_fits_data(config, feed.image_shape)
        schedule = learning_rate_schedule(
            config.schedule,
            config.optimizer.learning_rate,
            steps_per_epoch(feed.num_train, config.batch_size),
            config.num_epochs,
        )
        trainer = cls(
            config=config,
            model=create_model(config.model, len(data.class_names)),
            mesh=mesh,
            feed=feed,
            data=DataSummary(
                name=data.name,
                digest=data.digest,
                train_examples=feed.num_train,
                test_examples=feed.num_examples['test'],
                class_names=data.class_names,
                image_shape=tuple(feed.image_shape),
                validation_examples=feed.num_examples.get('validation', 0),
            ),
            schedule=schedule,
            optimizer=create_optimizer(config.optimizer, schedule),
        )
        check_fits_memory(config, trainer.shapes)
        return trainer

    @property
    def steps_per_epoch(self) -> int:
        return steps_per_epoch(self.feed.num_train, self.config.batch_size)

    @property
    def replicated(self) -> NamedSharding:
        """The sharding that puts a copy on every device."""
        return NamedSharding(self.mesh, PartitionSpec())

    def preprocess(self, key: jax.Array | None, images: jax.Array, *, augment: str | None = None) -> jax.Array:
        """The network's input from images uint8 [b, h, w, c]: augmented with `key`, then normalised.

        `augment` replaces config.data.augment; 'none' needs no key.
        """
        data, dtype = self.config.data, jnp.dtype(self.config.model.dtype)
        return preprocess(images, data.mean, data.std, augment=augment or data.augment, key=key, dtype=dtype)

    def predict(self, variables: Variables, images: jax.Array) -> jax.Array:
        """Logits [b, classes] of images uint8 [b, h, w, c], in evaluation mode."""
        logits = self.model.apply(variables, self.preprocess(None, images, augment='none'), train=False)
        assert isinstance(logits, jax.Array)  # without `mutable`, apply returns the output alone
        return logits

    @cached_property
    def train_steps(self) -> Any:
        """The compiled `train_steps(state, fixed, batches)`; donates the buffers of `state`."""
        return jax.jit(partial(train_steps, **self._parts), donate_argnums=0)

    @cached_property
    def train_together(self) -> Any:
        """The compiled `train_together(states, fixed, batches)` of runs at the same step; donates those of `states`."""
        # The axis over runs has no sharding of its own. Results are on every device, like those of a run alone.
        return jax.jit(partial(train_together, **self._parts), donate_argnums=0, out_shardings=self.replicated)

    @property
    def _parts(self) -> dict[str, Any]:
        return {'model': self.model, 'optimizer': self.optimizer, 'preprocess': self.preprocess}

    def compile(self) -> None:
        """Begins to compile `train_steps` for every shape of batches of an epoch, in the order of the epoch.

        It returns while a thread compiles. `wait_for_program` waits for one program, so that the first step does not
        wait for those of other shapes. The first one is traced before it returns: what the caller traces meanwhile
        would take turns with it.
        """
        if self._programs:
            return
        say('compiling the training step; on a CPU this takes about 10 seconds, for large networks up to a minute')
        on_mesh = lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=self.replicated)
        state, fixed = jax.tree.map(on_mesh, self.shapes)
        thread = ThreadPoolExecutor(max_workers=1)
        for batches in self.feed.shapes():
            lower = partial(self.train_steps.lower, state, fixed, batches)
            lowered = None if self._programs else lower()
            compiling = thread.submit(lambda lowered, lower: (lowered or lower()).compile(), lowered, lower)
            self._programs[batches.batch_size, batches.num_steps] = compiling
        thread.submit(release_unused)
        thread.shutdown(wait=False)

    def wait_for_program(self, batches: Batches) -> float:
        """Waits until `compile` has made the program for batches of this shape; returns the seconds that it waited."""
        began = time.perf_counter()
        if compiling := self._programs.get((batches.batch_size, batches.num_steps)):
            compiling.result()
        return time.perf_counter() - began

    def compile_together(
        self, states: Sequence[TrainState], fixed: Sequence[Variables], batches: Sequence[Batches]
    ) -> float:
        """Compiles `train_together` for runs like these, unless that was done; returns the seconds that it took."""
        shape = len(states), batches[0].batch_size, batches[0].num_steps
        if shape in self._compiled_together:
            return 0.0
        if not self._compiled_together:
            say(f'compiling the training step of {len(states)} runs at once')
        began = time.perf_counter()
        self.train_together.lower(states, fixed, batches).compile()
        self._compiled_together.add(shape)
        return time.perf_counter() - began

    @cached_property
    def _compiled_together(self) -> set[tuple[int, int, int]]:
        """(number of runs, batch size, number of steps) of the programs that there are."""
        return set()

    @contextlib.contextmanager
    def ending_compilation(self) -> Iterator[None]:
        """A context that gives up, at its end, what `compile` has not begun: a process that stops would wait for it."""
        try:
            yield
        finally:
            for shape in [shape for shape, compiling in self._programs.items() if compiling.cancel()]:
                del self._programs[shape]

    @cached_property
    def _programs(self) -> dict[tuple[int, int], Future]:
        """(batch size, number of steps) -> the program that is being compiled for it."""
        return {}

    def init(self, seed: int, mask_seed: int) -> tuple[TrainState, Variables]:
        """A new state and the fixed collections, with a copy on every device.

        Where `compile` is at work, a large network waits for it: the compiler needs about as much memory as training.
        """
        if sum(math.prod(leaf.shape) * 4 for leaf in jax.tree.leaves(self.shapes)) > BYTES_BESIDE_COMPILER:
            wait(self._programs.values())
        init_key, run_key = jax.random.split(jax.random.key(seed))
        mask_key = jax.random.key(mask_seed)
        state, fixed = replicate(self._draw(init_key, mask_key, run_key), self.replicated)
        release_unused()
        return state, fixed

    @cached_property
    def _draw(self) -> Callable[..., tuple[TrainState, Variables]]:
        """The compiled (key of the weights, key of the masks, key of the run) -> what `init` returns."""
        return jit_draws(self._new_state, all_variables(*self.shapes))

    @cached_property
    def shapes(self) -> tuple[TrainState, Variables]:
        """The shapes and types of what `init` returns. Nothing is computed."""
        return jax.eval_shape(self._new_state, *[jax.random.key(0)] * 3)

    def _new_state(self, init_key: jax.Array, mask_key: jax.Array, run_key: jax.Array) -> tuple[TrainState, Variables]:
        variables = draw_variables(self.model, self.feed.image_shape, key=init_key, mask_key=mask_key)
        return create_train_state(variables, self.optimizer, run_key), fixed_collections(variables)

    @cached_property
    def _evaluate(self) -> Callable[..., Evaluation]:
        return make_evaluate(self.predict)

    @property
    def epoch_split(self) -> str:
        """What every epoch is evaluated on: 'validation' where the data have such examples, otherwise 'test'."""
        return 'validation' if 'validation' in self.feed.num_examples else 'test'

    def evaluate(
        self, variables: Variables, should_stop: Callable[[], str] = lambda: '', *, split: str = 'test'
    ) -> Evaluation:
        """Evaluates exactly on a split of `feed.num_examples`.

        Raises:
            StoppedEarly: `should_stop`, which is called before every batch, returned a reason.
        """

        def batches():
            for batch in self.feed.eval_batches(self.config.eval_batch_size, split):
                if reason := agreed(should_stop()):
                    raise StoppedEarly(reason)
                yield batch

        return self._evaluate(variables, batches(), self.feed.num_examples[split])


def read_data(data_config) -> Dataset | Stream:
    """`load_data`; prints what it reads and the notes about the data."""
    say(f'reading data: {data_config.source} {data_config.path}'.rstrip())
    data = load_data(data_config)
    for note in data.notes:
        say(f'note: {note}')
    return data


def create_feed(data: Dataset | Stream, mesh: Mesh, config) -> DeviceFeed | StreamFeed:
    """The feed of a data set.

    By default a CPU runs one step per call of the compiled program, because XLA:CPU computes convolutions slowly inside
    a loop. Accelerators run STEPS_PER_DISPATCH.
    """
    if isinstance(data, Stream):
        return StreamFeed(data, mesh, batch_size=config.batch_size)
    default = 1 if jax.default_backend() == 'cpu' else STEPS_PER_DISPATCH
    num_steps = config.steps_per_dispatch or default
    return DeviceFeed(data, mesh, batch_size=config.batch_size, steps_per_dispatch=num_steps)
