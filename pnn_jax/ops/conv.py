"""Convolution, with passes of its own on CPUs for those 3x3 kernels for which XLA's convolution is slow.

y[b, h', w', o] = sum over i, j, c of kernel[i, j, c, o] * padded_x[b, h' * stride + i, w' * stride + j, c]

In all shapes, b counts images, h and w rows and columns of x, h' and w' those of y, c input and o output channels.

XLA:CPU puts channels into vector registers. With five channels, most of a register is empty; and in the gradient of the
kernel, which sums over all pixels, XLA is slow for most numbers of channels. For these cases there are three functions:

* `_sum_over_taps`, for y and for the gradient of x, puts pixels into the registers instead of channels;
* `_kernel_gradient_by_columns` and `_kernel_gradient_by_taps` compute the gradient of the kernel as matrix products.

Each pass chooses by shape when it is traced, and by platform when the program is lowered. All other shapes and kernel
sizes, and all platforms other than the CPU, use XLA's convolution.
"""

import math
from collections.abc import Callable
from functools import partial, reduce

import jax
import jax.numpy as jnp
from jax import lax

# Columns of y that `_kernel_gradient_by_columns` treats as one. 8 and 16 were no faster.
COLUMNS = 4

# `_sum_over_taps` loops over groups of this many images.
IMAGES_PER_ITERATION = 8


def conv(x: jax.Array, kernel: jax.Array, *, stride: int, padding: int) -> jax.Array:
    """A convolution as in PyTorch, with a square kernel, and without a bias.

    Reverse-mode gradients exist for x and kernel; forward mode (jax.jvp) is not supported. The CPU's own passes sum in
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
# through the choice, it would keep the residuals of all alternatives.


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
    return _x_gradient(stride, padding, x, kernel, y_bar), _kernel_gradient(stride, padding, x, kernel, y_bar)


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


def _kernel_gradient(stride: int, padding: int, x: jax.Array, kernel: jax.Array, y_bar: jax.Array) -> jax.Array:
    def xla(x, y_bar):
        (kernel_bar,) = jax.linear_transpose(lambda kernel: _xla_conv(stride, padding, x, kernel), kernel)(y_bar)
        return kernel_bar

    cpu = _faster_kernel_gradient(stride, kernel, y_bar)
    if cpu is None:
        return xla(x, y_bar)
    return lax.platform_dependent(x, y_bar, cpu=partial(cpu, len(kernel), stride, padding), default=xla)


def _xla_conv(stride: int, padding: int, x: jax.Array, kernel: jax.Array) -> jax.Array:
    return lax.conv_general_dilated(
        x, kernel, (stride, stride), ((padding, padding),) * 2, dimension_numbers=('NHWC', 'HWIO', 'NHWC')
    )


# Which function is faster was measured in float32, on one core of an AMD EPYC with AVX2, a shared machine. XLA's
# convolution -> ours, in milliseconds a pass, batch 128 (last two lines: 16), stride 1 unless stated:
#
#                       y            gradient of x   gradient of the kernel
#   32x32,  5 ->  5     14.5 ->  7.1  14.3 ->  6.5    16.7 -> 10.9 by columns
#   32x32,  3 -> 14     18.2 ->  7.4                  52.4 -> 12.0 by columns
#   32x32, 10 -> 10     16.2 -> 32.4                 167.9 -> 28.1 by columns
#   16x16, 10 -> 10      4.2 ->  7.9                   6.6 ->  5.7 by columns
#    8x8,  20 -> 20                                    2.6 ->  3.0 by taps
#   32x32, 10 -> 20, stride 2                         14.0 ->  9.9 by taps
#   32x32, 44 -> 44                                   46.4 -> 24.8 by taps, 28.8 -> 18.4 by columns
#   16x16, 88 -> 88                                   16.8 -> 12.1 by taps, 16.8 -> 16.1 by columns


def _sum_over_taps_is_faster(stride: int, x: jax.Array, kernel: jax.Array, outputs: int) -> bool:
    batch, height, width, channels = x.shape
    if not isinstance(batch, int):  # a program exported for any number of images: the loop over groups needs a number
        return False
    few = channels <= 8 and outputs <= 16 and channels * outputs <= 50
    return len(kernel) == 3 and stride == 1 and min(height, width) >= 16 and few


def _faster_kernel_gradient(stride: int, kernel: jax.Array, y_bar: jax.Array) -> Callable | None:
    size, _, channels, _ = kernel.shape
    _, height, width, _ = y_bar.shape
    if size != 3:
        return None
    if stride == 1 and channels < 64 and min(height, width) >= 16 and width % COLUMNS == 0:
        return _kernel_gradient_by_columns
    if stride == 2 or channels >= 64:
        return _kernel_gradient_by_taps
    return None


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


def _kernel_gradient_by_columns(size: int, stride: int, padding: int, x: jax.Array, y_bar: jax.Array) -> jax.Array:
    """One matrix product per row of the kernel, between blocks of COLUMNS columns of y_bar and what they see of x.

    A product with few channels is slow, because it has few rows and columns. The blocks make it COLUMNS times wider,
    but it then has entries for all pairs of columns; those further apart than the kernel is wide are not used.
    """
    wide = jnp.promote_types(x.dtype, jnp.float32)
    batch, height, width, outputs = y_bar.shape
    channels = x.shape[-1]
    blocks, seen = width // COLUMNS, (COLUMNS - 1) * stride + size
    x = _pad(x, padding)
    starts = range(0, blocks * COLUMNS * stride, COLUMNS * stride)
    x = jnp.stack([x[:, :, start : start + seen].reshape(*x.shape[:2], seen * channels) for start in starts], 2)
    y_bar = y_bar.reshape(batch * height * blocks, COLUMNS * outputs)
    products = []
    for i in range(size):
        rows = x[:, i : i + (height - 1) * stride + 1 : stride].reshape(batch * height * blocks, seen * channels)
        products.append(jnp.matmul(rows.T, y_bar, preferred_element_type=wide))
    pairs = jnp.stack(products).reshape(size, seen, channels, COLUMNS, outputs)
    of_columns = [pairs[:, n * stride : n * stride + size, :, n] for n in range(COLUMNS)]
    return reduce(jnp.add, of_columns).astype(x.dtype)


def _kernel_gradient_by_taps(size: int, stride: int, padding: int, x: jax.Array, y_bar: jax.Array) -> jax.Array:
    """One matrix product per tap, between the pixels of x that the tap is applied to and y_bar."""
    wide = jnp.promote_types(x.dtype, jnp.float32)
    batch, height, width, outputs = y_bar.shape
    channels = x.shape[-1]
    x = _pad(x, padding)
    y_bar = y_bar.reshape(batch * height * width, outputs)
    products = []
    for i in range(size):
        for j in range(size):
            pixels = x[:, i : i + (height - 1) * stride + 1 : stride, j : j + (width - 1) * stride + 1 : stride]
            pixels = pixels.reshape(batch * height * width, channels)
            products.append(jnp.matmul(pixels.T, y_bar, preferred_element_type=wide))
    return jnp.stack(products).reshape(size, size, channels, outputs).astype(x.dtype)


def _pad(x: jax.Array, padding: int) -> jax.Array:
    """x [b, h, w, c] with zeros around every map."""
    return jnp.pad(x, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
