"""Sets that do not fit in memory: images are read, decoded and cropped in threads, a few batches ahead.

A batch is a function of the run's key, the epoch and the step, as for sets in memory, so that going on from any step
needs no state of an iterator, and the same images come whatever the number of hosts.

To add a source, write a function config.data -> Stream and add a line to STREAMS.
"""

import dataclasses
import hashlib
import math
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Protocol

import jax
import numpy as np

from pnn_jax.data.batches import epoch_order, host_share, steps_per_epoch
from pnn_jax.data.dataset import fixed_subset
from pnn_jax.data.folder import list_folder, num_channels, read_image
from pnn_jax.data.images import NUM_THREADS, Box, centre_square, decode_image
from pnn_jax.data.tfds import Records, open_prepared
from pnn_jax.errors import InputError

BATCHES_AHEAD = 2  # decoded while the accelerator works; more would only take memory

# One pool for the life of the process: new threads for every epoch would each fragment memory of their own.
_THREADS = ThreadPoolExecutor(NUM_THREADS, thread_name_prefix='decode')

Batch = dict[str, np.ndarray]


class Examples(Protocol):
    """Random access, from several threads, to encoded images and their labels."""

    def __len__(self) -> int: ...

    def record_name(self, i: int) -> str:
        """Names example i in errors."""

    def read(self, i: int) -> tuple[bytes, int]:
        """The image file and the label of example i."""


@dataclasses.dataclass(frozen=True)
class Files:
    """Examples in files."""

    paths: list[str]
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.paths)

    def record_name(self, i: int) -> str:
        return self.paths[i]

    def read(self, i: int) -> tuple[bytes, int]:
        return read_image(self.paths[i]), int(self.labels[i])


@dataclasses.dataclass(frozen=True)
class Stream:
    """A data set that stays on disk.

    Attributes:
        train: all training examples.
        train_index: which of them are used, int [n].
        test: the examples to evaluate on, in the order of the set.
        digest: sha256 (hex) over names and sizes of the files, and over `train_index`; pixels are not read for it.
        image_shape: of every image: height, width, channels.
        augment: of config.data.
    """

    name: str
    train: Examples
    train_index: np.ndarray
    test: Examples
    class_names: tuple[str, ...]
    digest: str
    image_shape: tuple[int, int, int]
    augment: str


def stream_folder(data_config) -> Stream:
    """An image folder as of `load_folder`: config.data.path/train/<class>/* and test/<class>/* (or val/)."""
    root = Path(data_config.path).expanduser()
    paths, labels, class_names = list_folder(root)
    train, test = (Files(paths[split], labels[split]) for split in ('train', 'test'))
    files = [*train.paths, *test.paths]
    return _stream(data_config, root.resolve().name, train, test, class_names, files, root)


def stream_tfds(data_config) -> Stream:
    """A prepared TFDS set of any name; evaluated on its test split, or on validation where test has no labels."""
    builder = open_prepared(data_config.name, data_config.path)
    folder = Path(builder.data_path)
    class_names = tuple(builder.info.features['label'].names)
    test = Records(builder, 'test' if 'test' in builder.info.splits else 'validation')
    if len(test) and test.read(0)[1] < 0:
        test = Records(builder, 'validation')
    files = sorted(map(str, folder.iterdir()))
    return _stream(data_config, data_config.name, Records(builder, 'train'), test, class_names, files, folder)


# config.data.source -> function(config.data) -> Stream.
STREAMS: dict[str, Callable[..., Stream]] = {'stream_folder': stream_folder, 'stream_tfds': stream_tfds}


def open_stream(data_config) -> Stream:
    """Opens what config.data says, without decoding an image.

    Raises:
        InputError: the data are missing, or config.data.image_size is.
    """
    if data_config.source not in STREAMS:
        raise InputError(f'config.data.source={data_config.source!r}: must be one of {", ".join(STREAMS)}')
    if data_config.image_size < 1:
        raise InputError(
            f'config.data.image_size={data_config.image_size}: {data_config.source} needs a size, such as 224'
        )
    if data_config.source == 'stream_folder' and not data_config.path:
        raise InputError("config.data.path is empty: the source 'stream_folder' needs a folder")
    return STREAMS[data_config.source](data_config)


def _stream(data_config, name, train, test, class_names, files: list[str], root: Path) -> Stream:
    if not len(train) or not len(test):
        raise InputError(f'{root}: {len(train)} training and {len(test)} test images; both are needed')
    train_index = fixed_subset(len(train), data_config.train_examples)
    digest = hashlib.sha256(train_index.tobytes())
    for file in files:
        digest.update(f'{os.path.relpath(file, root)}\0{os.path.getsize(file)}\0'.encode())
    size = data_config.image_size
    image_shape = (size, size, num_channels(data_config))
    return Stream(name, train, train_index, test, class_names, digest.hexdigest(), image_shape, data_config.augment)


