"""Convolution, with faster passes on CPUs for the shapes at which XLA's convolution is slow there.

y[b, h', w', o] = sum over i, j, c of kernel[i, j, c, o] * padded_x[b, h' * stride + i, w' * stride + j, c]

In all shapes, b counts images, h and w rows and columns of x, h' and w' those of y, c input and o output channels.

A 3x3 convolution is computed by one of three functions, chosen for each pass by shape and platform:

* XLA's convolution, on every platform other than CPUs and for most shapes on CPUs;
* for few channels, an elementwise sum over the taps and channels of the kernel;
* for the gradient of the kernel, an elementwise sum over rows (few channels) or one matrix product per tap.

The elementwise sums store pixels last. A vector register then holds neighbouring pixels of one channel, for which the
kernel is a scalar. XLA's convolution puts channels into the registers, so that most of a register is empty when there
are only five.
"""

import math
from functools import partial

import jax
import jax.numpy as jnp
from jax import lax


def conv(x: jax.Array, kernel: jax.Array, *, stride: int, padding: int) -> jax.Array:
    """Convolution as in PyTorch, with a square kernel. Reverse-mode gradients exist; jax.jvp is not supported.

    On CPUs, sums over taps and channels are in float32 or wider.

    Args:
        x: [b, h, w, c].
        kernel: [size, size, c, o], in the dtype of x.
        stride: in pixels, the same for rows and columns.
        padding: zeros added at each edge, in pixels.

    Returns:
        y [b, h', w', o], in the dtype of x, where h' = (h + 2 * padding - size) // stride + 1, and w' alike.
    """
    return _conv(stride, padding, x, kernel)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _conv(stride, padding, x, kernel):
    xla = partial(_xla_conv, stride, padding)
    if stride == 1 and _sum_over_taps_is_faster(x, kernel):
        return lax.platform_dependent(x, kernel, cpu=partial(_sum_over_taps, padding), default=xla)
    return xla(x, kernel)


def _conv_forward(stride, padding, x, kernel):
    return _conv(stride, padding, x, kernel), (x, kernel)


def _conv_backward(stride, padding, arguments, y_bar):
    x, kernel = arguments
    return _x_gradient(stride, padding, x, kernel, y_bar), _kernel_gradient(stride, padding, x, kernel, y_bar)


_conv.defvjp(_conv_forward, _conv_backward)


def _x_gradient(stride: int, padding: int, x: jax.Array, kernel: jax.Array, y_bar: jax.Array) -> jax.Array:
    """The gradient of x: a convolution of y_bar with the kernel turned by 180 degrees."""

    def xla(kernel, y_bar):
        return jax.linear_transpose(lambda x: _xla_conv(stride, padding, x, kernel), x)(y_bar)[0]

    def cpu(kernel, y_bar):
        turned = jnp.flip(kernel, (0, 1)).swapaxes(2, 3)
        return _sum_over_taps(len(kernel) - 1 - padding, y_bar, turned)

    if stride == 1 and _sum_over_taps_is_faster(y_bar, kernel):
        return lax.platform_dependent(kernel, y_bar, cpu=cpu, default=xla)
    return xla(kernel, y_bar)


def _kernel_gradient(stride: int, padding: int, x: jax.Array, kernel: jax.Array, y_bar: jax.Array) -> jax.Array:
    """The gradient of the kernel: the product of every shifted copy of x with y_bar."""

    def xla(x, y_bar):
        return jax.linear_transpose(lambda kernel: _xla_conv(stride, padding, x, kernel), kernel)(y_bar)[0]

    cpu = _faster_kernel_gradient(x, kernel, y_bar)
    if cpu is None:
        return xla(x, y_bar)
    return lax.platform_dependent(x, y_bar, cpu=partial(cpu, len(kernel), stride, padding), default=xla)


def _xla_conv(stride, padding, x, kernel):
    return lax.conv_general_dilated(
        x, kernel, (stride, stride), ((padding, padding),) * 2, dimension_numbers=('NHWC', 'HWIO', 'NHWC')
    )


def _sum_over_taps_is_faster(x, kernel):
    size, _, channels, outputs = kernel.shape
    return size == 3 and min(x.shape[1:3]) >= 8 and channels * outputs <= 64


