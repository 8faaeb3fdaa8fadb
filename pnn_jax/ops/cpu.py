"""The perturbation operation for CPUs, tuned on AVX-512 (vector registers of 16 float32 values).

The layout decides the speed. Inside, the images of the batch are the last axis: a vector register then holds 16 images
of one pixel and channel, for which masks and weights are scalars. The loop takes blocks of a few pixels of some images,
which stay in the cache: it transposes a block, applies all masks to it, and transposes the result back. Transposing
whole arrays took as long as applying the masks.

All arithmetic is elementwise. This includes the gradient of the weights, which sums over pixels and keeps the images
of a block apart until the end: XLA vectorizes elementwise arithmetic well, and reductions badly.
"""

import math
from collections.abc import Callable
from functools import partial, reduce
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from pnn_jax.ops.activations import ActivationLike, activate, draw_slopes

# The number of float32 values in an AVX-512 register. The images of a block are padded to a multiple of it.
LANES = 16

# Values (images times channels times pixels) in a block of the forward pass, at most. It takes all images that fit, and
# then pixels, because the block has to copy its masks, which serve all images. Where every channel has masks of its
# own, they are no larger than x and y of the block together.
VALUES = 2**17

# Pixels in a block of the backward pass: the smallest divisor of the map's pixels between these two, where there is
# one. The gradient of the weights is one fused expression with a term for every pixel. With 15 terms or fewer, XLA
# would repeat the transposition of the block in each of them (its kAllowedCodeDuplication is 15), which is slow.
FEWEST_PIXELS = 32
MOST_PIXELS = 64

# Masks in one fused expression: the largest divisor up to this size, so a prime number of masks is slow.
MASKS_PER_EXPRESSION = 16

# An expression adds its terms to this many sums in turn. An addition takes about four cycles, and the next one to the
# same sum has to wait for it.
SUMS = 4

# Images and terms that the gradient of the noise adds in one fused expression. It needs two groups of images at least:
# without a loop, XLA would fuse the sum over images into the sum over channels, which is slow.
IMAGES_PER_EXPRESSION = LANES // 2
TERMS_PER_EXPRESSION = 8

# Values in a pixel of a block of the backward pass, where that is not less than LANES images. The gradient of the
# weights is as large as this for every mask, and is to stay in the cache.
VALUES_PER_PIXEL = 2048

# In this file, p counts the pixels of a block and n its images with their padding; g input channels, k outputs of a
# channel, and c = g x k. In a block, x and y are [p, c, n] (channels of x are repeated), noise is [p, c or 1, m] and
# has the level in it; weights are [c, m]. `a_bar` is the gradient of the loss with respect to `a`.


def combine(
    x: jax.Array,
    noise_masks: jax.Array,
    weights: jax.Array,
    slope: jax.Array | None,
    key: jax.Array | None,
    *,
    noise_level: float,
    activation: ActivationLike,
) -> jax.Array:
    """`perturb_combine`, arguments as there. Sums are in float32 or wider."""
    if key is not None:
        return _combine_with_random_slopes(noise_level, activation, x, noise_masks, weights, key)
    blocks = _Blocks.forward(x, noise_masks, weights)
    x_rows = blocks.rows(x)
    masks, flat_weights, slope = _flat(noise_masks, weights, slope, x.dtype)
    columns = len(flat_weights)

    def add_block(i, y_rows):
        x, noise = blocks.read(x_rows, i, columns), blocks.read_noise(masks, i, columns, noise_level)

        def add_masks(_, y, noise, weights):
            terms = zip(_slices(noise, 2), _slices(weights[None], 2), strict=True)
            return y + _sum([weight * _activate(activation, x + mask, slope) for mask, weight in terms])

        y = _for_groups_of_masks(add_masks, jnp.zeros_like(x), noise, flat_weights)
        return blocks.write(y_rows, i, y)

    y_shape = *x.shape, weights.shape[-1]
    y_rows = lax.fori_loop(0, blocks.count, add_block, blocks.empty(y_shape, x))
    return blocks.whole(y_rows, y_shape)


