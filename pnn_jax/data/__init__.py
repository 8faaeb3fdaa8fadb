"""Data sets: `load_dataset(config.data)` gives uint8 images, labels and class names, whatever the source.

To add a source, write a function config.data -> Dataset and add a line to SOURCES.
"""

import dataclasses
from collections.abc import Callable

from pnn_jax.data.arrays import load_digits, load_npz
from pnn_jax.data.cifar import load_cifar
from pnn_jax.data.dataset import Dataset, Split, digest_of, fixed_subset, make_split
from pnn_jax.data.folder import load_folder
from pnn_jax.data.idx import load_idx
from pnn_jax.data.images import resized_images
from pnn_jax.data.streaming import STREAMS, Stream, open_stream
from pnn_jax.data.tfds import load_tfds
from pnn_jax.errors import InputError

__all__ = ['SOURCES', 'Dataset', 'Split', 'Stream', 'load_data', 'load_dataset']

# config.data.source -> function(config.data) -> Dataset, complete and without a digest.
SOURCES: dict[str, Callable[..., Dataset]] = {
    'digits': load_digits,
    'tfds': load_tfds,
    'folder': load_folder,
    'cifar': load_cifar,
    'idx': load_idx,
    'npz': load_npz,
}


def load_dataset(data_config) -> Dataset:
    """Loads what config.data says, checked, resized, cut down to config.data.train_examples, with its digest.

    Raises:
        InputError: the data are missing or damaged, or break a rule of `make_split`.
    """
    if data_config.source not in SOURCES:
        raise InputError(f'config.data.source={data_config.source!r}: must be one of {", ".join(SOURCES)}')
    if not data_config.path and data_config.source not in ('digits', 'tfds'):
        raise InputError(f'config.data.path is empty: the source {data_config.source!r} needs a file or folder')
    if data_config.augment == 'resized_crop_flip':
        raise InputError("config.data.augment='resized_crop_flip': only for streamed sources")
    dataset = SOURCES[data_config.source](data_config)
    train, test = (
        make_split(split.images, split.labels, len(dataset.class_names), f'{dataset.name}, {name} set')
        for name, split in (('training', dataset.train), ('test', dataset.test))
    )
    if data_config.train_examples:
        chosen = fixed_subset(len(train.labels), data_config.train_examples)
        train = Split(train.images[chosen], train.labels[chosen])
    if data_config.image_size:
        train, test = (_resized(split, data_config.image_size) for split in (train, test))
    if train.images.shape[1:] != test.images.shape[1:]:
        raise InputError(
            f'{dataset.name}: training images have shape {train.images.shape[1:]} and test images '
            f'{test.images.shape[1:]}; set config.data.image_size to resize both'
        )
    return dataclasses.replace(dataset, train=train, test=test, digest=digest_of(train, test))


def load_data(data_config) -> Dataset | Stream:
    """What `config.data` says: in memory, or as a stream."""
    return open_stream(data_config) if data_config.source in STREAMS else load_dataset(data_config)


def _resized(split: Split, image_size: int) -> Split:
    if split.images.shape[1:3] == (image_size, image_size):
        return split
    return Split(resized_images(split.images, image_size), split.labels)