def _faster_kernel_gradient(x, kernel, y_bar):
    size, _, channels, outputs = kernel.shape
    if size != 3 or not x.size:
        return None
    if 16 <= y_bar.shape[1] <= 32 and 16 <= y_bar.shape[2] <= 32 and channels * outputs <= 400:
        return _sum_over_rows
    return _product_per_tap


def _sum_over_taps(padding: int, x: jax.Array, kernel: jax.Array) -> jax.Array:
    """A convolution of stride 1 as one elementwise expression."""
    wide = jnp.promote_types(x.dtype, jnp.float32)
    size, _, channels, _ = kernel.shape
    kernel = kernel.astype(wide)
    height, width = (length + 2 * padding + 1 - size for length in x.shape[1:3])

    def convolve(x):
        x = _pixels_last(x.astype(wide), padding)
        y = 0
        for i in range(size):
            for j in range(size):
                for c in range(channels):
                    shifted = x[:, c, None, i : i + height, j : j + width]
                    y = y + kernel[i, j, c][None, :, None, None] * shifted
        return jnp.moveaxis(y, 1, -1)

    return _merge_batch(lax.map(convolve, _split_batch(x))).astype(x.dtype)


def _sum_over_rows(size: int, stride: int, padding: int, x: jax.Array, y_bar: jax.Array) -> jax.Array:
    wide = jnp.promote_types(x.dtype, jnp.float32)
    height, width, outputs = y_bar.shape[1:]
    channels = x.shape[-1]
    padded = _pixels_last(x.astype(wide), padding)
    # Columns that are `stride` apart become neighbours: [b, c, rows, stride, columns / stride].
    padded = jnp.pad(padded, ((0, 0),) * 3 + ((0, -padded.shape[3] % stride),))
    padded = padded.reshape(*padded.shape[:3], -1, stride).swapaxes(3, 4)
    images = _split_batch(padded), _split_batch(_pixels_last(y_bar.astype(wide), 0))
    start = jnp.zeros((images[0].shape[1], channels, outputs, width), wide)

    def row_of_kernel(i):
        def add_image(totals, image):
            x, y_bar = image
            x = lax.dynamic_slice_in_dim(x, i, (height - 1) * stride + 1, 2)
            totals = list(totals)
            for j in range(size):
                columns = x[:, :, None, :, j % stride, j // stride : j // stride + width]
                for row in range(height):
                    totals[j] = totals[j] + columns[:, :, :, row * stride] * y_bar[:, None, :, row]
            return tuple(totals), None

        totals, _ = lax.scan(add_image, (start,) * size, images)
        return jnp.stack([total.sum((0, -1)) for total in totals])

    return lax.map(row_of_kernel, jnp.arange(size)).astype(x.dtype)


def _product_per_tap(size: int, stride: int, padding: int, x: jax.Array, y_bar: jax.Array) -> jax.Array:
    wide = jnp.promote_types(x.dtype, jnp.float32)
    batch, height, width, outputs = y_bar.shape
    padded = jnp.pad(x, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    pixels = batch * height * width
    rows, columns = (height - 1) * stride + 1, (width - 1) * stride + 1
    products = [
        jnp.matmul(
            padded[:, i : i + rows : stride, j : j + columns : stride].reshape(pixels, -1).T,
            y_bar.reshape(pixels, outputs),
            preferred_element_type=wide,
        )
        for i in range(size)
        for j in range(size)
    ]
    return jnp.stack(products).reshape(size, size, x.shape[-1], outputs).astype(x.dtype)


def _pixels_last(x: jax.Array, padding: int) -> jax.Array:
    return jnp.pad(jnp.moveaxis(x, -1, 1), ((0, 0), (0, 0), (padding, padding), (padding, padding)))


def _split_batch(x: jax.Array) -> jax.Array:
    """[b, ...] -> [b / g, g, ...], for a loop over the first axis, with g = 8 where that divides the batch.

    On up to g devices, shards of the batch stay where they are, because they lie along the axis of g.
    """
    groups = math.gcd(x.shape[0], 8)
    return jnp.moveaxis(x.reshape(groups, len(x) // groups, *x.shape[1:]), 1, 0)


def _merge_batch(y: jax.Array) -> jax.Array:
    """[b / g, g, ...] -> [b, ...], the inverse of `_split_batch`."""
    loops, groups = y.shape[:2]
    return jnp.moveaxis(y, 0, 1).reshape(loops * groups, *y.shape[2:])
