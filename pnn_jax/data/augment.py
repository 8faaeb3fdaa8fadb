"""Augmentation and normalisation, inside the compiled step."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

PADDING = 4  # pixels of black on every side before the random crop


def keep(key: jax.Array, images: jax.Array) -> jax.Array:
    """The images as they are."""
    del key
    return images


def crop_flip(key: jax.Array, images: jax.Array) -> jax.Array:
    """A random crop of each image after black padding, mirrored half of the time; uint8 [b, h, w, c] in and out.

    Offsets are uniform in 0..2*PADDING, for rows and columns apart. As torchvision's RandomCrop(size, padding=4) and
    RandomHorizontalFlip, before anything is normalised (michaelklachko/pnn.pytorch dataloader.py).
    """
    b, h, w, _ = images.shape
    offset_key, flip_key = jax.random.split(key)
    offsets = jax.random.randint(offset_key, (b, 2, 1), 0, 2 * PADDING + 1)
    flip = jax.random.bernoulli(flip_key, shape=(b, 1))
    rows = offsets[:, 0] + jnp.arange(h)[None]  # [b, h]: which row of the padded image goes where
    columns = jnp.arange(w)[None]
    columns = offsets[:, 1] + jnp.where(flip, w - 1 - columns, columns)
    images = jnp.pad(images, ((0, 0), (PADDING, PADDING), (PADDING, PADDING), (0, 0)))
    images = jnp.take_along_axis(images, rows[:, :, None, None], axis=1, mode='promise_in_bounds')
    return jnp.take_along_axis(images, columns[:, None, :, None], axis=2, mode='promise_in_bounds')


# config.data.augment -> function(key, images uint8 [b, h, w, c]) -> images of the same shape.
AUGMENTATIONS: dict[str, Callable[[jax.Array, jax.Array], jax.Array]] = {
    'none': keep,
    'crop_flip': crop_flip,
    'resized_crop_flip': keep,  # streaming.py does it while it decodes
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
    """What a network sees of uint8 images [b, h, w, c]: (augmented / 255 - mean) / std, in `dtype`.

    Every image has its own draws, whichever device holds it, so the result does not depend on how the batch is
    sharded. Padding is black before the normalisation: its value is -mean / std.

    Args:
        images: uint8 [b, h, w, c].
        mean: of each channel, of pixels in [0, 1].
        std: likewise.
        augment: a name of AUGMENTATIONS; 'none' in evaluation.
        key: typed PRNG key; not needed for 'none'.
        dtype: of the result; the arithmetic is float32.
    """
    images = AUGMENTATIONS[augment](key, images)
    per_channel = (1, 1, 1, images.shape[-1])
    mean, std = (jnp.asarray(values, jnp.float32).reshape(per_channel) for values in (mean, std))
    return ((images.astype(jnp.float32) / 255 - mean) / std).astype(dtype)
