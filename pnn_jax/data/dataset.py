"""What every source returns, and the rules that it must obey."""

import dataclasses
import hashlib
import unicodedata
from collections.abc import Sequence

import numpy as np

from pnn_jax.errors import InputError

# Fields of config.data that are younger than some runs. A config.json without them means these values.
ADDED_FIELDS = {'resize': 'crop', 'pad': 0, 'validation_examples': 0}


def added_field(data_config, name: str):
    """config.data's field `name`, one of ADDED_FIELDS, or its default where the config was written before it."""
    return getattr(data_config, name, ADDED_FIELDS[name])


@dataclasses.dataclass(frozen=True)
class Split:
    """Images uint8 [n, h, w, c] and their labels int32 [n], in the order in which the set stores them."""

    images: np.ndarray
    labels: np.ndarray


@dataclasses.dataclass(frozen=True)
class Dataset:
    """A data set in memory.

    Attributes:
        name: of the set.
        train: what is trained on; without the validation examples.
        test: what is evaluated.
        class_names: name of each label; no two are equal.
        digest: sha256 (hex) over pixels and labels of all splits; '' until it is computed.
        validation: split off the training set; None where config.data.validation_examples is 0.
        notes: what the user should know about the data, one line each.
    """

    name: str
    train: Split
    test: Split
    class_names: tuple[str, ...]
    digest: str = ''
    validation: Split | None = None
    notes: tuple[str, ...] = ()


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
            f'{what}: labels are {labels.dtype} {list(labels.shape)}; integers [{len(images)}] are needed, '
            'one for each image'
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


def normalized_name(name: str) -> str:
    """A class name in Unicode form NFC, in which names that look the same are equal.

    Unicode can write an accented letter as one code point or as two. Some macOS programs write file names in the second
    form, so one class can have one form in train/ and the other in test/.
    """
    return unicodedata.normalize('NFC', name)


def check_class_names(class_names: Sequence[str], what: str) -> None:
    """Raises InputError where two classes have one name: results per class would be merged silently.

    Args:
        class_names: of the set.
        what: names the set in errors.
    """
    seen: dict[str, int] = {}
    for label, name in enumerate(class_names):
        other = seen.setdefault(normalized_name(name), label)
        if other != label:
            how = '' if class_names[other] == name else ', in two Unicode forms that look the same'
            raise InputError(f'{what}: classes {other} and {label} are both named {name!r}{how}; names must differ')


def notes_on(data_config, train_labels: np.ndarray | None, class_names: Sequence[str]) -> tuple[str, ...]:
    """What is probably not as the user meant it, but is no error; one line each.

    Args:
        data_config: config.data.
        train_labels: int [n], or None where labels are not known before training.
        class_names: of the set.
    """
    notes = []
    if added_field(data_config, 'resize') != 'crop' and not data_config.image_size:
        notes.append(f'config.data.resize={data_config.resize!r} has no effect: config.data.image_size is 0')
    if train_labels is not None:
        empty = np.flatnonzero(np.bincount(train_labels, minlength=len(class_names)) == 0)
        names = ', '.join(repr(class_names[label]) for label in empty[:10]) + (', ...' if len(empty) > 10 else '')
        hint = '; labels count from 0' if list(empty) == [0] else ''
        if len(empty):
            notes.append(f'classes without a training example ({len(empty)} of {len(class_names)}): {names}{hint}')
    return tuple(notes)


def training_subsets(n: int, data_config) -> tuple[np.ndarray, np.ndarray]:
    """Which of n training examples are trained on, and which are for validation: two sorted arrays of indices.

    Both are random choices, but always the same ones, and never share an example. The validation examples depend only
    on n and config.data.validation_examples; config.data.train_examples takes from the others, and 0 takes all.

    Raises:
        InputError: the set has not that many.
    """
    num_train, num_validation = data_config.train_examples, added_field(data_config, 'validation_examples')
    if num_train > n:
        raise InputError(f'config.data.train_examples={num_train}: there are only {n} training examples')
    if num_validation and max(num_train, 1) + num_validation > n:
        raise InputError(
            f'config.data.validation_examples={num_validation}: of {n} training examples, at least {max(num_train, 1)} '
            'must be left to train on'
        )
    order = np.random.RandomState(0).permutation(n)
    end = n - num_validation
    return np.sort(order[: num_train or end]), np.sort(order[end:])


def digest_of(*splits: Split) -> str:
    """sha256 (hex) over shapes, pixels and labels of the splits."""
    digest = hashlib.sha256()
    for split in splits:
        for array in (split.images, split.labels):
            digest.update(f'{array.dtype}{array.shape}'.encode())
            digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()
