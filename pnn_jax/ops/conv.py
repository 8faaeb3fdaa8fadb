"""Convolution, with a pass of its own on CPUs for those 3x3 kernels for which XLA's convolution is slow.

y[b, h', w', o] = sum over i, j, c of kernel[i, j, c, o] * padded_x[b, h' * stride + i, w' * stride + j, c]

In all shapes, b counts images, h and w rows and columns of x, h' and w' those of y, c input and o output channels.

XLA:CPU puts channels into vector registers. With five channels, most of a register is empty. For these cases
`_sum_over_taps` computes y and the gradient of x with pixels in the registers. Each pass chooses by shape when it is
traced, and by platform when the program is lowered. The gradient of the kernel, all other shapes and kernel sizes, and
all platforms other than the CPU, use XLA's convolution.
"""

import math
from functools import partial

import jax
import jax.numpy as jnp
from jax import lax

# `_sum_over_taps` loops over groups of this many images.
IMAGES_PER_ITERATION = 8


def conv(x: jax.Array, kernel: jax.Array, *, stride: int, padding: int) -> jax.Array:
    """A convolution as in PyTorch, with a square kernel, and without a bias.

    Reverse-mode gradients exist for x and kernel; forward mode (jax.jvp) is not supported. The CPU's own pass sums in
    float32 or wider.

    Args:
        x: [b, h, w, c].
        kernel: [size, size, c, o], in the dtype of x.
        stride: in pixels, for rows and columns.
        padding: number of zeros added at each edge.

    Returns:
        y [b, h', w', o], in the dtype of x, where h' = (h + 2 * padding - size) // stride + 1, and w' alike.
    """
    return _conv(stride, padding, x, kernel)


# The function is chosen inside the forward and inside the backward function of one custom_vjp. If JAX differentiated
# through the choice, it would keep the residuals of both.


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _conv(stride, padding, x, kernel):
    xla = partial(_xla_conv, stride, padding)
    if _sum_over_taps_is_faster(stride, x, kernel, kernel.shape[3]):
        return lax.platform_dependent(x, kernel, cpu=partial(_sum_over_taps, padding), default=xla)
    return xla(x, kernel)


def _conv_forward(stride, padding, x, kernel):
    return _conv(stride, padding, x, kernel), (x, kernel)


def _conv_backward(stride, padding, arguments, y_bar):
    x, kernel = arguments
    (kernel_bar,) = jax.linear_transpose(lambda kernel: _xla_conv(stride, padding, x, kernel), kernel)(y_bar)
    return _x_gradient(stride, padding, x, kernel, y_bar), kernel_bar


_conv.defvjp(_conv_forward, _conv_backward)


def _x_gradient(stride: int, padding: int, x: jax.Array, kernel: jax.Array, y_bar: jax.Array) -> jax.Array:
    def xla(kernel, y_bar):
        (x_bar,) = jax.linear_transpose(lambda x: _xla_conv(stride, padding, x, kernel), x)(y_bar)
        return x_bar

    def cpu(kernel, y_bar):
        # With stride 1, the gradient is a convolution with the flipped kernel, from output to input channels.
        return _sum_over_taps(len(kernel) - 1 - padding, y_bar, jnp.flip(kernel, (0, 1)).swapaxes(2, 3))

    if _sum_over_taps_is_faster(stride, y_bar, kernel, x.shape[3]):
        return lax.platform_dependent(kernel, y_bar, cpu=cpu, default=xla)
    return xla(kernel, y_bar)


def _xla_conv(stride: int, padding: int, x: jax.Array, kernel: jax.Array) -> jax.Array:
    return lax.conv_general_dilated(
        x, kernel, (stride, stride), ((padding, padding),) * 2, dimension_numbers=('NHWC', 'HWIO', 'NHWC')
    )


# Measured in float32 on one core of an Intel Xeon with AVX-512, a shared machine, with the flags of `runtime.py`. XLA's
# convolution -> ours, milliseconds a pass, batch 128, stride 1, two turns:
#
#                    y                          gradient of x
#   32x32,  3 ->  5  17.2 ->  4.4,  9.5 ->  2.7
#   32x32,  3 -> 14  17.0 ->  6.7, 13.3 ->  4.8
#   32x32,  5 ->  5  20.3 ->  8.5, 11.4 ->  6.5  20.1 ->  8.0, 11.1 ->  4.8
#   32x32, 14 -> 14  29.5 -> 33.5, 31.3 -> 30.9  28.4 -> 31.0, 30.1 -> 31.4
#   28x28,  8 ->  8   8.4 ->  8.4,  5.4 ->  6.9   6.8 -> 11.7,  5.6 -> 12.8
#   16x16, 10 -> 10   5.4 ->  4.4,  3.7 ->  3.9   5.2 ->  4.0,  3.1 ->  4.0


def _sum_over_taps_is_faster(stride: int, x: jax.Array, kernel: jax.Array, outputs: int) -> bool:
    batch, height, width, channels = x.shape
    if not isinstance(batch, int):  # a program exported for any number of images: the loop over groups needs a number
        return False
    few = channels <= 8 and outputs <= 16 and channels * outputs <= 50
    return len(kernel) == 3 and stride == 1 and min(height, width) >= 16 and few


def _sum_over_taps(padding: int, x: jax.Array, kernel: jax.Array) -> jax.Array:
    """A convolution of stride 1 as one elementwise expression over pixels.

    It is computed in a loop over groups of images. Without a loop, XLA would fuse the expression with what follows,
    such as the backward pass of a batch norm, which made it several times slower.
    """
    wide = jnp.promote_types(x.dtype, jnp.float32)
    size, _, channels, _ = kernel.shape
    height, width = (length + 2 * padding + 1 - size for length in x.shape[1:3])
    weights = kernel.astype(wide)

    def convolve(x):
        x = jnp.pad(jnp.moveaxis(x.astype(wide), -1, 1), ((0, 0), (0, 0), (padding, padding), (padding, padding)))
        y = 0
        for i in range(size):
            for j in range(size):
                for c in range(channels):
                    shifted = x[:, c, None, i : i + height, j : j + width]
                    y = y + weights[i, j, c][None, :, None, None] * shifted
        return jnp.moveaxis(y, 1, -1)

    # Image n is in iteration n % iterations. So the loop is not over the axis along which the batch is sharded: on up
    # to IMAGES_PER_ITERATION devices, every device loops over its own images.
    images = math.gcd(len(x), IMAGES_PER_ITERATION)
    groups = jnp.moveaxis(x.reshape(images, len(x) // images, *x.shape[1:]), 1, 0)
    y = jnp.moveaxis(lax.map(convolve, groups), 0, 1)
    return y.reshape(len(x), *y.shape[2:]).astype(x.dtype)
