"""The controls of the study: flat masks, ramps, shifts, and mirroring without crops."""

import functools

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from configs import default
from pnn_jax.data.augment import AUGMENTATIONS
from pnn_jax.models.registry import count_variables, create_model, pytorch_problems
from pnn_jax.models.variables import variable_shapes
from pnn_jax.nn.noise import NOISE_DISTRIBUTIONS, flat, ramp
from pnn_jax.nn.perturbation import PerturbationLayer
from pnn_jax.nn.random_filters import ShiftLayer, one_hot_filters

SHAPES = [(5, 3, 4, 2), (2, 8, 1, 3)]
seeds = st.integers(0, 2**31 - 1)


def key(seed: int = 0):
    return jax.random.key(seed)


@functools.cache
def compiled(function, shape):
    """A sampler as one program, which compiles faster than its operations one by one: seed -> array."""
    return jax.jit(lambda seed: function(key(seed), shape))


def masks_of(function, shape, seed: int = 0) -> np.ndarray:
    return np.asarray(compiled(function, shape)(np.uint32(seed)))


@pytest.mark.parametrize('name', ['uniform', 'flat', 'ramp'])
def test_masks_have_mean_zero_and_the_variance_of_uniform_ones(name):
    masks = masks_of(NOISE_DISTRIBUTIONS[name], (4, 4, 20, 500))
    assert masks.dtype == np.float32
    # Over 10,000 masks; of flat ones each is a single draw, so that the error of a mean is sqrt(1/3 / 10,000) = 0.006.
    np.testing.assert_allclose(masks.mean((2, 3)), 0, atol=0.025)
    np.testing.assert_allclose(masks.var(), 1 / 3, rtol=0.03)


@settings(max_examples=20, deadline=None)
@given(st.sampled_from(SHAPES), seeds)
def test_a_flat_mask_is_one_value_and_differs_from_the_others(shape, seed):
    masks = masks_of(flat, shape, seed)
    assert masks.shape == shape
    np.testing.assert_array_equal(masks, np.broadcast_to(masks[:1, :1], shape))
    assert len(np.unique(masks)) == shape[2] * shape[3]


@settings(max_examples=20, deadline=None)
@given(st.sampled_from(SHAPES), seeds)
def test_a_ramp_is_linear_and_its_slope_has_half_of_the_variance(shape, seed):
    masks = masks_of(ramp, shape, seed).astype(np.float64)
    for axis in (0, 1):
        np.testing.assert_allclose(np.diff(masks, 2, axis=axis), 0, atol=2e-6)
    # The coordinates are uncorrelated and of variance 1/3, whatever the direction: 1/2 * 1/3 within every mask.
    np.testing.assert_allclose(masks.var((0, 1)), 1 / 6, rtol=2e-6)


def test_directions_of_ramps_cover_the_circle():
    masks = masks_of(ramp, (2, 2, 4000))
    slopes = masks[1, 0] - masks[0, 0], masks[0, 1] - masks[0, 0]
    quadrants = np.bincount(2 * (slopes[0] > 0) + (slopes[1] > 0), minlength=4)
    assert quadrants.min() > 900


def test_a_layer_with_flat_masks_cannot_tell_positions_apart():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2, 4, 4, 3)).astype(np.float32)
    permuted = x.reshape(2, 16, 3)[:, rng.permutation(16)].reshape(x.shape)

    def sums(name: str):
        """Of the outputs over all positions, for x and for x with its pixels permuted."""
        layer = PerturbationLayer(6, noise_type=name)
        apply = jax.jit(lambda x: layer.init_with_output({'params': key(3), 'noise_masks': key(4)}, x)[0].sum((1, 2)))
        return np.asarray(apply(x)), np.asarray(apply(permuted))

    np.testing.assert_allclose(*sums('flat'), rtol=1e-5, atol=5e-6)
    assert np.abs(np.subtract(*sums('uniform'))).max() > 0.1


@settings(max_examples=20, deadline=None)
@given(st.sampled_from([(3, 3, 14, 1), (3, 3, 1, 3), (3, 3, 5, 4)]), seeds)
def test_shifts_are_divided_equally(shape, seed):
    filters = masks_of(one_hot_filters, shape, seed)
    assert set(np.unique(filters)) == {0, 1} and (filters.sum((0, 1)) == 1).all()
    counts = filters.sum((2, 3))
    assert counts.max() - counts.min() <= 1


def test_a_shift_layer_moves_every_channel_by_its_offset():
    x = np.random.default_rng(0).random((2, 5, 6, 4), np.float32)  # not negative, so that relu leaves it as it is
    filters = masks_of(one_hot_filters, (3, 3, 4, 1), 3)
    variables = {'params': {'kernel': np.eye(4, dtype=np.float32)}, 'noise_masks': {'masks': filters}}
    y = np.asarray(jax.jit(ShiftLayer(4, use_bias=False).apply)(variables, x))
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    moved = 0
    for channel in range(4):
        ((row, column),) = np.argwhere(filters[:, :, channel, 0])
        moved += (row, column) != (1, 1)
        np.testing.assert_allclose(y[..., channel], padded[:, row : row + 5, column : column + 6, channel], rtol=1e-6)
    assert moved >= 3


@pytest.mark.parametrize('changes', [{'noise_type': 'flat'}, {'noise_type': 'ramp'}, {'layer': 'shift'}])
def test_controls_have_the_weights_of_one_mask_and_no_pytorch_counterpart(changes):
    def weights(**fields):
        model = default.get_config().model
        model.update(num_filters=4, stem_layer='conv', **fields)
        network = create_model(model, 10)
        shapes = variable_shapes(network, (32, 32, 1))
        return count_variables(shapes)['trained'], pytorch_problems(model)

    count, problems = weights(**changes)
    assert (count, []) == weights()
    ((name, value),) = changes.items()
    (line,) = problems
    assert line.startswith(f'config.model.{name}={value!r} has no PyTorch counterpart; allowed: ')


def test_flip_mirrors_half_of_the_images_and_changes_nothing_else():
    images = np.random.default_rng(0).integers(0, 256, (400, 3, 4, 1), dtype=np.uint8)
    flipped = np.asarray(AUGMENTATIONS['flip'](key(), images))
    mirrored = (flipped == images[:, :, ::-1]).all((1, 2, 3))
    np.testing.assert_array_equal(flipped[~mirrored], images[~mirrored])
    assert 150 < mirrored.sum() < 250
