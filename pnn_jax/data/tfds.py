"""Sets that TensorFlow Datasets has prepared as array_record files, read without TensorFlow or the network."""

import contextlib
import shlex
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from pnn_jax.data.cache import Arrays, cached
from pnn_jax.data.dataset import Dataset, make_split
from pnn_jax.data.files import is_left_by_system
from pnn_jax.data.images import decode_all, decode_image
from pnn_jax.errors import InputError, one_line, os_reason
from pnn_jax.paths import local_path

NAMES = ('cifar10', 'cifar100', 'mnist', 'fashion_mnist', 'svhn_cropped')


def load_tfds(data_config) -> Dataset:
    """Reads the prepared set config.data.name under config.data.path ('': where TFDS keeps its sets).

    Raises:
        InputError: the set is not prepared (the message says how to do it), or damaged.
    """
    name = data_config.name
    if name not in NAMES:
        raise InputError(f'config.data.name={name!r}: must be one of {", ".join(NAMES)} for the source tfds')
    builder = open_prepared(name, data_config.path)
    features = builder.info.features
    folder = Path(builder.data_path)
    files = prepared_files(folder)
    splits = []
    for split in ('train', 'test'):
        decode = partial(_decode, Records(builder, split), features['image'].shape[-1])
        arrays = cached(data_config.cache_dir, f'tfds-{name}-{split}', files, (), decode)
        num_classes = features['label'].num_classes
        splits.append(make_split(arrays['images'], arrays['labels'], num_classes, f'{folder}: {split}'))
    train, test = splits
    return Dataset(name, train, test, tuple(features['label'].names))


def _decode(records: 'Records', channels: int) -> Arrays:
    labels = np.zeros(len(records), np.int32)

    def decode(i: int) -> np.ndarray:
        content, labels[i] = records.read(i)
        return decode_image(content, records.record_name(i), channels)

    return {'images': decode_all(len(records), decode, records.record_name), 'labels': labels}


def prepared_files(folder: Path) -> list[Path]:
    """The files of a prepared set, sorted; without what systems leave, which would look like a change of the set."""
    try:
        return sorted(path for path in folder.iterdir() if not is_left_by_system(path.name))
    except OSError as error:
        raise InputError(f'{folder}: cannot be read ({os_reason(error)})') from None


def data_dir(path: str, field: str) -> Path:
    """The folder of prepared sets: `path`, or where TFDS keeps its sets (TFDS_DATA_DIR, else ~/tensorflow_datasets).

    Raises:
        InputError: a URL, or no home directory is known; names `field`.
    """
    import tensorflow_datasets as tfds

    if path:
        return local_path(path, field)
    return local_path(tfds.core.constants.get_default_data_dir(), f'{field} (empty: the default of tfds)')


def open_prepared(name: str, path: str) -> Any:
    """The tfds builder of a set that was prepared as array_record under `path` ('': the default of TFDS).

    Raises:
        InputError: it is not there in this form, damaged, or not a set of labelled images.
    """
    try:
        import tensorflow_datasets as tfds
    except ImportError as error:
        raise InputError(f'this source needs the package tensorflow-datasets ({one_line(error)})') from None
    root = data_dir(path, 'config.data.path')
    versions = [
        info.parent
        for info in (root / name).glob('*/dataset_info.json')
        if tfds.core.Version.is_valid(info.parent.name)
    ]
    command = f'python -m pnn_jax.prepare --name={name}' + (f' --path={shlex.quote(path)}' if path else '')
    if not versions:
        raise InputError(
            f'config.data.name={name!r} is not prepared in {root}; there is no {name}/<version>/dataset_info.json in '
            f"it; run once (it needs pip install 'pnn-jax[prepare]'): {command}"
        )
    folder = max(versions, key=lambda folder: tfds.core.Version(folder.name))
    with _named(str(folder)):
        builder = tfds.builder_from_directory(folder)
        features = dict(builder.info.features)
    image, label = features.get('image'), features.get('label')
    if not (isinstance(image, tfds.features.Image) and isinstance(label, tfds.features.ClassLabel)):
        raise InputError(f"{folder}: has no features 'image' and 'label' of labelled images")
    if builder.info.file_format != tfds.core.FileFormat.ARRAY_RECORD:
        raise InputError(
            f'{folder}: prepared as {builder.info.file_format.value}, which only TensorFlow reads; '
            f'move it away and prepare it as array_record: {command}'
        )
    return builder


class Records:
    """Random access to the records of one split of a prepared set; safe to use from several threads."""

    def __init__(self, builder: Any, split: str):
        """Raises InputError where the split is missing or incomplete."""
        import tensorflow_datasets as tfds

        self.name = f'{builder.data_path}: {split}'
        if split not in builder.info.splits:
            raise InputError(f'{self.name}: no such split; there are {", ".join(builder.info.splits)}')
        with _named(self.name):
            self._records = builder.as_data_source(split=split, decoders={'image': tfds.decode.SkipDecoding()})
            count, expected = len(self._records), builder.info.splits[split].num_examples
        if count != expected:
            raise InputError(f'{self.name}: holds {count} of {expected} records')

    def __len__(self) -> int:
        return len(self._records)

    def record_name(self, i: int) -> str:
        return f'{self.name} record {i}'

    def read(self, i: int) -> tuple[bytes, int]:
        """The encoded image and the label of record i; InputError where it is damaged."""
        with _named(self.record_name(i)):
            record = self._records[i]
            return bytes(record['image']), int(record['label'])


@contextlib.contextmanager
def _named(what: str) -> Iterator[None]:
    """Turns what array_record and tfds raise for damaged files into one line."""
    try:
        yield
    except Exception as error:  # noqa: BLE001  (they raise exceptions of many types)
        raise InputError(f'{what} cannot be read ({type(error).__name__}: {one_line(error)})') from None
