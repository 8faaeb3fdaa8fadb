"""The decoded images as files that several processes map into memory, so that they are in memory once."""

from __future__ import annotations

import dataclasses
import io
from pathlib import Path

import numpy as np

from experiments.command import write_file
from pnn_jax.data import Dataset, Split


def store(dataset: Dataset, folder: Path) -> Dataset:
    """Writes the arrays of a data set as .npy files, unless they are there.

    Returns:
        The data set with a path in place of each array. It is small, and can be sent to other processes.

    Raises:
        RunError: the files cannot be written.
    """

    def store_array(array: np.ndarray, name: str) -> Path:
        path = folder / f'{dataset.digest[:16]}_{name}.npy'
        if not path.exists():
            buffer = io.BytesIO()
            np.save(buffer, array)
            write_file(path, buffer.getvalue())
        return path

    return _map_arrays(dataset, store_array)


def load(stored: Dataset) -> Dataset:
    """The data set that `store` stored, its arrays mapped into memory, read-only."""
    return _map_arrays(stored, lambda path, name: np.load(path, mmap_mode='r'))


def _map_arrays(dataset: Dataset, function) -> Dataset:
    """The data set with `function(array, 'train_images')` in place of each array of each split."""
    splits = {
        field.name: Split(**{part: function(array, f'{field.name}_{part}') for part, array in vars(split).items()})
        for field in dataclasses.fields(dataset)
        if isinstance(split := getattr(dataset, field.name), Split)
    }
    return dataclasses.replace(dataset, **splits)
