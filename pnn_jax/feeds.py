"""Where batches come from: a data set on the device, or a stream from disk. The training loop sees one interface.

Both take the same examples in the same order for the same key, and go on from any step without a state of their own.
"""

from collections.abc import Callable, Iterator
from functools import partial

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from pnn_jax.data import Dataset
from pnn_jax.data.batches import epoch_order, steps_per_epoch
from pnn_jax.data.stream_batches import stream_eval_batches, stream_train_batches
from pnn_jax.data.streams import Stream
from pnn_jax.evaluate import HostBatch, padded_batches
from pnn_jax.hosts import replicate
from pnn_jax.runtime import release_unused
from pnn_jax.train_state import TrainState

BATCH_AXIS = 'batch'

# (state, fixed, images uint8 [b, h, w, c], labels int32 [b]) -> state after one update
Update = Callable[..., TrainState]
# State, updates and training images of one dispatch.
Progress = tuple[TrainState, int, int]


def batch_sharding(mesh: jax.sharding.Mesh, batch_size: int) -> NamedSharding:
    """Over all devices where the batch divides by them, else replicated (the last, smaller batch of an epoch)."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXIS if batch_size % mesh.size == 0 else None))


def shapes_on(tree, sharding: NamedSharding):
    """The shapes and types of a tree's leaves, as arrays that lie where `sharding` says."""
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), tree)


def make_train_step(update: Update, mesh: jax.sharding.Mesh) -> Callable[..., TrainState]:
    """Makes train_step(state, fixed, images, labels, order, start, batch_size=, num_steps=), for data on the device.

    Each step takes the `batch_size` examples order[start:start + batch_size] of the training set (images uint8
    [n, h, w, c], labels int32 [n]); `num_steps` steps in one dispatch. Returns the new state; the old one's buffers are
    donated, its fixed collections are given apart and left out.
    """

    @partial(jax.jit, static_argnames=('batch_size', 'num_steps'), donate_argnums=0)
    def train_step(state, fixed, images, labels, order, start, *, batch_size, num_steps=1):
        def step(state, offset):
            index = jax.lax.dynamic_slice_in_dim(order, start + offset * batch_size, batch_size)
            index = jax.lax.with_sharding_constraint(index, batch_sharding(mesh, batch_size))
            return update(state, fixed, images[index], labels[index]), None

        if num_steps == 1:
            return step(state, 0)[0]
        return jax.lax.scan(step, state, jnp.arange(num_steps))[0]

    return train_step


