"""The perturbation operation: add fixed noise masks, activate, combine with learned weights.

y[b, h, w, g, k] = sum_m weights[g, m, k] * activation(x[b, h, w, g] + noise_level * noise_masks[h, w, g or 1, m])

Written out (`perturb_combine_reference`), this needs `num_masks` copies of the input, forward and backward. Here the
sum over masks is one fused elementwise expression, and the backward pass computes the perturbed maps again from x, so
that no array of that size ever exists.

How it is laid out decides its speed. Inside, the batch is the last axis and pixels the first: a vector register then
holds one pixel and channel of 16 images, masks and weights are scalars to it, and the masks are read once, in the order
in which they are stored. All arithmetic is elementwise, also the gradient of the weights, which sums over pixels with
the images of the batch kept apart until the end: XLA vectorizes that, and reductions hardly.
"""

import math
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp

from pnn_jax.nn.activations import ACTIVATIONS, RRELU_BOUNDS

# Each loop below handles a group per iteration, as one fused expression without a loop inside. Larger groups keep more
# in registers (those of pixels: the gradient of the weights; those of masks: the sum over masks), at the price of
# compile time. Half and double of these were no faster on a CPU with AVX-512.
PIXELS_PER_PASS = 32
MASKS_PER_PASS = 16
IMAGES_PER_PASS = 8

# The batch is padded to a multiple of this, the number of float32 values in an AVX-512 register.
LANES = 16


def perturb_combine(
    x: jax.Array,
    noise_masks: jax.Array,
    weights: jax.Array,
    *,
    noise_level: float,
    activation: str | None,
    slope: jax.Array | None = None,
    key: jax.Array | None = None,
) -> jax.Array:
    """Combines the responses of every channel to its masks.

    Differentiable in x, noise_masks, weights and slope, in reverse mode. Sums are in float32 or wider.

    Args:
        x: [b, h, w, g].
        noise_masks: [h, w, g, m], or [h, w, 1, m] where all channels share them; raw, `noise_level` scales them here.
        weights: [g, m, k], for k outputs a channel.
        noise_level: factor of the masks.
        activation: a name in `ACTIVATIONS`, or None, for which the sum over masks has a closed form.
        slope: scalar, for lrelu, prelu and rrelu.
        key: for rrelu in training. The slope of every perturbed value is then drawn anew, from
            fold_in(key, index of the mask), and `slope` is not used.

    Returns:
        y [b, h, w, g, k], in the dtype of x.
    """
    if activation is None:
        offset = jnp.sum(noise_masks[..., None] * weights[None, None], axis=-2)
        return x[..., None] * weights.sum(1)[None, None, None] + (noise_level * offset)[None]
    if key is not None:
        return _combine_with_random_slopes(noise_level, activation, x, noise_masks, weights, key)
    return _combine(noise_level, activation, x, noise_masks, weights, slope)


def perturb_combine_dense(
    x: jax.Array,
    noise_masks: jax.Array,
    weights: jax.Array,
    *,
    noise_level: float,
    activation: str | None,
    slope: jax.Array | None = None,
    key: jax.Array | None = None,
) -> jax.Array:
    """One mask a channel, combined over all channels: x [b, h, w, g], noise_masks [h, w, g or 1, 1], weights [g, o].

    Other arguments as in `perturb_combine`. Returns [b, h, w, o].
    """
    perturbed = x + noise_level * noise_masks[None, ..., 0]
    return combine_channels(_activate(activation, perturbed, slope, key, 0), weights)


def combine_channels(x: jax.Array, weights: jax.Array) -> jax.Array:
    """A 1x1 convolution: x [b, h, w, i], weights [i, o] -> [b, h, w, o].

    As a product of two matrices, because XLA:CPU copies the operands of the gradient of an einsum over four axes.
    """
    rows = math.prod(x.shape[:-1])  # not -1, which a map without pixels does not allow
    return (x.reshape(rows, x.shape[-1]) @ weights).reshape(*x.shape[:-1], weights.shape[-1])


