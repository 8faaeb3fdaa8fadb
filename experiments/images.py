"""The images that experiments on single layers and fresh networks use: the bundled digits, or others from files."""

from __future__ import annotations

import ml_collections

from configs import default
from experiments.command import Parser, whole_number
from pnn_jax.data import Dataset, load_dataset


def add_image_options(parser: Parser, image_size: int) -> None:
    """Adds --data, --image_size and --pad."""
    parser.add_path('--data', help='.npz file as config.data.source=npz reads it, or folder of idx; default: digits')
    parser.add_argument(
        '--image_size', type=whole_number(0), default=image_size, help='images are resized to this; 0 keeps their size'
    )
    parser.add_argument('--pad', type=whole_number(0), default=0, help='then padded with black to this (28 -> 32)')


def load_images(options) -> tuple[Dataset, ml_collections.ConfigDict]:
    """The data set that the options say, and the `config.data` that gives it, with the same normalisation for all.

    Raises:
        InputError: the file is missing or damaged.
    """
    data = default.get_config().data
    data.source, data.image_size, data.pad = 'digits', options.image_size, options.pad
    if options.data:
        data.source, data.path = 'idx' if options.data.is_dir() else 'npz', str(options.data)
    dataset = load_dataset(data)
    channels = dataset.train.images.shape[-1]
    data.mean, data.std = (0.5,) * channels, (0.25,) * channels
    return dataset, data
