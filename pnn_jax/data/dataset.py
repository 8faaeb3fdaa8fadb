"""What every source returns, and the rules that it must obey."""

import dataclasses
import hashlib

import numpy as np

from pnn_jax.errors import InputError


@dataclasses.dataclass(frozen=True)
class Split:
    """Images uint8 [n, h, w, c] and their labels int32 [n], in the order in which the set stores them."""

    images: np.ndarray
    labels: np.ndarray


@dataclasses.dataclass(frozen=True)
class Dataset:
    """A data set in memory. `digest` (sha256, hex) covers the pixels and labels of both splits."""

    name: str
    train: Split
    test: Split
    class_names: tuple[str, ...]
    digest: str = ''


def make_split(images: np.ndarray, labels: np.ndarray, num_classes: int, what: str) -> Split:
    """A Split of arrays that came from outside.

    Args:
        images: must be uint8 [n, h, w, c] with n >= 1 and 1 or 3 channels.
        labels: must be integers [n] in 0..num_classes-1.
        num_classes: of the set.
        what: names the arrays in errors.

    Raises:
        InputError: the arrays break one of these rules.
    """
    images, labels = np.asarray(images), np.asarray(labels)
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] not in (1, 3):
        raise InputError(
            f'{what}: images are {images.dtype} {list(images.shape)}; uint8 [n, height, width, 1 or 3] is needed'
        )
    if 0 in images.shape:
        raise InputError(f'{what}: there are no images (shape {list(images.shape)})')
    if labels.dtype.kind not in 'iu' or labels.shape != images.shape[:1]:
        raise InputError(
            f'{what}: labels are {labels.dtype} {list(labels.shape)}; integers [{len(images)}] are needed, one an image'
        )
    wrong = np.flatnonzero((labels < 0) | (labels >= num_classes))
    if wrong.size:
        raise InputError(
            f'{what}: label {labels[wrong[0]]} of image {wrong[0]} is out of range; '
            f'{num_classes} classes have labels 0 to {num_classes - 1}'
        )
    return Split(images, labels.astype(np.int32))


def numbered_classes(train_labels: np.ndarray) -> tuple[str, ...]:
    """Names '0', '1', ... for the classes of a set that has none: up to the largest training label."""
    labels = np.asarray(train_labels)
    if labels.dtype.kind not in 'iu' or not labels.size:
        return ()
    largest = int(labels.max())
    if largest >= len(labels):
        raise InputError(f'training label {largest} is out of range: there are only {len(labels)} training images')
    return tuple(str(label) for label in range(largest + 1))


def fixed_subset(n: int, num_examples: int) -> np.ndarray:
    """Which of n training examples config.data.train_examples keeps: a random choice, but always the same, in order.

    0 keeps all of them; InputError for more than there are.
    """
    if num_examples > n:
        raise InputError(f'config.data.train_examples={num_examples}: there are only {n}')
    return np.sort(np.random.RandomState(0).permutation(n)[: num_examples or n])


def digest_of(train: Split, test: Split) -> str:
    """sha256 (hex) over shapes, pixels and labels of both splits."""
    digest = hashlib.sha256()
    for array in (train.images, train.labels, test.images, test.labels):
        digest.update(f'{array.dtype}{array.shape}'.encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()
