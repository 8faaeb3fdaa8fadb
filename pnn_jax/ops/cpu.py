"""The perturbation operation for CPUs, tuned on AVX-512 (vector registers of 16 float32 values).

The layout decides the speed. Inside, the batch is the last axis and pixels are the first: a vector register then holds
16 images of one pixel and channel, for which masks and weights are scalars. The masks are read once, in the order in
which they are stored. All arithmetic is elementwise. This includes the gradient of the weights, which sums over pixels
and keeps the images of the batch apart until the end: XLA vectorizes elementwise arithmetic well, and reductions badly.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp

from pnn_jax.ops.activations import ActivationLike, activate, draw_slopes

# Each loop below handles a group per iteration, as one fused expression without a loop inside. Larger groups keep more
# values in registers, at the price of compile time. Groups of pixels matter for the gradient of the weights, groups of
# masks for the sum over masks. A group is the largest divisor up to these sizes, so a prime number of pixels or
# masks gets groups of one and is slow. Half and double of these sizes were no faster on a CPU with AVX-512.
PIXELS_PER_ITERATION = 32
MASKS_PER_ITERATION = 16
IMAGES_UNROLLED = 8

# The batch is padded to a multiple of this, the number of float32 values in an AVX-512 register.
LANES = 16

# In this file, p counts pixels (h x w) and n images (the padded batch): x [p, g, 1, n], noise [p, g or 1, m],
# weights [g, m, k]; y and its cotangent [p, g, k, n]. `a_bar` is the gradient of the loss with respect to `a`.


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
    wide = jnp.promote_types(x.dtype, jnp.float32)
    wide_weights, wide_slope = jax.tree.map(lambda a: a.astype(wide), (weights, slope))

    def step(_, x, arrays):
        (noise,) = (a.astype(wide) for a in arrays)
        respond = lambda noise, weights: _respond(noise_level, activation, x, noise, weights, wide_slope)
        return None, _sum_over_masks(respond, jnp.zeros_like(x), noise, wide_weights), ()

    x_per_output = jnp.broadcast_to(x[..., None], (*x.shape, weights.shape[-1]))  # y replaces it, group by group
    _, y, _ = _replace_pixels(step, None, _images_last(x_per_output.astype(wide)), (_pixels_first(noise_masks),))
    return _images_first(y, x.shape).astype(x.dtype)


def gradients(x, noise_masks, weights, slope, key, y_bar, *, noise_level, activation):
    """The gradients of x, noise_masks, weights and slope for the cotangent y_bar [b, h, w, g, k]."""
    if key is not None:
        combine_floats = partial(_combine_with_random_slopes, noise_level, activation, key=key)
        return *jax.vjp(combine_floats, x, noise_masks, weights)[1](y_bar), None
    wide = jnp.promote_types(x.dtype, jnp.float32)
    wide_weights, wide_slope = jax.tree.map(lambda a: a.astype(wide), (weights, slope))

    def step(carry, y_bar, arrays):
        weights_bar, slope_bar = carry
        x, noise = (a.astype(wide) for a in arrays)
        x_and_slope = jax.tree.map(lambda a: jnp.broadcast_to(a, y_bar.shape), (x, wide_slope))

        def bars(noise, weights):
            respond = lambda x, slope: _respond(noise_level, activation, x, noise, weights, slope)
            return jax.vjp(respond, *x_and_slope)[1](y_bar)

        x_bar, more_slope_bar = _sum_over_masks(bars, jax.tree.map(jnp.zeros_like, x_and_slope), noise, wide_weights)
        for i in range(len(x)):
            perturbed = x[i, :, None] + noise_level * noise[i, :, :, None, None]
            weights_bar = weights_bar + y_bar[i, :, None] * activate(activation, perturbed, wide_slope)
        slope_bar = jax.tree.map(jnp.add, slope_bar, more_slope_bar)
        # Compiled away where the masks are fixed.
        noise_bar = _noise_gradient(noise_level, activation, x, noise, wide_weights, wide_slope, y_bar)
        return (weights_bar, slope_bar), x_bar, noise_bar

    arrays = _images_last(x[..., None]), _pixels_first(noise_masks)
    y_bar = _images_last(y_bar.astype(wide), 'constant')
    start = _start_of_sums(weights, slope, y_bar)
    # x_bar replaces y_bar, group by group.
    (weights_bar, slope_bar), x_bar, noise_masks_bar = _replace_pixels(step, start, y_bar, arrays)
    x_bar = _images_first(x_bar.sum(-2), x.shape)
    noise_masks_bar = noise_masks_bar.reshape(noise_masks.shape)
    bars = x_bar, noise_masks_bar, weights_bar.sum(-1), jax.tree.map(jnp.sum, slope_bar)
    return jax.tree.map(lambda bar, value: bar.astype(value.dtype), bars, (x, noise_masks, weights, slope))


def _start_of_sums(weights: jax.Array, slope: jax.Array | None, y_bar: jax.Array):
    """Zeros, from which the gradients of weights and slope are summed, with the images kept apart.

    XLA:CPU would fill constant zeros for all layers when the program begins, and keep them. So the zero depends on
    y_bar, in a form that XLA cannot simplify. A NaN in y_bar then makes all sums NaN; training stops on it anyway.
    """
    pixels, *per_pixel = y_bar.shape
    zero = jnp.where(y_bar[0, 0, 0, 0] == y_bar[0, 0, 0, 0], 0, jnp.nan).astype(y_bar.dtype)
    slope_shape = _pixels_per_iteration(pixels), *per_pixel
    return (
        jnp.broadcast_to(zero, (*weights.shape, per_pixel[-1])),
        jax.tree.map(lambda _: jnp.broadcast_to(zero, slope_shape), slope),
    )


def _noise_gradient(noise_level, activation, x, noise, weights, slope, y_bar):
    """The gradient of a group of masks. It sums over images, so here masks fill the vector registers, not images."""

    def add_image(total, image):
        x, y_bar = image
        response = lambda noise: activate(activation, x + noise_level * noise, slope)
        response_bar = sum(y_bar[:, :, k, None] * weights[None, :, :, k] for k in range(weights.shape[-1]))
        return total + jax.vjp(response, jnp.broadcast_to(noise, response_bar.shape))[1](response_bar)[0], None

    images = jnp.moveaxis(x, -1, 0), jnp.moveaxis(y_bar, -1, 0)
    total = jnp.zeros((*x.shape[:2], noise.shape[-1]), x.dtype)
    total, _ = jax.lax.scan(add_image, total, images, unroll=IMAGES_UNROLLED)
    return total.sum(1, keepdims=True) if noise.shape[1] == 1 else total


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


def _images_last(x: jax.Array, padding: str = 'edge') -> jax.Array:
    """[b, h, w, ...] -> [p, ..., n].

    The last image is repeated: an activation may not be finite where the values are zeros (log, for example). The
    cotangent has zeros there (`padding='constant'`), so that these images add nothing to sums.
    """
    x = jnp.pad(x, ((0, -x.shape[0] % LANES), *((0, 0),) * (x.ndim - 1)), padding)
    return jnp.moveaxis(x.reshape(x.shape[0], -1, *x.shape[3:]), 0, -1)


def _images_first(y: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """[p, ..., n] -> [b, h, w, ...], where [b, h, w] is the beginning of `shape`."""
    y = jnp.moveaxis(y, -1, 0)[: shape[0]]
    return y.reshape(*shape[:3], *y.shape[2:])


def _pixels_first(noise_masks: jax.Array) -> jax.Array:
    return noise_masks.reshape(-1, *noise_masks.shape[2:])


def _group_size(total: int, most: int) -> int:
    """The largest divisor of `total` up to `most`."""
    return max(size for size in range(1, most + 1) if total % size == 0)


def _pixels_per_iteration(pixels: int) -> int:
    return _group_size(pixels, min(PIXELS_PER_ITERATION, max(pixels - 1, 1)))


def _replace_pixels(step: Callable, carry, buffer: jax.Array, arrays: tuple[jax.Array, ...]):
    """Runs `step` over groups of pixels, the first axis of `buffer`, of all arrays and of all outputs.

    step(carry, group of the buffer, groups of the arrays) -> carry, new group of the buffer, outputs

    The results overwrite the buffer: a separate output would start as zeros, which XLA:CPU creates for all layers at
    once when the program begins. Where there is more than one pixel there are at least two groups: without a loop, XLA
    would fuse the transpositions around it into the arithmetic, which is slow.
    """
    pixels = len(buffer)
    size = _pixels_per_iteration(pixels)

    def body(state, arrays):
        index, carry, buffer = state
        group = jax.lax.dynamic_slice_in_dim(buffer, index * size, size)
        carry, group, outputs = step(carry, group, arrays)
        return (index + 1, carry, jax.lax.dynamic_update_slice_in_dim(buffer, group, index * size, 0)), outputs

    groups = tuple(a.reshape(-1, size, *a.shape[1:]) for a in arrays)
    (_, carry, buffer), outputs = jax.lax.scan(body, (jnp.int32(0), carry, buffer), groups)
    return carry, buffer, jax.tree.map(lambda a: a.reshape(pixels, *a.shape[2:]), outputs)


def _sum_over_masks(function: Callable, zeros, noise: jax.Array, weights: jax.Array):
    """Sums function(noise [p, g or 1, m'], weights [g, m', k]) over groups of masks, starting from `zeros`."""
    num_masks = noise.shape[-1]
    size = _group_size(num_masks, MASKS_PER_ITERATION)

    def step(i, total):
        group = (
            jax.lax.dynamic_slice_in_dim(noise, i * size, size, 2),
            jax.lax.dynamic_slice_in_dim(weights, i * size, size, 1),
        )
        return jax.tree.map(jnp.add, total, function(*group))

    return jax.lax.fori_loop(0, num_masks // size, step, zeros)


def _respond(noise_level, activation, x, noise, weights, slope):
    """Elementwise in x [p, g, k or 1, n]: the weighted sum of its responses to the masks, [p, g, k, n]."""
    y = 0
    for m in range(noise.shape[-1]):
        y = y + weights[None, :, m, :, None] * activate(activation, x + noise_level * noise[:, :, m, None, None], slope)
    return y
