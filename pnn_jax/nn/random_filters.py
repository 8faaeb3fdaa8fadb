"""Control experiments: fixed 3x3 filters in the place of the noise masks, so that a layer sees a pixel's neighbours."""

from collections.abc import Iterator, Mapping
from functools import reduce
from typing import Any

import jax
import jax.numpy as jnp

from pnn_jax.nn.noise import stored_masks
from pnn_jax.nn.perturbation import PerturbationLayer, combine_responses
from pnn_jax.options import Conflict

OFFSETS = 9  # of a 3x3 filter


class RandomFilterLayer(PerturbationLayer):
    """Convolve every channel with fixed random 3x3 filters, activate, combine.

    x [b, h, w, c] -> [b, h, w, features]. The learned weights are those of a `PerturbationLayer` with the same options.
    The difference is that each fixed response sees the pixel's neighbours. Neither side of the debate ran this control.

    The filters [3, 3, c or 1, num_masks] are the variable `masks`, as `noise_type` draws them; a third of that is used.
    """

    # Not options here: filters have no level, and are never redrawn.
    noise_level: float = 1.0
    redraw_masks: bool = False

    @staticmethod
    def conflicts(values: Mapping[str, Any]) -> Iterator[Conflict]:
        if values['redraw_masks']:
            yield 'redraw_masks', 'only noise masks can be redrawn, not filters'

    def mask_shape(self, x: jax.Array) -> tuple[int, ...]:
        return 3, 3, 1 if self.share_masks else x.shape[-1], self.num_masks

    def filters(self, x: jax.Array, train: bool) -> jax.Array:
        """The filters that x [b, h, w, c] is convolved with: [3, 3, c or 1, num_masks], in the dtype of x."""
        return self.masks(self.mask_shape(x), train).astype(x.dtype) / 3

    def respond(self, x: jax.Array, kernel: jax.Array, train: bool) -> jax.Array:
        filters = self.filters(x, train)
        height, width = x.shape[1:3]
        padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))[..., None]
        shifted = [
            padded[:, i : i + height, j : j + width] * filters[None, None, None, i, j]
            for i in range(3)
            for j in range(3)
        ]
        responses = reduce(jnp.add, shifted)
        activation = self.shared_activation()
        if activation is not None:
            responses = activation(responses, train)
        return combine_responses(responses, kernel)


class ShiftLayer(RandomFilterLayer):
    """Shift every channel by at most one pixel in each direction, activate, combine (Shift, arXiv 1711.08141).

    x [b, h, w, c] -> [b, h, w, features]; zeros move in at the edge. This is spatial mixing in its simplest form,
    without any parameter. The shifts are random but divided equally: each of the nine, no shift among them, is that of
    as many channels as any other, give or take one. They are stored as the variable `masks`: filters
    [3, 3, c or 1, num_masks] with a single 1 each.
    """

    # Not options here: the filters of a shift have no distribution, and a trained one would be no shift.
    noise_type: str = ''
    trainable_masks: bool = False

    @staticmethod
    def conflicts(values: Mapping[str, Any]) -> Iterator[Conflict]:
        for name in ('redraw_masks', 'trainable_masks'):
            if values[name]:
                yield name, 'only noise masks can be redrawn or trained, not shifts'

    def filters(self, x: jax.Array, train: bool) -> jax.Array:
        return stored_masks(self, self.mask_shape(x), one_hot_filters, trainable=False).astype(x.dtype)


def one_hot_filters(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Filters of shape [3, 3, c, m] with a single 1 each, at positions that are divided equally and in random order."""
    _, _, channels, num_masks = shape
    positions = jax.random.permutation(key, jnp.arange(channels * num_masks) % OFFSETS)
    return jax.nn.one_hot(positions, OFFSETS, axis=0, dtype=jnp.float32).reshape(shape)
