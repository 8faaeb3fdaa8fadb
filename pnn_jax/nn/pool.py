"""Max and average pooling as in PyTorch, with a fast gradient for the pooling that networks use most."""

from functools import partial, reduce

import flax.linen as nn
import jax
import jax.numpy as jnp

from pnn_jax.errors import InputError

POOLINGS = ('max', 'avg')


def pool(x: jax.Array, kind: str, window: int, stride: int, padding: int = 0) -> jax.Array:
    """`torch.nn.MaxPool2d` or `torch.nn.AvgPool2d`, whose average counts the zeros of the padding.

    Args:
        x: [b, h, w, c].
        kind: a name in `POOLINGS`.
        window, stride, padding: in pixels, the same for height and width.

    Returns:
        [b, h', w', c] with h' = (h + 2 * padding - window) // stride + 1. Windows that do not fit are dropped.

    Raises:
        InputError: there is no such kind.
    """
    if kind not in POOLINGS:
        raise InputError(f'kind={kind!r}: must be one of {", ".join(POOLINGS)}')
    if kind == 'max' and window == stride <= 11 and padding == 0:  # 11 * 11 positions fit into int8
        return _max_pool_tiles(x, window)
    shape, strides, pads = (window, window), (stride, stride), ((padding, padding), (padding, padding))
    if kind == 'max':
        return nn.max_pool(x, shape, strides, pads)
    return nn.avg_pool(x, shape, strides, pads)


def _tiles(x: jax.Array, size: int) -> list[jax.Array]:
    """size * size arrays [b, h // size, w // size, c]; array i holds the i-th pixel of every tile, row by row."""
    height, width = x.shape[1] // size * size, x.shape[2] // size * size
    return [x[:, i:height:size, j:width:size] for i in range(size) for j in range(size)]


@partial(jax.custom_vjp, nondiff_argnums=(1,))
def _max_pool_tiles(x: jax.Array, size: int) -> jax.Array:
    """Max pooling without overlap. XLA's own gradient of max pooling is a scatter, 50 times slower on CPU."""
    return reduce(jnp.maximum, _tiles(x, size))


def _max_pool_forward(x: jax.Array, size: int) -> tuple[jax.Array, jax.Array]:
    return _max_pool_tiles(x, size), x


def _max_pool_backward(size: int, x: jax.Array, y_bar: jax.Array) -> tuple[jax.Array]:
    """The gradient goes to the first of equal maxima, as in torch."""
    tiles = _tiles(x, size)
    y = reduce(jnp.maximum, tiles)
    winner = jnp.full(y.shape, len(tiles) - 1, jnp.int8)  # small, so that little memory is read
    for index in range(len(tiles) - 2, -1, -1):
        winner = jnp.where(tiles[index] == y, jnp.int8(index), winner)
    # Without the barrier XLA:CPU would compute the winner of a tile once for each of its pixels, 20 times slower.
    winner, y_bar = jax.lax.optimization_barrier((winner, y_bar))
    batch, height, width, channels = y.shape
    split, whole = (batch, height, size, width, size, channels), (batch, height * size, width * size, channels)
    spread = lambda pooled: jnp.broadcast_to(pooled[:, :, None, :, None], split).reshape(whole)
    row, column = (jax.lax.broadcasted_iota(jnp.int32, whole, axis) % size for axis in (1, 2))
    x_bar = jnp.where(spread(winner) == (row * size + column).astype(jnp.int8), spread(y_bar), 0)
    rest = ((0, 0), (0, x.shape[1] - height * size), (0, x.shape[2] - width * size), (0, 0))
    return (jnp.pad(x_bar, rest),)


_max_pool_tiles.defvjp(_max_pool_forward, _max_pool_backward)
