"""Decoded images on disk, so that a set is decoded once, under a key that notices changed files."""

import hashlib
import json
import logging
import os
import tempfile
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np

from pnn_jax.data.images import check_fits_memory

Arrays = dict[str, np.ndarray]


def cache_folder(cache_dir: str) -> Path:
    """Where decoded images go: `cache_dir`, else the environment's PNN_JAX_CACHE, else ~/.cache/pnn_jax."""
    return Path(cache_dir or os.environ.get('PNN_JAX_CACHE') or '~/.cache/pnn_jax').expanduser()


def file_key(files: Iterable[os.PathLike | str], *settings) -> str:
    """A key that changes when a file is added, renamed, resized or rewritten (path, size, time of change)."""
    state = [list(settings)]
    for file in files:
        status = os.stat(file)
        state.append([os.path.abspath(file), status.st_size, status.st_mtime_ns])
    return hashlib.sha256(json.dumps(state).encode()).hexdigest()[:24]


def cached(cache_dir: str, name: str, key: str, make: Callable[[], Arrays]) -> Arrays:
    """The arrays of an earlier call with the same name and key, or make(), kept for the next time.

    The file is an uncompressed .npz, whose checksums are verified. It only saves time: where it is damaged or cannot
    be written, a warning says so and make() is called. Deleting the folder is always safe.
    """
    path = cache_folder(cache_dir) / f'{name}-{key}.npz'
    try:
        check_fits_memory(path.stat().st_size)
        with np.load(path, allow_pickle=False) as file:
            return dict(file)
    except FileNotFoundError:
        pass
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        logging.warning('%s is damaged and made anew (%s)', path, error)
    arrays = make()
    temporary = ''
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=path.stem, suffix='.tmp')
        with os.fdopen(descriptor, 'wb') as file:
            np.savez(file, **arrays)
        os.replace(temporary, path)
    except OSError as error:
        logging.warning('decoded images are not kept: %s', error)
        if temporary:
            Path(temporary).unlink(missing_ok=True)
    return arrays
