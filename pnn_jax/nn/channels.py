"""Vectors with one value per channel."""

import jax


def along_channels(vector: jax.Array, x: jax.Array) -> jax.Array:
    """Reshapes a vector [c] to [1, ..., 1, c], so that it broadcasts against x [..., c]; in the dtype of x."""
    return vector.astype(x.dtype).reshape((1,) * (x.ndim - 1) + (-1,))
