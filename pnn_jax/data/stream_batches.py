"""Batches of sets that stay on disk: images are read, decoded and cropped in threads, a few batches ahead.

A batch depends on the run's key, the epoch and the step, and on nothing else, as for sets in memory. So resuming at any
step needs no saved iterator, and the same images come whatever the number of hosts.
"""

import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial

import jax
import numpy as np

from pnn_jax.data.batches import epoch_order, host_share, steps_per_epoch
from pnn_jax.data.images import NUM_THREADS, Box, Crop, centre_square, decode_image, padded
from pnn_jax.data.streams import Examples, Stream
from pnn_jax.errors import InputError

BATCHES_AHEAD = 2  # decoded while the accelerator works; more would only take memory

# With 'resized_crop_flip', training enlarges parts of images. Evaluation on the whole image would show smaller objects.
EVAL_FRACTION = 7 / 8

# One pool for the life of the process: with a new pool for every epoch, memory would grow, because each new thread
# gets an allocator arena of its own.
_THREADS = ThreadPoolExecutor(NUM_THREADS, thread_name_prefix='decode')

Batch = dict[str, np.ndarray]


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
    sides 3:4 to 4:3), mirrored half of the time; the draws depend on (key, epoch, example) alone. Otherwise it is
    what config.data.resize says.

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
            return _load(stream, stream.train, i, stream.crop)
        rng = np.random.default_rng([*entropy, epoch, i])
        mirrored = rng.random() < 0.5
        image, label = _load(stream, stream.train, i, partial(random_part, rng))
        return image[:, ::-1] if mirrored else image, label

    for _, images, labels in _filled(stream, indices(), load):
        yield {'image': images, 'label': labels}


def stream_eval_batches(
    stream: Stream, *, batch_size: int, split: str = 'test', process_index: int = 0, process_count: int = 1
) -> Iterator[Batch]:
    """This process's part of a split to evaluate on, every example in exactly one batch of one process.

    Every process gets the same number of batches of the same size. The examples that fill them up are black, with
    label 0, index 0 and batch_mask False. With 'resized_crop_flip' the image is the centre, EVAL_FRACTION of what
    config.data.resize gives otherwise.

    Args:
        stream: opened by `open_stream`.
        batch_size: over all processes; rounded up to a multiple of process_count.
        split: 'test' or 'validation'.
        process_index: which part to load.
        process_count: number of processes.

    Yields:
        image uint8 [b, h, w, c], label int32 [b], index int32 [b] (position in the split), batch_mask bool [b].
    """
    examples = stream.test if split == 'test' else stream.validation
    if examples is None:
        raise ValueError('the stream has no validation examples: config.data.validation_examples is 0')
    count = len(examples)
    share = math.ceil(batch_size / process_count)
    starts = range(process_index * share, count + process_index * share, share * process_count)
    fraction = EVAL_FRACTION if stream.augment == 'resized_crop_flip' else 1.0
    load = lambda i: _load(stream, examples, i, partial(stream.crop, fraction=fraction))
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


def _load(stream: Stream, examples: Examples, i: int, crop: Crop) -> tuple[np.ndarray, int]:
    content, label = examples.read(i)
    if not 0 <= label < len(stream.class_names):
        raise InputError(
            f'{examples.record_name(i)}: label {label} is out of range; there are {len(stream.class_names)} classes'
        )
    padded_size, _, channels = stream.image_shape
    image = decode_image(content, examples.record_name(i), channels, stream.image_size, crop)
    return padded(image, padded_size), label


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

    waiting: deque[tuple[tuple[np.ndarray, np.ndarray, np.ndarray], list[Future]]] = deque()

    def finished() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        batch, tasks = waiting[0]
        for task in tasks:
            task.result()
        waiting.popleft()
        return batch

    try:
        for index in indices:
            images = np.zeros((size or len(index), *stream.image_shape), np.uint8)
            labels = np.zeros(len(images), np.int32)
            tasks = [_THREADS.submit(fill, images, labels, position, int(i)) for position, i in enumerate(index)]
            waiting.append(((index, images, labels), tasks))
            if len(waiting) > BATCHES_AHEAD:
                yield finished()
        while waiting:
            yield finished()
    finally:  # also where the consumer stops early or an image is damaged
        for *_, tasks in waiting:
            for task in tasks:
                task.cancel()
