"""A run of the command line that takes a second once it is compiled, and comparisons of what runs leave."""

import pathlib

import numpy as np
from command_line import QUICKSTART

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
)

# Code that a process of the command line runs first, where nobody looks at the plot.
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
