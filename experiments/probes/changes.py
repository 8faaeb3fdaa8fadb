"""The changes that are made to a trained network: its masks, and the positions of the map behind its stem.

Why behind the stem? A 3x3 stem sees the seams between tiles that are moved in the image, so even a network without any
masks would be disturbed. Behind the stem a network of 1x1 convolutions and aligned poolings treats every tile alike:
moving tiles there changes nothing but their distance from the masks.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np

from pnn_jax.train_step import Variables

MASKS = 'masks'  # the name of noise masks and of random filters in every collection


class Change(NamedTuple):
    """A change to a network.

    Attributes:
        name: what is changed, in words.
        draw: number of the random draw, from 0; 0 where nothing is random.
        variables: all collections of the changed network.
        positions: int32 [h * w], which position of the map behind the stem moves to each position.
    """

    name: str
    draw: int
    variables: Variables
    positions: np.ndarray


def has_masks(variables: Variables) -> bool:
    """Whether the network has masks or random filters."""
    return any(_is_mask(path) for path, _ in jax.tree_util.tree_leaves_with_path(variables))


def replace_masks(variables: Variables, new: Callable[..., np.ndarray], *others: Variables) -> Variables:
    """The variables with `new(masks)` for all masks; everything else is the same.

    Args:
        variables: all collections of a network.
        new: called with the masks of one layer, and with those of the same layer of every tree in `others`.
        others: variables of networks of the same structure.
    """
    replace = lambda path, leaf, *rest: new(leaf, *rest) if _is_mask(path) else leaf
    return jax.tree_util.tree_map_with_path(replace, variables, *others)


def _is_mask(path) -> bool:
    return path[-1].key == MASKS


def unmoved(height: int, width: int) -> np.ndarray:
    """The positions [h * w] of a map in which nothing is moved."""
    return np.arange(height * width, dtype=np.int32)


def permuted_tiles(height: int, width: int, tile: int, rng: np.random.Generator) -> np.ndarray:
    """The positions [h * w] of a map whose square tiles of `tile` pixels are permuted at random.

    `height` and `width` must be multiples of `tile`. The permutation is never the identity where there are several
    tiles, because that would count an unchanged network as changed.
    """
    grid = unmoved(height, width).reshape(height // tile, tile, width // tile, tile)
    tiles = grid.transpose(0, 2, 1, 3).reshape(-1, tile, tile)
    order = rng.permutation(len(tiles))
    while len(tiles) > 1 and (order == np.arange(len(tiles))).all():
        order = rng.permutation(len(tiles))
    moved = tiles[order].reshape(height // tile, width // tile, tile, tile)
    return moved.transpose(0, 2, 1, 3).reshape(-1)


def rolled(height: int, width: int, pixels: int) -> np.ndarray:
    """The positions [h * w] of a map that is moved down and right; what leaves it enters at the other side."""
    return np.roll(unmoved(height, width).reshape(height, width), (pixels, pixels), (0, 1)).reshape(-1)


def all_changes(
    variables: Variables,
    draw_variables: Callable[[int], Variables],
    map_shape: tuple[int, int],
    tile: int,
    draws: int,
) -> list[Change]:
    """Every change that is probed, the unchanged network first.

    Args:
        variables: of the trained network.
        draw_variables: number of a draw -> fresh variables of the same network, of which only the masks are used.
        map_shape: [h, w] of the map behind the stem; multiples of `tile`.
        tile: pixels of that map, in each direction, that end up in one position of the last map.
        draws: random draws of every change that has any.
    """
    stay = unmoved(*map_shape)
    changes = [Change('as trained', 0, variables, stay)]
    if has_masks(variables):
        for draw in range(draws):
            other = replace_masks(variables, lambda old, new: new, draw_variables(draw))
            changes.append(Change('other masks', draw, other, stay))
        changes.append(Change('masks zeroed', 0, replace_masks(variables, np.zeros_like), stay))
    for draw in range(draws):
        positions = permuted_tiles(*map_shape, tile, np.random.default_rng(draw))
        changes.append(Change('tiles permuted', draw, variables, positions))
    for pixels in sorted({1, tile // 2, tile}):
        name = f'moved by {pixels} pixel' + ('' if pixels == 1 else 's')
        changes.append(Change(name, 0, variables, rolled(*map_shape, pixels)))
    return changes
