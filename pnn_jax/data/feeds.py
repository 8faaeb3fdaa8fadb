"""Feeds: where the batches of an epoch come from, a data set on the device or a stream from disk.

A feed only yields batches. Both kinds yield the same examples in the same order for the same key, and can start at any
step of an epoch without a state of their own.
"""

import math
from collections.abc import Iterator
from functools import cached_property
from typing import Any, Protocol

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from pnn_jax.data.batches import epoch_order, steps_per_epoch
from pnn_jax.data.dataset import Dataset
from pnn_jax.data.stream_batches import stream_eval_batches, stream_train_batches
from pnn_jax.data.streams import Stream
from pnn_jax.hosts import replicate
from pnn_jax.padding import HostBatch, padded_batches

BATCH_AXIS = 'batch'


class Batches(Protocol):
    """One or several consecutive batches, as one argument of the compiled training step.

    Attributes:
        num_steps: how many batches.
        batch_size: examples in each of them.
    """

    @property
    def num_steps(self) -> int: ...

    @property
    def batch_size(self) -> int: ...

    def batch(self, index: jax.Array | int) -> tuple[jax.Array, jax.Array]:
        """Images uint8 [b, h, w, c] and labels int32 [b] of batch number `index`, inside a jitted function."""


class ResidentBatches(flax.struct.PyTreeNode):
    """Batches of a data set that lives on the devices: the examples order[start:start + b], and so on.

    Attributes:
        images: uint8 [n, h, w, c], the whole training set.
        labels: int32 [n].
        order: int32 [n], the order of the epoch.
        start: int32 [], position of the first batch in `order`.
        sharding: of a batch.
    """

    images: jax.Array
    labels: jax.Array
    order: jax.Array
    start: jax.Array | int
    batch_size: int = flax.struct.field(pytree_node=False)
    num_steps: int = flax.struct.field(pytree_node=False)
    sharding: NamedSharding = flax.struct.field(pytree_node=False)

    def batch(self, index: jax.Array | int) -> tuple[jax.Array, jax.Array]:
        chosen = jax.lax.dynamic_slice_in_dim(self.order, self.start + index * self.batch_size, self.batch_size)
        chosen = jax.lax.with_sharding_constraint(chosen, self.sharding)
        return self.images[chosen], self.labels[chosen]


class LoadedBatch(flax.struct.PyTreeNode):
    """A single batch that was read from disk: images uint8 [b, h, w, c], labels int32 [b]."""

    images: jax.Array
    labels: jax.Array
    num_steps: int = flax.struct.field(pytree_node=False, default=1)

    @property
    def batch_size(self) -> int:
        return len(self.labels)

    def batch(self, index: jax.Array | int) -> tuple[jax.Array, jax.Array]:
        del index
        return self.images, self.labels


