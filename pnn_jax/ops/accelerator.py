"""The perturbation operation for GPUs and TPUs: masks are the first axis, and the gradients are written by hand.

Perturbed values have the shape [m, b, h, w, g]. The sum over masks is then a reduction over the outermost axis, and the
other axes keep the layout of the input. XLA computes the perturbed values inside the kernel that sums them and never
writes them to memory. This holds for the sums over masks (in the output and in the gradient of x) and for the sums over
images and pixels (in the gradients of weights, masks and slope).

`a_bar` is the gradient of the loss with respect to `a`.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from pnn_jax.ops.activations import ActivationLike, activate, draw_slopes


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
    x_wide, noise_masks, weights, slope = _widen(x, noise_masks, weights, slope)
    perturbed = _perturb(x_wide, noise_masks, noise_level)
    slope = _slope_per_value(slope, key, perturbed)
    return _weighted_sums(activate(activation, perturbed, slope), weights).astype(x.dtype)


def gradients(x, noise_masks, weights, slope, key, y_bar, *, noise_level, activation, fixed_masks):
    """The gradients of x, noise_masks, weights and slope for the cotangent y_bar [b, h, w, g, k].

    In the comments, y = sum over masks of w r(v), for a weight w, the activation r and a perturbed value v.
    """
    arguments = x, None if fixed_masks else noise_masks, weights, slope
    x, noise_masks, weights, slope, y_bar = _widen(x, noise_masks, weights, slope, y_bar)
    perturbed = _perturb(x, noise_masks, noise_level)
    slopes = _slope_per_value(slope, key, perturbed)
    outputs = range(weights.shape[-1])

    def respond(perturbed):
        return activate(activation, perturbed, slopes)

    # weights_bar = sum over images and pixels of y_bar r(v).
    responses = respond(perturbed)
    pairs = [outputs[first : first + 2] for first in outputs[::2]]
    sums = [_sums_over_images([responses * y_bar[None, ..., k] for k in pair]) for pair in pairs]
    weights_bar = jnp.concatenate(sums).T
    # v_bar = r'(v) * the sum over outputs of w y_bar.
    responses_bar = sum(_masks_first(weights)[:, k] * y_bar[None, ..., k] for k in outputs)
    perturbed_bar = _vjp_elementwise(respond, perturbed, responses_bar)
    # v = x + level * mask, so x_bar = the sum of v_bar over masks. With one output that is y_bar * the sum of w r'(v):
    # multiplying after the sum saves one product per mask.
    if len(outputs) == 1:
        x_bar = y_bar[..., 0] * _vjp_elementwise(respond, perturbed, _masks_first(weights)[:, 0]).sum(0)
    else:
        x_bar = perturbed_bar.sum(0)
    noise_bar = slope_bar = None
    # noise_bar = level * the sum of v_bar over images (and channels, if they share masks).
    if not fixed_masks:
        noise_bar = noise_level * perturbed_bar.sum((1, 4) if noise_masks.shape[2] == 1 else 1)
        noise_bar = jnp.moveaxis(noise_bar.reshape(-1, *noise_masks.shape[:3]), 0, -1)
    if slope is not None:
        slope_bar = jax.vjp(lambda slope: activate(activation, perturbed, slope), slope)[1](responses_bar)[0]
    bars = x_bar, noise_bar, weights_bar, slope_bar
    return jax.tree.map(lambda bar, argument: bar.astype(argument.dtype), bars, arguments)


def _masks_first(weights: jax.Array) -> jax.Array:
    """[g, m, k] -> [m, k, 1, 1, 1, g]. The weights of one output, [:, k], broadcast against [m, b, h, w, g]."""
    return jnp.moveaxis(weights, 0, -1)[:, :, None, None, None]


def _weighted_sums(responses: jax.Array, weights: jax.Array) -> jax.Array:
    """The weighted sums of responses [m, b, h, w, g] with weights [g, m, k]: [b, h, w, g, k]."""
    weights = _masks_first(weights)
    return jnp.stack([(weights[:, k] * responses).sum(0) for k in range(weights.shape[1])], axis=-1)


def _sums_over_images(maps: list[jax.Array]) -> jax.Array:
    """The sums over images and pixels of one or two arrays [m, b, h, w, g], stacked: [1 or 2, m, g].

    One reduction over pixels makes both, so that the perturbed values are computed once. XLA:GPU would write the
    operands of a reduction of four arrays to memory. Images are summed in a second step: where the batch is sharded,
    XLA can then add the sums of the devices, and need not gather them.
    """
    zeros = (jnp.zeros((), maps[0].dtype),) * len(maps)
    add = lambda sums, values: tuple(map(jnp.add, sums, values))
    return jnp.stack(jax.lax.reduce(tuple(maps), zeros, add, (2, 3))).sum(2)


def _widen(*arrays: Any) -> list[Any]:
    """Casts the arrays (None stays None) to float32, or to float64 where the first one is float64."""
    wide = jnp.promote_types(arrays[0].dtype, jnp.float32)
    return [None if array is None else array.astype(wide) for array in arrays]


def _perturb(x: jax.Array, noise_masks: jax.Array, noise_level: float) -> jax.Array:
    """The perturbed values [m, b, h, w, g] of x [b, h, w, g] with masks [h, w, g or 1, m]."""
    return x[None] + noise_level * jnp.moveaxis(noise_masks, -1, 0)[:, None]


def _slope_per_value(slope: jax.Array | None, key: jax.Array | None, perturbed: jax.Array) -> jax.Array | None:
    """The scalar slope, or random ones of the shape of `perturbed` where there is a key."""
    if key is None:
        return slope
    masks, *shape = perturbed.shape
    return jax.vmap(lambda index: draw_slopes(key, index, tuple(shape), perturbed.dtype))(jnp.arange(masks))


def _vjp_elementwise(function: Callable, at: jax.Array, factor: jax.Array) -> jax.Array:
    """factor * function'(at), in the shape of `at`, for an elementwise function."""
    return jax.vjp(function, at)[1](jnp.broadcast_to(factor, at.shape))[0]
