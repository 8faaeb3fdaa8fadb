"""Batch norm as `torch.nn.BatchNorm1d/2d` computes it, forward, backward and in its running statistics."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp

from pnn_jax.errors import InputError
from pnn_jax.nn.channels import along_channels


class SingleValueError(InputError):
    """Batch norm in training got one value per channel, of which there is no variance."""


def _standardize(x: jax.Array, mean: jax.Array, gain: jax.Array, bias: jax.Array) -> jax.Array:
    """(x - mean) * gain + bias for x [..., c] and vectors [c]. Computed in float32 or wider, returned in x's dtype."""
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    centred = wide - along_channels(mean, wide)
    return (centred * along_channels(gain, wide) + along_channels(bias, wide)).astype(x.dtype)


@partial(jax.custom_vjp, nondiff_argnums=(3,))
def batch_norm(
    x: jax.Array, scale: jax.Array, bias: jax.Array, epsilon: float
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Normalises x by the mean and the variance of each channel, over all axes but the last.

    The gradient is written out, because it needs fewer passes over x than the derivative of mean and variance.

    Args:
        x: [..., c].
        scale, bias: [c].
        epsilon: added to the variance.

    Returns:
        y of x's shape and dtype, and the mean [c] and biased variance [c] of x, which carry no gradient.
    """
    return _batch_norm_forward(x, scale, bias, epsilon)[0]


def _batch_norm_forward(x, scale, bias, epsilon):
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    axes = tuple(range(x.ndim - 1))
    mean = wide.mean(axes)
    var = jnp.square(wide - along_channels(mean, wide)).mean(axes)
    inverse = jax.lax.rsqrt(var + epsilon)
    return (_standardize(x, mean, inverse * scale, bias), mean, var), (x, mean, inverse, scale)


def _batch_norm_backward(epsilon, residuals, cotangents):
    del epsilon
    x, mean, inverse, scale = residuals
    wide = x.astype(mean.dtype)
    y_bar = cotangents[0].astype(mean.dtype)
    axes = tuple(range(x.ndim - 1))
    count = x.size // x.shape[-1]
    bias_bar = y_bar.sum(axes)
    # The forward pass computed `x - mean` too. XLA would notice and keep that large array in memory until now. The
    # select changes the mean only where a gradient is NaN, but XLA cannot tell, so it keeps x alone.
    mean = jnp.where(bias_bar == bias_bar, mean, jnp.nan)
    centred = wide - along_channels(mean, wide)
    scale_bar = (y_bar * centred).sum(axes) * inverse
    slope = along_channels(inverse * scale_bar / count, wide)
    # The order of torch. With few values per channel nearly all of y_bar cancels, and another order rounds differently.
    x_bar = along_channels(inverse * scale, wide) * (y_bar - along_channels(bias_bar / count, wide) - centred * slope)
    return x_bar.astype(x.dtype), scale_bar.astype(scale.dtype), bias_bar.astype(scale.dtype)


batch_norm.defvjp(_batch_norm_forward, _batch_norm_backward)


class TorchBatchNorm(nn.Module):
    """`torch.nn.BatchNorm1d` or `BatchNorm2d` on x [..., c], over all axes but the last.

    It normalises with the biased variance of the batch and stores the unbiased one, as torch does. Under jit with a
    sharded batch the statistics are those of the global batch.

    Attributes:
        momentum: weight of the new value in the running statistics (torch's meaning; flax's is one minus this).
        epsilon: added to the variance.
    """

    momentum: float = 0.1
    epsilon: float = 1e-5

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """Returns an array of x's shape and dtype.

        Raises:
            SingleValueError: in training, where x has one value per channel or none. Every output would be `bias`, so
                that nothing in front of the norm could learn. torch refuses it too.
        """
        channels = x.shape[-1]
        running_mean = self.variable('batch_stats', 'mean', jnp.zeros, (channels,), jnp.float32)
        running_var = self.variable('batch_stats', 'var', jnp.ones, (channels,), jnp.float32)
        scale = self.param('scale', nn.initializers.ones, (channels,), jnp.float32)
        bias = self.param('bias', nn.initializers.zeros, (channels,), jnp.float32)
        if not train:
            gain = jax.lax.rsqrt(running_var.value + self.epsilon) * scale
            return _standardize(x, running_mean.value, gain, bias)
        y, mean, var = batch_norm(x, scale, bias, self.epsilon)
        if not self.is_initializing():
            count = x.size // channels
            if count < 2:
                name = '/'.join(self.path) or type(self).__name__
                raise SingleValueError(
                    f'batch norm {name!r} needs more than one value per channel in training, got an input of shape '
                    f'{x.shape}'
                )
            unbiased = var * (count / (count - 1))
            for running, value in ((running_mean, mean), (running_var, unbiased)):
                new = (1 - self.momentum) * running.value + self.momentum * value
                running.value = new.astype(running.value.dtype)  # images of float64 do not change their type
        return y
