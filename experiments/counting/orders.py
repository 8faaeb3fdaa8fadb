"""The orders in which test images can be evaluated.

The smoothed accuracy depends almost only on the last few batches. In which order the images come therefore decides what
is reported; exact accuracy does not depend on it.
"""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np

from pnn_jax.errors import InputError, one_line, os_reason
from pnn_jax.paths import local_path

STORED, RANDOM, BY_CLASS = 'stored', 'random', 'class'
ORIGINAL = 'all_test_labels'  # the array of an .npz file: the test labels in the order of the original data set


def is_sorted_by_class(labels: np.ndarray) -> bool:
    return bool((np.diff(labels) >= 0).all() and labels[0] != labels[-1])


def random_order(count: int, seed: int = 0) -> np.ndarray:
    """A random permutation of `count` images; the same for the same seed."""
    return np.random.default_rng(seed).permutation(count)


def find_order(name: str, labels: np.ndarray | None, count: int, seed: int) -> np.ndarray:
    """The order that a user names, as positions [count] in the stored order.

    Args:
        name: 'stored', 'random', 'class' (class by class), or the path of an .npz file whose array `all_test_labels`
            holds the labels of the original data set in its own order.
        labels: of the test images in stored order; None where they are not known.
        count: of the test images.
        seed: of a random order.

    Raises:
        InputError: the order needs labels that are not known, or the file is not of this data set.
    """
    if name == STORED:
        return np.arange(count)
    if name == RANDOM:
        return random_order(count, seed)
    if name != BY_CLASS and not name.endswith('.npz'):
        raise InputError(f'--order={name}: must be {STORED}, {RANDOM}, {BY_CLASS} or the path of an .npz file')
    if labels is None:
        raise InputError(f'--order={name}: needs the labels of the test images, which this record does not have')
    if name == BY_CLASS:
        return np.argsort(labels, kind='stable')
    return original_order(labels, read_original_labels(local_path(name, '--order')), name)


def original_order(stored: np.ndarray, original: np.ndarray, name: str) -> np.ndarray:
    """Positions in the stored order such that the labels come in the order of `original`.

    Images of one class keep the order in which they are stored. This gives the original order of a data set that was
    sorted by class without changing the order within a class, as folders of CIFAR-10 images are.

    Raises:
        InputError: the two do not have the same number of images of each class.
    """
    if original.shape != stored.shape or (np.sort(original) != np.sort(stored)).any():
        raise InputError(f'--order={name}: its {len(original)} labels are not those of the {len(stored)} test images')
    order = np.empty(len(stored), np.int64)
    for label in np.unique(stored):
        order[original == label] = np.flatnonzero(stored == label)
    return order


def read_original_labels(path: Path) -> np.ndarray:
    """The array `all_test_labels` of an .npz file.

    Raises:
        InputError: the file cannot be read, or has no such array of whole numbers.
    """
    try:
        # Opened here, because numpy leaves a damaged file open.
        with open(path, 'rb') as file, np.load(file, allow_pickle=False) as arrays:
            labels = arrays[ORIGINAL]
    except OSError as error:
        raise InputError(f'--order={path}: cannot be read ({os_reason(error)})') from None
    except (KeyError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise InputError(f'--order={path}: needs an array {ORIGINAL!r} ({one_line(error)})') from None
    if labels.ndim != 1 or labels.dtype.kind not in 'iu':
        raise InputError(f'--order={path}: {ORIGINAL} is {labels.dtype}{list(labels.shape)}; needs whole numbers [n]')
    return labels
