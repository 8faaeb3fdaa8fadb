"""Batch norm with statistics of training images in place of the running averages from training."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterable

import flax.linen as nn
import jax
import ml_collections
import numpy as np

from pnn_jax.models.registry import create_model
from pnn_jax.nn.norm import TorchBatchNorm
from pnn_jax.run.load import Run
from pnn_jax.train_step import RANDOM_STREAMS, Variables


def recalibrated(
    update: Callable[[Variables, np.ndarray], Variables], variables: Variables, batches: Iterable[np.ndarray]
) -> Variables:
    """The variables with the mean over `batches` of each batch's statistics, as torch.optim.swa_utils.update_bn.

    Args:
        update: (variables, images) -> the collection `batch_stats` after one update in training mode.
        variables: of the network.
        batches: uint8 images [b, h, w, c], at least one batch; they are not augmented.
    """
    # From running averages of 0, one update leads to `momentum` times the statistics of the batch.
    zeros = variables | {'batch_stats': jax.tree.map(np.zeros_like, variables['batch_stats'])}
    parts = [jax.device_get(update(zeros, images)) for images in batches]
    mean = lambda *values: (np.mean(values, axis=0, dtype=np.float64) / TorchBatchNorm.momentum).astype(np.float32)
    return variables | {'batch_stats': jax.tree.map(mean, *parts)}


def with_stored_masks(run: Run) -> nn.Module:
    """A run's network with the masks of evaluation in training mode, also where training draws new ones every step."""
    if not run.config.model.redraw_masks:
        return run.model
    return _with_stored_masks(run.config.model.to_json(), run.num_classes)


@functools.lru_cache(maxsize=1)
def _with_stored_masks(model: str, num_classes: int) -> nn.Module:
    """Cached, because an equal network would compile programs of its own."""
    return create_model(ml_collections.ConfigDict(json.loads(model) | {'redraw_masks': False}), num_classes)


def fixed_random_streams() -> dict[str, jax.Array]:
    """A key for every random stream of a training step, always the same ones."""
    return dict(zip(RANDOM_STREAMS, jax.random.split(jax.random.key(0), len(RANDOM_STREAMS)), strict=True))
