"""The perturbation operation: add fixed noise masks, activate, combine with learned weights.

    y[b, h, w, g, k] = sum_m weights[g, m, k] * activation(x[b, h, w, g] + noise_level * noise_masks[h, w, g or 1, m])

In all shapes, b counts images, h and w rows and columns, g input channels, m masks, and k the outputs of one channel.

Written out, this needs `num_masks` copies of the input, in the forward and in the backward pass. The implementations
'cpu' and 'accelerator' need none. They sum over the masks inside a fused expression, and in the backward pass they
recompute the perturbed values from x.

All implementations give the same results; they differ in memory layout and speed. To add one, write a file with the two
functions of an `Implementation`, and add a line to `IMPLEMENTATIONS`. The tests then cover it too.
"""

import math
import numbers
from collections.abc import Callable, Hashable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from pnn_jax.errors import InputError
from pnn_jax.ops import accelerator, cpu, reference
from pnn_jax.ops.activations import ACTIVATIONS, ActivationLike, activate, draw_slopes

__all__ = [
    'IMPLEMENTATIONS',
    'Implementation',
    'combine_channels',
    'perturb_combine',
    'perturb_combine_dense',
    'perturb_combine_reference',
]


class Implementation(NamedTuple):
    """One way to compute the operation: in float32 or wider, with results in the dtypes of the arguments.

    The implementation 'reference' alone computes in the dtype of x.

    Attributes:
        combine: (x, noise_masks, weights, slope, key, *, noise_level, activation) -> y, as in `perturb_combine`.
        gradients: (x, noise_masks, weights, slope, key, y_bar, *, noise_level, activation, fixed_masks) -> gradients of
            x, noise_masks, weights and slope, for the cotangent y_bar of y. Where slope is None, so is its gradient.
            With `fixed_masks`, so is that of noise_masks, which nothing would read.
    """

    combine: Callable[..., jax.Array]
    gradients: Callable[..., tuple]


IMPLEMENTATIONS = {
    'reference': Implementation(reference.combine, reference.gradients),
    'cpu': Implementation(cpu.combine, cpu.gradients),
    'accelerator': Implementation(accelerator.combine, accelerator.gradients),
}

# The implementation that 'auto' chooses on a platform. On every other platform it chooses 'accelerator'.
IMPLEMENTATION_OF_PLATFORM = {'cpu': 'cpu'}

_LEAKY = ('lrelu', 'prelu', 'rrelu')


def perturb_combine(
    x: jax.Array,
    noise_masks: jax.Array,
    weights: jax.Array,
    *,
    noise_level: float,
    activation: ActivationLike,
    slope: jax.Array | None = None,
    key: jax.Array | None = None,
    implementation: str = 'auto',
) -> jax.Array:
    """Adds the masks to each channel, activates, and combines the results with weights; channels are not mixed.

    The formula is at the top of this module. Reverse-mode gradients exist for x, noise_masks, weights and slope;
    forward mode (jax.jvp) is not supported. Sums are in float32 or wider, except in the implementation 'reference'.

    Args:
        x: [b, h, w, g], of a floating-point type.
        noise_masks: [h, w, g, m], or [h, w, 1, m] where all channels share them. They are raw: `noise_level`
            multiplies them here.
        weights: [g, m, k], for k outputs per channel.
        noise_level: factor of the masks; a number, not an array.
        activation: a name in `ACTIVATIONS`, an elementwise function of one array, or None for no activation. A function
            is a static argument of the compiled program. It must therefore be hashable and must not use traced arrays
            from outside.
        slope: scalar, for lrelu, prelu and rrelu. The other activations ignore it.
        key: for rrelu in training. Every perturbed value then gets a random slope of its own, drawn from
            fold_in(key, index of its mask), and `slope` is not used.
        implementation: a name in `IMPLEMENTATIONS`, or 'auto' to choose by the platform for which the program is
            lowered.

    Returns:
        y [b, h, w, g, k], in the dtype of x.

    Raises:
        InputError: shapes do not fit; the activation or implementation is unknown; a slope is missing; a key is given
            for an activation other than rrelu; noise_level is an array.
    """
    _check_shapes(x, noise_masks, weights)
    _check_options(noise_level, activation, slope, key)
    if implementation != 'auto' and implementation not in IMPLEMENTATIONS:
        raise InputError(f'implementation={implementation!r}: allowed are auto, {", ".join(IMPLEMENTATIONS)}')
    noise_level = float(noise_level)
    if activation is None:  # y is linear in x: sum_m w (x + level n) = x sum_m w + level sum_m w n
        wide = jnp.promote_types(x.dtype, jnp.float32)
        noise_masks, weights = noise_masks.astype(wide), weights.astype(wide)
        offset = jnp.sum(noise_masks[..., None] * weights[None, None], axis=-2)
        y = x.astype(wide)[..., None] * weights.sum(1)[None, None, None] + (noise_level * offset)[None]
        return y.astype(x.dtype)
    if key is not None:
        slope = None
    if not x.size:
        implementation = 'reference'  # the loops of 'cpu' need an image and a pixel
    return _combine(implementation, noise_level, activation, x, noise_masks, weights, slope, key)