def stream_train_batches(
    stream: Stream,
    *,
    key: jax.Array,
    epoch: int,
    start_step: int,
    batch_size: int,
    process_index: int = 0,
    process_count: int = 1,
    device_count: int = 1,
) -> Iterator[Batch]:
    """This process's part (`host_share`) of the batches of an epoch, from step `start_step` of the epoch to its end.

    With config.data.augment='resized_crop_flip' each image is a random part of the original (8% to 100% of its area,
    sides 3:4 to 4:3), mirrored half of the time, by draws that depend on (key, epoch, example) alone; otherwise the
    centred square.

    Args:
        stream: opened by `open_stream`.
        key: typed PRNG key of the run; the order is `epoch_order(key, epoch, n)`.
        epoch: from 0.
        start_step: within the epoch, from 0.
        batch_size: over all processes; the last batch of an epoch may be smaller.
        process_index: which part to load.
        process_count: number of processes.
        device_count: devices of all processes.

    Yields:
        image uint8 [b, h, w, c] and label int32 [b].

    Raises:
        InputError: an image is damaged; names it.
    """
    order = stream.train_index[np.asarray(epoch_order(key, epoch, len(stream.train_index)))]
    entropy = [int(word) for word in np.asarray(jax.random.key_data(key)).ravel()]
    share = partial(host_share, device_count=device_count, process_index=process_index, process_count=process_count)

    def indices() -> Iterator[np.ndarray]:
        for step in range(start_step, steps_per_epoch(len(order), batch_size)):
            batch = order[step * batch_size : (step + 1) * batch_size]
            yield batch[share(len(batch))]

    def load(i: int) -> tuple[np.ndarray, int]:
        if stream.augment != 'resized_crop_flip':
            return _load(stream, stream.train, i, centre_square)
        rng = np.random.default_rng([*entropy, epoch, i])
        mirrored = rng.random() < 0.5
        image, label = _load(stream, stream.train, i, partial(random_part, rng))
        return image[:, ::-1] if mirrored else image, label

    for _, images, labels in _filled(stream, indices(), load):
        yield {'image': images, 'label': labels}


def stream_eval_batches(
    stream: Stream, *, batch_size: int, process_index: int = 0, process_count: int = 1
) -> Iterator[Batch]:
    """This process's part of the test set, every example in exactly one batch of one process.

    Every process gets the same number of batches of the same size: what fills them up is black, with label and index 0
    and batch_mask False. With 'resized_crop_flip', whose training images are enlarged parts, the centred square of
    7/8 of the shorter side; otherwise of all of it.

    Args:
        stream: opened by `open_stream`.
        batch_size: over all processes; rounded up to a multiple of process_count.
        process_index: which part to load.
        process_count: number of processes.

    Yields:
        image uint8 [b, h, w, c], label int32 [b], index int32 [b] (position in the test set), batch_mask bool [b].
    """
    count = len(stream.test)
    share = steps_per_epoch(batch_size, process_count)
    starts = range(process_index * share, count + process_index * share, share * process_count)
    fraction = 7 / 8 if stream.augment == 'resized_crop_flip' else 1.0
    load = lambda i: _load(stream, stream.test, i, partial(centre_square, fraction=fraction))
    indices = (np.arange(start, min(start + share, max(count, start))) for start in starts)
    for index, images, labels in _filled(stream, indices, load, size=share):
        yield {
            'image': images,
            'label': labels,
            'index': np.pad(index, (0, share - len(index))).astype(np.int32),
            'batch_mask': np.arange(share) < len(index),
        }


def random_part(rng: np.random.Generator, width: int, height: int) -> Box:
    """A box of 8% to 100% of the area with sides 3:4 to 4:3, as torchvision's RandomResizedCrop draws it.

    The centred square where ten draws do not fit into the image.
    """
    for _ in range(10):
        area = width * height * rng.uniform(0.08, 1.0)
        ratio = math.exp(rng.uniform(math.log(3 / 4), math.log(4 / 3)))
        w, h = max(1, round(math.sqrt(area * ratio))), max(1, round(math.sqrt(area / ratio)))
        if w <= width and h <= height:
            left, top = int(rng.integers(width - w + 1)), int(rng.integers(height - h + 1))
            return left, top, left + w, top + h
    return centre_square(width, height)


def _load(stream: Stream, examples: Examples, i: int, crop: Callable[[int, int], Box]) -> tuple[np.ndarray, int]:
    content, label = examples.read(i)
    if not 0 <= label < len(stream.class_names):
        raise InputError(
            f'{examples.record_name(i)}: label {label} is out of range; there are {len(stream.class_names)} classes'
        )
    size, _, channels = stream.image_shape
    return decode_image(content, examples.record_name(i), channels, size, crop), label


def _filled(
    stream: Stream, indices: Iterable[np.ndarray], load: Callable[[int], tuple[np.ndarray, int]], size: int = 0
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Yields each array of example numbers with their images and labels, decoded up to BATCHES_AHEAD batches ahead.

    Args:
        stream: gives the shape of an image.
        indices: which examples make up each batch.
        load: number of an example -> image, label; runs in threads.
        size: of every batch, where it is more than there are examples; the rest is zeros.
    """

    def fill(images: np.ndarray, labels: np.ndarray, position: int, i: int) -> None:
        images[position], labels[position] = load(i)

    waiting: deque[tuple[np.ndarray, np.ndarray, np.ndarray, list[Future]]] = deque()

    def finished() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        *batch, tasks = waiting[0]
        for task in tasks:
            task.result()
        waiting.popleft()
        return tuple(batch)

    try:
        for index in indices:
            images = np.zeros((size or len(index), *stream.image_shape), np.uint8)
            labels = np.zeros(len(images), np.int32)
            tasks = [_THREADS.submit(fill, images, labels, position, int(i)) for position, i in enumerate(index)]
            waiting.append((index, images, labels, tasks))
            if len(waiting) > BATCHES_AHEAD:
                yield finished()
        while waiting:
            yield finished()
    finally:  # where the consumer stops early or an image is damaged
        for *_, tasks in waiting:
            for task in tasks:
                task.cancel()
