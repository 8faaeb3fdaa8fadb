"""Exact evaluation: integer counts and one outcome per example, in dataset order.

Every host runs the same number of batches of the same size; padding in the last ones is marked in `batch_mask` and
ignored. Every example must be counted exactly once, or evaluation fails.
"""

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from pnn_jax.errors import InputError
from pnn_jax.hosts import replicate
from pnn_jax.metrics import example_metrics
from pnn_jax.padding import HostBatch, padded_batches


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """Exact results over a whole set of n examples. `num_correct` and `count` are integers, `accuracy` is a fraction.

    Attributes:
        correct: bool [n], outcomes in dataset order.
        top5: bool [n], whether the label is among the five largest logits.
        labels: int32 [n].
        loss: mean cross entropy in nats, over examples with finite logits.
        nonfinite: examples with a logit that is not finite; they count as wrong.
        predicted: int32 [n], the predicted class; -1 where a logit is not finite.
        confidence: float32 [n], the softmax probability of the predicted class.
    """

    correct: np.ndarray
    top5: np.ndarray
    labels: np.ndarray
    loss: float
    nonfinite: int
    predicted: np.ndarray
    confidence: np.ndarray

    @property
    def count(self) -> int:
        return len(self.correct)

    @property
    def num_correct(self) -> int:
        return int(self.correct.sum())

    @property
    def accuracy(self) -> float:
        """The exact accuracy, a fraction."""
        return self.num_correct / self.count


def per_class_table(correct: np.ndarray, labels: np.ndarray, class_names: tuple[str, ...]) -> dict[str, dict[str, int]]:
    """class name -> {correct, count}, from outcomes bool [n] and labels int [n].

    Raises:
        ValueError: two classes have the same name; the counts of one would hide those of the other.
    """
    if len(set(class_names)) < len(class_names):
        raise ValueError(f'class names must differ: {class_names}')
    counts = np.bincount(labels, minlength=len(class_names))
    hits = np.bincount(labels[correct], minlength=len(class_names))
    return {
        name: {'correct': int(hit), 'count': int(count)}
        for name, hit, count in zip(class_names, hits, counts, strict=True)
    }


def _fetched(results: Iterable) -> Iterator:
    """Fetches results from the devices, always one behind: they compute the next batch meanwhile, and none pile up."""
    waiting = None
    for result in results:
        if waiting is not None:
            yield jax.device_get(waiting)
        waiting = result
    if waiting is not None:
        yield jax.device_get(waiting)


def checked_logits(logits: Any, num_images: int) -> Any:
    """Returns `logits`, if it is one array [num_images, classes].

    An array of another shape could broadcast against the labels and give wrong counts.

    Raises:
        InputError: says what `predict` returned instead.
    """
    shape = getattr(logits, 'shape', None)
    if shape is None or len(shape) != 2 or shape[0] != num_images:
        found = type(logits).__name__ if shape is None else f'an array of shape {list(shape)}'
        raise InputError(f'predict must return one array of logits [{num_images}, classes], but returned {found}')
    return logits


def make_eval_step(predict: Callable, devices: Sequence[jax.Device] | None = None) -> Callable:
    """Makes the program of one batch: eval_step(variables, batch) -> (totals, outcomes of all devices).

    Args:
        predict: (variables, images [b, ...]) -> logits [b, classes], in evaluation mode.
        devices: to run on; all of them if None.
    """

    def eval_step(variables, batch):
        logits = checked_logits(predict(variables, batch['image']), len(batch['image']))
        examples = example_metrics(logits, batch['label'], batch['batch_mask'])
        totals = jax.lax.psum(examples.sum(), 'batch')
        outcomes = {
            'index': batch['index'],
            'batch_mask': batch['batch_mask'],
            'label': batch['label'],
            'correct': examples.correct,
            'top5': examples.top5,
            'predicted': examples.predicted,
            'confidence': examples.confidence,
        }
        return totals, jax.lax.all_gather(outcomes, 'batch', tiled=True)

    # The only pmap of the project: each device counts exactly the examples that its host gave it; integers are summed.
    return jax.pmap(eval_step, axis_name='batch', in_axes=(None, 0), out_axes=None, devices=devices)


def on_all_devices(variables: Any) -> Any:
    """Variables with a copy on every device: those of a model whose weights are shared out, or are in NumPy."""
    devices = jax.devices()
    sharding = NamedSharding(Mesh(np.array(devices), ('batch',)), PartitionSpec())

    def put(leaf):
        there = isinstance(leaf, jax.Array) and leaf.is_fully_replicated and leaf.sharding.device_set == set(devices)
        return leaf if there else replicate(leaf, sharding)

    return jax.tree.map(put, variables)