def perturb_combine_dense(
    x: jax.Array,
    noise_masks: jax.Array,
    weights: jax.Array,
    *,
    noise_level: float,
    activation: ActivationLike,
    slope: jax.Array | None = None,
    key: jax.Array | None = None,
) -> jax.Array:
    """One mask per channel, combined over all channels by a product of two matrices (a 1x1 convolution).

    With a single mask, the perturbed map is no larger than the input. So there is nothing to save by fusing, and JAX
    differentiates this function itself, on every platform.

    Args:
        x: [b, h, w, g].
        noise_masks: [h, w, g or 1, 1].
        weights: [g, o], for o outputs.
        noise_level, activation, slope, key: as in `perturb_combine`.

    Returns:
        [b, h, w, o], in the dtype of x.

    Raises:
        InputError: as `perturb_combine`.
    """
    _check_input(x, noise_masks)
    if noise_masks.shape[-1] != 1:
        raise InputError(f'noise_masks of shape {noise_masks.shape}: perturb_combine_dense takes one mask per channel')
    if weights.ndim != 2 or weights.shape[0] != x.shape[-1]:
        raise InputError(
            f'weights of shape {weights.shape}: for {x.shape[-1]} channels it must be [{x.shape[-1]}, outputs]'
        )
    _check_options(noise_level, activation, slope, key)
    perturbed = x + float(noise_level) * noise_masks[None, ..., 0].astype(x.dtype)
    if key is not None:
        slope = draw_slopes(key, 0, perturbed.shape, perturbed.dtype)
    return combine_channels(activate(activation, perturbed, slope), weights).astype(x.dtype)


def combine_channels(x: jax.Array, weights: jax.Array, stride: int = 1) -> jax.Array:
    """A 1x1 convolution: x [b, h, w, i], weights [i, o] -> [b, ceil(h / stride), ceil(w / stride), o].

    It is a product of two matrices, because XLA:CPU copies the operands of the gradient of an einsum over four axes.
    """
    if stride > 1:
        # The barrier keeps XLA:GPU from fusing the strided slice into the product: its Triton emitter aborts the
        # process where the slice reads elementwise operations on a reshaped matrix (tests/test_compile.py).
        x = jax.lax.optimization_barrier(x[:, ::stride, ::stride])
    rows = math.prod(x.shape[:-1])  # reshape cannot infer a -1 where the array is empty
    return (x.reshape(rows, x.shape[-1]) @ weights).reshape(*x.shape[:-1], weights.shape[-1])


def perturb_combine_reference(
    x: jax.Array,
    noise_masks: jax.Array,
    weights: jax.Array,
    *,
    noise_level: float,
    activation: ActivationLike,
    slope: jax.Array | None = None,
    key: jax.Array | None = None,
) -> jax.Array:
    """The operation written out: all perturbed maps are in memory, and JAX differentiates all of it.

    Arguments and errors are those of `perturb_combine`. The tests compare every implementation with this function, in
    outputs and gradients. `implementation='reference'` has the same forward pass, but runs through the custom gradient.
    """
    _check_shapes(x, noise_masks, weights)
    _check_options(noise_level, activation, slope, key)
    return reference.combine(x, noise_masks, weights, slope, key, noise_level=noise_level, activation=activation)


# The implementation is chosen inside the forward and inside the backward function of one custom_vjp. If JAX
# differentiated through the choice, it would keep the residuals of all implementations.


@partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _combine(implementation, noise_level, activation, x, noise_masks, weights, slope, key):
    options = {'noise_level': noise_level, 'activation': activation}
    return _run(implementation, 'combine', x, noise_masks, weights, slope, key, **options)


