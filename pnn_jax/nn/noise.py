"""Noise masks: the distributions that they are drawn from, and where they are stored.

To add a distribution, add a line to `NOISE_DISTRIBUTIONS`. `config.model.noise_type` then accepts its name.
"""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from pnn_jax.errors import InputError

# name -> sampler(key, shape) -> float32 array. Masks are stored raw; `noise_level` multiplies them in the forward pass.
NOISE_DISTRIBUTIONS: dict[str, Callable[[jax.Array, tuple[int, ...]], jax.Array]] = {
    'uniform': lambda key, shape: jax.random.uniform(key, shape, jnp.float32, minval=-1.0, maxval=1.0),
    'normal': lambda key, shape: jax.random.normal(key, shape, jnp.float32),
}


def stored_masks(module: nn.Module, shape: tuple[int, ...], noise_type: str, *, trainable: bool) -> jax.Array:
    """The raw masks of a layer, drawn at initialisation from the random stream `noise_masks`.

    They are the variable `masks` of the collection `params` where they are trained, otherwise of `noise_masks`, which
    gradients and weight decay do not reach. Both start at the same values.

    Raises:
        InputError: the layer is initialised without a key for `noise_masks`, or the stored masks have another shape.
    """
    name = '/'.join(module.path) or type(module).__name__

    def draw() -> jax.Array:
        # Without this check flax would draw from `params`: the masks would silently depend on the seed of the weights.
        if not module.has_rng('noise_masks'):
            raise InputError(
                f'{name}: noise masks are drawn from a key of their own; '
                "initialise with model.init({'params': key, 'noise_masks': mask_key}, x)"
            )
        return NOISE_DISTRIBUTIONS[noise_type](module.make_rng('noise_masks'), shape)

    masks = module.variable('params' if trainable else 'noise_masks', 'masks', draw).value
    if masks.shape != shape:
        raise InputError(f'{name}: masks of shape {masks.shape} do not fit an input that needs {shape}')
    return masks
