"""The images that the probes of single layers and small networks use: the bundled digits, or a file of one's own."""

from __future__ import annotations

import ml_collections

from configs import default
from experiments.command import Parser, whole_number
from pnn_jax.data import Dataset, load_dataset


def add_image_options(parser: Parser, image_size: int) -> None:
    """Adds --data and --image_size."""
    parser.add_path('--data', help=".npz file, as config.data.source='npz' reads it; default: the digits")
    parser.add_argument(
        '--image_size', type=whole_number(0), default=image_size, help='images are resized to this; 0 keeps their size'
    )


def load_images(options) -> tuple[Dataset, ml_collections.ConfigDict]:
    """The data set that the options say, and the `config.data` that gives it, with the same normalisation for all.

    Raises:
        InputError: the file is missing or damaged.
    """
    data = default.get_config().data
    data.source, data.image_size = 'digits', options.image_size
    if options.data:
        data.source, data.path = 'npz', str(options.data)
    dataset = load_dataset(data)
    channels = dataset.train.images.shape[-1]
    data.mean, data.std = (0.5,) * channels, (0.25,) * channels
    return dataset, data