class DeviceFeed:
    """A data set that lives on the devices as uint8."""

    def __init__(self, dataset: Dataset, update: Update, mesh: jax.sharding.Mesh, *, batch_size: int, num_steps: int):
        self.dataset, self.batch_size, self.steps_per_dispatch = dataset, batch_size, num_steps
        self.num_train, self.num_test = len(dataset.train.labels), len(dataset.test.labels)
        self.replicated = NamedSharding(mesh, PartitionSpec())
        self.images, self.labels = replicate((dataset.train.images, dataset.train.labels), self.replicated)
        self.jitted_step = make_train_step(update, mesh)

    def dispatches(self, first_step: int) -> Iterator[tuple[int, int, int]]:
        """The rest of an epoch from its step `first_step`: (start, batch_size, num_steps) of each dispatch.

        Full batches go `steps_per_dispatch` at a time, left-over ones singly, and the last, smaller batch by itself:
        at most three compiled shapes.
        """
        full_steps = self.num_train // self.batch_size
        step = first_step
        while step < full_steps:
            num_steps = self.steps_per_dispatch if step + self.steps_per_dispatch <= full_steps else 1
            yield step * self.batch_size, self.batch_size, num_steps
            step += num_steps
        if step < steps_per_epoch(self.num_train, self.batch_size):
            yield step * self.batch_size, self.num_train - step * self.batch_size, 1

    def compile(self, state: TrainState) -> None:
        """Compiles the steps of an epoch for a state of these shapes.

        Before there is such a state, because the compiler needs about as much memory as training does.
        """
        state = shapes_on(state, self.replicated)
        order = epoch_order(replicate(jax.random.key(0), self.replicated), 0, self.num_train)
        for batch_size, num_steps in dict.fromkeys(dispatch[1:] for dispatch in self.dispatches(0)):
            lowered = self.jitted_step.lower(
                *self._arguments(state, order, 0), batch_size=batch_size, num_steps=num_steps
            )
            lowered.compile()
        release_unused()

    def train_step(self, state: TrainState, order: jax.Array, start: int, *, batch_size: int, num_steps: int):
        """The state after one dispatch, on the examples from order[start] on; donates the state's buffers."""
        new = self.jitted_step(*self._arguments(state, order, start), batch_size=batch_size, num_steps=num_steps)
        return new.replace(fixed=state.fixed)

    def _arguments(self, state: TrainState, order: jax.Array, start: int) -> tuple:
        return state.replace(fixed={}), state.fixed, self.images, self.labels, order, start

    def train(self, state: TrainState, epoch: int, first_step: int) -> Iterator[Progress]:
        """Trains through the epoch (from 0), from its step `first_step`; yields after every dispatch."""
        order = epoch_order(state.key, epoch, self.num_train)
        for start, batch_size, num_steps in self.dispatches(first_step):
            state = self.train_step(state, order, start, batch_size=batch_size, num_steps=num_steps)
            yield state, num_steps, batch_size * num_steps

    def eval_batches(self, batch_size: int) -> Iterator[HostBatch]:
        """The test set in padded batches, as `make_evaluate` takes them."""
        return padded_batches(self.dataset.test.images, self.dataset.test.labels, batch_size)


class StreamFeed:
    """A set that stays on disk; each host decodes its share, a few batches ahead."""

    def __init__(self, stream: Stream, update: Update, mesh: jax.sharding.Mesh, *, batch_size: int):
        self.stream, self.batch_size, self.mesh = stream, batch_size, mesh
        self.num_train, self.num_test = len(stream.train_index), len(stream.test)
        self.update = jax.jit(update, donate_argnums=0)
        self.host = {'process_index': jax.process_index(), 'process_count': jax.process_count()}

    def compile(self, state: TrainState) -> None:
        """As `DeviceFeed.compile`."""
        replicated = NamedSharding(self.mesh, PartitionSpec())
        state = shapes_on(state, replicated)
        for size in {min(self.batch_size, self.num_train), self.num_train % self.batch_size or self.batch_size}:
            images = jax.ShapeDtypeStruct((size, *self.stream.image_shape), jnp.uint8)
            labels = jax.ShapeDtypeStruct((size,), jnp.int32)
            batch = shapes_on((images, labels), batch_sharding(self.mesh, size))
            self.update.lower(state.replace(fixed={}), state.fixed, *batch).compile()
        release_unused()

    def train(self, state: TrainState, epoch: int, first_step: int) -> Iterator[Progress]:
        """As `DeviceFeed.train`; one update a dispatch."""
        fixed = state.fixed
        state = state.replace(fixed={})
        batches = stream_train_batches(
            self.stream,
            key=state.key,
            epoch=epoch,
            start_step=first_step,
            batch_size=self.batch_size,
            device_count=jax.device_count(),
            **self.host,
        )
        for step, batch in enumerate(batches, first_step):
            size = min(self.batch_size, self.num_train - step * self.batch_size)
            sharding = batch_sharding(self.mesh, size)
            images, labels = (
                jax.make_array_from_process_local_data(sharding, batch[name], (size, *batch[name].shape[1:]))
                for name in ('image', 'label')
            )
            state = self.update(state, fixed, images, labels)
            yield state.replace(fixed=fixed), 1, size

    def eval_batches(self, batch_size: int) -> Iterator[HostBatch]:
        """As `DeviceFeed.eval_batches`."""
        size = steps_per_epoch(batch_size, jax.device_count()) * jax.device_count()
        for batch in stream_eval_batches(self.stream, batch_size=size, **self.host):
            yield {name: value.reshape(jax.local_device_count(), -1, *value.shape[1:]) for name, value in batch.items()}