def gradients(x, noise_masks, weights, slope, key, y_bar, *, noise_level, activation, fixed_masks):
    """The gradients of x, noise_masks (None if they are fixed), weights and slope for y_bar [b, h, w, g, k]."""
    if key is not None:
        combine_floats = partial(_combine_with_random_slopes, noise_level, activation, key=key)
        x_bar, masks_bar, weights_bar = jax.vjp(combine_floats, x, noise_masks, weights)[1](y_bar)
        return x_bar, None if fixed_masks else masks_bar, weights_bar, None
    blocks = _Blocks.backward(x, weights)
    # Padding repeats the last image: an activation may not be finite where x is zero (log, for example). The cotangent
    # has zeros there, so that these images add nothing to sums.
    x_rows, y_bar_rows = blocks.rows(x, 'edge'), blocks.rows(y_bar)
    masks, flat_weights, wide_slope = _flat(noise_masks, weights, slope, x.dtype)
    columns = len(flat_weights)
    zeros = partial(_zeros, y_bar, dtype=flat_weights.dtype)
    # A small map is one block. XLA must not know that: it would fuse the sum over images, which is slow, into the
    # arithmetic. So the number of blocks depends on y_bar, and x is read from the rows that x_bar replaces: XLA would
    # move arithmetic on constant arrays out of the loop. Where there are more blocks, rows of its own for x_bar are
    # faster.
    one_block = blocks.count == 1

    def add_block(i, sums):
        x_bar_rows, masks_bar, weights_bar, slope_bar = sums
        # The barrier keeps XLA from moving the slices below in front of the transpositions.
        x, y_bar, noise = lax.optimization_barrier(
            (
                blocks.read(x_bar_rows if one_block else x_rows, i, columns, 'edge'),
                blocks.read(y_bar_rows, i, columns),
                blocks.read_noise(masks, i, columns, noise_level),
            )
        )

        def add_masks(_, derivatives, noise, weights):
            terms = zip(_slices(noise, 2), _slices(weights[None], 2), strict=True)
            terms = [_pull_back(activation, x + mask, wide_slope, weight) for mask, weight in terms]
            return jax.tree.map(jnp.add, derivatives, _sum(terms))

        # The derivatives of y by x and slope. y_bar is a factor of all their terms, so it is multiplied once.
        start = jax.tree.map(lambda _: jnp.zeros_like(x), (x, wide_slope))
        derivatives = _for_groups_of_masks(add_masks, start, noise, flat_weights)
        x_bar, more_slope_bar = jax.tree.map(lambda derivative: derivative * y_bar, derivatives)
        pixels = zip(*(_slices(a, 0) for a in (x[:, :, None], noise[..., None], y_bar[:, :, None])), strict=True)
        terms = [y_bar * _activate(activation, x + noise, wide_slope) for x, noise, y_bar in pixels]
        weights_bar = weights_bar + _sum(terms)[0]
        if not fixed_masks:
            noise_bar = _noise_gradient(activation, x, noise, flat_weights, wide_slope, y_bar, masks.shape[1])
            masks_bar = blocks.add_to_masks(masks_bar, i, noise_level * noise_bar)
        return (
            blocks.write(x_bar_rows, i, _sum_repeated(x_bar, x_rows.shape[2])),
            masks_bar,
            weights_bar,
            jax.tree.map(jnp.add, slope_bar, more_slope_bar),
        )

    sums = (
        x_rows if one_block else blocks.empty(x.shape, x),
        None if fixed_masks else zeros(masks.shape),
        zeros((*flat_weights.shape, blocks.lanes)),
        jax.tree.map(lambda _: zeros((blocks.pixels, columns, blocks.lanes)), slope),
    )
    count = blocks.count + zeros((), dtype=jnp.int32)
    x_bar_rows, masks_bar, weights_bar, slope_bar = lax.fori_loop(0, count, add_block, sums)
    weights_bar = weights_bar.sum(-1).reshape(*weights.shape[::2], -1).swapaxes(1, 2)
    masks_bar = None if fixed_masks else masks_bar.reshape(noise_masks.shape)
    bars = masks_bar, weights_bar, jax.tree.map(jnp.sum, slope_bar)
    values = None if fixed_masks else noise_masks, weights, slope
    return blocks.whole(x_bar_rows, x.shape), *jax.tree.map(lambda bar, value: bar.astype(value.dtype), bars, values)


