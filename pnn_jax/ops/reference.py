"""The perturbation operation written out. Slow, large, and easy to check; the other implementations must equal it."""

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
    """`perturb_combine` with all perturbed maps in memory: num_masks times the input. Arguments as there."""
    perturbed = x[..., None] + noise_level * noise_masks[None]
    responses = []
    for m in range(noise_masks.shape[-1]):
        slopes = slope if key is None else draw_slopes(key, m, x.shape, x.dtype)
        responses.append(activate(activation, perturbed[..., m], slopes))
    return jnp.einsum('mbhwg,gmk->bhwgk', jnp.stack(responses), weights).astype(x.dtype)


def gradients(x, noise_masks, weights, slope, key, y_bar, *, noise_level, activation, fixed_masks):
    """The gradients of x, noise_masks, weights and slope for the cotangent y_bar [b, h, w, g, k], by autodiff."""

    def combine_floats(x, noise_masks, weights, slope):
        return combine(x, noise_masks, weights, slope, key, noise_level=noise_level, activation=activation)

    x_bar, masks_bar, *bars = jax.vjp(combine_floats, x, noise_masks, weights, slope)[1](y_bar)
    return x_bar, None if fixed_masks else masks_bar, *bars
