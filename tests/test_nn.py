"""Layers in networks of one's own, against the same formulas written out."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pnn_jax import ops
from pnn_jax.errors import InputError
from pnn_jax.models.noise_resnet import NoiseLayer
from pnn_jax.nn.norm import TorchBatchNorm
from pnn_jax.nn.perturbation import NormalizedPerturbationLayer, PerturbationLayer, PerturbationUnit
from pnn_jax.nn.pool import pool
from pnn_jax.nn.random_filters import RandomFilterLayer, filter_channels

KEYS = {'params': jax.random.key(0), 'noise_masks': jax.random.key(1)}


def images(*shape, seed=2):
    return jax.random.normal(jax.random.key(seed), shape)


class Network(nn.Module):
    """A network of one's own: its layer is one module among others."""

    layer: nn.Module

    @nn.compact
    def __call__(self, x, train=False):
        return nn.Dense(3)(self.layer(x, train).mean((1, 2)))


def init(layer, x):
    """The layer's variables: parameters and masks in one dict, without the name of the layer."""
    variables = Network(layer).init(KEYS, x)
    return variables, variables['params']['layer'] | variables.get('noise_masks', {'layer': {}})['layer']


def dense_or_grouped(x, own, activation, level, num_masks):
    """The layer written out, from its variables `own`."""
    kernel = own['kernel'] if num_masks > 1 else own['kernel'][:, None]
    y = ops.perturb_combine_reference(x, own['masks'], kernel, noise_level=level, activation=activation)
    y = y.sum(3) if num_masks == 1 else y.reshape(*x.shape[:3], -1)
    return y + own['bias'].reshape(1, 1, 1, -1)


