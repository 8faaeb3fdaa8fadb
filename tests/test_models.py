"""Networks from shapes alone: parameter counts at full width, and what is refused."""

import importlib
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import default
from pnn_jax.errors import InputError
from pnn_jax.models import MODELS, create_model, variables
from pnn_jax.models.registry import count_variables
from pnn_jax.models.resnet import ResNet
from pnn_jax.models.variables import draw_variables, init_variables, variable_shapes


def shapes(config, image_shape=(32, 32, 3), num_classes=10):
    return variable_shapes(create_model(config.model, num_classes), image_shape)


def logits_shape(model, variables, image_shape):
    """Of two images, from shapes alone."""
    images = jax.ShapeDtypeStruct((2, *image_shape), 'float32')
    return jax.eval_shape(lambda variables, images: model.apply(variables, images), variables, images).shape


# The audit's README widths; reference.md of the audit counts them from the PyTorch modules.
@pytest.mark.parametrize(
    'name, trained, masks, frozen',
    [
        ('baseline', 5_284_982, 0, 0),
        ('original', 5_640_074, 68_608, 0),
        ('original_stem3', 5_624_714, 1_097_728, 0),
        ('no_noise', 5_611_146, 0, 0),
        ('noise_everywhere', 5_608_202, 1_100_800, 0),
        ('noise_masks', 6_813_834, 70_254_592, 0),
        ('shared_masks', 1_220_234, 412_672, 0),
        ('trained_masks', 1_632_906, 412_672, 0),
        ('authors_answer', 5_624_714 - 3 * 3 * 3 * 128, 1_097_728, 3 * 3 * 3 * 128),
        ('authors_all_layers', 23_546_122, 6_127_616, 0),
    ],
)
def test_parameter_counts_at_full_width(name, trained, masks, frozen):
    config = importlib.import_module(f'configs.{name}').get_config()
    assert count_variables(shapes(config)) == {'trained': trained, 'masks': masks, 'frozen': frozen}


def test_every_network_is_reached_by_a_test():
    assert set(MODELS) == {
        'resnet18', 'perturb_resnet18', 'answer_resnet18', 'noise_resnet18', 'noise_resnet34', 'noise_resnet50',
        'noise_resnet101', 'noise_resnet152', 'lenet', 'cifarnet',
    }  # fmt: skip


# Widths of ResNets at 64 filters, from torchvision's counts: 1x1 kernels in place of 3x3, batch norms and biases added.
@pytest.mark.parametrize('depth, blocks, per_block', [(34, 16, 2), (50, 16, 1), (101, 33, 1), (152, 50, 1)])
def test_deeper_noise_networks_have_a_mask_for_every_perturbation(depth, blocks, per_block):
    config = default.get_config()
    config.model.name = f'noise_resnet{depth}'
    config.model.num_filters = 4
    config.model.stem_kernel_size = 7
    variables = shapes(config, (64, 64, 3))
    masks = variables['noise_masks']
    assert len(jax.tree.leaves(masks)) == blocks * per_block
    assert len(masks) == blocks
    # The stem quarters 64 to 16; the last stage sees 2x2.
    assert jax.tree.leaves(masks['stage4_block3'])[0].shape[:2] == (2, 2)
    assert logits_shape(create_model(config.model, 10), variables, (64, 64, 3)) == (2, 10)


# The other ones differ from these in the number of blocks of a stage alone.
@pytest.mark.parametrize('name', sorted(set(MODELS) - {'noise_resnet34', 'noise_resnet101', 'noise_resnet152'}))
@pytest.mark.parametrize('image_shape', [(28, 28, 1), (32, 32, 3), (33, 35, 2)])
def test_grey_and_odd_sizes_work(name, image_shape):
    """MNIST and odd maps, where the PyTorch residual networks stop."""
    config = default.get_config()
    config.model.name = name
    config.model.num_filters = 6
    model = create_model(config.model, 7)
    if isinstance(model, ResNet):
        model = model.clone(stage_sizes=(2, 2, 2, 2))  # the blocks after a stage's second are like it
    assert logits_shape(model, variable_shapes(model, image_shape), image_shape) == (2, 7)


