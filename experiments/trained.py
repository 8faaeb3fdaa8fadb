"""The trained network of a run, for experiments that look into it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import flax.linen as nn
import ml_collections

from pnn_jax.errors import InputError, one_line
from pnn_jax.models.registry import create_model
from pnn_jax.optim import create_optimizer
from pnn_jax.run.checkpoints import Checkpointer
from pnn_jax.train import restore
from pnn_jax.train_state import create_train_state


def load_trained(
    workdir: Path, image_shape: Sequence[int], num_classes: int
) -> tuple[nn.Module, dict[str, Any], ml_collections.ConfigDict]:
    """The network of a run, its variables at the latest checkpoint, and its config. Writes nothing.

    Args:
        workdir: of a run on images of shape `image_shape` [h, w, c].

    Raises:
        InputError: there is no run, or it has no checkpoint.
        RunError: its checkpoints are damaged or do not fit the images.
    """
    try:
        config = ml_collections.ConfigDict(json.loads((workdir / 'config.json').read_text()))
        config.lock()
    except (OSError, ValueError, TypeError) as error:
        raise InputError(f'{workdir}: not the workdir of a run ({one_line(error)})') from None
    model = create_model(config.model, num_classes)
    optimizer = create_optimizer(config.optimizer, lambda step: 0.0)
    state = create_train_state(model, optimizer, tuple(image_shape), seed=config.seed, mask_seed=config.mask_seed)
    with Checkpointer(workdir / 'checkpoints', read_only=True) as checkpointer:
        state, restored = restore(checkpointer, state)
    if restored is None:
        raise InputError(f'{workdir}: no checkpoint yet')
    return model, state.variables, config
