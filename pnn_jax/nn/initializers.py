"""Initial weights as PyTorch draws them, after the audit's `weights_init` (mk utils.py:51-57)."""

import math

import jax
import jax.numpy as jnp


def conv_kernel_init(key: jax.Array, shape: tuple[int, ...], fan_out: int) -> jax.Array:
    """Kernels of convolutions: N(0, 2 / fan_out), float32 (mk utils.py:51-54).

    `fan_out` is the kernel's area times the number of output channels. Groups do not change it there, nor here.
    """
    return math.sqrt(2.0 / fan_out) * jax.random.normal(key, shape, jnp.float32)


def fan_in_uniform(key: jax.Array, shape: tuple[int, ...], fan_in: int) -> jax.Array:
    """U(-1/sqrt(fan_in), 1/sqrt(fan_in)), float32: torch's default for biases and for the weights of a Linear."""
    bound = 1.0 / math.sqrt(fan_in)
    return jax.random.uniform(key, shape, jnp.float32, minval=-bound, maxval=bound)