def _combine_forward(implementation, noise_level, activation, *arguments):
    _, noise_masks, *_ = arguments
    # Residuals are pytrees of arrays. So the flag is one without arrays: () for fixed masks, None for trained ones.
    fixed_masks = None if noise_masks.perturbed else ()
    arguments = jax.tree.map(lambda argument: argument.value, arguments)
    return _combine(implementation, noise_level, activation, *arguments), (arguments, fixed_masks)


def _combine_backward(implementation, noise_level, activation, residuals, y_bar):
    arguments, fixed_masks = residuals
    options = {'noise_level': noise_level, 'activation': activation, 'fixed_masks': fixed_masks is not None}
    return *_run(implementation, 'gradients', *arguments, y_bar, **options), None  # None: a key has no gradient


# symbolic_zeros tells the forward function which arguments are differentiated. Masks seldom are. XLA would remove their
# gradient, which nothing reads, but a quarter of the time to trace and lower a large network would have gone into it.
_combine.defvjp(_combine_forward, _combine_backward, symbolic_zeros=True)


@partial(
    jax.jit,
    static_argnames=('implementation', 'pass_name', 'noise_level', 'activation', 'fixed_masks'),
    inline=True,
)
def _run(implementation: str, pass_name: str, *arguments, **options):
    """Runs a pass, 'combine' or 'gradients', of an implementation; for 'auto', of the one for the platform.

    Within `jit`, layers of equal shapes are traced once; inlined, they leave no calls in the program.
    """

    def function_of(name: str) -> Callable:
        return partial(getattr(IMPLEMENTATIONS[name], pass_name), **options)

    if implementation != 'auto':
        return function_of(implementation)(*arguments)
    by_platform = {platform: function_of(name) for platform, name in IMPLEMENTATION_OF_PLATFORM.items()}
    return jax.lax.platform_dependent(*arguments, **by_platform, default=function_of('accelerator'))


def _check_shapes(x: jax.Array, noise_masks: jax.Array, weights: jax.Array) -> None:
    """Raises InputError unless x is [b, h, w, g], noise_masks [h, w, g or 1, m] and weights [g, m, k]."""
    _check_input(x, noise_masks)
    channels = x.shape[-1]
    if weights.ndim != 3 or weights.shape[:2] != (channels, noise_masks.shape[3]):
        raise InputError(
            f'weights of shape {weights.shape}: for {channels} channels and {noise_masks.shape[3]} masks it must be '
            f'[{channels}, {noise_masks.shape[3]}, outputs per channel]'
        )


def _check_input(x: jax.Array, noise_masks: jax.Array) -> None:
    """Raises InputError unless x is [b, h, w, g] and noise_masks [h, w, g or 1, m]."""
    if x.ndim != 4 or not jnp.issubdtype(x.dtype, jnp.floating):
        raise InputError(f'x of shape {x.shape} and type {x.dtype}: must be [b, h, w, g], of a floating-point type')
    _, height, width, channels = x.shape
    allowed = [(height, width, groups) for groups in (channels, 1)]
    if noise_masks.ndim != 4 or noise_masks.shape[:3] not in allowed or noise_masks.shape[3] == 0:
        raise InputError(
            f'noise_masks of shape {noise_masks.shape}: for x of shape {x.shape} it must be '
            f'[{height}, {width}, {channels} or 1, m], with at least one mask'
        )


def _check_options(
    noise_level: float, activation: ActivationLike, slope: jax.Array | None, key: jax.Array | None
) -> None:
    if not isinstance(noise_level, numbers.Real):
        raise InputError(f'noise_level={noise_level!r}: must be a number, not an array')
    if not isinstance(activation, Hashable):
        raise InputError(f'activation={activation!r}: must be hashable')
    if activation is not None and not callable(activation) and activation not in ACTIVATIONS:
        raise InputError(
            f'activation={activation!r}: allowed are {", ".join(ACTIVATIONS)}, an elementwise function, or None'
        )
    if key is not None and activation != 'rrelu':
        raise InputError(f"key: only activation='rrelu' draws slopes, not activation={activation!r}")
    if key is None and activation in _LEAKY and (slope is None or jnp.ndim(slope) != 0):
        raise InputError(f'slope={slope!r}: activation={activation!r} needs a scalar')
