"""A linear read-out of position: from the features at one position of a map, in which tile of the image is it?

The map is cut into as many tiles as the last map has positions (16 for images of 32x32 pixels). Of every image and
tile one position is drawn; a linear classifier names its tile. Chance is one over the number of tiles.

The classifier is linear discriminant analysis: it has a closed form, so that nothing is tuned, and it can separate
tiles along a ramp, which least squares on indicators cannot. Where objects are centred, the images themselves tell
something about position; so compare with a network without masks, not with chance alone.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

RIDGE = 1e-4  # times the variance over all positions; without it channels that are constant or equal have no inverse


class ReadOut(NamedTuple):
    """How often the tile was named correctly, on held-out images.

    Attributes:
        map: name of the map.
        correct, count: feature vectors.
        tiles: number of tiles; chance is 1 / tiles.
    """

    map: str
    correct: int
    count: int
    tiles: int


def one_per_tile(features: np.ndarray, tiles: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """Draws one position of every tile of every map: [n, h, w, c] -> [n, tiles, c].

    Args:
        features: [n, h, w, c]; h and w are multiples of the two numbers of tiles.
        tiles: how many tiles there are down and across.
    """
    n, height, width, channels = features.shape
    down, across = tiles
    cut = features.reshape(n, down, height // down, across, width // across, channels)
    cut = cut.transpose(0, 1, 3, 2, 4, 5).reshape(n, down * across, -1, channels)
    chosen = rng.integers(cut.shape[2], size=(n, down * across, 1, 1))
    return np.take_along_axis(cut, chosen, axis=2)[:, :, 0]


def discriminant(features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Linear discriminant analysis of features [n, tiles, c] with equally frequent tiles.

    Returns:
        Weights [c, tiles] and offsets [tiles]. Features f are of the tile where f @ weights + offsets is largest.
    """
    means = features.mean(axis=0)
    centred = (features - means).reshape(-1, features.shape[-1])
    within = centred.T @ centred / len(centred)
    # The smallest number keeps features that never change at all solvable: then every tile has the same score.
    ridge = RIDGE * features.var(axis=(0, 1)).mean() + np.finfo(np.float64).tiny
    middle = means.mean(axis=0)
    weights = np.linalg.solve(within + ridge * np.eye(len(within)), (means - middle).T)
    return weights, -0.5 * np.sum((means + middle).T * weights, axis=0)


def read_out(name: str, fitted: np.ndarray, held_out: np.ndarray) -> ReadOut:
    """Fits the classifier on features [n, tiles, c] of some images and counts on those of other images."""
    weights, offsets = discriminant(fitted.astype(np.float64))
    named = (held_out.astype(np.float64) @ weights + offsets).argmax(axis=-1)
    correct = named == np.arange(held_out.shape[1])
    return ReadOut(name, int(correct.sum()), correct.size, held_out.shape[1])


def sampled(batches: Iterable[dict[str, np.ndarray]], tiles: tuple[int, int], seed: int) -> dict[str, np.ndarray]:
    """Name of a map -> [n, tiles, c], one drawn position of every tile of all images in `batches`."""
    rng = np.random.default_rng(seed)
    kept: dict[str, list[np.ndarray]] = {}
    for batch in batches:
        for name, features in batch.items():
            kept.setdefault(name, []).append(one_per_tile(features, tiles, rng))
    return {name: np.concatenate(parts) for name, parts in kept.items()}
