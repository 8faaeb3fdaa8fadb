"""The PyTorch twin against JAX over random options and shapes; what is random in training, in expectation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from configs import default
from experiments.verify import cases, networks, torch_twin
from pnn_jax.errors import InputError
from pnn_jax.models import create_model
from pnn_jax.nn.activations import RRELU_BOUNDS, Activation
from pnn_jax.ops import perturb_combine

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures('quick_compilation')]

torch.set_num_threads(1)


def differences(changes, shape, num_steps=0):
    config = default.get_config()
    config.model.update(dropout_rate=0.0, **changes)
    torch.manual_seed(0)
    network = torch_twin.build_twin(config.model, shape.num_classes, shape.image_size, shape.channels)
    networks.randomise_constants(network, 0)
    return networks.verify_network('twin', network, config, shape, num_steps=num_steps)


OPTIONS = st.fixed_dictionaries(
    {
        'layer': st.sampled_from(['perturbation', 'conv']),
        'stem_layer': st.sampled_from(['perturbation', 'conv']),
        'kernel_size': st.sampled_from([1, 3]),
        'stem_kernel_size': st.sampled_from([1, 3, 5]),
        'num_masks': st.sampled_from([1, 2, 3]),
        'share_masks': st.booleans(),
        'trainable_masks': st.booleans(),
        'mix_channels': st.booleans(),
        'noise_level': st.sampled_from([0.1, 0.5]),
        'noise_type': st.sampled_from(['uniform', 'normal']),
        'stem_noise_scale': st.sampled_from([1.0, 3.0]),
        'activate_after_noise': st.booleans(),
        'activation': st.sampled_from(['relu', 'lrelu', 'prelu', 'rrelu', 'elu', 'selu', 'tanh', 'sigmoid']),
        'pooling': st.sampled_from(['max', 'avg']),
        'num_filters': st.sampled_from([3, 6]),
    }
)
SHAPES = st.builds(
    cases.Shape,
    num_classes=st.just(4),
    image_size=st.sampled_from([9, 11, 12]),
    channels=st.sampled_from([1, 3]),
    batch_size=st.sampled_from([2, 3]),
)


@given(options=OPTIONS, shape=SHAPES)
@settings(max_examples=5, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
def test_any_small_network_equals_its_twin(options, shape):
    rows = differences({'name': 'lenet', **options}, shape)
    assert all(row.passed for row in rows), (options, rows)
    assert {row.quantity for row in rows} >= {'eval_logits'}


@pytest.mark.parametrize(
    'changes, size',
    [
        ({'name': 'perturb_resnet18', 'num_filters': 3, 'num_masks': 2, 'trainable_masks': True}, 17),
        ({'name': 'noise_resnet50', 'num_filters': 2, 'noise_level': 0.3}, 16),
    ],
    ids=['perturbation, odd maps', 'bottleneck'],
)
def test_deep_networks_equal_their_twins(changes, size):
    rows = differences(changes, cases.Shape(3, size, 3, 2))
    assert all(row.passed for row in rows), rows


def test_the_twin_refuses_what_torch_does_not_have():
    for changes in (
        {'name': 'vgg'},
        {'redraw_masks': True},
        {'layer': 'random_filters'},
        {'num_filters': 4, 'num_masks': 2},
    ):
        model = default.get_config().model
        model.update(**changes)
        with pytest.raises(InputError):
            torch_twin.build_twin(model, 10, 32, 3)


def test_random_slopes_have_torchs_mean_and_bounds():
    """rrelu in training: every negative value has its own slope from U(1/8, 1/3)."""
    x = -jnp.ones((4, 16, 16, 8))
    drawn = -np.asarray(Activation('rrelu').apply({}, x, train=True, rngs={'activation': jax.random.key(0)})).ravel()
    theirs = -torch.nn.functional.rrelu(-torch.ones(drawn.size), *RRELU_BOUNDS, training=True).numpy()
    low, high = RRELU_BOUNDS
    assert low <= drawn.min() < low + 1e-3 and high - 1e-3 < drawn.max() <= high
    spread = (high - low) / np.sqrt(12 * drawn.size)
    assert abs(drawn.mean() - (low + high) / 2) < 4 * spread and abs(drawn.mean() - theirs.mean()) < 6 * spread
    assert len(np.unique(drawn)) > 0.99 * drawn.size


def test_random_slopes_after_the_noise_are_drawn_for_every_perturbed_value():
    x, masks = -2 * jnp.ones((2, 8, 8, 3)), jnp.zeros((8, 8, 3, 16))
    weights = jnp.ones((3, 16, 1))
    options = {'noise_level': 0.5, 'activation': 'rrelu', 'slope': jnp.float32(0), 'key': jax.random.key(1)}
    sums = -np.asarray(perturb_combine(x, masks, weights, **options)).ravel() / 2  # of 16 slopes
    low, high = RRELU_BOUNDS
    variance = 16 * (high - low) ** 2 / 12
    assert abs(sums.mean() - 16 * (low + high) / 2) < 4 * np.sqrt(variance / sums.size)
    assert 0.6 < sums.var() / variance < 1.5  # sums of independent draws, not 16 times one


def test_dropout_keeps_the_expectation_and_drops_what_it_says():
    model = default.get_config().model
    model.update(name='lenet', num_filters=3, dropout_rate=0.25, layer='conv', stem_layer='conv', activation='tanh')
    network = create_model(model, 5)
    x = jax.random.normal(jax.random.key(1), (64, 8, 8, 1))
    variables = network.init({'params': jax.random.key(0)}, x[:1])

    @jax.jit
    def intermediates(key):
        watched = lambda module, _: module.name in ('activation', 'dropout1', 'dropout2')
        options = {'mutable': ['batch_stats', 'intermediates'], 'capture_intermediates': watched}
        return network.apply(variables, x, train=True, rngs={'dropout': key}, **options)[1]

    seen = intermediates(jax.random.key(2))
    (before,) = seen['intermediates']['activation']['__call__']
    (after,) = seen['intermediates']['dropout2']['__call__']
    kept = np.asarray(after != 0)
    assert abs(kept.mean() - 0.75) < 4 * np.sqrt(0.75 * 0.25 / kept.size)
    np.testing.assert_allclose(np.asarray(after)[kept], np.asarray(before)[kept] / 0.75, rtol=1e-6)
    (first,) = seen['intermediates']['dropout1']['__call__']
    assert abs((first != 0).mean() - 0.75) < 4 * np.sqrt(0.75 * 0.25 / first.size)  # tanh is 0 nowhere
