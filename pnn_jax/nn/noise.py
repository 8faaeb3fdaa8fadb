"""Noise masks: the distributions that they are drawn from, and where they are stored.

To add a distribution, add a line to `NOISE_DISTRIBUTIONS`. `config.model.noise_type` then accepts its name.

`flat` and `ramp` are controls. They have the weights, the operation and the variance of `uniform`, but leave out what
might make a random mask useful: a flat mask does not tell positions apart, and a ramp tells them apart without being
random from pixel to pixel.
"""

import math
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from pnn_jax.errors import InputError

Shape = tuple[int, ...]
Sampler = Callable[[jax.Array, Shape], jax.Array]  # (key, shape [h, w, ...]) -> float32 array


def uniform(key: jax.Array, shape: Shape) -> jax.Array:
    """Every value on its own from [-1, 1), with variance 1/3 (the audit's and the authors' masks)."""
    return jax.random.uniform(key, shape, jnp.float32, minval=-1.0, maxval=1.0)


def normal(key: jax.Array, shape: Shape) -> jax.Array:
    """Every value on its own from the standard normal distribution."""
    return jax.random.normal(key, shape, jnp.float32)


def flat(key: jax.Array, shape: Shape) -> jax.Array:
    """One value from `uniform` for each mask, the same at all positions [h, w]."""
    return jnp.broadcast_to(uniform(key, (1, 1, *shape[2:])), shape)


def ramp(key: jax.Array, shape: Shape) -> jax.Array:
    """A linear ramp over the map for each mask, with a direction and an offset of its own.

    The direction is uniform on the circle, the offset is a value from `uniform`, and each has half of the variance of
    `uniform`. Coordinates have variance 1/3 over the map; along an axis of a single pixel there is no ramp.
    """
    angle_key, offset_key = jax.random.split(key)
    each = (1, 1, *shape[2:])
    angle = jax.random.uniform(angle_key, each, jnp.float32, maxval=2 * jnp.pi)
    rows, columns = (_coordinates(size, axis, len(shape)) for axis, size in enumerate(shape[:2]))
    return (rows * jnp.sin(angle) + columns * jnp.cos(angle) + uniform(offset_key, each)) / jnp.sqrt(2.0)


def _coordinates(size: int, axis: int, ndim: int) -> jax.Array:
    """The centres of `size` pixels along an axis, centred at 0 and scaled to variance 1/3; 0 for a single pixel."""
    centres = (2 * jnp.arange(size, dtype=jnp.float32) + 1) / size - 1
    scaled = centres / math.sqrt(1 - size**-2) if size > 1 else centres
    return jnp.expand_dims(scaled, [other for other in range(ndim) if other != axis])


# config.model.noise_type -> sampler. Masks are stored raw; `noise_level` multiplies them in the forward pass.
NOISE_DISTRIBUTIONS: dict[str, Sampler] = {'uniform': uniform, 'normal': normal, 'flat': flat, 'ramp': ramp}
PYTORCH_NOISE = ('uniform', 'normal')  # those that the PyTorch repositories have


def stored_masks(module: nn.Module, shape: Shape, sampler: Sampler, *, trainable: bool) -> jax.Array:
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
        return sampler(module.make_rng('noise_masks'), shape)

    masks = module.variable('params' if trainable else 'noise_masks', 'masks', draw).value
    if masks.shape != shape:
        raise InputError(f'{name}: masks of shape {masks.shape} do not fit an input that needs {shape}')
    return masks
