"""CIFAR-10 and CIFAR-100 as torchvision downloads them: a folder of pickles, or the .tar.gz of that folder."""

import dataclasses
import io
import os
import tarfile
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from pnn_jax.data.dataset import Dataset, Split, make_split
from pnn_jax.data.files import find_folder, read_bytes
from pnn_jax.data.pickles import PickleError, read_pickle
from pnn_jax.errors import InputError, one_line
from pnn_jax.paths import local_path


@dataclasses.dataclass(frozen=True)
class _Layout:
    """File names and dictionary keys of one of the two sets."""

    folder: str
    archive: str
    train: tuple[str, ...]
    test: str
    meta: str
    labels: str
    names: str


LAYOUTS = {
    'cifar10': _Layout(
        folder='cifar-10-batches-py',
        archive='cifar-10-python.tar.gz',
        train=tuple(f'data_batch_{i}' for i in range(1, 6)),
        test='test_batch',
        meta='batches.meta',
        labels='labels',
        names='label_names',
    ),
    'cifar100': _Layout(
        folder='cifar-100-python',
        archive='cifar-100-python.tar.gz',
        train=('train',),
        test='test',
        meta='meta',
        labels='fine_labels',
        names='fine_label_names',
    ),
}


def load_cifar(data_config) -> Dataset:
    """Loads 'cifar10' or 'cifar100' (config.data.name).

    config.data.path is the folder of pickles, its .tar.gz, or a folder that holds
    either of them at most three levels below. Archives are not unpacked to
    disk, and pickles are read as plain data, so neither can write a file or run code.

    Returns:
        uint8 images [n, 32, 32, 3] and the fine labels.

    Raises:
        InputError: a file is missing or damaged, or holds more than plain data; or several folders fit.
    """
    if data_config.name not in LAYOUTS:
        raise InputError(
            f'config.data.name={data_config.name!r}: must be one of {", ".join(LAYOUTS)} for the source cifar'
        )
    layout = LAYOUTS[data_config.name]
    path = _locate(local_path(data_config.path, 'config.data.path'), layout)
    files = _in_folder(path, layout) if path.is_dir() else _in_archive(path, layout)
    class_names = _class_names(files, layout)
    parts = [_batch(files, name, layout, len(class_names)) for name in layout.train]
    train = Split(np.concatenate([part.images for part in parts]), np.concatenate([part.labels for part in parts]))
    test = _batch(files, layout.test, layout, len(class_names))
    return Dataset(data_config.name, train, test, class_names)


def _locate(path: Path, layout: _Layout) -> Path:
    """The folder of batches or the archive that `path` is or holds; the folder where both are there."""
    if path.is_file():
        return path

    def holds(folder: Path) -> bool:
        if any(os.path.exists(folder / name) for name in (layout.folder, layout.archive)):
            return True
        there = [os.path.isfile(folder / name) for name in _wanted(layout)]
        return any(there) if folder == path else all(there)

    folder = find_folder(path, holds, f'{layout.folder} or {layout.archive}')
    for name in (layout.folder, layout.archive):
        if os.path.exists(folder / name):
            return folder / name
    return folder


def _wanted(layout: _Layout) -> tuple[str, ...]:
    return (*layout.train, layout.test, layout.meta)


def _in_folder(path: Path, layout: _Layout) -> dict[str, tuple[str, bytes]]:
    """Name of a file -> (its path for error messages, its content)."""
    missing = [name for name in _wanted(layout) if not (path / name).is_file()]
    if missing:
        raise InputError(f'config.data.path={path}: there is no {missing[0]} (nor {layout.archive}) in it')
    return {name: (str(path / name), read_bytes(path / name)) for name in _wanted(layout)}


def _in_archive(path: Path, layout: _Layout) -> dict[str, tuple[str, bytes]]:
    content = read_bytes(path)
    files = {}
    try:
        with tarfile.open(fileobj=io.BytesIO(content), mode='r:') as archive:
            for member in archive:
                name = PurePosixPath(member.name)
                if name.is_absolute() or '..' in name.parts:
                    raise InputError(f'{path}: its member {member.name!r} points outside the archive')
                if str(name.parent) != layout.folder or name.name not in _wanted(layout):
                    continue
                if not member.isreg() or name.name in files:
                    raise InputError(f'{path}: its member {member.name!r} is not a single plain file')
                content_of = archive.extractfile(member)
                assert content_of is not None  # a plain file has content
                files[name.name] = (f'{path}:{member.name}', content_of.read())
    except (tarfile.TarError, EOFError, ValueError, OSError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f'{path}: damaged archive ({one_line(error)})') from None
    missing = [name for name in _wanted(layout) if name not in files]
    if missing:
        raise InputError(f'{path}: there is no {layout.folder}/{missing[0]} in it')
    return files


def _read(files: dict[str, tuple[str, bytes]], name: str) -> tuple[str, dict[str, Any]]:
    """The path of a file and the dictionary in it, with its keys as text."""
    path, content = files[name]
    try:
        values = read_pickle(content)
    except PickleError as error:
        raise InputError(f'{path}: {error}') from None
    if not isinstance(values, dict):
        raise InputError(f'{path}: holds a {type(values).__name__}, where CIFAR has a dictionary')
    return path, {_text(key): value for key, value in values.items()}


def _text(value: Any) -> str:
    return value.decode('utf-8', 'replace') if isinstance(value, bytes) else str(value)


def _class_names(files: dict[str, tuple[str, bytes]], layout: _Layout) -> tuple[str, ...]:
    path, meta = _read(files, layout.meta)
    names = meta.get(layout.names)
    if not isinstance(names, list) or not names or not all(isinstance(name, str | bytes) for name in names):
        raise InputError(f'{path}: has no list of class names under {layout.names!r}')
    return tuple(_text(name) for name in names)


def _batch(files: dict[str, tuple[str, bytes]], name: str, layout: _Layout, num_classes: int) -> Split:
    path, batch = _read(files, name)
    pixels, labels = batch.get('data'), batch.get(layout.labels)
    if not isinstance(pixels, np.ndarray) or pixels.dtype != np.uint8 or pixels.ndim != 2 or pixels.shape[1] != 3072:
        raise InputError(f"{path}: has no uint8 array [n, 3072] under 'data'")
    if isinstance(labels, list) and all(type(label) is int and abs(label) < 2**31 for label in labels):
        labels = np.array(labels, np.int64)
    if not isinstance(labels, np.ndarray):
        raise InputError(f'{path}: has no list of integers under {layout.labels!r}')
    # A row is the red, the green and the blue plane, each 32x32.
    images = np.asarray(pixels).reshape(len(pixels), 3, 32, 32).transpose(0, 2, 3, 1)
    return make_split(images, np.asarray(labels), num_classes, path)
