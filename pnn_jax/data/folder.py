"""Image folders: `train/<class>/*` and `test/<class>/*` (or `val/`), PNG or JPEG, decoded once and cached."""

import os
import stat
from functools import partial
from pathlib import Path

import numpy as np

from pnn_jax.data.cache import cached, file_key
from pnn_jax.data.dataset import Dataset, make_split
from pnn_jax.data.images import MODES, decode_all, decode_image
from pnn_jax.errors import InputError

SUFFIXES = ('.png', '.jpg', '.jpeg')
MAX_FILE_BYTES = 2**28


def load_folder(data_config) -> Dataset:
    """Reads config.data.path, resized to config.data.image_size if it is not 0.

    Labels follow the sorted class names, images the sorted file names. As many channels as config.data.mean has
    values: 1 converts to grey, 3 to RGB.

    Raises:
        InputError: no such folder, a class without images, a damaged image, images of different size.
    """
    root = Path(data_config.path).expanduser()
    files, labels, class_names = list_folder(root)
    channels = num_channels(data_config)
    splits = {}
    for split in ('train', 'test'):
        key = file_key(files[split], data_config.image_size, channels)
        name = f'{root.resolve().name}-{split}'
        decode = partial(_decode, files[split], channels, data_config.image_size)
        images = cached(data_config.cache_dir, name, key, decode)['images']
        splits[split] = make_split(images, labels[split], len(class_names), f'{root}/{split}')
    return Dataset(root.resolve().name, splits['train'], splits['test'], class_names)


def _decode(files: list[str], channels: int, image_size: int) -> dict[str, np.ndarray]:
    decode = lambda i: decode_image(read_image(files[i]), files[i], channels, image_size)
    return {'images': decode_all(len(files), decode, files.__getitem__)}


def num_channels(data_config) -> int:
    """1 (grey) or 3 (RGB), as many as config.data.mean has values."""
    if len(data_config.mean) not in MODES:
        raise InputError(
            f'config.data.mean={data_config.mean}: images have 1 or 3 channels, so 1 or 3 values are needed'
        )
    return len(data_config.mean)


def list_folder(root: Path) -> tuple[dict[str, list[str]], dict[str, np.ndarray], tuple[str, ...]]:
    """Lists an image folder without opening the images.

    Returns:
        'train' and 'test' -> paths; 'train' and 'test' -> labels int32 [n]; the class names.

    Raises:
        InputError: the folder is not what the first line of this module says.
    """
    test = 'test' if (root / 'test').is_dir() or not (root / 'val').is_dir() else 'val'
    class_names = tuple(name for name, _ in _entries(root / 'train', folders=True))
    test_names = tuple(name for name, _ in _entries(root / test, folders=True))
    if test_names != class_names:
        wrong = sorted(set(class_names) ^ set(test_names))
        missing_in = test if wrong[0] in class_names else 'train'
        raise InputError(f'{root}: class folder {wrong[0]!r} is missing in {missing_in}/ ({len(wrong)} such in all)')
    files, labels = {}, {}
    for split, folder in (('train', 'train'), ('test', test)):
        in_class = [[path for _, path in _entries(root / folder / name, folders=False)] for name in class_names]
        files[split] = [path for paths in in_class for path in paths]
        labels[split] = np.repeat(np.arange(len(class_names), dtype=np.int32), [len(paths) for paths in in_class])
    return files, labels, class_names


def _entries(folder: Path, *, folders: bool) -> list[tuple[str, str]]:
    """Sorted (name, path) of the class folders or the images in `folder`; hidden ones are left out."""
    expected = 'class folders' if folders else f'images ({", ".join(SUFFIXES)})'
    found = []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name.startswith('.'):
                    continue
                if not entry.name.isprintable():
                    raise InputError(f'{folder}: the name {entry.name!r} is not printable text')
                mode = entry.stat().st_mode  # of what a link points to; a loop of links raises OSError
                image = stat.S_ISREG(mode) and entry.name.lower().endswith(SUFFIXES)
                if not (stat.S_ISDIR(mode) if folders else image):
                    raise InputError(f'{entry.path}: only {expected} belong here')
                found.append((entry.name, entry.path))
    except OSError as error:
        raise InputError(f'{error.filename or folder}: cannot be read ({error.strerror})') from None
    if not found:
        raise InputError(f'{folder}: there are no {expected}')
    return sorted(found)


def read_image(path: str) -> bytes:
    """The content of an image file."""
    try:
        with open(path, 'rb') as file:
            content = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise InputError(f'{path}: cannot be read ({error.strerror})') from None
    if len(content) > MAX_FILE_BYTES:
        raise InputError(f'{path}: larger than {MAX_FILE_BYTES:,} bytes')
    return content
