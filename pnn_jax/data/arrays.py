"""Two small sources: the digits that come with scikit-learn, and arrays in an .npz file."""

import importlib.util
import zipfile
import zlib
from collections import Counter
from pathlib import Path

import numpy as np

from pnn_jax.data.dataset import Dataset, Split, make_split, numbered_classes
from pnn_jax.data.images import check_images_fit, resized_images
from pnn_jax.errors import InputError, one_line, os_reason
from pnn_jax.paths import local_path

DIGITS_IMAGE_SIZE = 16

# What zipfile, zlib and numpy raise for a damaged .npz file, besides OSError.
_DAMAGE = (EOFError, KeyError, NotImplementedError, RuntimeError, ValueError, zipfile.BadZipFile, zlib.error)


def load_digits(data_config) -> Dataset:
    """1,437 training and 360 test images of handwritten digits, bundled with scikit-learn: nothing is downloaded.

    The 8x8 images with values 0 to 16 become uint8 0 to 255, resized to config.data.image_size (0: 16). Every fifth
    image of a class, in a fixed random order, is a test image.
    """
    table = np.loadtxt(_digits_file(), delimiter=',', dtype=np.int32)  # a line: 64 pixels, then the label
    values, labels = table[:, :64].reshape(-1, 8, 8), table[:, 64]
    order = np.random.RandomState(0).permutation(len(labels))
    order = order[np.argsort(labels[order], kind='stable')]
    is_test = np.arange(len(order)) % 5 == 0
    pixels = np.round(values * (255 / 16)).astype(np.uint8)[..., None]
    images = resized_images(pixels, data_config.image_size or DIGITS_IMAGE_SIZE)
    train, test = (Split(images[index], labels[index]) for index in (np.sort(order[~is_test]), np.sort(order[is_test])))
    return Dataset('digits', train, test, numbered_classes(labels))


def _digits_file() -> Path:
    """What `sklearn.datasets.load_digits` reads. It is found without an import of scikit-learn, which takes seconds."""
    package = importlib.util.find_spec('sklearn')
    if package is None or package.origin is None:
        raise ModuleNotFoundError("No module named 'sklearn'", name='sklearn')
    return Path(package.origin).parent / 'datasets' / 'data' / 'digits.csv.gz'


def load_npz(data_config) -> Dataset:
    """Reads the arrays train_images, train_labels, test_images, test_labels and, if there, class_names.

    Images are uint8 [n, h, w, 1 or 3], labels integers [n]. Without class_names the classes are named '0', '1', ...

    Raises:
        InputError: an array is missing or not of this form.
    """
    path = local_path(data_config.path, 'config.data.path')
    try:
        with zipfile.ZipFile(path) as archive:
            _check_members(archive, path)
        with np.load(path, allow_pickle=False) as file:
            missing = [f'{split}_{kind}' for split in ('train', 'test') for kind in ('images', 'labels')]
            missing = [name for name in missing if name not in file]
            if missing:
                raise InputError(f'{path}: there is no array {missing[0]}; it has {", ".join(file) or "none"}')
            class_names = file['class_names'] if 'class_names' in file else numbered_classes(file['train_labels'])
            if isinstance(class_names, np.ndarray) and (class_names.dtype.kind != 'U' or class_names.ndim != 1):
                raise InputError(f'{path}: class_names is {class_names.dtype}; a list of text is needed')
            class_names = tuple(str(name) for name in class_names)
            train, test = (
                make_split(file[f'{split}_images'], file[f'{split}_labels'], len(class_names), f'{path}: {split}')
                for split in ('train', 'test')
            )
    except InputError:
        raise
    except OSError as error:
        raise InputError(f'{path}: not a readable .npz file ({os_reason(error)})') from None
    except _DAMAGE as error:
        raise InputError(f'{path}: not a readable .npz file ({one_line(error)})') from None
    return Dataset(path.stem, train, test, class_names)


def _check_members(archive: zipfile.ZipFile, path: Path) -> None:
    """Raises InputError where the arrays are too large, or two of them have one name: only one would be read."""
    members = archive.infolist()
    check_images_fit(sum(member.file_size for member in members))
    for name, count in Counter(member.filename.removesuffix('.npy') for member in members).items():
        if count > 1:
            raise InputError(f'{path}: holds {count} arrays named {name!r}; names must differ')
