"""A network in which the positions behind the stem can be moved: exact counts, and batch norm recalibrated."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cached_property

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from experiments.recalibration import fixed_random_streams, recalibrated
from pnn_jax.data.augment import preprocess
from pnn_jax.data.dataset import Split
from pnn_jax.errors import InputError
from pnn_jax.evaluate import Evaluation, make_evaluate
from pnn_jax.models.resnet import ResNet
from pnn_jax.padding import padded_batches
from pnn_jax.train_step import Variables

STEM = 'stem'  # of every ResNet


def moving(positions: jax.Array) -> Callable:
    """A flax interceptor that moves the positions of the map behind the stem, as `positions` [h * w] says."""

    def interceptor(call, args, kwargs, context):
        y = call(*args, **kwargs)
        if context.method_name == '__call__' and context.module.path == (STEM,):
            flat = y.reshape(y.shape[0], -1, y.shape[-1])
            y = jnp.take(flat, positions, axis=1).reshape(y.shape)
        return y

    return interceptor


class ProbedNetwork:
    """The programs that probe networks of one architecture. Each is compiled once, whatever is changed.

    Args:
        model: a `ResNet`.
        mean, std: per channel, of the normalisation of the images.
        dtype: of the computation.

    Raises:
        InputError: the model is no `ResNet`.
    """

    def __init__(self, model: nn.Module, mean, std, dtype: str = 'float32'):
        if not isinstance(model, ResNet):
            raise InputError(f'network: {type(model).__name__}; only residual networks can be probed')
        self.model, self.mean, self.std, self.dtype = model, mean, std, jnp.dtype(dtype)

    @property
    def tile(self) -> int:
        """Pixels behind the stem, in each direction, that end up in one position of the last map."""
        return 2 ** (len(self.model.stage_sizes) - 1)

    @property
    def maps(self) -> list[str]:
        """Names of the modules whose outputs are read: the stem and the last block of every stage."""
        return [STEM, *(f'stage{stage}_block{blocks}' for stage, blocks in enumerate(self.model.stage_sizes, start=1))]

    def inputs(self, images: jax.Array) -> jax.Array:
        """The network's input from uint8 images [b, h, w, c]."""
        return preprocess(images, self.mean, self.std, augment='none', dtype=self.dtype)

    def map_shape(self, variables: Variables, images: np.ndarray) -> tuple[int, int]:
        """Height and width of the map behind the stem. Nothing is computed.

        Raises:
            InputError: the map cannot be cut into whole tiles.
        """
        shape = jax.eval_shape(self.features, variables, images[:1])[STEM].shape
        height, width = shape[1:3]
        if height % self.tile or width % self.tile:
            raise InputError(
                f'images of {images.shape[1:3]} pixels: the map behind the stem is {height}x{width}, and both must be '
                f'multiples of {self.tile}'
            )
        return height, width

    def logits(self, changed: tuple[Variables, jax.Array], images: jax.Array) -> jax.Array:
        """Logits [b, classes] of uint8 images [b, h, w, c]; `changed` is (variables, positions)."""
        variables, positions = changed
        with nn.intercept_methods(moving(positions)):
            return self.model.apply(variables, self.inputs(images), train=False)

    @cached_property
    def _evaluate(self) -> Callable[..., Evaluation]:
        return make_evaluate(self.logits)

    def count(self, variables: Variables, positions: np.ndarray, split: Split, batch_size: int) -> Evaluation:
        """Exact counts of the changed network on `split`, by the library's own evaluation."""
        batches = padded_batches(split.images, split.labels, batch_size)
        return self._evaluate((variables, positions), batches, len(split.images))

    @cached_property
    def _update_statistics(self) -> Callable[..., Variables]:
        def update(changed, images):
            variables, positions = changed
            with nn.intercept_methods(moving(positions)):
                _, updated = self.model.apply(
                    variables, self.inputs(images), train=True, mutable=['batch_stats'], rngs=fixed_random_streams()
                )
            return updated['batch_stats']

        return jax.jit(update)

    def recalibrate(
        self, variables: Variables, positions: np.ndarray, images: np.ndarray, batch_size: int
    ) -> Variables:
        """The variables with batch norm statistics of the changed network, instead of the stored ones.

        What is left of an accuracy after that is not due to statistics that no longer fit.

        Args:
            images: uint8 [n, h, w, c], training images. What is left over after the last full batch is not used.

        Raises:
            InputError: there is no full batch.
        """
        full = len(images) // batch_size * batch_size
        if full == 0:
            raise InputError(f'{len(images)} images to recalibrate on: one batch has {batch_size}')
        update = lambda variables, batch: self._update_statistics((variables, positions), batch)
        return recalibrated(update, variables, np.split(images[:full], full // batch_size))

    def features(self, variables: Variables, images: jax.Array) -> dict[str, jax.Array]:
        """Name of a map in `maps` -> its values [b, h', w', c'] for uint8 images [b, h, w, c]."""
        is_read = lambda module, _: module.path in {(name,) for name in self.maps}
        _, kept = self.model.apply(
            variables, self.inputs(images), train=False, capture_intermediates=is_read, mutable='intermediates'
        )
        return {name: kept['intermediates'][name]['__call__'][0] for name in self.maps}

    @cached_property
    def _features(self) -> Callable[..., dict[str, jax.Array]]:
        return jax.jit(self.features)

    def feature_batches(
        self, variables: Variables, images: np.ndarray, batch_size: int
    ) -> Iterator[dict[str, np.ndarray]]:
        """`features` of all images, batch by batch; the last batch may be smaller."""
        for start in range(0, len(images), batch_size):
            yield jax.device_get(self._features(variables, images[start : start + batch_size]))
