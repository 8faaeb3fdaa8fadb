"""How the values of every tensor are ordered in PyTorch: a pair of functions for each kind of tensor.

The layout follows from the name and the rank of our array, so no table is needed.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from pnn_jax.errors import InputError


class Layout(NamedTuple):
    """to_torch(our array) -> tensor; from_torch(tensor, our shape) -> our array."""

    to_torch: Callable[[np.ndarray], np.ndarray]
    from_torch: Callable[[np.ndarray, tuple[int, ...]], np.ndarray]


SAME = Layout(lambda a: a, lambda a, shape: a)
LINEAR = Layout(lambda a: a.T, lambda a, shape: a.T)
POINTWISE = Layout(lambda a: a.T[:, :, None, None], lambda a, shape: a[:, :, 0, 0].T)
CONVOLUTION = Layout(lambda a: a.transpose(3, 2, 0, 1), lambda a, shape: a.transpose(2, 3, 1, 0))
# Ours [in, masks, out // in]; theirs [out, masks, 1, 1] with output o in the group of input o // (out // in).
GROUPED = Layout(
    lambda a: a.transpose(0, 2, 1).reshape(-1, a.shape[1], 1, 1),
    lambda a, shape: a.reshape(shape[0], shape[2], shape[1]).transpose(0, 2, 1),
)
MASKS = Layout(lambda a: a.transpose(2, 3, 0, 1)[None], lambda a, shape: a[0].transpose(2, 3, 0, 1))
ADDED_NOISE = Layout(lambda a: a.transpose(2, 0, 1), lambda a, shape: a.transpose(1, 2, 0))


def layout_of(path: tuple[str, ...], ndim: int) -> Layout:
    """The layout of the variable at `path`, which has `ndim` axes on our side."""
    if path[-1] == 'masks':
        return MASKS if ndim == 4 else ADDED_NOISE
    if path[-1] != 'kernel':
        return SAME
    if path[0].startswith('linear'):
        return LINEAR
    return {2: POINTWISE, 3: GROUPED, 4: CONVOLUTION}[ndim]


def torch_shape(layout: Layout, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape in PyTorch of our array of `shape`; nothing is allocated."""
    return layout.to_torch(np.broadcast_to(np.float32(0), shape)).shape


def undo_level(key: str, scaled: np.ndarray, level: float) -> np.ndarray:
    """The raw mask whose product with `level` is `scaled`, bit for bit in float32.

    Division rounds, so the quotient may be off by one unit in the last place. Then one of its two neighbours is the
    mask. In float64, which only verification uses, the quotient is close enough.

    Raises:
        InputError: there is no such mask, because `scaled` was made with another level.
    """
    level = scaled.dtype.type(level)
    quotient = np.divide(scaled, level, out=np.zeros_like(scaled), where=scaled != 0) if level else scaled
    if scaled.dtype == np.float64:
        return quotient
    raw = quotient
    for neighbour in (np.nextafter(quotient, -np.inf), np.nextafter(quotient, np.inf)):
        raw = np.where(raw * level == scaled, raw, neighbour)
    if not np.array_equal(raw * level, scaled):
        raise InputError(f'{key} is not {level} times any mask: model.noise_level must be that of the saved network')
    return raw
