"""Writes small data sets for the tests of pnn_jax.data."""

import gzip
import io
import pickle
import tarfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
from PIL import Image


def data_config(source: str, path='', **fields) -> SimpleNamespace:
    """config.data with the defaults of configs/default.py, nothing cached outside `path`'s folder."""
    defaults = {
        'name': 'cifar10',
        'image_size': 0,
        'resize': 'crop',
        'pad': 0,
        'train_examples': 0,
        'validation_examples': 0,
        'cache_dir': str(Path(path).parent / 'cache'),
        'augment': 'none',
        'mean': (0.5, 0.5, 0.5),
        'std': (1.0, 1.0, 1.0),
    }
    return SimpleNamespace(source=source, path=str(path), **(defaults | fields))


def random_images(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def write_folder(root: Path, images: dict[tuple[str, str], np.ndarray], suffix: str = '.png') -> Path:
    """Writes images [n, h, w, c] of each (split, class) as root/split/class/000.png."""
    for (split, name), pixels in images.items():
        folder = root / split / name
        folder.mkdir(parents=True)
        for i, image in enumerate(pixels):
            Image.fromarray(image.squeeze(-1) if image.shape[-1] == 1 else image).save(folder / f'{i:03d}{suffix}')
    return root


def small_folder(root: Path) -> Path:
    """Two classes, three training and two test images of each, 6x6 RGB."""
    return write_folder(
        root,
        {
            (split, name): random_images(seed, count, 6, 6, 3)
            for seed, (split, name, count) in enumerate(
                [('train', 'cat', 3), ('train', 'dog', 3), ('test', 'cat', 2), ('test', 'dog', 2)]
            )
        },
    )


def idx_bytes(array: np.ndarray) -> bytes:
    header = bytes([0, 0, 8, array.ndim]) + b''.join(size.to_bytes(4, 'big') for size in array.shape)
    return header + array.astype(np.uint8).tobytes()


def write_idx(folder: Path, gzipped: bool = False, prefixes=('train', 't10k')) -> dict[str, np.ndarray]:
    """Twelve training and six test images of 5x4 pixels with labels 0 to 5, as MNIST's files; returns the arrays."""
    arrays = {}
    for seed, prefix in enumerate(prefixes):
        count = 12 if prefix == 'train' else 6
        arrays[f'{prefix}-images-idx3-ubyte'] = random_images(seed, count, 5, 4)
        arrays[f'{prefix}-labels-idx1-ubyte'] = np.arange(count, dtype=np.uint8) % 6
    folder.mkdir(parents=True, exist_ok=True)
    for name, array in arrays.items():
        content = idx_bytes(array)
        (folder / (name + '.gz' * gzipped)).write_bytes(gzip.compress(content) if gzipped else content)
    return arrays


def cifar_batches(protocol: int = 2) -> dict[str, bytes]:
    """The files of a CIFAR-10 of two images a batch, pickled as Python 3 does it."""
    files = {'batches.meta': {'label_names': [f'class {i}' for i in range(10)], 'num_cases_per_batch': 2}}
    for i, name in enumerate([f'data_batch_{i}' for i in range(1, 6)] + ['test_batch']):
        files[name] = {
            b'batch_label': name.encode(),
            b'labels': [i, 9 - i],
            b'data': random_images(i, 2, 3072),
            b'filenames': [b'a.png', b'b.png'],
        }
    return {name: pickle.dumps(content, protocol) for name, content in files.items()}


def write_cifar_folder(root: Path, files: dict[str, bytes]) -> Path:
    folder = root / 'cifar-10-batches-py'
    folder.mkdir(parents=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder


def write_cifar_archive(path: Path, files: dict[str, bytes], folder: str = 'cifar-10-batches-py') -> Path:
    with tarfile.open(path, 'w:gz') as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(f'{folder}/{name}')
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def write_tfds(root: Path, images: np.ndarray, labels: list[int], splits: dict[str, range]) -> Path:
    """Prepares 'cifar10' as array_record files, classes ant, bee and cow, without TensorFlow; returns its data_dir."""
    import tensorflow_datasets as tfds

    for i, image in enumerate(images):
        Image.fromarray(image).save(root / f'{i}.png')

    with tfds.core.registered.skip_registration():

        class Cifar10(tfds.core.GeneratorBasedBuilder):
            VERSION = tfds.core.Version('3.0.2')

            def _info(self):
                features = {
                    'image': tfds.features.Image(shape=(None, None, 3)),
                    'label': tfds.features.ClassLabel(names=['ant', 'bee', 'cow']),
                }
                return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

            def _split_generators(self, download_manager):
                return {split: self._generate_examples(numbers) for split, numbers in splits.items()}

            def _generate_examples(self, numbers):
                # Paths, not arrays: those tfds could only encode with TensorFlow.
                yield from ((i, {'image': root / f'{i}.png', 'label': labels[i]}) for i in numbers)

    Cifar10(data_dir=root / 'data', file_format='array_record').download_and_prepare()
    return root / 'data'
