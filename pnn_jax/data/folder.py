"""Image folders: `train/<class>/*` and `test/<class>/*` (or `val/`), PNG, JPEG or WebP, decoded once and cached."""

import os
import stat
from functools import partial
from pathlib import Path

import numpy as np

from pnn_jax.data.cache import cached
from pnn_jax.data.dataset import Dataset, added_field, check_class_names, make_split, normalized_name
from pnn_jax.data.files import is_left_by_system, is_note
from pnn_jax.data.images import MODES, RESIZES, decode_all, decode_image
from pnn_jax.errors import InputError, os_reason
from pnn_jax.paths import local_path

SUFFIXES = ('.png', '.jpg', '.jpeg', '.webp')
MAX_FILE_BYTES = 2**28


def load_folder(data_config) -> Dataset:
    """Reads config.data.path, resized to config.data.image_size if it is not 0.

    Labels follow the sorted class names, images the sorted file names. As many channels as config.data.mean has
    values: 1 converts to grey, 3 to RGB.

    Raises:
        InputError: no such folder, a class without images, a damaged image, images of different size.
    """
    root = local_path(data_config.path, 'config.data.path')
    files, labels, class_names = list_folder(root)
    channels, image_size, resize = num_channels(data_config), data_config.image_size, added_field(data_config, 'resize')
    settings = [image_size, channels]
    if image_size and resize != 'crop':  # older caches know only 'crop', and stay valid
        settings.append(resize)
    splits = {}
    for split in ('train', 'test'):
        name = f'{root.resolve().name}-{split}'
        decode = partial(_decode, files[split], channels, image_size, resize)
        images = cached(data_config.cache_dir, name, files[split], settings, decode)['images']
        splits[split] = make_split(images, labels[split], len(class_names), f'{root}/{split}')
    return Dataset(root.resolve().name, splits['train'], splits['test'], class_names)


def _decode(files: list[str], channels: int, image_size: int, resize: str) -> dict[str, np.ndarray]:
    decode = lambda i: decode_image(read_image(files[i]), files[i], channels, image_size, RESIZES[resize])
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
    train_classes, test_classes = _classes(root / 'train'), _classes(root / test)
    if wrong := sorted(train_classes.keys() ^ test_classes.keys()):
        missing_in = test if wrong[0] in train_classes else 'train'
        raise InputError(
            f'{root}: class folder {wrong[0]!r} is missing in {missing_in}/ '
            f'(train/ and {test}/ must have the same classes; number that differ: {len(wrong)})'
        )
    files, labels = {}, {}
    for split, classes in (('train', train_classes), ('test', test_classes)):
        in_class = [[path for _, path in _entries(classes[key][1], folders=False)] for key in train_classes]
        files[split] = [path for paths in in_class for path in paths]
        labels[split] = np.repeat(np.arange(len(in_class), dtype=np.int32), [len(paths) for paths in in_class])
    return files, labels, tuple(name for name, _ in train_classes.values())


def _classes(folder: Path) -> dict[str, tuple[str, str]]:
    """`normalized_name` of each class folder -> (name, path), sorted by name."""
    entries = _entries(folder, folders=True)
    check_class_names([name for name, _ in entries], str(folder))
    return {normalized_name(name): (name, path) for name, path in entries}


def _entries(folder: str | Path, *, folders: bool) -> list[tuple[str, str]]:
    """Sorted (name, path) of the class folders or the images in `folder`.

    Passed over is what systems leave behind (also folders), and notes and lists beside the images. Anything else is
    refused, because it may be data that would be missing silently.
    """
    expected = 'class folders' if folders else f'images ({", ".join(SUFFIXES)})'
    found = []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if is_left_by_system(entry.name):
                    continue
                mode = entry.stat().st_mode  # of what a link points to; a loop of links raises OSError
                if stat.S_ISREG(mode) and is_note(entry.name):
                    continue
                if not entry.name.isprintable():
                    raise InputError(f'{folder}: the name {entry.name!r} is not printable text')
                image = stat.S_ISREG(mode) and entry.name.lower().endswith(SUFFIXES)
                if not (stat.S_ISDIR(mode) if folders else image):
                    raise InputError(f'{entry.path}: only {expected} belong here')
                found.append((entry.name, entry.path))
    except OSError as error:
        layout = '; an image folder has train/<class>/* and test/<class>/* (or val/)' if folders else ''
        raise InputError(f'{error.filename or folder}: cannot be read ({os_reason(error)}){layout}') from None
    if not found:
        raise InputError(f'{folder}: there are no {expected}')
    return sorted(found)


def read_image(path: str) -> bytes:
    """The content of an image file."""
    try:
        with open(path, 'rb') as file:
            content = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise InputError(f'{path}: cannot be read ({os_reason(error)})') from None
    if len(content) > MAX_FILE_BYTES:
        raise InputError(f'{path}: larger than {MAX_FILE_BYTES:,} bytes')
    return content