def in_no_mesh(function: Callable, *arguments: Any) -> Any:
    """Calls a function that is compiled for all devices, also where the caller has set a mesh of its own."""
    with jax.set_mesh(Mesh(np.empty((), object), ())):
        return function(*arguments)


def make_evaluate(predict: Callable) -> Callable[..., Evaluation]:
    """Makes evaluate(variables, batches, num_examples) -> Evaluation, which is compiled once per shape of batches.

    `batches` are those that `pnn_jax.padding.padded_batches(images, labels, batch_size)` yields, and `num_examples` is
    how many examples they hold. `evaluate` raises AssertionError unless it counted every example exactly once.

    Args:
        predict: (variables, images [b, ...]) -> logits [b, classes], in evaluation mode. It is called with the part of
            a batch that is on one device.
    """
    eval_step = make_eval_step(predict)

    def evaluate(variables, batches: Iterable[HostBatch], num_examples: int) -> Evaluation:
        outcomes_of = {
            'correct': np.zeros(num_examples, bool),
            'top5': np.zeros(num_examples, bool),
            'label': np.zeros(num_examples, np.int32),
            'predicted': np.zeros(num_examples, np.int32),
            'confidence': np.zeros(num_examples, np.float32),
        }
        seen = np.zeros(num_examples, bool)
        num_correct = count = nonfinite = 0
        loss = 0.0
        variables = on_all_devices(variables)
        for totals, outcomes in _fetched(in_no_mesh(eval_step, variables, batch) for batch in batches):
            num_correct += int(totals.correct)
            count += int(totals.count)
            nonfinite += int(totals.nonfinite)
            loss += float(totals.loss)
            valid = outcomes['batch_mask']
            index = outcomes['index'][valid]
            if index.size and not 0 <= index.min() <= index.max() < num_examples:
                raise AssertionError(f'an example has index {index.max()}, where there are {num_examples}')
            seen[index] = True
            for name, array in outcomes_of.items():
                array[index] = outcomes[name][valid]
        labels = outcomes_of.pop('label')
        listed = int(outcomes_of['correct'].sum())
        if not (count == num_examples and seen.all() and num_correct == listed):  # together: each exactly once
            raise AssertionError(
                f'counted {count} examples, {seen.sum()} of them distinct, where there are {num_examples}; counted '
                f'{num_correct} correct and listed {listed}'
            )
        finite = num_examples - nonfinite
        mean_loss = loss / finite if finite else float('nan')
        return Evaluation(labels=labels, loss=mean_loss, nonfinite=nonfinite, **outcomes_of)

    return evaluate


def evaluate_exactly(
    predict: Callable, variables: Any, images: np.ndarray, labels: np.ndarray, *, batch_size: int = 500
) -> Evaluation:
    """Counts exactly how many of n examples a network classifies correctly, whatever n and the number of devices.

    To evaluate several times, keep what `make_evaluate` returns: every call of this function compiles.

    >>> import jax.numpy as jnp
    >>> images, labels = np.zeros((7, 2, 2, 1), np.float32), np.array([0, 1, 0, 2, 0, 0, 1])
    >>> predict = lambda weights, x: jnp.zeros((len(x), 3)).at[:, 0].set(weights)  # always class 0
    >>> result = evaluate_exactly(predict, jnp.float32(1.0), images, labels, batch_size=4)
    >>> result.num_correct, result.count
    (4, 7)

    Args:
        predict: (variables, images [b, ...]) -> logits [b, classes], in evaluation mode.
        variables: any tree of arrays, passed on to `predict`.
        images: [n, ...], of any type and shape that `predict` takes.
        labels: int [n], from 0 to classes - 1.
        batch_size: over all devices; it has no influence on the counts.

    Returns:
        Counts and outcomes in the order of `images`; its `accuracy` is a fraction.

    Raises:
        InputError: there are no examples, not one label for each image, a label is out of range, the batch size is
            below 1, or `predict` returns something else than logits.
    """
    images, labels = np.asarray(images), np.asarray(labels)
    if not len(images) or labels.shape != images.shape[:1] or labels.dtype.kind not in 'iu':
        raise InputError(
            f'labels: {labels.dtype} {list(labels.shape)} for images {list(images.shape)}; one integer for each of at '
            'least one image is needed'
        )
    if batch_size < 1:
        raise InputError(f'batch_size={batch_size}: must be at least 1')
    classes = checked_logits(jax.eval_shape(predict, variables, images[:1]), 1).shape[1]
    wrong = np.flatnonzero((labels < 0) | (labels >= classes))
    if wrong.size:  # such a label has no logit, so no prediction could be right or wrong
        raise InputError(f'labels: {labels[wrong[0]]} of image {wrong[0]} is not within 0..{classes - 1}')
    batches = padded_batches(images, labels.astype(np.int32), batch_size)
    return make_evaluate(predict)(variables, batches, len(images))
