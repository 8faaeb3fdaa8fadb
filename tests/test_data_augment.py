"""Augmentation against plain numpy, and batches as a function of the position alone."""

import image_sets
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from pnn_jax.data.augment import crop_flip, preprocess
from pnn_jax.data.batches import epoch_order, steps_per_epoch

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)


def numpy_crops(image: np.ndarray) -> dict[tuple[int, int, bool], np.ndarray]:
    """All that crop and flip may make of an image: (row offset, column offset, flipped) -> pixels."""
    h, w, _ = image.shape
    padded = np.zeros((h + 8, w + 8, image.shape[2]), np.uint8)
    padded[4:-4, 4:-4] = image
    crops = {(i, j): padded[i : i + h, j : j + w] for i in range(9) for j in range(9)}
    return {(i, j, flip): crop[:, ::-1] if flip else crop for (i, j), crop in crops.items() for flip in (False, True)}


@pytest.mark.parametrize('shape', [(8, 8, 3), (7, 10, 1)])
def test_crop_flip_is_one_of_the_162_crops_and_uses_all_of_them(shape):
    image = image_sets.random_images(0, *shape)
    candidates = {crop.tobytes(): choice for choice, crop in numpy_crops(image).items()}
    assert len(candidates) == 162
    count = 4000
    crops = np.asarray(jax.jit(crop_flip)(jax.random.key(1), np.broadcast_to(image, (count, *shape))))
    choices = np.array([candidates[crop.tobytes()] for crop in crops])
    expected = {0: (9, count / 9), 1: (9, count / 9), 2: (2, count / 2)}
    for column, (values, mean) in expected.items():
        counts = np.bincount(choices[:, column], minlength=values)
        assert len(counts) == values and np.all(np.abs(counts - mean) < 5 * np.sqrt(mean))
    assert abs(np.corrcoef(choices.T)[np.triu_indices(3, 1)]).max() < 5 / np.sqrt(count)


def test_images_of_a_batch_have_their_own_draws_and_keys_matter():
    images = np.broadcast_to(image_sets.random_images(0, 8, 8, 3), (16, 8, 8, 3))
    first, again, other = (np.asarray(jax.jit(crop_flip)(jax.random.key(seed), images)) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert len({image.tobytes() for image in first}) > 10
    assert np.mean(np.any(first != other, axis=(1, 2, 3))) > 0.9


def test_padding_is_black_before_it_is_normalised():
    images = np.full((64, 8, 8, 3), 255, np.uint8)
    result = preprocess(images, MEAN, STD, augment='crop_flip', key=jax.random.key(0))
    padded, white = -np.array(MEAN) / STD, (1 - np.array(MEAN)) / STD
    is_padded = np.isclose(result, padded, atol=1e-6).all(-1)
    assert 0.2 < is_padded.mean() < 0.8
    np.testing.assert_allclose(result, np.where(is_padded[..., None], padded, white), atol=1e-6)


def test_evaluation_normalises_as_torchvision_does():
    images = image_sets.random_images(0, 5, 8, 8, 3)
    mean, std = np.float32(MEAN), np.float32(STD)
    result = preprocess(images, MEAN, STD, augment='none')
    assert result.dtype == jnp.float32
    np.testing.assert_allclose(result, (images.astype(np.float32) / np.float32(255) - mean) / std, atol=2e-7)


def test_result_has_the_dtype_asked_for_and_is_rounded_once():
    images = image_sets.random_images(0, 2, 8, 8, 1)
    exact = preprocess(images, (0.1307,), (0.3081,), augment='none')
    half = preprocess(images, (0.1307,), (0.3081,), augment='none', dtype=jnp.bfloat16)
    assert half.dtype == jnp.bfloat16
    np.testing.assert_array_equal(half, exact.astype(jnp.bfloat16))


def test_result_does_not_depend_on_the_number_of_devices():
    images, key = image_sets.random_images(0, 8, 8, 8, 3), jax.random.key(0)
    run = jax.jit(lambda key, images: preprocess(images, MEAN, STD, augment='crop_flip', key=key))
    results = []
    for count in (1, 2, 4):
        mesh = jax.sharding.Mesh(np.array(jax.devices()[:count]), ('batch',))
        results.append(np.asarray(run(key, jax.device_put(images, NamedSharding(mesh, PartitionSpec('batch'))))))
    np.testing.assert_array_equal(results[0], results[1])
    np.testing.assert_array_equal(results[0], results[2])


def test_sharded_augmentation_moves_no_images_between_devices():
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:4]), ('batch',))
    images = jax.ShapeDtypeStruct((8, 8, 8, 3), jnp.uint8, sharding=NamedSharding(mesh, PartitionSpec('batch')))
    key = jax.eval_shape(lambda: jax.random.key(0))
    compiled = jax.jit(crop_flip).lower(key, images).compile().as_text()
    assert 'all-gather' not in compiled and 'all-reduce' not in compiled


def test_epoch_order_is_a_permutation_given_by_key_and_epoch():
    key = jax.random.key(3)
    orders = [np.asarray(epoch_order(key, epoch, 1000)) for epoch in range(3)]
    for order in orders:
        assert order.dtype == np.int32
        np.testing.assert_array_equal(np.sort(order), np.arange(1000))
    np.testing.assert_array_equal(orders[2], epoch_order(key, 2, 1000))
    different = [orders[1], orders[2], np.asarray(epoch_order(jax.random.key(4), 0, 1000)), np.arange(1000)]
    assert all(np.mean(orders[0] == other) < 0.02 for other in different)


def test_epoch_order_shares_no_key_with_a_step():
    key = jax.random.key(0)
    of_steps = [np.asarray(jax.random.permutation(jax.random.fold_in(key, step), 50)) for step in range(20)]
    of_splits = [np.asarray(jax.random.permutation(k, 50)) for k in jax.random.split(jax.random.fold_in(key, 0), 4)]
    for epoch in range(4):
        assert not any(np.array_equal(epoch_order(key, epoch, 50), order) for order in of_steps + of_splits)


@pytest.mark.parametrize(('n', 'batch_size', 'steps'), [(1, 64, 1), (64, 64, 1), (65, 64, 2), (50_000, 128, 391)])
def test_steps_per_epoch_counts_the_smaller_last_batch(n, batch_size, steps):
    assert steps_per_epoch(n, batch_size) == steps
