"""Evaluation on four devices against a count in numpy, and against the wrong ways of counting."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from pnn_jax.errors import InputError
from pnn_jax.evaluate import evaluate_exactly, make_evaluate, padded_batches, per_class_table
from pnn_jax.metrics import Metrics, example_metrics

SIZES = (1, 3, 4, 5, 359, 360, 1003)
BATCH = 64


def predict(weights, images):
    """Logits that are NaN for images of zeros."""
    return jnp.where((images == 0).all(-1, keepdims=True), jnp.nan, images @ weights)


@pytest.fixture(scope='module')
def evaluate():
    return make_evaluate(predict)


def examples(size, seed=0):
    rng = np.random.default_rng(seed)
    images = rng.normal(size=(size, 6)).astype(np.float32)
    return images, rng.integers(0, 10, size).astype(np.int32), rng.normal(size=(6, 10)).astype(np.float32)


@pytest.mark.parametrize('size', SIZES)
def test_counts_equal_numpy(evaluate, size):
    images, labels, weights = examples(size, seed=size)
    expected = (images @ weights).argmax(-1) == labels
    result = evaluate(weights, padded_batches(images, labels, BATCH), size)
    assert jax.local_device_count() == 4
    assert result.count == size
    np.testing.assert_array_equal(result.correct, expected)
    assert result.num_correct == expected.sum()
    logits = images @ weights
    order = np.argsort(-logits, axis=-1)[:, :5]
    np.testing.assert_array_equal(result.top5, (order == labels[:, None]).any(-1))
    losses = np.log(np.exp(logits).sum(-1)) - logits[np.arange(size), labels]
    np.testing.assert_allclose(result.loss, losses.mean(), rtol=1e-5)


@pytest.mark.parametrize('size', [5, 359, 1003])
def test_right_where_the_wrong_ways_fail(evaluate, size):
    images, _, weights = examples(size)
    best = (images @ weights).argmax(-1).astype(np.int32)
    labels = (best + 1) % 10
    labels[-3:] = best[-3:]
    result = evaluate(weights, padded_batches(images, labels, BATCH), size)
    assert result.num_correct == 3
    assert result.accuracy == 3 / size
    batches = [result.correct[i : i + 4] for i in range(0, size, 4)]
    assert np.mean([batch.mean() for batch in batches]) != result.accuracy
    assert sum(batch.sum() for batch in batches if len(batch) == 4) != 3


def test_padding_full_of_nan_is_never_looked_at(evaluate):
    images, labels, weights = examples(5)

    def poisoned():
        for batch in padded_batches(images, labels, BATCH):
            batch['image'] = np.where(batch['batch_mask'][..., None], batch['image'], np.nan)
            batch['label'] = np.where(batch['batch_mask'], batch['label'], 9).astype(np.int32)
            yield batch

    clean = evaluate(weights, padded_batches(images, labels, BATCH), 5)
    result = evaluate(weights, poisoned(), 5)
    np.testing.assert_array_equal(result.correct, clean.correct)
    assert result.loss == clean.loss
    assert result.nonfinite == 0


def test_nonfinite_logits_count_as_wrong_and_are_reported(evaluate):
    images, labels, weights = examples(7)
    images[2] = 0  # predict() gives NaN for it
    labels[:] = (images @ weights).argmax(-1)
    result = evaluate(weights, padded_batches(images, labels, BATCH), 7)
    assert (result.num_correct, result.count, result.nonfinite) == (6, 7, 1)
    assert not result.correct[2]
    logits = np.delete(images, 2, 0) @ weights
    losses = np.log(np.exp(logits).sum(-1)) - logits.max(-1)
    np.testing.assert_allclose(result.loss, losses.mean(), rtol=1e-5)  # over the others
    total = example_metrics(predict(weights, images), labels, np.ones(7, bool)).sum().compute()
    np.testing.assert_allclose(total['loss'], losses.mean(), rtol=1e-5)


def test_weights_and_meshes_of_the_caller(evaluate):
    """Weights that are shared out over the devices, and a mesh that the caller has set."""
    images, labels, weights = examples(101)
    batches = lambda: padded_batches(images, labels, BATCH)
    expected = evaluate(weights, batches(), 101)
    for size in (1, 2):
        mesh = jax.make_mesh((size,), ('data',), devices=jax.devices()[:size])
        shared_out = jax.device_put(weights, NamedSharding(mesh, PartitionSpec('data')))
        np.testing.assert_array_equal(evaluate(shared_out, batches(), 101).correct, expected.correct)
        with jax.set_mesh(mesh):
            np.testing.assert_array_equal(evaluate(weights, batches(), 101).correct, expected.correct)
            np.testing.assert_array_equal(evaluate(shared_out, batches(), 101).correct, expected.correct)


def test_more_examples_than_there_are_is_an_error(evaluate):
    images, labels, weights = examples(7)
    with pytest.raises(AssertionError, match='an example has index 6, where there are 5'):
        evaluate(weights, padded_batches(images, labels, BATCH), 5)


def test_a_lost_example_is_an_error(evaluate):
    images, labels, weights = examples(6)
    with pytest.raises(AssertionError, match='counted 6 examples, 6 of them distinct, where there are 7'):
        evaluate(weights, padded_batches(images, labels, BATCH), 7)


def test_an_example_that_is_counted_for_another_is_an_error(evaluate):
    images, _, weights = examples(2 * BATCH)
    labels = (images @ weights).argmin(-1).astype(np.int32)  # none is correct, so that the sums agree
    first, _ = padded_batches(images, labels, BATCH)
    with pytest.raises(AssertionError, match=f'counted {2 * BATCH} examples, {BATCH} of them distinct'):
        evaluate(weights, [first, first], 2 * BATCH)


def test_ties_are_broken_as_argmax_does():
    logits = jnp.array([[1.0, 1.0, 0.0], [1.0, 1.0, 0.0], [0.0, 0.0, 0.0]])
    examples = example_metrics(logits, jnp.array([0, 1, 0]), jnp.array([True, True, False]))
    assert examples.correct.tolist() == [True, False, False]
    assert examples.sum().compute()['count'] == 2


def test_logits_are_compared_in_their_own_precision():
    with jax.enable_x64(True):
        logits = jnp.array([[1.0, 1.0 + 1e-12], [1e39, 0.0]])
        examples = example_metrics(logits, jnp.array([1, 0]), jnp.ones(2, bool))
        assert logits.dtype == jnp.float64
        assert examples.correct.tolist() == [True, True] and examples.finite.all()
        assert {examples.loss.dtype, examples.confidence.dtype} == {jnp.dtype(jnp.float32)}


def test_a_label_that_is_no_class_is_never_counted_as_correct():
    logits = jnp.array([[3.0, 1.0, 0.0], [3.0, 1.0, 0.0], [0.0, 0.0, 3.0]])
    examples = example_metrics(logits, jnp.array([3, -1, 2]), jnp.ones(3, bool))
    assert examples.correct.tolist() == [False, False, True]
    assert examples.top5.tolist() == [False, False, True]
    assert examples.sum().compute()['count'] == 3
    for wrong in (3, -1):
        with pytest.raises(InputError, match='label'):
            evaluate_exactly(lambda _, x: x, {}, np.zeros((4, 3), np.float32), np.array([0, 1, 2, wrong]))


def test_metrics_merge_by_addition():
    logits = jax.random.normal(jax.random.key(0), (10, 4))
    labels = jnp.arange(10) % 4
    mask = jnp.ones(10, bool)
    whole = example_metrics(logits, labels, mask).sum().compute()
    parts = Metrics.empty()
    for start, stop in ((0, 3), (3, 4), (4, 10)):
        parts = parts.merge(example_metrics(logits[start:stop], labels[start:stop], mask[start:stop]).sum())
    merged = parts.compute()
    assert (merged['correct'], merged['count']) == (whole['correct'], whole['count'])
    np.testing.assert_allclose(merged['loss'], whole['loss'], rtol=1e-6)


def test_per_class_table():
    table = per_class_table(np.array([True, False, True]), np.array([0, 0, 2]), ('a', 'b', 'c'))
    assert table == {
        'a': {'correct': 1, 'count': 2},
        'b': {'correct': 0, 'count': 0},
        'c': {'correct': 1, 'count': 1},
    }


@pytest.mark.parametrize(
    'predict, found',
    [
        (lambda weights, x: (jnp.zeros((len(x), 3)), {}), 'tuple'),  # as model.apply returns with `mutable`
        (lambda weights, x: jnp.zeros(len(x)), r'an array of shape \[1\]'),
        (lambda weights, x: jnp.zeros((len(x), 1, 3)), r'an array of shape \[1, 1, 3\]'),
        (lambda weights, x: jnp.zeros((1 + len(x), 3)), r'an array of shape \[2, 3\]'),
    ],
)
def test_a_prediction_that_is_no_logits_is_refused(predict, found):
    """Logits without a class axis would broadcast, and every image of class 0 would count as correct."""
    with pytest.raises(InputError, match=rf'^predict must return one array of logits \[1, classes\], .* {found}$'):
        evaluate_exactly(predict, {}, np.zeros((5, 2, 2, 1)), np.zeros(5, int))
    batches = padded_batches(np.zeros((5, 2, 2, 1)), np.zeros(5, np.int32), 5)
    with pytest.raises(InputError, match='predict must return one array of logits'):
        make_evaluate(predict)({}, batches, 5)
