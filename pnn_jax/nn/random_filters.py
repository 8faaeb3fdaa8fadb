"""Control experiments: fixed 3x3 filters in the place of the noise masks, so that a layer sees a pixel's neighbours."""

from collections.abc import Iterator, Mapping
from functools import partial, reduce
from typing import Any

import jax
import jax.numpy as jnp

from pnn_jax.nn.noise import stored_masks
from pnn_jax.nn.perturbation import PerturbationLayer, combine_responses
from pnn_jax.options import Conflict

OFFSETS = 9  # of a 3x3 filter


@jax.custom_vjp
def filter_channels(x: jax.Array, filters: jax.Array) -> jax.Array:
    """Convolves every channel with filters of its own, or with those that all share; zeros lie beyond the edge.

    As torch's convolutions, it does not flip the filters. Sums are in float32 or wider. The gradient of x is written
    out as the convolution that it is. JAX's own would be a sum of nine padded arrays, several times slower on CPU.

    Args:
        x: [b, h, w, c].
        filters: [3, 3, c or 1, m].

    Returns:
        [b, h, w, c, m], in the dtype of x.
    """
    return _sum_of_neighbours(x[..., None], filters).astype(x.dtype)


def _sum_of_neighbours(maps: jax.Array, filters: jax.Array) -> jax.Array:
    """At each pixel, the sum of its 3x3 neighbours times filters [3, 3, c or 1, m]; maps [b, h, w, c, m or 1]."""
    height, width = maps.shape[1:3]
    wide = jnp.promote_types(maps.dtype, jnp.float32)
    padded = jnp.pad(maps, ((0, 0), (1, 1), (1, 1), (0, 0), (0, 0))).astype(wide)
    filters = filters.astype(wide)[:, :, None, None, None]
    return reduce(
        jnp.add, [padded[:, i : i + height, j : j + width] * filters[i, j] for i in range(3) for j in range(3)]
    )


def _filter_channels_forward(x, filters):
    return filter_channels(x, filters), (x, filters)


def _filter_channels_backward(arguments, responses_bar):
    x, filters = arguments
    x_bar = _sum_of_neighbours(responses_bar, filters[::-1, ::-1]).sum(-1)
    wide_bar = responses_bar.astype(jnp.promote_types(x.dtype, jnp.float32))
    (filters_bar,) = jax.vjp(partial(_sum_of_neighbours, x[..., None]), filters)[1](wide_bar)
    return x_bar.astype(x.dtype), filters_bar


filter_channels.defvjp(_filter_channels_forward, _filter_channels_backward)


class RandomFilterLayer(PerturbationLayer):
    """Convolve every channel with fixed random 3x3 filters, activate, combine.

    x [b, h, w, c] -> [b, h, w, features]. The learned weights are those of a `PerturbationLayer` with the same options.
    The difference is that each fixed response sees the pixel's neighbours. Neither side of the debate ran this control.

    The filters [3, 3, c or 1, num_masks] are the variable `masks`, as `noise_type` draws them; the layer divides
    them by 3.
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
        responses = filter_channels(x, self.filters(x, train))
        activation = self.shared_activation()
        if activation is not None:
            responses = activation(responses, train)
        return combine_responses(responses, kernel)


class ShiftLayer(RandomFilterLayer):
    """Shift every channel by at most one pixel in each direction, activate, combine (Shift, arXiv 1711.08141).

    x [b, h, w, c] -> [b, h, w, features]; zeros move in at the edge. This is spatial mixing in its simplest form,
    without any parameter. The shifts are random, but each of the nine (one of them is no shift) is used equally often,
    give or take one. They are stored as the variable `masks`: filters [3, 3, c or 1, num_masks] with a single 1 each.
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
