"""Runs that take little time: tiny ones, compiled once for many tests; and comparisons of what runs leave."""

import pathlib

import numpy as np
import pytest
from command_line import QUICKSTART

from pnn_jax import trainer
from pnn_jax.models.resnet import ResNet

NUM_TRAIN, NUM_TEST = 48, 30

# All fields that the compiled programs depend on, so that every test that changes none of them shares these.
TINY = (
    f'--config={QUICKSTART}',
    '--config.num_epochs=2',
    '--config.batch_size=16',
    '--config.model.num_filters=4',
    '--config.model.num_masks=2',
    '--config.data.source=npz',
    '--config.data.image_size=0',
    '--config.log.tensorboard=False',
    '--config.log.plots=False',
)

# Code that a process of the command line runs first where its programs take longer to optimize than to run.
QUICK_COMPILATION = 'import jax; jax.config.update("jax_disable_most_optimizations", True)'
# Code that it runs first where the plot is not tested.
NO_PLOT = 'from pnn_jax.run import log; log.WRITERS = [w for w in log.WRITERS if w is not log.CurvesWriter]'


def write_npz(path: pathlib.Path, *, seed: int = 0, classes: int = 3, first_label: int = 0, names=None) -> pathlib.Path:
    """Random grey images of 8x8 pixels, labels first_label, first_label + 1, ... in turn; returns `path`."""
    rng = np.random.default_rng(seed)
    arrays = {}
    for split, count in (('train', NUM_TRAIN), ('test', NUM_TEST)):
        arrays[f'{split}_images'] = rng.integers(0, 256, (count, 8, 8, 1), dtype=np.uint8)
        arrays[f'{split}_labels'] = np.arange(count) % classes + first_label
    if names is not None:
        arrays['class_names'] = np.array(names)
    np.savez(path, **arrays)
    return path


def share_programs(patch: pytest.MonkeyPatch) -> None:
    """Every network is compiled once, for all trainers that are made while `patch` lasts.

    Trainers of the same config and data are one object. Those that differ in the data or in the evaluation's batch size
    alone share the compiled functions. `Trainer.compile` does nothing: the first call compiles.
    """
    create = trainer.Trainer.create.__func__
    trainers, programs = {}, {}

    def create_once(cls, config, data=None):
        if data is None or not data.digest:
            return share(create(cls, config, data))
        free = {'seed', 'mask_seed', 'num_seeds', 'num_epochs', 'log', 'checkpoint'}  # a trainer does not read them
        read = {name: str(value) for name, value in config.items() if name not in free}
        key = str(sorted(read.items())), data.digest, data.class_names
        if key not in trainers:
            trainers[key] = share(create(cls, config, data))
        return trainers[key]

    def share(made):
        config = made.config
        parts = (config.model, config.optimizer, config.schedule, config.data.mean, config.data.std)
        data = config.data.augment, made.data.class_names, made.feed.image_shape
        key = str((*parts, *data, made.steps_per_epoch))
        same = programs.setdefault(key, made)
        compiled = ('train_steps', 'train_together', '_evaluate', '_draw')
        made.__dict__.update({name: getattr(same, name) for name in compiled})
        return made

    patch.setattr(trainer.Trainer, 'create', classmethod(create_once))
    patch.setattr(trainer.Trainer, 'compile', lambda self: None)


def shortened(model):
    """A residual network with two blocks, one of each kind; any other network as it is.

    Its programs take a quarter of the time to compile. Networks of full depth are traced in test_models.py.
    """
    return model.clone(stage_sizes=(1, 1)) if isinstance(model, ResNet) else model


def tree_of(path: pathlib.Path) -> dict[str, bytes | None]:
    """Every file and folder under `path`; a file with its content."""
    return {
        str(entry.relative_to(path)): entry.read_bytes() if entry.is_file() else None
        for entry in sorted(path.rglob('*'))
    }
