"""What else a record says of a finished network: its accuracy with other statistics in its batch norms, the digest of
its variables, and the machine.

In evaluation, a batch norm uses running averages from training. Where these do not fit, a network that has learned can
fail in evaluation; such a run counts as collapsed. Two measurements on the test set tell the two apart:

- training mode: batch norms use the statistics of each batch of test images, as in training;
- recalibrated: the running averages are replaced by means over batches of training images, for the final weights.
"""

from __future__ import annotations

import dataclasses
import itertools
import os
import platform
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from experiments.recalibration import fixed_random_streams, recalibrated, with_stored_masks
from pnn_jax.data import Dataset, Split
from pnn_jax.data.augment import preprocess
from pnn_jax.metrics import Metrics, example_metrics
from pnn_jax.run.checkpoints import tree_digest
from pnn_jax.run.load import Run, load_run
from pnn_jax.train_step import Variables
from pnn_jax.trainer import Trainer

RECALIBRATION_BATCHES = 50
CPUINFO = Path('/proc/cpuinfo')  # Linux alone has it


def measure_final(workdir: Path, dataset: Dataset, trainer: Trainer) -> dict[str, Any]:
    """Measures the final network of the finished run in `workdir`.

    Args:
        trainer: that trained it on `dataset`. Programs are compiled once for all runs of a trainer.

    Returns:
        `train_mode_accuracy`, `train_mode_loss`, `recalibrated_accuracy`, `recalibrated_loss`: on the test set, as
        fractions and nats. `weights_sha256`: of all variables, masks too. `machine`: what may explain another rounding.
    """
    run = dataclasses.replace(load_run(workdir), model=trainer.model)  # an equal one would compile its own programs
    size = run.config.batch_size
    accuracy, loss = in_train_mode(run, dataset.test, size)
    evaluation = trainer.evaluate(recalibrated_on(run, dataset.train.images, size))
    return {
        'train_mode_accuracy': accuracy,
        'train_mode_loss': loss,
        'recalibrated_accuracy': evaluation.accuracy,
        'recalibrated_loss': evaluation.loss,
        'weights_sha256': tree_digest(run.variables),
        'machine': machine(),
    }


def machine() -> dict[str, Any]:
    """The processor, the cores that this process may use, XLA's flags, and the precision that jax multiplies in."""
    lines = CPUINFO.read_text().splitlines() if CPUINFO.exists() else []
    models = [line.partition(':')[2].strip() for line in lines if line.startswith(('model name', 'CPU part'))]
    return {
        'processor': models[0] if models else platform.processor() or platform.machine(),
        'cores': len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count(),
        'xla_flags': [flag for flag in os.environ.get('XLA_FLAGS', '').split() if '/' not in flag],  # no folders
        'matmul_precision': str(jax.config.jax_default_matmul_precision or 'default'),
    }


def in_train_mode(run: Run, split: Split, batch_size: int) -> tuple[float, float]:
    """Accuracy (a fraction) and mean loss (nats) of a network as in training, on images that are not augmented.

    What is left over after the last full batch is not counted, because a small batch has other statistics.
    """
    metrics = Metrics.empty()
    for index in _batches(len(split.labels), batch_size):
        logits, _ = _apply_in_training(*_network(run), run.variables, split.images[index])
        metrics = metrics.merge(_count(logits, split.labels[index]))
    total = jax.device_get(metrics).compute()
    return total['accuracy'], total['loss']


def recalibrated_on(run: Run, images: np.ndarray, batch_size: int) -> Variables:
    """The variables of a run, recalibrated on up to RECALIBRATION_BATCHES batches of uint8 images [n, h, w, c]."""
    if 'batch_stats' not in run.variables:
        return run.variables
    network = _network(dataclasses.replace(run, model=with_stored_masks(run)))
    update = lambda variables, images: _apply_in_training(*network, variables, images)[1]['batch_stats']
    batches = itertools.islice(_batches(len(images), batch_size), RECALIBRATION_BATCHES)
    return recalibrated(update, run.variables, (images[index] for index in batches))


@jax.jit
def _count(logits: jax.Array, labels: jax.Array) -> Metrics:
    return example_metrics(logits, labels, batch_mask=jnp.ones(labels.shape, bool)).sum()


def _network(run: Run) -> tuple[nn.Module, tuple[float, ...], tuple[float, ...], str]:
    """What a program is compiled for: the model, mean and std of the images, and the type of the computation."""
    data = run.config.data
    return run.model, tuple(data.mean), tuple(data.std), run.config.model.dtype


@partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _apply_in_training(model, mean, std, dtype: str, variables: Variables, images: jax.Array) -> Any:
    """(logits, changed collections) of uint8 images in training mode."""
    inputs = preprocess(images, mean, std, augment='none', dtype=jnp.dtype(dtype))
    return model.apply(variables, inputs, train=True, mutable=['batch_stats'], rngs=fixed_random_streams())


def _batches(count: int, batch_size: int) -> Iterator[np.ndarray]:
    """Indices of full batches in a fixed random order: sets that are stored class by class would give odd batches."""
    order, size = np.random.default_rng(0).permutation(count), min(batch_size, count)
    for start in range(0, count - size + 1, size):
        yield np.sort(order[start : start + size])
