"""Noise distributions: what a mask is drawn from.

To add one, add a line to `NOISE_DISTRIBUTIONS`; `config.model.noise_type` then accepts its name.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

# name -> sampler(key, shape) -> float32 array. Masks are stored raw; `noise_level` multiplies them in the forward pass.
NOISE_DISTRIBUTIONS: dict[str, Callable[[jax.Array, tuple[int, ...]], jax.Array]] = {
    'uniform': lambda key, shape: jax.random.uniform(key, shape, jnp.float32, minval=-1.0, maxval=1.0),
    'normal': lambda key, shape: jax.random.normal(key, shape, jnp.float32),
}