def _noise_gradient(activation, x, noise, weights, slope, y_bar, channels):
    """The gradient of the noise of a block, [p, channels, m], where `channels` is g, or 1 for shared masks.

    It sums over images. So here masks fill the vector registers, and not images.
    """

    def add_masks(j, noise_bar, noise, weights):
        group = noise.shape[2]

        def add_images(i, total):
            first = i * IMAGES_PER_EXPRESSION
            images = [lax.dynamic_slice_in_dim(a, first, IMAGES_PER_EXPRESSION, 2) for a in (x, y_bar)]
            for x_image, y_bar_image in zip(*(_slices(a, 2) for a in images), strict=True):
                total = total + _pull_back(activation, x_image + noise, slope, y_bar_image)[0]
            return total

        total = jnp.zeros((*x.shape[:2], group), x.dtype)
        total = weights[None] * lax.fori_loop(0, x.shape[2] // IMAGES_PER_EXPRESSION, add_images, total)
        return lax.dynamic_update_slice_in_dim(noise_bar, _sum_repeated(total, channels), j * group, 2)

    noise_bar = jnp.zeros((len(x), channels, noise.shape[2]), x.dtype)
    return _for_groups_of_masks(add_masks, noise_bar, noise, weights)


class _Blocks(NamedTuple):
    """How arrays [b, h, w, ...] are cut into blocks of some pixels of some images.

    They are kept as rows [n, rows, columns], with a row for every pixel and a column for every value of it. [n] holds
    the images n x groups to n x groups + groups - 1, one after another. So a batch that is sharded over devices stays
    sharded, and every device loops over images of its own.

    Attributes:
        images: in a block. Where there are several groups it is a multiple of LANES, and the batch is padded to fill
            all groups. Otherwise it is the batch, and each block is padded when it is read.
        groups: of images.
        pixels: in a block.
        map_pixels: of an image.
    """

    images: int
    groups: int
    pixels: int
    map_pixels: int

    @classmethod
    def forward(cls, x: jax.Array, noise_masks: jax.Array, weights: jax.Array) -> '_Blocks':
        blocks = cls.of(x, weights, VALUES)
        columns = x.shape[3] * weights.shape[2]
        values = blocks.lanes * columns
        if noise_masks.shape[2] > 1:
            values = max(values, weights.shape[1] * columns // 2)
        return blocks._replace(pixels=_largest_divisor(blocks.map_pixels, max(1, VALUES // values)))

    @classmethod
    def backward(cls, x: jax.Array, weights: jax.Array) -> '_Blocks':
        blocks = cls.of(x, weights, VALUES_PER_PIXEL)
        divisors = [size for size in range(1, MOST_PIXELS + 1) if blocks.map_pixels % size == 0]
        return blocks._replace(pixels=min((size for size in divisors if size >= FEWEST_PIXELS), default=divisors[-1]))

    @classmethod
    def of(cls, x: jax.Array, weights: jax.Array, values_per_pixel: int) -> '_Blocks':
        """Blocks of one pixel, with as many images as `values_per_pixel` allows, but at least LANES."""
        batch, height, width, channels = x.shape
        groups = -(-batch // LANES)
        if not isinstance(batch, int):  # a program that is exported for any number of images has a symbol here
            return cls(LANES, groups, 1, height * width)
        together = _largest_divisor(groups, max(1, values_per_pixel // (LANES * channels * weights.shape[2])))
        groups //= together
        return cls(batch if groups == 1 else LANES * together, groups, 1, height * width)

    @property
    def lanes(self):
        """The number of images in a block with their padding, a multiple of LANES."""
        return -(-self.images // LANES) * LANES

    @property
    def count(self):
        return self.groups * (self.map_pixels // self.pixels)

    def rows(self, a: jax.Array, padding: str = 'constant') -> jax.Array:
        """[b, h, w, ...] -> rows; `padding` is a mode of jnp.pad, here and below."""
        columns = math.prod(a.shape[3:])
        a = jnp.pad(a, ((0, self.images * self.groups - a.shape[0]), *((0, 0),) * (a.ndim - 1)), padding)
        return a.reshape(self.images, self.groups * self.map_pixels, columns)

    def whole(self, rows: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        """Rows -> an array of `shape`, [b, h, w, ...]."""
        return rows.reshape(self.images * self.groups, *shape[1:])[: shape[0]]

    def empty(self, shape: tuple[int, ...], x: jax.Array) -> jax.Array:
        """Rows of an array of `shape` in the dtype of x, to be written."""
        return _zeros(x, (self.images, self.groups * self.map_pixels, math.prod(shape[3:])), x.dtype)

    def read(self, rows: jax.Array, i: jax.Array, columns: int, padding: str = 'constant') -> jax.Array:
        """Block i of rows, [p, c, n], in float32 or wider; each column of the rows is repeated for its outputs."""
        block = lax.dynamic_slice_in_dim(rows, self._first_row(i), self.pixels, 1)
        block = block.astype(jnp.promote_types(rows.dtype, jnp.float32))
        block = jnp.pad(block, ((0, self.lanes - self.images), (0, 0), (0, 0)), padding)
        block = block.reshape(self.lanes, -1).T.reshape(self.pixels, -1, self.lanes)
        return _repeat(block, columns)

    def read_noise(self, masks: jax.Array, i: jax.Array, columns: int, noise_level: float) -> jax.Array:
        """The noise of block i, [p, c or 1, m]."""
        noise = noise_level * lax.dynamic_slice_in_dim(masks, self._first_mask(i), self.pixels)
        return noise if noise.shape[1] == 1 else _repeat(noise, columns)

    def write(self, rows: jax.Array, i: jax.Array, block: jax.Array) -> jax.Array:
        """Rows, with block i replaced by `block`, [p, columns, n]."""
        block = block.reshape(-1, self.lanes).T.reshape(self.lanes, self.pixels, -1)[: self.images]
        return lax.dynamic_update_slice_in_dim(rows, block.astype(rows.dtype), self._first_row(i), 1)

    def add_to_masks(self, masks_bar: jax.Array, i: jax.Array, noise_bar: jax.Array) -> jax.Array:
        """Adds the gradient of the noise of block i, [p, g or 1, m], to that of all masks."""
        noise_bar = noise_bar + lax.dynamic_slice_in_dim(masks_bar, self._first_mask(i), self.pixels)
        return lax.dynamic_update_slice_in_dim(masks_bar, noise_bar, self._first_mask(i), 0)

    # Blocks with the same pixels of different images follow one another, so that their masks stay in the cache.

    def _first_row(self, i: jax.Array):
        return i % self.groups * self.map_pixels + self._first_mask(i)

    def _first_mask(self, i: jax.Array):
        return i // self.groups * self.pixels


def _flat(noise_masks: jax.Array, weights: jax.Array, slope: jax.Array | None, dtype: jnp.dtype):
    """Masks [pixels of an image, g or 1, m], weights [c, m], and slope, in float32 or wider where x has this dtype."""
    wide = jnp.promote_types(dtype, jnp.float32)
    masks, weights, slope = jax.tree.map(lambda a: a.astype(wide), (noise_masks, weights, slope))
    return masks.reshape(-1, *masks.shape[2:]), weights.swapaxes(1, 2).reshape(-1, weights.shape[1]), slope


def _activate(activation: ActivationLike, perturbed: jax.Array, slope: jax.Array | None) -> jax.Array:
    # One instruction on x86, which keeps NaN; XLA makes three of the maximum in jax.nn.relu. With jnp.where, a network
    # would take longer to trace.
    if activation == 'relu':
        zeros = lax.full_like(perturbed, 0)
        return lax.select(lax.lt(perturbed, zeros), zeros, perturbed)
    return activate(activation, perturbed, slope)


def _pull_back(activation: ActivationLike, perturbed: jax.Array, slope: jax.Array | None, bar: jax.Array):
    """The gradients of the perturbed values and, value by value, of slope, where `bar` is that of the activation."""
    bar = jnp.broadcast_to(bar, perturbed.shape)
    if activation == 'relu':
        zeros = lax.full_like(perturbed, 0)
        return lax.select(lax.gt(perturbed, zeros), bar, zeros), jax.tree.map(lambda _: zeros, slope)
    slope = jax.tree.map(lambda a: jnp.broadcast_to(a, perturbed.shape), slope)
    return jax.vjp(partial(activate, activation), perturbed, slope)[1](bar)


def _slices(a: jax.Array, axis: int) -> list[jax.Array]:
    """All slices of length 1 along an axis, which stays."""
    return [lax.slice_in_dim(a, i, i + 1, axis=axis) for i in range(a.shape[axis])]


def _sum(terms: list):
    """The sum of arrays, or of tuples of arrays, by SUMS sums that do not wait for one another."""
    add = partial(jax.tree.map, jnp.add)
    return reduce(add, [reduce(add, terms[first::SUMS]) for first in range(min(SUMS, len(terms)))])


def _repeat(a: jax.Array, columns: int) -> jax.Array:
    """[p, g, ...] -> [p, columns, ...], each channel repeated for its outputs."""
    outputs = columns // a.shape[1]
    return jnp.broadcast_to(a[:, :, None], (*a.shape[:2], outputs, *a.shape[2:])).reshape(len(a), columns, *a.shape[2:])


def _sum_repeated(a: jax.Array, channels: int) -> jax.Array:
    """[p, c, ...] -> [p, channels, ...]: what `_repeat` does to gradients.

    The sum is written as additions of slices, a few at a time. XLA computes a reduction one value after another.
    """
    a = a.reshape(len(a), channels, -1, *a.shape[2:])
    while (terms := _largest_divisor(a.shape[2], TERMS_PER_EXPRESSION)) > 1:
        length = a.shape[2] // terms
        a = reduce(jnp.add, [lax.slice_in_dim(a, t * length, (t + 1) * length, axis=2) for t in range(terms)])
    return a.sum(2)


def _zeros(a: jax.Array, shape: tuple[int, ...], dtype: jnp.dtype) -> jax.Array:
    """Zeros that XLA does not know to be zeros, for arrays that a loop fills.

    XLA:CPU would fill constant zeros for all layers when the program begins, and keep them. So these depend on a: for
    any integer n, n (n + 1) is even.
    """
    n = a.ravel()[0].astype(jnp.int32)
    return jnp.broadcast_to((n * (n + 1) % 2).astype(dtype), shape)


def _largest_divisor(total: int, most: int) -> int:
    """The largest divisor of `total` up to `most`."""
    return max(size for size in range(1, most + 1) if total % size == 0)


def _masks_per_expression(num_masks: int) -> int:
    # There are two groups at least, except of a single mask: without a loop, XLA would fuse the transposition of the
    # block into the arithmetic, which is slow.
    return _largest_divisor(num_masks, min(MASKS_PER_EXPRESSION, max(num_masks // 2, 1)))


def _for_groups_of_masks(function: Callable, state, noise: jax.Array, weights: jax.Array):
    """Runs state = function(index, state, noise [p, c or 1, m'], weights [c, m']) for each group of masks."""
    size = _masks_per_expression(weights.shape[1])

    def step(i, state):
        group = [lax.dynamic_slice_in_dim(a, i * size, size, a.ndim - 1) for a in (noise, weights)]
        return function(i, state, *group)

    return lax.fori_loop(0, weights.shape[1] // size, step, state)


def _combine_with_random_slopes(noise_level, activation, x, noise_masks, weights, key):
    """rrelu in training, one mask after another: the slopes drawn for one mask are as large as the input."""
    wide = jnp.promote_types(x.dtype, jnp.float32)

    @jax.checkpoint
    def add_mask(y, mask):
        index, noise, weight = mask
        perturbed = x.astype(wide) + noise_level * noise.astype(wide)[None]
        response = activate(activation, perturbed, draw_slopes(key, index, x.shape, wide))
        return y + response[..., None] * weight.astype(wide)[None, None, None], None

    masks = jnp.arange(noise_masks.shape[-1]), jnp.moveaxis(noise_masks, -1, 0), jnp.moveaxis(weights, 1, 0)
    y, _ = jax.lax.scan(add_mask, jnp.zeros((*x.shape, weights.shape[-1]), wide), masks)
    return y.astype(x.dtype)