def perturb_combine_reference(
    x: jax.Array,
    noise_masks: jax.Array,
    weights: jax.Array,
    *,
    noise_level: float,
    activation: str | None,
    slope: jax.Array | None = None,
    key: jax.Array | None = None,
) -> jax.Array:
    """`perturb_combine` written out, with all perturbed maps in memory."""
    perturbed = x[..., None] + noise_level * noise_masks[None]
    responses = [_activate(activation, perturbed[..., m], slope, key, m) for m in range(noise_masks.shape[-1])]
    return jnp.einsum('mbhwg,gmk->bhwgk', jnp.stack(responses), weights)


def _activate(
    activation: str | None, perturbed: jax.Array, slope: jax.Array | None, key: jax.Array | None, index: jax.Array | int
) -> jax.Array:
    """The responses to the mask number `index`, of the shape of `perturbed`."""
    if activation is None:
        return perturbed
    if key is not None:
        low, high = RRELU_BOUNDS
        slope = jax.random.uniform(jax.random.fold_in(key, index), perturbed.shape, perturbed.dtype, low, high)
    return ACTIVATIONS[activation](perturbed, slope)


def _combine_with_random_slopes(noise_level, activation, x, noise_masks, weights, key):
    """rrelu in training, one mask after another: the slopes drawn for a mask are as large as the input."""
    wide = jnp.promote_types(x.dtype, jnp.float32)

    @jax.checkpoint
    def add_mask(y, mask):
        index, noise, weight = mask
        response = _activate(activation, x.astype(wide) + noise_level * noise.astype(wide)[None], None, key, index)
        return y + response[..., None] * weight.astype(wide)[None, None, None], None

    masks = jnp.arange(noise_masks.shape[-1]), jnp.moveaxis(noise_masks, -1, 0), jnp.moveaxis(weights, 1, 0)
    y, _ = jax.lax.scan(add_mask, jnp.zeros((*x.shape, weights.shape[-1]), wide), masks)
    return y.astype(x.dtype)


# In what follows, p counts pixels (h x w) and n images (the padded batch): x [p, g, 1, n], noise [p, g or 1, m],
# weights [g, m, k], y and its cotangent [p, g, k, n].


def _images_last(x: jax.Array) -> jax.Array:
    """[b, h, w, ...] -> [p, ..., n]."""
    x = jnp.pad(x, ((0, -x.shape[0] % LANES), *((0, 0),) * (x.ndim - 1)))
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


def _pixels_per_pass(pixels: int) -> int:
    return _group_size(pixels, min(PIXELS_PER_PASS, max(pixels - 1, 1)))


