"""MNIST's files: `train-images-idx3-ubyte`, `t10k-labels-idx1-ubyte` and so on, gzipped or not."""

import math
import struct
from pathlib import Path

import numpy as np

from pnn_jax.data.dataset import Dataset, make_split, numbered_classes
from pnn_jax.data.files import read_bytes
from pnn_jax.errors import InputError


def load_idx(data_config) -> Dataset:
    """Reads the four files in the folder config.data.path.

    Raises:
        InputError: a file is missing, or its content is not what its header says.
    """
    root = Path(data_config.path).expanduser()
    arrays = {
        (prefix, kind): read_idx(_find(root, f'{prefix}-{kind}', dims), dims)
        for prefix in ('train', 't10k')
        for kind, dims in (('images', 3), ('labels', 1))
    }
    class_names = numbered_classes(arrays['train', 'labels'])
    train, test = (
        make_split(
            arrays[prefix, 'images'][..., None], arrays[prefix, 'labels'], len(class_names), f'{root}/{prefix}-*'
        )
        for prefix in ('train', 't10k')
    )
    return Dataset(root.resolve().name, train, test, class_names)


def _find(root: Path, stem: str, dims: int) -> Path:
    """The file, named as its author names it or as some unpackers do."""
    names = [f'{stem}{dash}idx{dims}-ubyte{zipped}' for dash in '-.' for zipped in ('', '.gz')]
    for name in names:
        if (root / name).is_file():
            return root / name
    there = sorted(path.name for path in root.glob('*idx*ubyte*'))
    raise InputError(
        f'config.data.path={str(root)!r}: there is no {names[0]} (or {names[1]}); '
        f'of such files it has {", ".join(there) or "none"}'
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
        raise InputError(f'{path}: says {"x".join(map(str, shape))} bytes of data and has {len(content) - header}')
    return np.frombuffer(content, np.uint8, offset=header).reshape(shape)
