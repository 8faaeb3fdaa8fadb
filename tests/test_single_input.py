"""The least-squares imitation of a convolution, and receptive fields, against known answers."""

import flax.linen as nn
import jax
import numpy as np
import pytest

from experiments.command import exit_code
from experiments.receptive_field import influence
from experiments.receptive_field.__main__ import main as receptive_field_main
from experiments.single_input import convolutions, layer
from experiments.single_input.__main__ import main as single_input_main
from experiments.single_input.__main__ import scaled
from pnn_jax.nn.conv import Conv
from pnn_jax.nn.pool import pool

RNG = np.random.default_rng(0)
IMAGES = RNG.random((8, 6, 6, 2)).astype(np.float32)
MASKS = RNG.uniform(-1, 1, (6, 6, 2, 20)).astype(np.float32)  # 41 weights for 36 pixels


def test_convolution_against_a_loop():
    kernel = RNG.normal(size=(3, 3, 2, 3)).astype(np.float32)
    padded = np.pad(IMAGES, ((0, 0), (1, 1), (1, 1), (0, 0)), mode='edge')
    expected = sum(padded[:, i : i + 6, j : j + 6] @ kernel[i, j] for i in range(3) for j in range(3))
    np.testing.assert_allclose(convolutions.convolve(IMAGES, kernel), expected, atol=1e-5)


def test_one_image_is_matched_exactly_and_many_are_not():
    targets = convolutions.convolve(IMAGES, convolutions.random_kernel(2, 3))
    perturbation = layer.Layer(MASKS, 0.5)
    residuals = []
    for count in (1, 8):
        weights = layer.solve(IMAGES[:count], targets[:count], perturbation)
        residuals.append(layer.relative_residual(IMAGES[:count], targets[:count], perturbation, weights))
    assert residuals[0] < 1e-9 and residuals[1] > 0.2


def test_solution_in_parts_is_the_solution_of_all_equations():
    targets = convolutions.convolve(IMAGES, convolutions.random_kernel(2, 3))
    perturbation = layer.Layer(MASKS, 0.5)
    weights = layer.solve(IMAGES, targets, perturbation, images_at_once=3)
    expected = np.linalg.lstsq(layer.features(IMAGES, perturbation), targets.reshape(-1, 3), rcond=None)[0]
    np.testing.assert_allclose(weights, expected, rtol=1e-6, atol=1e-8)


def test_layer_finds_the_convolution_that_it_can_represent():
    pointwise = RNG.normal(size=(2, 3))
    perturbation = layer.Layer(None, 0.0)
    weights = layer.solve(IMAGES, IMAGES @ pointwise, perturbation)
    np.testing.assert_allclose(weights, np.concatenate([pointwise, np.zeros((1, 3))]), atol=1e-6)


def test_gradient_descent_on_masks_improves_on_fixed_ones():
    targets = convolutions.convolve(IMAGES[:4], convolutions.random_kernel(2, 3))
    perturbation = layer.Layer(MASKS, 0.5)
    weights = layer.solve(IMAGES[:4], targets, perturbation, cutoff=1e-2)
    before = layer.relative_residual(IMAGES[:4], targets, perturbation, weights)
    trained, weights = layer.descend(IMAGES[:4], targets, perturbation, weights, steps=300)
    assert layer.relative_residual(IMAGES[:4], targets, trained, weights) < 0.9 * before


def test_held_out_maps_are_scaled_as_the_fitted_ones():
    fitted, held_out = scaled(IMAGES[:4] * [1, 10], 3 * IMAGES[4:])
    np.testing.assert_allclose(fitted.std((0, 1, 2)), 1, rtol=1e-6)
    np.testing.assert_allclose(held_out, 3 * IMAGES[4:] / (IMAGES[:4] * [1, 10]).std((0, 1, 2)), rtol=1e-6)


@pytest.mark.parametrize(
    'flag',
    [
        '--counts=1,x',
        '--counts=2000',
        '--outputs=0',
        '--num_masks=-1',
        '--data=/none.npz',
        '--counts=1,1',
        '--num_filters=4',
    ],
)
def test_bad_flags_of_single_input(flag, tmp_path, capsys):
    assert exit_code(single_input_main, [flag, f'--output={tmp_path}']) == 2
    message = capsys.readouterr().err
    assert message.startswith('error: ') and message.count('\n') == 1


def test_receptive_field_counts_influence():
    field = np.zeros((4, 4))
    field[0, 0], field[1, 1], field[2, 2] = 0.9, 0.06, 0.04
    assert influence.describe(field) == {'pixels': 3, 'pixels_95': 2}


class ConvolutionAndPooling(nn.Module):
    """A 3x3 convolution, then 2x2 pooling: a unit sees 4x4 pixels. Stages and blocks as in a residual network."""

    stage_sizes: tuple[int, ...] = (2, 3)

    @nn.compact
    def __call__(self, x, train):
        x = Conv(2, 3, name='stage2_block2')(x)
        return Conv(2, 1, name='stage2_block3')(pool(x, 'avg', 2, 2))


def test_receptive_field_of_a_convolution_and_a_pooling():
    images = RNG.random((2, 8, 8, 1)).astype(np.float32)
    model = ConvolutionAndPooling()
    field = influence.receptive_field(model, model.init(jax.random.key(0), images, False), images)
    expected = np.zeros((8, 8), bool)
    expected[3:7, 3:7] = True  # unit (2, 2) pools pixels 4 and 5, and the convolution reaches one further
    np.testing.assert_array_equal(field > 0, expected)
    assert field.sum() == pytest.approx(1)


def test_runs_of_one_name_are_refused(tmp_path, capsys):
    """They would overwrite each other in the table and in the plot."""
    flags = [f'--workdir={tmp_path}/a/run', f'--workdir={tmp_path}/b/run']
    assert exit_code(receptive_field_main, flags) == 2
    assert "two runs are named 'run'" in capsys.readouterr().err


def test_workdir_without_a_run_is_refused(tmp_path, capsys):
    assert exit_code(receptive_field_main, [f'--workdir={tmp_path}']) == 2
    message = capsys.readouterr().err
    assert 'no checkpoint to load' in message and message.count('\n') == 1