def batch_sharding(mesh: jax.sharding.Mesh, batch_size: int) -> NamedSharding:
    """Over all devices where the batch divides by them, else replicated (the last, smaller batch of an epoch)."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXIS if batch_size % mesh.size == 0 else None))


class DeviceFeed:
    """A data set that lives on the devices as uint8.

    Attributes:
        image_shape: [h, w, c] of every image.
        num_train: training examples.
        num_examples: of the splits to evaluate on, by name: 'test', and 'validation' where there is one.
        test_images: uint8 [test examples, h, w, c]; None where they are not in memory.
    """

    def __init__(self, dataset: Dataset, mesh: jax.sharding.Mesh, *, batch_size: int, steps_per_dispatch: int):
        self.dataset, self.mesh = dataset, mesh
        self.image_shape = dataset.train.images.shape[1:]
        self.batch_size, self.steps_per_dispatch = batch_size, steps_per_dispatch
        self.num_train, self.num_examples = len(dataset.train.labels), {'test': len(dataset.test.labels)}
        if dataset.validation is not None:
            self.num_examples['validation'] = len(dataset.validation.labels)
        self.test_images = dataset.test.images
        self.replicated = NamedSharding(mesh, PartitionSpec())

    @cached_property
    def training_set(self) -> tuple[jax.Array, jax.Array]:
        """Images and labels on every device. They are put there when first needed: evaluation never does."""
        train = self.dataset.train
        return replicate((train.images, train.labels), self.replicated)

    def dispatches(self, first_step: int) -> Iterator[tuple[int, int, int]]:
        """The rest of an epoch from its step `first_step`: (start, batch_size, num_steps) of each dispatch.

        Full batches are trained `steps_per_dispatch` at a time, left-over ones one by one, and the last, smaller batch
        by itself: at most three compiled shapes.
        """
        full_steps = self.num_train // self.batch_size
        step = first_step
        while step < full_steps:
            num_steps = self.steps_per_dispatch if step + self.steps_per_dispatch <= full_steps else 1
            yield step * self.batch_size, self.batch_size, num_steps
            step += num_steps
        if step < steps_per_epoch(self.num_train, self.batch_size):
            yield step * self.batch_size, self.num_train - step * self.batch_size, 1

    def batches(self, key: jax.Array, epoch: int, first_step: int = 0) -> Iterator[ResidentBatches]:
        """What is left of an epoch (from 0), from its step `first_step` on; `key` is the run's."""
        order = epoch_order(key, epoch, self.num_train)
        for start, batch_size, num_steps in self.dispatches(first_step):
            yield self._batches(order, start, batch_size, num_steps)

    def shapes(self) -> list[ResidentBatches]:
        """One example of each shape of `batches`, to compile the training step for."""
        order = jax.ShapeDtypeStruct((self.num_train,), jnp.int32, sharding=self.replicated)
        return [self._batches(order, 0, *shape) for shape in dict.fromkeys(d[1:] for d in self.dispatches(0))]

    def _batches(self, order, start: int, batch_size: int, num_steps: int) -> ResidentBatches:
        sharding = batch_sharding(self.mesh, batch_size)
        return ResidentBatches(*self.training_set, order, start, batch_size, num_steps, sharding)

    def eval_batches(self, batch_size: int, split: str = 'test') -> Iterator[HostBatch]:
        """A split of `num_examples` in padded batches, as `make_evaluate` takes them."""
        examples = self.dataset.test if split == 'test' else self.dataset.validation
        if examples is None:
            raise ValueError('there are no validation examples: config.data.validation_examples is 0')
        return padded_batches(examples.images, examples.labels, batch_size)


class StreamFeed:
    """A data set that stays on disk; each host decodes its share, a few batches ahead. Attributes as `DeviceFeed`."""

    test_images = None

    def __init__(self, stream: Stream, mesh: jax.sharding.Mesh, *, batch_size: int):
        self.stream, self.mesh, self.batch_size = stream, mesh, batch_size
        self.image_shape = stream.image_shape
        self.num_train, self.num_examples = len(stream.train_index), {'test': len(stream.test)}
        if stream.validation is not None:
            self.num_examples['validation'] = len(stream.validation)
        self.host = {'process_index': jax.process_index(), 'process_count': jax.process_count()}

    def batches(self, key: jax.Array, epoch: int, first_step: int = 0) -> Iterator[LoadedBatch]:
        """As `DeviceFeed.batches`, one batch at a time."""
        loaded = stream_train_batches(
            self.stream,
            key=key,
            epoch=epoch,
            start_step=first_step,
            batch_size=self.batch_size,
            device_count=jax.device_count(),
            **self.host,
        )
        for step, batch in enumerate(loaded, first_step):
            size = min(self.batch_size, self.num_train - step * self.batch_size)
            sharding = batch_sharding(self.mesh, size)
            images, labels = (
                jax.make_array_from_process_local_data(sharding, batch[name], (size, *batch[name].shape[1:]))
                for name in ('image', 'label')
            )
            yield LoadedBatch(images, labels)

    def shapes(self) -> list[LoadedBatch]:
        """As `DeviceFeed.shapes`."""
        sizes = {min(self.batch_size, self.num_train), self.num_train % self.batch_size or self.batch_size}
        return [
            LoadedBatch(
                images=self._shape((size, *self.image_shape), jnp.uint8), labels=self._shape((size,), jnp.int32)
            )
            for size in sorted(sizes, reverse=True)
        ]

    def _shape(self, shape: tuple[int, ...], dtype) -> Any:
        return jax.ShapeDtypeStruct(shape, dtype, sharding=batch_sharding(self.mesh, shape[0]))

    def eval_batches(self, batch_size: int, split: str = 'test') -> Iterator[HostBatch]:
        """As `DeviceFeed.eval_batches`."""
        size = math.ceil(batch_size / jax.device_count()) * jax.device_count()
        for batch in stream_eval_batches(self.stream, batch_size=size, split=split, **self.host):
            yield {
                name: np.reshape(value, (jax.local_device_count(), -1, *value.shape[1:]))
                for name, value in batch.items()
            }
