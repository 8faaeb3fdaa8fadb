"""Decoded images on disk, so that a set is decoded only once. The cache saves time and never fails a run."""

import hashlib
import json
import logging
import os
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np

from pnn_jax.data.images import check_images_fit
from pnn_jax.errors import one_line, os_reason
from pnn_jax.paths import UnknownHomeError, local_path, replacing

Arrays = dict[str, np.ndarray]


def cached(
    cache_dir: str, name: str, files: Iterable[os.PathLike | str], settings: Iterable, decode: Callable[[], Arrays]
) -> Arrays:
    """The arrays that an earlier call stored for the same files and settings, or else `decode()`, which is stored.

    The cache file is an uncompressed .npz with checksums. Where it cannot be read or written, a warning says why, and
    decode() is called. Deleting the folder is always safe.

    Args:
        cache_dir: config.data.cache_dir.
        name: first part of the name of the cache file.
        files: what decode() reads; the cache is not used once one of them changes.
        settings: what else the arrays depend on, as values that JSON can hold.
        decode: makes the arrays.

    Raises:
        InputError: `cache_dir` is a URL, or decode() raised it.
    """
    path = _cache_file(cache_dir, name, files, settings)
    if path is None:
        return decode()
    try:
        check_images_fit(path.stat().st_size)
        with (
            open(path, 'rb') as stored,
            np.load(stored, allow_pickle=False) as file,
        ):  # np.load leaves a damaged file open
            return dict(file)
    except (FileNotFoundError, NotADirectoryError):
        pass
    except Exception as error:  # noqa: BLE001  (zipfile, zlib and numpy raise a dozen kinds for damaged files)
        reason = os_reason(error) if isinstance(error, OSError) else one_line(error)
        logging.warning('%s: damaged or unreadable (%s); the images are decoded again', path, reason)
    arrays = decode()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as file:
            np.savez(file, allow_pickle=False, **arrays)
    except OSError as error:
        logging.warning(
            'config.data.cache_dir: decoded images are not cached in %s (%s)', path.parent, os_reason(error)
        )
    return arrays


def cache_folder(cache_dir: str) -> Path:
    """Where decoded images go: `cache_dir`, else the environment's PNN_JAX_CACHE, else ~/.cache/pnn_jax.

    Raises:
        InputError: the folder is a URL.
        UnknownHomeError: the folder begins with `~`, and no home directory is known.
    """
    if not cache_dir and (variable := os.environ.get('PNN_JAX_CACHE')):
        return local_path(variable, 'PNN_JAX_CACHE')
    return local_path(cache_dir or '~/.cache/pnn_jax', 'config.data.cache_dir')


def file_key(files: Iterable[os.PathLike | str], settings: Iterable) -> str:
    """A key that changes when a file is added, renamed, resized or rewritten (path, size, time of change)."""
    state = [list(settings)]
    for file in files:
        status = os.stat(file)
        state.append([os.path.abspath(file), status.st_size, status.st_mtime_ns])
    return hashlib.sha256(json.dumps(state).encode()).hexdigest()[:24]


def _cache_file(cache_dir: str, name: str, files: Iterable, settings: Iterable) -> Path | None:
    """The cache file, or None, after a warning, where there cannot be one."""
    try:
        return cache_folder(cache_dir) / f'{name}-{file_key(files, settings)}.npz'
    except UnknownHomeError as error:
        logging.warning('decoded images are not cached: %s', error)
    except OSError as error:
        logging.warning('decoded images are not cached: %s (%s)', error.filename, os_reason(error))
    return None