@settings(max_examples=8, deadline=None, derandomize=True)
@given(
    shape=st.tuples(*(st.integers(1, 4) for _ in range(4))),
    num_masks=st.integers(1, 3),
    multiple=st.integers(1, 3),
    share_masks=st.booleans(),
    noise_type=st.sampled_from(['uniform', 'normal']),
)
def test_the_layer_equals_the_formula_written_out(shape, num_masks, multiple, share_masks, noise_type):
    x = images(*shape)
    layer = PerturbationLayer(
        shape[-1] * multiple,
        num_masks,
        share_masks=share_masks,
        noise_type=noise_type,
        noise_level=0.7,
        activation='elu',
    )
    variables, own = init(layer, x)
    assert own['masks'].shape == (*shape[1:3], 1 if share_masks else shape[-1], num_masks)
    expected = dense_or_grouped(x, own, 'elu', 0.7, num_masks).mean((1, 2))
    dense = variables['params']['Dense_0']
    expected = expected @ dense['kernel'] + dense['bias'].reshape(1, -1)
    np.testing.assert_allclose(Network(layer).apply(variables, x), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('num_masks', [1, 3])
def test_any_elementwise_function_is_an_activation(num_masks):
    x = images(2, 3, 3, 2)
    layer = PerturbationLayer(4, num_masks, activation=nn.gelu)
    variables = layer.init(KEYS, x)
    own = variables['params'] | variables['noise_masks']
    perturbed = x[..., None] + 0.5 * own['masks'][None]
    kernel = own['kernel'] if num_masks > 1 else own['kernel'][:, None]
    y = np.einsum('bhwgm,gmk->bhwgk', nn.gelu(perturbed), kernel)
    y = y.sum(3) if num_masks == 1 else y.reshape(2, 3, 3, 4)
    np.testing.assert_allclose(layer.apply(variables, x), y + own['bias'].reshape(1, 1, 1, 4), rtol=1e-4, atol=1e-5)
    assert set(variables['params']) == {'kernel', 'bias'}


def test_a_function_and_the_name_of_the_same_activation_agree():
    x = images(2, 3, 3, 2)
    named = PerturbationLayer(4, 3, activation='relu')
    variables = named.init(KEYS, x)
    function = PerturbationLayer(4, 3, activation=jax.nn.relu)
    np.testing.assert_allclose(function.apply(variables, x), named.apply(variables, x), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize('num_masks', [1, 3])
def test_without_an_activation_masks_are_a_bias_of_the_position(num_masks):
    x = images(2, 3, 3, 2)
    layer = PerturbationLayer(4, num_masks, activation=None)
    variables = layer.init(KEYS, x)
    apply = lambda x: layer.apply(variables, x)
    zero = apply(jnp.zeros_like(x))
    np.testing.assert_allclose(apply(x) + apply(-x), 2 * zero, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(zero[0], zero[1])
    assert np.ptp(zero[0], axis=(0, 1)).min() > 0


@pytest.mark.parametrize('layer', [PerturbationLayer, RandomFilterLayer, NormalizedPerturbationLayer])
def test_masks_depend_on_their_own_key_alone(layer):
    x = images(1, 3, 3, 2)
    network = layer(4, 2)
    draw = lambda params, masks: network.init(
        {'params': jax.random.key(params), 'noise_masks': jax.random.key(masks)}, x
    )
    first, other_weights, other_masks = draw(0, 0), draw(1, 0), draw(0, 1)
    masks, kernel = lambda v: v['noise_masks']['masks'], lambda v: v['params']['kernel']
    assert (masks(first) == masks(other_weights)).all()
    assert not (kernel(first) == kernel(other_weights)).any()
    assert (kernel(first) == kernel(other_masks)).all()
    assert not (masks(first) == masks(other_masks)).any()
    with pytest.raises(InputError, match="noise masks are drawn from a key of their own.*'noise_masks': mask_key"):
        network.init(jax.random.key(0), x)


def test_gradients_reach_trained_masks_and_never_fixed_ones():
    x = images(2, 3, 3, 2)
    fixed, trained = PerturbationLayer(4, 2), PerturbationLayer(4, 2, trainable_masks=True)
    fixed_variables, trained_variables = fixed.init(KEYS, x), trained.init(KEYS, x)
    assert set(fixed_variables['params']) == {'kernel', 'bias'}
    assert set(trained_variables) == {'params'}
    assert (fixed_variables['noise_masks']['masks'] == trained_variables['params']['masks']).all()
    assert (fixed_variables['params']['kernel'] == trained_variables['params']['kernel']).all()
    loss = lambda params, masks: (fixed.apply({'params': params, **masks}, x) ** 2).sum()
    gradients = jax.grad(loss)(fixed_variables['params'], {'noise_masks': fixed_variables['noise_masks']})
    assert set(gradients) == {'kernel', 'bias'}
    gradients = jax.grad(lambda v: (trained.apply(v, x) ** 2).sum())(trained_variables)['params']
    assert all((gradients[name] != 0).any() for name in ('kernel', 'bias', 'masks'))


def test_masks_are_redrawn_in_training_only():
    x = images(2, 3, 3, 2)
    layer = PerturbationLayer(4, 2, redraw_masks=True)
    variables = layer.init(KEYS, x)
    train = lambda seed: layer.apply(variables, x, train=True, rngs={'redraw': jax.random.key(seed)})
    plain = PerturbationLayer(4, 2)
    assert (layer.apply(variables, x) == plain.apply(variables, x)).all()
    assert (train(0) == train(0)).all()
    assert not (train(0) == train(1)).all()
    assert not (train(0) == plain.apply(variables, x)).all()
    assert (plain.apply(variables, x, train=True) == plain.apply(variables, x)).all()


def test_a_layer_with_random_slopes_draws_them_in_training():
    x = images(2, 3, 3, 2)
    layer = PerturbationLayer(4, 2, activation='rrelu')
    variables = layer.init(KEYS, x)
    train = lambda seed: layer.apply(variables, x, train=True, rngs={'activation': jax.random.key(seed)})
    assert (train(0) == train(0)).all()
    assert not (train(0) == train(1)).all()
    assert not (train(0) == layer.apply(variables, x)).all()


@pytest.mark.parametrize('dtype', [jnp.bfloat16, jnp.float32])
def test_the_result_has_the_dtype_of_the_images(dtype):
    x = jax.ShapeDtypeStruct((2, 3, 3, 2), dtype)
    level = np.float32(0.5)  # as a sweep over np.linspace has it
    for layer in (
        PerturbationLayer(4, 2, noise_level=level),
        NormalizedPerturbationLayer(4, 2, noise_level=level),
        PerturbationUnit(PerturbationLayer, 4, mix_channels=True),
        NoiseLayer(4, noise_level=level),
    ):
        result, variables = jax.eval_shape(lambda x, layer=layer: layer.init_with_output(KEYS, x, train=False), x)
        assert (result.shape, result.dtype) == ((2, 3, 3, 4), dtype)
        assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype('float32')}


@pytest.mark.parametrize(
    'layer, shape, message',
    [
        (PerturbationLayer(4), (3, 3, 2), r'a floating \[batch, height, width, channels\], got float32\[3, 3, 2\]'),
        (PerturbationLayer(4), (1, 2, 3, 3, 2), r'got float32\[1, 2, 3, 3, 2\]'),
        (PerturbationLayer(5, 2), (1, 3, 3, 2), 'num_masks=2, features=5 must be a multiple of the 2 input channels'),
        (PerturbationLayer(0), (1, 3, 3, 2), 'features=0: must be at least 1'),
        (PerturbationLayer(4, 0), (1, 3, 3, 2), r'PerturbationLayer\.num_masks=0: must be finite and at least 1'),
        (PerturbationLayer(4, noise_level=-1.0), (1, 3, 3, 2), r'noise_level=-1\.0: must be finite and at least 0'),
        (PerturbationLayer(4, noise_type='unifrom'), (1, 3, 3, 2), "noise_type='unifrom': .*did you mean 'uniform'"),
        (PerturbationLayer(4, activation='relo'), (1, 3, 3, 2), "activation='relo': must be one of relu, .* function"),
        (PerturbationLayer(4, activation=nn.PReLU()), (1, 3, 3, 2), 'activation=PReLU'),
        (PerturbationLayer(4, redraw_masks=True, trainable_masks=True), (1, 3, 3, 2), 'redraw_masks=True: .*trained'),
        (RandomFilterLayer(4, redraw_masks=True), (1, 3, 3, 2), r'RandomFilterLayer\.redraw_masks=True: only noise'),
    ],
)  # fmt: skip
def test_what_a_layer_cannot_do_is_refused_in_one_line(layer, shape, message):
    with pytest.raises(InputError, match=message) as error:
        jax.eval_shape(lambda x: layer.init(KEYS, x), jax.ShapeDtypeStruct(shape, 'float32'))
    assert str(error.value).count('\n') == 0


def test_integer_images_are_refused():
    with pytest.raises(InputError, match=r'got uint8\[1, 3, 3, 2\]'):
        PerturbationLayer(4).init(KEYS, jnp.zeros((1, 3, 3, 2), jnp.uint8))


def test_masks_of_another_image_size_are_refused():
    network = Network(PerturbationLayer(4, 2))
    variables = network.init(KEYS, images(1, 3, 3, 2))
    with pytest.raises(InputError, match=r'layer: masks of shape \(3, 3, 2, 2\) do not fit .* \(4, 5, 2, 2\)'):
        network.apply(variables, images(1, 4, 5, 2))


@pytest.mark.parametrize('activate', [True, False])
def test_the_unit_is_the_layer_with_batch_norm_activation_and_mixing(activate):
    x = images(2, 3, 3, 2)
    unit = PerturbationUnit(PerturbationLayer, 4, 'prelu', activate, mix_channels=True)
    variables = unit.init(KEYS, x)
    params = variables['params']
    assert set(params) == {'kernel', 'bias', 'norm', 'activation', 'mix', 'mix_norm'}
    assert set(variables['noise_masks']) == {'masks'}
    layer = PerturbationLayer(4, activation='prelu' if activate else None)
    own = {name: params[name] for name in ('kernel', 'bias', 'activation')}
    norm = lambda x: x / np.sqrt(1 + 1e-5)  # with the initial statistics
    prelu = lambda x: np.where(x >= 0, x, 0.25 * x)
    y = prelu(norm(layer.apply({'params': own, 'noise_masks': variables['noise_masks']}, x)))
    y = prelu(norm(y @ params['mix']['kernel'] + params['mix']['bias'].reshape(1, 1, 1, -1)))
    np.testing.assert_allclose(unit.apply(variables, x), y, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('num_masks, share_masks', [(1, False), (2, False), (2, True)])
def test_random_filters_are_a_depthwise_convolution(num_masks, share_masks):
    x = images(2, 5, 4, 2)
    layer = RandomFilterLayer(4, num_masks, share_masks=share_masks)
    variables = layer.init(KEYS, x)
    kernel, bias = variables['params']['kernel'], variables['params']['bias']
    filters = jnp.broadcast_to(variables['noise_masks']['masks'] / 3, (3, 3, 2, num_masks)).reshape(3, 3, 1, -1)
    responses = jax.lax.conv_general_dilated(
        x, filters, (1, 1), 'SAME', dimension_numbers=('NHWC', 'HWIO', 'NHWC'), feature_group_count=2
    )
    responses = np.maximum(responses, 0).reshape(2, 5, 4, 2, num_masks)
    y = np.einsum('bhwgm,gmk->bhwgk', responses, kernel.reshape(2, num_masks, -1))
    y = y.sum(3) if num_masks == 1 else y.reshape(2, 5, 4, 4)
    np.testing.assert_allclose(layer.apply(variables, x), y + bias.reshape(1, 1, 1, 4), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('filter_groups', [3, 1])
@pytest.mark.parametrize('num_masks', [1, 2])
def test_filters_and_their_gradients_are_those_of_a_grouped_convolution(filter_groups, num_masks):
    def convolve(x, filters):
        filters = jnp.broadcast_to(filters, (3, 3, 3, num_masks)).reshape(3, 3, 1, 3 * num_masks)
        y = jax.lax.conv_general_dilated(
            x, filters, (1, 1), 'SAME', dimension_numbers=('NHWC', 'HWIO', 'NHWC'), feature_group_count=3
        )
        return y.reshape(*x.shape, num_masks)

    with jax.enable_x64(True):
        x = images(2, 4, 5, 3).astype(jnp.float64)
        filters = images(3, 3, filter_groups, num_masks, seed=3).astype(jnp.float64)
        ours, our_gradients = jax.vjp(filter_channels, x, filters)
        theirs, their_gradients = jax.vjp(convolve, x, filters)
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-14)
        cotangent = images(*ours.shape, seed=4).astype(jnp.float64)
        for a, b in zip(our_gradients(cotangent), their_gradients(cotangent), strict=True):
            np.testing.assert_allclose(a, b, rtol=0, atol=2e-14)
    half = [a.astype(jnp.bfloat16) for a in (x, filters)]
    in_float32 = filter_channels(*(a.astype(jnp.float32) for a in half)).astype(jnp.bfloat16)
    np.testing.assert_array_equal(filter_channels(*half).astype(np.float32), in_float32.astype(np.float32))


@pytest.mark.parametrize('num_masks', [1, 3])
def test_the_normalized_layer_normalises_every_perturbed_map(num_masks):
    x = images(4, 3, 3, 2)
    layer = NormalizedPerturbationLayer(4, num_masks, activation='sigmoid')
    variables = layer.init(KEYS, x)
    params = variables['params']
    assert params['perturbed_norm']['scale'].shape == (2 * num_masks,)
    perturbed = np.asarray(x)[..., None] + 0.5 * np.asarray(variables['noise_masks']['masks'])[None]
    mean, var = perturbed.mean((0, 1, 2)), perturbed.var((0, 1, 2))
    responses = 1 / (1 + np.exp(-(perturbed - mean) / np.sqrt(var + 1e-5)))
    y = np.einsum('bhwgm,gmk->bhwgk', responses, params['kernel'].reshape(2, num_masks, -1))
    y = y.sum(3) if num_masks == 1 else y.reshape(4, 3, 3, 4)
    ours, _ = layer.apply(variables, x, train=True, mutable=['batch_stats'])
    np.testing.assert_allclose(ours, y + np.asarray(params['bias']), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('shape', [(1, 6), (1, 1, 1, 6)])
def test_batch_norm_refuses_one_value_per_channel_as_torch_does(shape):
    theirs = torch.nn.BatchNorm1d(6) if len(shape) == 2 else torch.nn.BatchNorm2d(6)
    with pytest.raises(ValueError, match='Expected more than 1 value per channel when training'):
        theirs(torch.ones(1, 6, *shape[1:-1]))
    norm = TorchBatchNorm(name='norm')
    variables = norm.init(KEYS, jnp.ones(shape), train=True)  # initialising looks at shapes alone
    with pytest.raises(InputError, match=rf'more than one value per channel in training.*{shape[-1]}\)'):
        norm.apply(variables, jnp.ones(shape), train=True, mutable=['batch_stats'])
    assert norm.apply(variables, jnp.ones(shape)).shape == shape
    two, _ = norm.apply(variables, images(2, *shape[1:]), train=True, mutable=['batch_stats'])
    np.testing.assert_allclose(two.sum(0), 0, atol=1e-4)


@pytest.mark.parametrize('size, length', [(2, 9), (3, 150), (12, 150)])
def test_max_pooling_and_its_gradient_are_those_of_torch(size, length):
    """Also with more pixels than a small integer counts, and with some that no window covers. Many values are equal."""
    x = np.random.default_rng(0).integers(0, 4, (2, length, length, 1)).astype(np.float32)
    y, gradient = jax.vjp(lambda x: pool(x, 'max', size, size), jnp.asarray(x))
    tensor = torch.tensor(x.transpose(0, 3, 1, 2), requires_grad=True)
    expected = torch.nn.functional.max_pool2d(tensor, size)
    np.testing.assert_array_equal(y, expected.detach().numpy().transpose(0, 2, 3, 1))
    weights = np.random.default_rng(1).normal(size=y.shape).astype(np.float32)
    expected.backward(torch.tensor(weights.transpose(0, 3, 1, 2)))
    np.testing.assert_array_equal(gradient(jnp.asarray(weights))[0], tensor.grad.numpy().transpose(0, 2, 3, 1))


def test_batch_statistics_keep_their_type_where_images_are_wider():
    with jax.enable_x64(True):
        x = jnp.ones((4, 3, 3, 2), jnp.float64)
        norm = TorchBatchNorm()
        variables = norm.init(KEYS, x.astype(jnp.float32))
        _, changed = norm.apply(variables, x, train=True, mutable=['batch_stats'])
    assert {leaf.dtype for leaf in jax.tree.leaves(changed)} == {np.dtype('float32')}
