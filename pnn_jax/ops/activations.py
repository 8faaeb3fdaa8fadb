"""The activations as plain functions. Every implementation of the operation calls them through `activate`.

They are the eight of the audit's `utils.act_fn` (mk). To add one, add a line to `ACTIVATIONS`.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

ActivationLike = str | Callable[[jax.Array], jax.Array] | None

RRELU_BOUNDS = (1 / 8, 1 / 3)  # the defaults of torch.nn.RReLU


def _leaky(x: jax.Array, slope: jax.Array | float) -> jax.Array:
    return jnp.where(x >= 0, x, slope * x)


# name -> function(x, slope). Only the leaky family (lrelu, prelu, rrelu) uses the slope.
ACTIVATIONS: dict[str, Callable[..., jax.Array]] = {
    'relu': lambda x, slope=None: jax.nn.relu(x),
    'lrelu': _leaky,
    'prelu': _leaky,
    'rrelu': _leaky,
    'elu': lambda x, slope=None: jax.nn.elu(x),
    'selu': lambda x, slope=None: jax.nn.selu(x),
    'tanh': lambda x, slope=None: jnp.tanh(x),
    'sigmoid': lambda x, slope=None: jax.nn.sigmoid(x),
}


def activate(activation: ActivationLike, perturbed: jax.Array, slope: jax.Array | None) -> jax.Array:
    """Applies an activation elementwise. The result, the responses, has the shape and dtype of `perturbed`.

    Args:
        activation: a name in `ACTIVATIONS`, an elementwise function of one array, or None for the identity.
        perturbed: of any shape.
        slope: scalar or of a shape that broadcasts; only the leaky family (lrelu, prelu, rrelu) reads it.
    """
    if activation is None:
        return perturbed
    if callable(activation):
        return activation(perturbed)
    return ACTIVATIONS[activation](perturbed, slope)


def draw_slopes(key: jax.Array, mask_index: jax.Array | int, shape: tuple[int, ...], dtype: jnp.dtype) -> jax.Array:
    """The random slopes of rrelu for one mask: one slope for every value that this mask perturbs.

    The key of a mask is fold_in(key, mask_index), and slopes are drawn in float32 or wider, because jax draws other
    values for other types. All implementations therefore draw the same slopes.
    """
    low, high = RRELU_BOUNDS
    wide = jnp.promote_types(dtype, jnp.float32)
    return jax.random.uniform(jax.random.fold_in(key, mask_index), shape, wide, low, high).astype(dtype)