def _replace_pixels(step: Callable, carry, buffer: jax.Array, arrays: tuple[jax.Array, ...]):
    """Runs step(carry, buffer's group, groups of arrays) -> carry, new group, outputs over groups of pixels.

    Pixels are the first axis of `buffer`, of all arrays and outputs; the new groups take the place of the buffer's.
    Results in an array of their own would have to start as zeros, which XLA:CPU creates for all layers at once when
    a program begins. At least two groups, because the loop also keeps XLA from fusing the transpositions around it into
    the arithmetic, which is slow.
    """
    pixels = len(buffer)
    size = _pixels_per_pass(pixels)

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
    size = _group_size(num_masks, MASKS_PER_PASS)

    def step(i, total):
        group = (
            jax.lax.dynamic_slice_in_dim(noise, i * size, size, 2),
            jax.lax.dynamic_slice_in_dim(weights, i * size, size, 1),
        )
        return jax.tree.map(jnp.add, total, function(*group))

    return jax.lax.fori_loop(0, num_masks // size, step, zeros)


def _respond(noise_level, activation, x, noise, weights, slope):
    """Elementwise in x [p, g, k or 1, n]: the weighted sum of its responses to the masks, [p, g, k, n]."""
    activate = ACTIVATIONS[activation]
    y = 0
    for m in range(noise.shape[-1]):
        y = y + weights[None, :, m, :, None] * activate(x + noise_level * noise[:, :, m, None, None], slope)
    return y


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _combine(noise_level, activation, x, noise_masks, weights, slope):
    wide = jnp.promote_types(x.dtype, jnp.float32)
    wide_weights, wide_slope = jax.tree.map(lambda a: a.astype(wide), (weights, slope))

    def step(_, x, arrays):
        (noise,) = (a.astype(wide) for a in arrays)
        respond = lambda noise, weights: _respond(noise_level, activation, x, noise, weights, wide_slope)
        return None, _sum_over_masks(respond, jnp.zeros_like(x), noise, wide_weights), ()

    everywhere = jnp.broadcast_to(x[..., None], (*x.shape, weights.shape[-1]))
    _, y, _ = _replace_pixels(step, None, _images_last(everywhere.astype(wide)), (_pixels_first(noise_masks),))
    return _images_first(y, x.shape).astype(x.dtype)


def _combine_forward(noise_level, activation, x, noise_masks, weights, slope):
    return _combine(noise_level, activation, x, noise_masks, weights, slope), (x, noise_masks, weights, slope)


def _combine_backward(noise_level, activation, residuals, y_bar):
    x, noise_masks, weights, slope = residuals
    wide = jnp.promote_types(x.dtype, jnp.float32)
    wide_weights, wide_slope = jax.tree.map(lambda a: a.astype(wide), (weights, slope))
    activate = ACTIVATIONS[activation]

    def step(carry, y_bar, arrays):
        weights_bar, slope_bar = carry
        x, noise = (a.astype(wide) for a in arrays)
        everywhere = jax.tree.map(lambda a: jnp.broadcast_to(a, y_bar.shape), (x, wide_slope))

        def bars(noise, weights):
            respond = lambda x, slope: _respond(noise_level, activation, x, noise, weights, slope)
            return jax.vjp(respond, *everywhere)[1](y_bar)

        x_bar, more_slope_bar = _sum_over_masks(bars, jax.tree.map(jnp.zeros_like, everywhere), noise, wide_weights)
        for p in range(len(x)):
            perturbed = x[p, :, None] + noise_level * noise[p, :, :, None, None]
            weights_bar = weights_bar + y_bar[p, :, None] * activate(perturbed, wide_slope)
        slope_bar = jax.tree.map(jnp.add, slope_bar, more_slope_bar)
        return (weights_bar, slope_bar), x_bar, noise_bar(x, noise, y_bar)

    def noise_bar(x, noise, y_bar):
        """Image after image, with masks as the elements of a vector. Compiled away where the masks are fixed."""

        def add_image(total, image):
            x, y_bar = image
            response = lambda noise: activate(x + noise_level * noise, wide_slope)
            response_bar = sum(
                y_bar[:, :, k, None] * wide_weights[None, :, :, k] for k in range(wide_weights.shape[-1])
            )
            return total + jax.vjp(response, jnp.broadcast_to(noise, response_bar.shape))[1](response_bar)[0], None

        images = jnp.moveaxis(x, -1, 0), jnp.moveaxis(y_bar, -1, 0)
        total, _ = jax.lax.scan(
            add_image, jnp.zeros((*x.shape[:2], noise.shape[-1]), wide), images, unroll=IMAGES_PER_PASS
        )
        return total.sum(1, keepdims=True) if noise.shape[1] == 1 else total

    arrays = _images_last(x[..., None]), _pixels_first(noise_masks)
    y_bar = _images_last(y_bar.astype(wide))
    pixels, *per_pixel = y_bar.shape
    slope_shape = _pixels_per_pass(pixels), *per_pixel
    # Zero, but XLA cannot know; it would fill the sums of all layers when the program begins, and keep them.
    zero = jnp.where(y_bar[0, 0, 0, 0] == y_bar[0, 0, 0, 0], 0, jnp.nan).astype(wide)
    start = (
        jnp.broadcast_to(zero, (*weights.shape, per_pixel[-1])),
        jax.tree.map(lambda _: jnp.broadcast_to(zero, slope_shape), slope),
    )
    (weights_bar, slope_bar), x_bar, noise_masks_bar = _replace_pixels(step, start, y_bar, arrays)
    x_bar = _images_first(x_bar.sum(-2), x.shape)
    noise_masks_bar = noise_masks_bar.reshape(noise_masks.shape)
    gradients = x_bar, noise_masks_bar, weights_bar.sum(-1), jax.tree.map(jnp.sum, slope_bar)
    return jax.tree.map(lambda bar, value: bar.astype(value.dtype), gradients, residuals)


_combine.defvjp(_combine_forward, _combine_backward)
