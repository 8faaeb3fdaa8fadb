"""The activation between the noise and the combination, as every implementation calls it."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from pnn_jax.nn.activations import ACTIVATIONS, RRELU_BOUNDS

Activation = str | Callable[[jax.Array], jax.Array] | None


def activate(activation: Activation, perturbed: jax.Array, slope: jax.Array | None) -> jax.Array:
    """The responses to `perturbed`, elementwise: an array of its shape and dtype.

    Args:
        activation: a name in `ACTIVATIONS`, an elementwise function of one array, or None for the identity.
        slope: scalar or of a shape that broadcasts; only the leaky family (lrelu, prelu, rrelu) reads it.
    """
    if activation is None:
        return perturbed
    if callable(activation):
        return activation(perturbed)
    return ACTIVATIONS[activation](perturbed, slope)


def draw_slopes(key: jax.Array, mask_index: jax.Array | int, shape: tuple[int, ...], dtype: jnp.dtype) -> jax.Array:
    """The random slopes of rrelu for one mask: one slope for every perturbed value of that mask.

    The key of a mask is fold_in(key, mask_index). All implementations therefore draw the same slopes.
    """
    low, high = RRELU_BOUNDS
    return jax.random.uniform(jax.random.fold_in(key, mask_index), shape, dtype, low, high)
