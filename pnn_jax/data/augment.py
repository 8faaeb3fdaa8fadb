"""Augmentation and normalisation, inside the compiled step.

To add an augmentation, write a function (key, images) -> images and add a line to AUGMENTATIONS.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

PADDING = 4  # pixels of black on every side before the random crop


def keep(key: jax.Array, images: jax.Array) -> jax.Array:
    """Returns the images unchanged."""
    del key
    return images


def crop_flip(key: jax.Array, images: jax.Array) -> jax.Array:
    """A random crop of each image after black padding, mirrored half of the time.

    The same as torchvision's RandomCrop(size, padding=4) and RandomHorizontalFlip, before normalisation
    (michaelklachko/pnn.pytorch dataloader.py). Offsets are uniform in 0..2*PADDING, drawn separately for rows and
    columns.

    Args:
        key: typed PRNG key.
        images: uint8 [b, h, w, c].

    Returns:
        uint8 [b, h, w, c].
    """
    b, h, w, _ = images.shape
    offset_key, flip_key = jax.random.split(key)
    offsets = jax.random.randint(offset_key, (b, 2, 1), 0, 2 * PADDING + 1)
    flip = jax.random.bernoulli(flip_key, shape=(b, 1))
    rows = offsets[:, 0] + jnp.arange(h)[None]  # [b, h]: row of the padded image, for each row of the crop
    columns = jnp.arange(w)[None]
    columns = offsets[:, 1] + jnp.where(flip, w - 1 - columns, columns)
    images = jnp.pad(images, ((0, 0), (PADDING, PADDING), (PADDING, PADDING), (0, 0)))
    images = jnp.take_along_axis(images, rows[:, :, None, None], axis=1, mode='promise_in_bounds')
    return jnp.take_along_axis(images, columns[:, None, :, None], axis=2, mode='promise_in_bounds')


def flip(key: jax.Array, images: jax.Array) -> jax.Array:
    """Mirrors each image half of the time, without a crop. Arguments and result as `crop_flip`."""
    mirrored = jax.random.bernoulli(key, shape=(len(images), 1, 1, 1))
    return jnp.where(mirrored, images[:, :, ::-1], images)


# config.data.augment -> function(key, images uint8 [b, h, w, c]) -> images of the same shape.
AUGMENTATIONS: dict[str, Callable[[Any, jax.Array], jax.Array]] = {
    'none': keep,
    'crop_flip': crop_flip,
    'flip': flip,
    'resized_crop_flip': keep,  # stream_batches.py does it while it decodes
}


def preprocess(
    images: jax.Array,
    mean: Sequence[float],
    std: Sequence[float],
    *,
    augment: str,
    key: jax.Array | None = None,
    dtype: jnp.dtype = jnp.float32,
) -> jax.Array:
    """The input of a network from uint8 images: (augmented / 255 - mean) / std.

    Every image has random draws of its own, so the result does not depend on how the batch is sharded. Padding is black
    before the normalisation, so its value after it is -mean / std.

    Args:
        images: uint8 [b, h, w, c].
        mean: of each channel, for pixels in [0, 1].
        std: of each channel, for pixels in [0, 1].
        augment: a name of AUGMENTATIONS; 'none' in evaluation.
        key: typed PRNG key; not needed for 'none'.
        dtype: of the result; the arithmetic is float32.

    Returns:
        [b, h, w, c] in `dtype`.
    """
    images = AUGMENTATIONS[augment](key, images)
    per_channel = (1, 1, 1, images.shape[-1])
    centre, scale = (jnp.asarray(values, jnp.float32).reshape(per_channel) for values in (mean, std))
    return ((images.astype(jnp.float32) / 255 - centre) / scale).astype(dtype)