@pytest.mark.parametrize('stem, kernel', [('conv', 5), ('conv', 7), ('conv', 1), ('perturbation', 3)])
@pytest.mark.parametrize('name', ['perturb_resnet18', 'lenet', 'cifarnet', 'answer_resnet18'])
def test_first_layers_that_stop_the_pytorch_code_work(name, stem, kernel):
    """5x5 and 7x7 first layers leave 30x30 and 8x8 maps, for which the PyTorch code has no masks."""
    config = default.get_config()
    config.model.name = name
    config.model.num_filters = 6
    config.model.stem_layer = stem
    config.model.stem_kernel_size = kernel
    assert count_variables(shapes(config))['masks'] > 0


def test_images_too_small_are_refused():
    config = default.get_config()
    config.model.num_filters = 4
    with pytest.raises(InputError, match='too small'):
        shapes(config, (4, 4, 3))


def test_grouped_combination_needs_divisible_widths():
    config = default.get_config()
    config.model.num_filters = 8
    config.model.num_masks = 2
    with pytest.raises(InputError, match='multiple'):
        shapes(config)


def lenet(**changes):
    config = default.get_config()
    config.model.update(name='lenet', num_filters=4, **changes)
    return create_model(config.model, 10)


def test_mask_seed_and_weight_seed_are_independent():
    model = lenet()

    @partial(jax.jit, compiler_options={'xla_backend_optimization_level': 0})  # as `init_variables` on a CPU
    def draw(seed, mask_seed):
        return draw_variables(model, (8, 8, 1), key=jax.random.key(seed), mask_key=jax.random.key(mask_seed))

    first, other_masks, other_weights = draw(0, 0), draw(0, 1), draw(1, 0)
    same = lambda a, b: all(bool((x == y).all()) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))
    assert same(first['params'], other_masks['params'])
    assert not same(first['noise_masks'], other_masks['noise_masks'])
    assert same(first['noise_masks'], other_weights['noise_masks'])
    assert not same(first['params'], other_weights['params'])


def test_variables_can_be_initialised_in_a_program_of_the_caller():
    config = default.get_config().model
    config.update(name='lenet', num_filters=4, num_masks=2)
    model = create_model(config, 3)
    init = lambda key: init_variables(model, (8, 8, 1), key=key, mask_key=key)
    expected = init(jax.random.key(0))
    shapes = jax.eval_shape(init, jax.random.key(0))
    assert jax.tree.map(jnp.shape, shapes) == jax.tree.map(jnp.shape, expected)
    for leaf, other in zip(*map(jax.tree.leaves, (jax.jit(init)(jax.random.key(0)), expected)), strict=True):
        np.testing.assert_allclose(leaf, other, rtol=1e-6, atol=1e-8)  # compiled by other rules


def test_the_draws_of_a_large_network_follow_the_same_keys(monkeypatch):
    """They are compiled by other rules, which round weights and biases in another way."""
    keys = {'key': jax.random.key(0), 'mask_key': jax.random.key(5)}
    small = init_variables(lenet(), (8, 8, 1), **keys)
    monkeypatch.setattr(variables, 'MANY_VALUES', 0)
    large = init_variables(lenet(), (8, 8, 1), **keys)
    assert jax.tree.all(jax.tree.map(lambda a, b: (a == b).all(), small['noise_masks'], large['noise_masks']))
    for leaf, other in zip(*map(jax.tree.leaves, (small, large)), strict=True):
        np.testing.assert_allclose(leaf, other, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize('name', ['lenet', 'answer_resnet18'])
def test_a_batch_may_be_empty(name):
    config = default.get_config().model
    config.update(name=name, num_filters=6, num_masks=2)
    model = create_model(config, 3)
    variables, no_images = variable_shapes(model, (32, 32, 3)), jnp.zeros((0, 32, 32, 3))
    assert jax.eval_shape(lambda variables: model.apply(variables, no_images), variables).shape == (0, 3)


def test_trained_masks_start_at_the_values_of_fixed_ones():
    keys = {'key': jax.random.key(0), 'mask_key': jax.random.key(5)}
    fixed = init_variables(lenet(), (8, 8, 1), **keys)
    trained = init_variables(lenet(trainable_masks=True), (8, 8, 1), **keys)
    assert 'noise_masks' not in trained
    for layer in ('layer1', 'layer2', 'layer3'):
        assert (fixed['noise_masks'][layer]['masks'] == trained['params'][layer]['masks']).all()
        assert (fixed['params'][layer]['kernel'] == trained['params'][layer]['kernel']).all()
    described = lambda tree: jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), tree)
    assert described(fixed) == described(variable_shapes(lenet(), (8, 8, 1)))
