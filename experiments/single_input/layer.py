"""One perturbation layer that imitates a convolution: its weights solved for, or its masks and weights by descent.

With c input channels and m masks per channel, the layer gives at pixel p of image i

    y[i, p, :] = sum over c, m of weights[c, m, :] * relu(x[i, p, c] + level * masks[p, c, m]) + bias
"""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from scipy import linalg


class Layer(NamedTuple):
    """A perturbation layer and its noise level; without masks it is a 1x1 convolution."""

    masks: np.ndarray | None  # [h, w, c, m]
    level: float


def features(images: np.ndarray, layer: Layer) -> np.ndarray:
    """What the weights of `layer` multiply, and a column of ones for the bias.

    Returns:
        float64 [n * h * w, c * m + 1] for images [n, h, w, c]; [n * h * w, c + 1] without masks.
    """
    if layer.masks is None:
        responses = images
    else:
        responses = np.maximum(images[..., None] + layer.level * layer.masks, 0)
    flat = responses.reshape(math.prod(images.shape[:3]), -1)
    return np.concatenate([flat, np.ones((len(flat), 1))], axis=1, dtype=np.float64)


def solve(
    images: np.ndarray, targets: np.ndarray, layer: Layer, cutoff: float | None = None, images_at_once: int = 32
) -> np.ndarray:
    """The weights [c * m + 1, o] with the smallest squared error; if several have it, those of smallest norm.

    The equations of all images do not fit in memory together. So they are factorised (QR) in parts, and the triangular
    factor of the parts so far is put above the equations of the next part.

    Args:
        images: [n, h, w, c].
        targets: [n, h, w, o].
        cutoff: singular values below `cutoff` times the largest are dropped; None for machine precision.
        images_at_once: images in a part.
    """
    factor = None
    for start in range(0, len(images), images_at_once):
        chunk = slice(start, start + images_at_once)
        rows = np.hstack([features(images[chunk], layer), targets[chunk].reshape(-1, targets.shape[-1])])
        rows = rows if factor is None else np.vstack([factor, rows])
        factor = linalg.qr(rows, mode='r', overwrite_a=True, check_finite=False)[0][: rows.shape[1]]
    unknowns = factor.shape[1] - targets.shape[-1]
    return linalg.lstsq(factor[:, :unknowns], factor[:, unknowns:], cond=cutoff)[0]


def relative_residual(images: np.ndarray, targets: np.ndarray, layer: Layer, weights: np.ndarray) -> float:
    """||layer(images) - targets|| / ||targets - mean of each channel||, over all images together."""
    error = 0.0
    for image, target in zip(images, targets, strict=True):
        prediction = features(image[None], layer) @ weights
        error += np.sum((prediction - target.reshape(prediction.shape)) ** 2)
    return float(np.sqrt(error / np.sum((targets - targets.mean((0, 1, 2))) ** 2)))


def descend(
    images: np.ndarray,
    targets: np.ndarray,
    layer: Layer,
    weights: np.ndarray,
    steps: int,
    batch_size: int = 16,
    learning_rate: float = 0.03,
) -> tuple[Layer, np.ndarray]:
    """Adam on masks and weights together, starting with the given ones. Returns the layer and weights it reaches."""
    spread = float(np.mean((targets - targets.mean((0, 1, 2))) ** 2))
    optimizer = optax.adam(optax.warmup_cosine_decay_schedule(0.0, learning_rate, steps // 10, steps))
    values = {'masks': jnp.asarray(layer.masks, jnp.float32), 'weights': jnp.asarray(weights, jnp.float32)}

    def loss(values, x, target):
        responses = jax.nn.relu(x[..., None] + layer.level * values['masks'][None])
        prediction = (
            responses.reshape(*x.shape[:3], -1) @ values['weights'][:-1] + values['weights'][-1][None, None, None]
        )
        return jnp.mean(jnp.square(prediction - target)) / spread

    @jax.jit
    def step(values, state, x, target):
        gradients = jax.grad(loss)(values, x, target)
        updates, state = optimizer.update(gradients, state)
        return optax.apply_updates(values, updates), state

    state = optimizer.init(values)
    rng = np.random.default_rng(0)
    for _ in range(steps):
        batch = rng.choice(len(images), min(batch_size, len(images)), replace=False)
        values, state = step(values, state, images[batch], targets[batch])
    trained = layer._replace(masks=np.asarray(values['masks']))
    return trained, np.asarray(values['weights'], np.float64)
