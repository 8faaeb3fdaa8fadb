"""Data sets: `load_dataset(config.data)` returns uint8 images, labels and class names, whatever the source.

To add a source that fits in memory, write a function `config.data -> Dataset` in a file of its own here, and add a line
to SOURCES. It only reads: checking names, choosing subsets, resizing, padding and the digest are the same for all
sources and are done below. For a source that stays on disk, see `streams.py`.
"""

import dataclasses
from collections.abc import Callable

from pnn_jax.data.arrays import load_digits, load_npz
from pnn_jax.data.cifar import load_cifar
from pnn_jax.data.dataset import (
    Dataset,
    Split,
    added_field,
    check_class_names,
    digest_of,
    make_split,
    notes_on,
    training_subsets,
)
from pnn_jax.data.folder import load_folder
from pnn_jax.data.idx import load_idx
from pnn_jax.data.images import RESIZES, padded, resized_images
from pnn_jax.data.streams import STREAMS, Stream, open_stream
from pnn_jax.data.tfds import load_tfds
from pnn_jax.errors import InputError

__all__ = ['SOURCES', 'Dataset', 'Split', 'Stream', 'checked', 'load_data', 'load_dataset']

# config.data.source -> function(config.data) -> Dataset of all images as they are stored, without a digest.
SOURCES: dict[str, Callable[..., Dataset]] = {
    'digits': load_digits,
    'tfds': load_tfds,
    'folder': load_folder,
    'cifar': load_cifar,
    'idx': load_idx,
    'npz': load_npz,
}


def load_dataset(data_config) -> Dataset:
    """Loads the data set that config.data describes: checked, split, resized, padded, with its digest.

    Raises:
        InputError: the data are missing or damaged, or break a rule of `make_split` or `check_class_names`.
    """
    if data_config.source not in SOURCES:
        raise InputError(f'config.data.source={data_config.source!r}: must be one of {", ".join(SOURCES)}')
    if data_config.augment == 'resized_crop_flip':
        raise InputError("config.data.augment='resized_crop_flip': only for streamed sources")
    dataset = SOURCES[data_config.source](data_config)
    check_class_names(dataset.class_names, dataset.name)
    all_train, test = (
        make_split(split.images, split.labels, len(dataset.class_names), f'{dataset.name}, {name} set')
        for name, split in (('training', dataset.train), ('test', dataset.test))
    )
    train_index, validation_index = training_subsets(len(all_train.labels), data_config)
    splits = [_subset(all_train, train_index), test]
    if len(validation_index):
        splits.append(_subset(all_train, validation_index))
    splits = [_sized(split, data_config) for split in splits]
    train, test = splits[:2]
    if train.images.shape[1:] != test.images.shape[1:]:
        raise InputError(
            f'{dataset.name}: training images have shape {train.images.shape[1:]} and test images '
            f'{test.images.shape[1:]}; set config.data.image_size to resize both'
        )
    return dataclasses.replace(
        dataset,
        train=train,
        test=test,
        validation=splits[2] if len(validation_index) else None,
        digest=digest_of(*splits),
        notes=notes_on(data_config, train.labels, dataset.class_names),
    )


def checked(dataset: Dataset) -> Dataset:
    """A data set that somebody else has made, with its digest if it has none.

    Raises:
        InputError: it breaks a rule of `make_split` or `check_class_names`.
    """
    check_class_names(dataset.class_names, dataset.name)

    def checked_split(split: Split, name: str) -> Split:
        return make_split(split.images, split.labels, len(dataset.class_names), f'{dataset.name}, {name} set')

    train, test = checked_split(dataset.train, 'training'), checked_split(dataset.test, 'test')
    validation = dataset.validation and checked_split(dataset.validation, 'validation')
    digest = dataset.digest or digest_of(train, test, *([validation] if validation else []))
    return dataclasses.replace(dataset, train=train, test=test, validation=validation, digest=digest)


def load_data(data_config) -> Dataset | Stream:
    """The data set that config.data describes, in memory or as a stream. Errors as `load_dataset` and `open_stream`."""
    return open_stream(data_config) if data_config.source in STREAMS else load_dataset(data_config)


def _subset(split: Split, index) -> Split:
    if len(index) == len(split.labels):  # all of them: not copied
        return split
    return Split(split.images[index], split.labels[index])


def _sized(split: Split, data_config) -> Split:
    images, size = split.images, data_config.image_size
    if size and images.shape[1:3] != (size, size):
        images = resized_images(images, size, RESIZES[added_field(data_config, 'resize')])
    return Split(padded(images, added_field(data_config, 'pad')), split.labels)
