"""Sets that stay on disk: what is in them, without reading an image. `stream_batches.py` makes batches of them.

To add such a source, write a function `config.data -> Stream` that ends with `_stream(...)`, and add a line to STREAMS.
"""

import dataclasses
import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import numpy as np

from pnn_jax.data.dataset import ADDED_FIELDS, added_field, check_class_names, notes_on, training_subsets
from pnn_jax.data.folder import list_folder, num_channels, read_image
from pnn_jax.data.images import RESIZES, Crop
from pnn_jax.data.tfds import Records, open_prepared, prepared_files
from pnn_jax.errors import InputError, os_reason
from pnn_jax.paths import local_path


class Examples(Protocol):
    """Random access, from several threads, to encoded images and their labels."""

    def __len__(self) -> int: ...

    def record_name(self, i: int) -> str:
        """Names example i in errors."""

    def read(self, i: int) -> tuple[bytes, int]:
        """The image file and the label of example i."""


@dataclasses.dataclass(frozen=True)
class Files:
    """Examples in files."""

    paths: list[str]
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.paths)

    def record_name(self, i: int) -> str:
        return self.paths[i]

    def read(self, i: int) -> tuple[bytes, int]:
        return read_image(self.paths[i]), int(self.labels[i])


@dataclasses.dataclass(frozen=True)
class Subset:
    """Some of other examples: example i is number index[i] of them."""

    examples: Examples
    index: np.ndarray

    def __len__(self) -> int:
        return len(self.index)

    def record_name(self, i: int) -> str:
        return self.examples.record_name(int(self.index[i]))

    def read(self, i: int) -> tuple[bytes, int]:
        return self.examples.read(int(self.index[i]))


@dataclasses.dataclass(frozen=True)
class Stream:
    """A data set that stays on disk.

    Attributes:
        name: of the set.
        train: all training examples, those for validation included.
        train_index: which of them are trained on, int [n], sorted.
        validation: split off the training set; None where config.data.validation_examples is 0.
        test: the examples to evaluate on, in the order of the set.
        class_names: name of each label; no two are equal.
        digest: sha256 (hex) over names and sizes of the files, `train_index`, and the fields that change pixels.
            Pixels are not read for it.
        image_size: of images before padding.
        image_shape: of every image as batches hold it: height, width, channels.
        crop: config.data.resize as a function of RESIZES.
        augment: of config.data.
        notes: what the user should know about the data, one line each.
    """

    name: str
    train: Examples
    train_index: np.ndarray
    validation: Examples | None
    test: Examples
    class_names: tuple[str, ...]
    digest: str
    image_size: int
    image_shape: tuple[int, int, int]
    crop: Crop
    augment: str
    notes: tuple[str, ...]


def stream_folder(data_config) -> Stream:
    """An image folder as for `load_folder`: config.data.path/train/<class>/* and test/<class>/* (or val/)."""
    root = local_path(data_config.path, 'config.data.path')
    paths, labels, class_names = list_folder(root)
    train, test = (Files(paths[split], labels[split]) for split in ('train', 'test'))
    files = [*train.paths, *test.paths]
    return _stream(data_config, root.resolve().name, train, test, class_names, files, root, labels['train'])


def stream_tfds(data_config) -> Stream:
    """A prepared TFDS set of any name. It is evaluated on its test split, or on validation where test has no labels."""
    builder = open_prepared(data_config.name, data_config.path)
    folder = Path(builder.data_path)
    class_names = tuple(builder.info.features['label'].names)
    test = Records(builder, 'test' if 'test' in builder.info.splits else 'validation')
    if len(test) and test.read(0)[1] < 0:
        test = Records(builder, 'validation')
    files = list(map(str, prepared_files(folder)))
    return _stream(data_config, data_config.name, Records(builder, 'train'), test, class_names, files, folder)


# config.data.source -> function(config.data) -> Stream.
STREAMS: dict[str, Callable[..., Stream]] = {'stream_folder': stream_folder, 'stream_tfds': stream_tfds}


def open_stream(data_config) -> Stream:
    """Opens what config.data says, without decoding an image.

    Raises:
        InputError: the data are missing, or config.data.image_size is.
    """
    if data_config.source not in STREAMS:
        raise InputError(f'config.data.source={data_config.source!r}: must be one of {", ".join(STREAMS)}')
    if data_config.image_size < 1:
        raise InputError(
            f'config.data.image_size={data_config.image_size}: {data_config.source} needs a size, such as 224'
        )
    return STREAMS[data_config.source](data_config)


def _stream(
    data_config,
    name: str,
    train: Examples,
    test: Examples,
    class_names: tuple[str, ...],
    files: list[str],
    root: Path,
    train_labels: np.ndarray | None = None,
) -> Stream:
    """The stream of a source.

    Args:
        data_config: config.data.
        name: of the set.
        train: all training examples.
        test: the examples to evaluate on.
        class_names: of the set.
        files: all files of the set, for the digest.
        root: the folder that holds them.
        train_labels: int [n], where they are known without reading the examples.
    """
    if not len(train) or not len(test):
        raise InputError(f'{root}: {len(train)} training and {len(test)} test images; both are needed')
    check_class_names(class_names, str(root))
    size, pad = data_config.image_size, added_field(data_config, 'pad')
    if pad and pad < size:
        raise InputError(f'config.data.pad={pad}: must be at least config.data.image_size={size}, or 0')
    train_index, validation_index = training_subsets(len(train), data_config)
    return Stream(
        name=name,
        train=train,
        train_index=train_index,
        validation=Subset(train, validation_index) if len(validation_index) else None,
        test=test,
        class_names=class_names,
        digest=_digest(data_config, train_index, files, root),
        image_size=size,
        image_shape=(pad or size, pad or size, num_channels(data_config)),
        crop=RESIZES[added_field(data_config, 'resize')],
        augment=data_config.augment,
        notes=notes_on(data_config, None if train_labels is None else train_labels[train_index], class_names),
    )


def _digest(data_config, train_index: np.ndarray, files: list[str], root: Path) -> str:
    digest = hashlib.sha256(train_index.tobytes())
    try:
        for file in files:
            digest.update(f'{os.path.relpath(file, root)}\0{os.path.getsize(file)}\0'.encode())
    except OSError as error:
        raise InputError(f'{error.filename}: cannot be read ({os_reason(error)})') from None
    for name, default in ADDED_FIELDS.items():
        if added_field(data_config, name) != default:  # at the defaults, digests are those of older runs
            digest.update(f'{name}={added_field(data_config, name)}\0'.encode())
    return digest.hexdigest()
