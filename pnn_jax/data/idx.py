"""MNIST's files: `train-images-idx3-ubyte`, `t10k-labels-idx1-ubyte` and so on, gzipped or not."""

import math
import os
import struct
from pathlib import Path

import numpy as np

from pnn_jax.data.dataset import Dataset, make_split, numbered_classes
from pnn_jax.data.files import find_folder, read_bytes
from pnn_jax.errors import InputError
from pnn_jax.paths import local_path

# Beginning of a file's name -> number of dimensions of its array.
FILES = {'train-images': 3, 'train-labels': 1, 't10k-images': 3, 't10k-labels': 1}


def load_idx(data_config) -> Dataset:
    """Reads the four files in the folder config.data.path, or where torchvision puts them: MNIST/raw below it.

    Raises:
        InputError: a file is missing, its content is not what its header says, or several folders hold such files.
    """
    path = local_path(data_config.path, 'config.data.path')
    root = find_folder(path, _holds_any, 'file such as train-images-idx3-ubyte or train-images-idx3-ubyte.gz')
    arrays = {stem: read_idx(_find(root, stem, dims), dims) for stem, dims in FILES.items()}
    class_names = numbered_classes(arrays['train-labels'])
    train, test = (
        make_split(
            arrays[f'{prefix}-images'][..., None], arrays[f'{prefix}-labels'], len(class_names), f'{root}/{prefix}-*'
        )
        for prefix in ('train', 't10k')
    )
    return Dataset(path.resolve().name, train, test, class_names)


def _names(stem: str, dims: int) -> list[str]:
    """How a file may be named: as its author names it, or with a dot, as some programs unpack it."""
    return [f'{stem}{dash}idx{dims}-ubyte{zipped}' for dash in '-.' for zipped in ('', '.gz')]


def _holds_any(folder: Path) -> bool:
    return any(os.path.isfile(folder / name) for stem, dims in FILES.items() for name in _names(stem, dims))


def _find(root: Path, stem: str, dims: int) -> Path:
    names = _names(stem, dims)
    for name in names:
        if os.path.isfile(root / name):
            return root / name
    there = sorted(path.name for path in root.glob('*idx*ubyte*'))
    raise InputError(
        f'config.data.path={root}: there is no {names[0]} (or {names[1]}); '
        f'the idx files in it are: {", ".join(there) or "none"}'
    )


def read_idx(path: Path, dims: int) -> np.ndarray:
    """The uint8 array of an idx file, which must have `dims` dimensions.

    The format: two zero bytes, 8 (unsigned bytes), the number of dimensions, each dimension as a big-endian int32,
    then the values, the last dimension fastest.
    """
    content = read_bytes(path)
    magic = bytes([0, 0, 8, dims])
    if content[:4] != magic:
        raise InputError(f'{path}: starts with {content[:4].hex(" ")}, where such a file has {magic.hex(" ")}')
    header = 4 + 4 * dims
    if len(content) < header:
        raise InputError(f'{path}: ends within its header')
    shape = struct.unpack(f'>{dims}I', content[4:header])
    if len(content) - header != math.prod(shape):
        raise InputError(
            f'{path}: its header says {"x".join(map(str, shape))} bytes of data, but it has {len(content) - header}'
        )
    return np.frombuffer(content, np.uint8, offset=header).reshape(shape)
