"""Loading a run, finished or not, from its workdir: model, variables, config and data."""

import dataclasses
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from pnn_jax.data import Dataset, Stream, load_data
from pnn_jax.data.augment import preprocess
from pnn_jax.errors import InputError
from pnn_jax.hosts import from_process_0
from pnn_jax.models.registry import create_model
from pnn_jax.paths import local_path
from pnn_jax.run.checkpoints import Checkpointer, has_checkpoints
from pnn_jax.run.workdir import read_config
from pnn_jax.train_step import Variables

# The classifier is the last linear layer of every network.
_CLASSIFIER_BIAS = re.compile(r'params\.linear\d*\.bias')


COLLECTIONS = ('params.', 'batch_stats.', 'noise_masks.', 'frozen.')  # what a network needs of a checkpoint


@dataclasses.dataclass(frozen=True)
class Run:
    """A network with the variables of one of its run's checkpoints.

    Attributes:
        path: the workdir.
        config: every field of the run's config.
        model: call it as model.apply(variables, images, train=False), on preprocessed images; or use `predict`.
        variables: collections params, batch_stats, and noise_masks or frozen where there are any; numpy arrays.
        num_classes: number of logits of the network.
        step: number of updates before the checkpoint.
        accuracy: exact accuracy at this checkpoint, a fraction, on what the run evaluates its epochs on: the test set,
            or its validation examples if it has any. None where it was not evaluated.
        meta: what else the checkpoint's record says. A network from PyTorch has `converted_from`, the name of its file,
            and `image_shape`, the [h, w, c] of its images.
    """

    path: Path
    config: ml_collections.ConfigDict
    model: nn.Module
    variables: Variables
    num_classes: int
    step: int
    accuracy: float | None
    meta: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def predict(self, variables: Variables, images: jax.Array) -> jax.Array:
        """Logits [b, num_classes] of uint8 images [b, h, w, c], normalised as in the run; for `evaluate_exactly`."""
        data, dtype = self.config.data, jnp.dtype(self.config.model.dtype)
        images = preprocess(images, data.mean, data.std, augment='none', dtype=dtype)
        logits = self.model.apply(variables, images, train=False)
        assert isinstance(logits, jax.Array)  # without `mutable`, apply returns the output alone
        return logits

    def load_data(self) -> Dataset | Stream:
        """The data set of the run's config."""
        return load_data(self.config.data)


def load_run(workdir: str | os.PathLike, checkpoint: str | int = 'latest') -> Run:
    """Loads a run from its workdir. Every byte is verified; nothing is written; the data set is not needed.

        run = load_run('runs/quickstart')
        test = run.load_data().test
        evaluate_exactly(run.predict, run.variables, test.images, test.labels)

    Args:
        workdir: folder of the run; of several seeds, the folder of one of them.
        checkpoint: 'latest', 'best' (the highest `accuracy`) or a step.

    Raises:
        InputError: there is no such folder, it has no checkpoint or none of that step, or `checkpoint` is something
            else.
        RunError: config.json, the checkpoints asked for or the noise masks are damaged.
    """
    if isinstance(checkpoint, str) and checkpoint not in ('latest', 'best'):
        raise InputError(f"checkpoint={checkpoint!r}: must be 'latest', 'best' or a step, which is an integer")
    path = _folder_with_checkpoints(workdir)
    config = from_process_0(lambda: read_config(path))
    with Checkpointer(path / 'checkpoints', read_only=True) as checkpointer:
        found = checkpointer.read(checkpoint)
    assert found is not None  # there is a checkpoint
    arrays, record = found
    collections = {name: value for name, value in arrays.items() if name.startswith(COLLECTIONS)}
    num_classes = len(arrays[max(filter(_CLASSIFIER_BIAS.fullmatch, arrays))])
    model = create_model(config.model, num_classes)
    variables = nested(collections)
    return Run(path, config, model, variables, num_classes, record['step'], record['accuracy'], record['meta'])


def read_run_config(workdir: str | os.PathLike) -> ml_collections.ConfigDict:
    """The config of a run in its workdir; raises as `load_run`."""
    path = _folder_with_checkpoints(workdir)
    return from_process_0(lambda: read_config(path))


def _folder_with_checkpoints(workdir: str | os.PathLike) -> Path:
    """The absolute path of a workdir. Raises InputError where it is none, or has no checkpoint."""
    path = local_path(workdir, 'workdir')

    def check():
        if not path.is_dir():
            raise InputError(f'{path}: there is no such folder')
        if has_checkpoints(path / 'checkpoints'):
            return
        seeds = ', '.join(sorted(seed.name for seed in path.glob('seed_*')))
        hint = f'; of several seeds, name the folder of one: {seeds}' if seeds else ''
        raise InputError(f'{path}: there is no checkpoint to load{hint}')

    from_process_0(check)
    return path


def nested(arrays: Mapping[str, Any]) -> Variables:
    """{'params.linear.bias': array} -> {'params': {'linear': {'bias': array}}}."""
    tree: Variables = {}
    for name, array in arrays.items():
        *folders, leaf = name.split('.')
        node = tree
        for folder in folders:
            node = node.setdefault(folder, {})
        node[leaf] = array
    return tree


def flat(variables: Variables) -> dict[str, np.ndarray]:
    """The inverse of `nested`."""
    leaves = jax.tree_util.tree_leaves_with_path(variables)
    return {'.'.join(key.key for key in path): np.asarray(leaf) for path, leaf in leaves}
