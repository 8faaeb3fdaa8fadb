"""Every implementation of the operation against the reference; the reference against loops and numbers by hand.

Tests that take `implementation` run over all of them. Shapes are small, because each case is compiled.
"""

import math
import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from pnn_jax.errors import InputError
from pnn_jax.nn.activations import ACTIVATIONS, RRELU_BOUNDS
from pnn_jax.ops import (
    IMPLEMENTATIONS,
    combine_channels,
    cpu,
    perturb_combine,
    perturb_combine_dense,
    perturb_combine_reference,
)

LEAKY = ('lrelu', 'prelu', 'rrelu')

# Those that never hold the perturbed maps.
FUSED = sorted(set(IMPLEMENTATIONS) - {'reference'})


def softsign(x):
    """An activation that is not in `ACTIVATIONS`."""
    return x / (1 + jnp.abs(x))


def random_arguments(shape, *, num_masks, outputs, share_masks, seed=0):
    """x, noise_masks, weights and a cotangent, float64."""
    draw = np.random.default_rng(seed).normal
    _, height, width, channels = shape
    masks = draw(size=(height, width, 1 if share_masks else channels, num_masks))
    return draw(size=shape), masks, draw(size=(channels, num_masks, outputs)), draw(size=(*shape, outputs))


def outputs_and_gradients(op, x, masks, weights, y_bar, *, activation, key=None):
    """y and the gradients of <y, y_bar> with respect to x, masks, weights and slope."""

    @jax.jit
    def run(x, masks, weights, slope):
        apply = lambda x, masks, weights, slope: op(
            x, masks, weights, noise_level=0.7, activation=activation, slope=slope, key=key
        )
        y, pullback = jax.vjp(apply, x, masks, weights, slope)
        return y, pullback(jnp.asarray(y_bar))

    slope = jnp.asarray(0.3) if activation in LEAKY else None
    return run(*map(jnp.asarray, (x, masks, weights)), slope)


def assert_same(ours, expected, tolerance):
    assert jax.tree.structure(ours) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(expected), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance)


def compare_with_reference(arguments, implementations, *, activation, key=None, tolerance=1e-10):
    expected = outputs_and_gradients(perturb_combine_reference, *arguments, activation=activation, key=key)
    assert expected[0].dtype == arguments[0].dtype
    for implementation in implementations:
        op = partial(perturb_combine, implementation=implementation)
        ours = outputs_and_gradients(op, *arguments, activation=activation, key=key)
        assert_same(ours, expected, tolerance)


@pytest.mark.parametrize('share_masks', [False, True])
@pytest.mark.parametrize('activation', [*ACTIVATIONS, 'random rrelu', softsign, None])
def test_implementations_equal_the_reference_in_outputs_and_all_gradients(activation, share_masks):
    with jax.enable_x64(True):
        key = None
        if activation == 'random rrelu':
            activation, key = 'rrelu', jax.random.key(5)
        arguments = random_arguments((3, 2, 3, 4), num_masks=5, outputs=2, share_masks=share_masks)
        compare_with_reference(arguments, FUSED, activation=activation, key=key)


def test_padding_of_the_batch_does_not_matter_to_an_activation_that_is_not_finite_at_zero():
    with jax.enable_x64(True):
        x, masks, weights, y_bar = random_arguments((3, 2, 4, 2), num_masks=3, outputs=2, share_masks=False)
        compare_with_reference((jnp.abs(x) + 9, masks, weights, y_bar), FUSED, activation=jnp.log)


@pytest.mark.parametrize('implementation', IMPLEMENTATIONS)
def test_relu_keeps_nan_and_has_no_gradient_at_zero(implementation):
    """As in PyTorch. An x of zero is common behind another relu."""
    x = jnp.array([0.0, 2.0, -2.0]).reshape(1, 1, 3, 1)
    masks, weights = jnp.zeros((1, 3, 1, 3)), jnp.ones((1, 3, 1))
    op = lambda x: perturb_combine(x, masks, weights, noise_level=1, activation='relu', implementation=implementation)
    y, pullback = jax.vjp(op, x)
    np.testing.assert_array_equal(y.ravel(), [0, 6, 0])
    np.testing.assert_array_equal(pullback(jnp.ones_like(y))[0].ravel(), [0, 3, 0])
    np.testing.assert_array_equal(jnp.isnan(op(x.at[0, 0, 1].set(jnp.nan))).ravel(), [False, True, False])


@pytest.mark.parametrize('implementation', IMPLEMENTATIONS)
def test_nan_stays_where_it_is(implementation):
    """Loops fill arrays of zeros, and take as many turns as always, whatever the first values are."""
    arguments = random_arguments((3, 2, 4, 2), num_masks=3, outputs=1, share_masks=True)
    x, masks, weights, y_bar = map(jnp.asarray, arguments)

    def run(x, y_bar):
        op = partial(perturb_combine, noise_level=0.5, activation='relu', implementation=implementation)
        y, pullback = jax.vjp(lambda x: op(x, masks, weights), x)
        return y, *pullback(y_bar)

    spoilt = run(x.at[0, 0, 0, 0].set(jnp.nan), y_bar.at[0, 0, 0, 0].set(jnp.nan))
    for expected, values in zip(run(x, y_bar), spoilt, strict=True):
        np.testing.assert_array_equal(values.ravel()[1:], expected.ravel()[1:])
    assert jnp.isnan(spoilt[0].ravel()[0])


def test_reference_as_an_implementation_and_the_choice_by_platform_equal_the_reference():
    with jax.enable_x64(True):
        arguments = random_arguments((3, 2, 3, 4), num_masks=5, outputs=2, share_masks=False)
        compare_with_reference(arguments, ['reference', 'auto'], activation='prelu')


@settings(max_examples=6, deadline=None, derandomize=True)
@given(
    shape=st.tuples(st.integers(1, 18), st.integers(1, 7), st.integers(1, 7), st.integers(1, 3)),
    num_masks=st.integers(1, 7),
    outputs=st.integers(1, 3),
    share_masks=st.booleans(),
    activation=st.sampled_from(['relu', 'prelu', 'elu', 'tanh']),
)
def test_implementations_equal_the_reference_for_any_shape(shape, num_masks, outputs, share_masks, activation):
    with jax.enable_x64(True):
        arguments = random_arguments(shape, num_masks=num_masks, outputs=outputs, share_masks=share_masks)
        compare_with_reference(arguments, FUSED, activation=activation)


@pytest.mark.parametrize(
    ('shape', 'num_masks', 'forward', 'backward'),
    [
        ((35, 8, 8, 3), 6, 400, 1),  # 35 images and a pixel; backward 3 groups of images, the last padded, of 32 pixels
        ((35, 3, 5, 3), 6, 1, 1),  # 3 groups of images and a pixel; backward 15 pixels
        ((35, 8, 8, 3), 40, 2048, 2048),  # 35 images and 4 pixels; backward 32 pixels, and 2 groups of masks
        ((4, 7, 7, 2), 37, 512, 2048),  # 7 pixels, or 1 where masks are not shared; backward 49, and 37 groups of masks
    ],
)
@pytest.mark.parametrize('share_masks', [False, True])
def test_blocks_of_the_cpu_equal_the_reference(shape, num_masks, forward, backward, share_masks, monkeypatch):
    monkeypatch.setattr(cpu, 'VALUES', forward)
    monkeypatch.setattr(cpu, 'VALUES_PER_PIXEL', backward)
    with jax.enable_x64(True):
        arguments = random_arguments(shape, num_masks=num_masks, outputs=2, share_masks=share_masks)
        compare_with_reference(arguments, ['cpu'], activation='prelu')


def test_shards_of_the_batch_stay_on_their_devices():
    """The loop of the CPU is over groups of images, none of which may come from another device."""
    with jax.enable_x64(True):
        arguments = random_arguments((64, 8, 8, 80), num_masks=4, outputs=1, share_masks=False)
        x, masks, weights, y_bar = map(jnp.asarray, arguments)

        def run(x, y_bar):
            op = partial(perturb_combine, noise_level=0.5, activation='relu', implementation='cpu')
            y, pullback = jax.vjp(lambda x, weights: op(x, masks, weights), x, weights)
            return y, pullback(y_bar)

        mesh = jax.make_mesh((4,), ('batch',), axis_types=(AxisType.Auto,))
        sharded = [jax.device_put(a, NamedSharding(mesh, PartitionSpec('batch'))) for a in (x, y_bar)]
        program = jax.jit(run).lower(*sharded).compile()
        assert not re.findall(r' (?:all-gather|all-to-all|collective-permute)(?:-start)?\(', program.as_text())
        assert ' all-reduce(' in program.as_text()  # the gradient of the weights
        assert_same(program(*sharded), jax.jit(run)(x, y_bar), 1e-10)


def test_reference_equals_loops_over_everything():
    activations = {
        None: lambda v: v,
        'relu': lambda v: max(v, 0.0),
        'lrelu': lambda v: v if v >= 0 else 0.3 * v,
        'elu': lambda v: v if v > 0 else math.expm1(v),
        'sigmoid': lambda v: 1 / (1 + math.exp(-v)),
        'tanh': math.tanh,
    }
    with jax.enable_x64(True):
        for share_masks in (False, True):
            x, masks, weights, y_bar = random_arguments((2, 2, 1, 3), num_masks=4, outputs=2, share_masks=share_masks)
            for activation, activate in activations.items():
                expected = np.zeros(y_bar.shape)
                for b, h, w, g, k in np.ndindex(*y_bar.shape):
                    for m in range(4):
                        value = x[b, h, w, g] + 0.7 * masks[h, w, 0 if share_masks else g, m]
                        expected[b, h, w, g, k] += weights[g, m, k] * activate(value)
                y = perturb_combine_reference(
                    *map(jnp.asarray, (x, masks, weights)),
                    noise_level=0.7,
                    activation=activation,
                    slope=jnp.asarray(0.3),
                )
                np.testing.assert_allclose(y, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize('implementation', IMPLEMENTATIONS)
def test_numbers_worked_out_by_hand(implementation):
    """One pixel, x = 1, masks (-4, 2) at level 1/2: perturbed to -1 and 2. Weights (3, 5) and (7, 11)."""
    x = jnp.full((1, 1, 1, 1), 1.0)
    masks = jnp.array([-4.0, 2.0]).reshape(1, 1, 1, 2)
    weights = jnp.array([[3.0, 7.0], [5.0, 11.0]]).reshape(1, 2, 2)

    def loss(x, masks, weights, slope):
        y = perturb_combine(
            x, masks, weights, noise_level=0.5, activation='prelu', slope=slope, implementation=implementation
        )
        return y @ jnp.array([1.0, 100.0]), y

    gradients, y = (
        jax.jacrev(lambda *args: loss(*args)[0].sum(), argnums=(0, 1, 2, 3))(x, masks, weights, jnp.float32(0.25)),
        loss(x, masks, weights, jnp.float32(0.25))[1],
    )
    # Responses are -1/4 and 2.
    np.testing.assert_allclose(y.ravel(), [-0.25 * 3 + 2 * 5, -0.25 * 7 + 2 * 11], rtol=1e-6)
    x_bar, masks_bar, weights_bar, slope_bar = gradients
    combined = np.array([3 + 700, 5 + 1100])  # the weights seen by the loss
    np.testing.assert_allclose(x_bar.ravel(), [0.25 * combined[0] + combined[1]], rtol=1e-6)
    np.testing.assert_allclose(masks_bar.ravel(), [0.5 * 0.25 * combined[0], 0.5 * combined[1]], rtol=1e-6)
    np.testing.assert_allclose(weights_bar[0], [[-0.25, -25.0], [2.0, 200.0]], rtol=1e-6)
    np.testing.assert_allclose(slope_bar, -1 * combined[0], rtol=1e-6)


@pytest.mark.parametrize('activation', [*ACTIVATIONS, None])
def test_dense_is_the_sum_over_channels_of_one_mask_each(activation):
    with jax.enable_x64(True):
        x, masks, weights, _ = map(
            jnp.asarray, random_arguments((2, 3, 2, 4), num_masks=1, outputs=5, share_masks=False)
        )
        key = jax.random.key(2) if activation == 'rrelu' else None
        options = {'noise_level': 0.7, 'activation': activation, 'slope': jnp.asarray(0.3), 'key': key}
        y = perturb_combine_dense(x, masks, weights[:, 0], **options)
        expected = perturb_combine_reference(x, masks, weights, **options).sum(-2)
        np.testing.assert_allclose(y, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize('implementation', IMPLEMENTATIONS)
def test_invariants(implementation):
    with jax.enable_x64(True):
        x, masks, weights, _ = map(
            jnp.asarray, random_arguments((2, 3, 3, 2), num_masks=6, outputs=2, share_masks=False)
        )
        op = lambda masks, weights, level=0.7, x=x: perturb_combine(
            x, masks, weights, noise_level=level, activation='relu', implementation=implementation
        )
        y = op(masks, weights)
        order = np.array([3, 5, 0, 1, 4, 2])
        np.testing.assert_allclose(op(masks[..., order], weights[:, order]), y, rtol=1e-12, atol=1e-12)
        assert np.abs(op(masks[..., order], weights) - y).max() > 0.1
        without_noise = jax.nn.relu(x)[..., None] * weights.sum(1)[None, None, None]
        np.testing.assert_allclose(op(masks, weights, level=0.0), without_noise, rtol=1e-12, atol=1e-12)
        assert not op(masks, jnp.zeros_like(weights)).any()
        # An image's result depends on no other image.
        np.testing.assert_array_equal(op(masks, weights, x=x[1:])[0], y[1])


@pytest.mark.parametrize('implementation', FUSED)
def test_random_slopes_stay_in_their_bounds_and_differ(implementation):
    x = -jnp.ones((4, 5, 5, 2))
    masks, weights = jnp.zeros((5, 5, 2, 3)), jnp.ones((2, 3, 1))
    options = {'noise_level': 0.5, 'activation': 'rrelu', 'implementation': implementation}
    op = jax.jit(lambda weights, seed: perturb_combine(x, masks, weights, key=jax.random.key(seed), **options))
    one_by_one = np.stack([-op(weights.at[:, np.arange(3) != m].set(0), 0) for m in range(3)])
    low, high = RRELU_BOUNDS
    assert low <= one_by_one.min() < low + 0.01 and high - 0.01 < one_by_one.max() <= high
    assert len(np.unique(one_by_one)) > 0.99 * one_by_one.size
    np.testing.assert_allclose(-op(weights, 0), one_by_one.sum(0), rtol=1e-6)
    assert np.abs(op(weights, 0) - op(weights, 1)).max() > 0.01


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
def test_random_slopes_are_those_of_the_reference_in_every_precision(dtype):
    x = -jnp.ones((2, 3, 3, 2), dtype)
    masks, weights = jnp.zeros((3, 3, 2, 1), dtype), jnp.ones((2, 1, 1), dtype)
    options = {'noise_level': 0.5, 'activation': 'rrelu', 'key': jax.random.key(0)}
    expected = perturb_combine_reference(x, masks, weights, **options)
    for implementation in FUSED:
        ours = perturb_combine(x, masks, weights, implementation=implementation, **options)
        np.testing.assert_array_equal(ours, expected)
    dense = perturb_combine_dense(x, masks, jnp.eye(2, dtype=dtype), **options)
    np.testing.assert_array_equal(dense, expected[..., 0])


@pytest.mark.parametrize('implementation', ['auto', *IMPLEMENTATIONS])
def test_vmap_over_runs_equals_a_loop(implementation):
    runs = [random_arguments((2, 3, 3, 2), num_masks=3, outputs=2, share_masks=True, seed=s) for s in range(3)]
    x, masks, weights, y_bar = (jnp.asarray(np.stack(a), jnp.float32) for a in zip(*runs, strict=True))

    def gradients(x, masks, weights, slope, y_bar):
        options = {'noise_level': 0.5, 'activation': 'prelu', 'implementation': implementation}
        op = lambda *args: perturb_combine(*args[:3], slope=args[3], **options)
        y, pullback = jax.vjp(op, x, masks, weights, slope)
        return y, pullback(y_bar)

    slopes = jnp.array([0.1, 0.2, 0.3])
    together = jax.vmap(gradients)(x, masks, weights, slopes, y_bar)
    single = jax.jit(gradients)
    for i in range(3):
        expected = single(x[i], masks[i], weights[i], slopes[i], y_bar[i])
        assert_same(jax.tree.map(lambda a, i=i: a[i], together), expected, 1e-5)


@pytest.mark.parametrize('implementation', FUSED)
def test_bfloat16_sums_in_float32(implementation):
    x, masks, weights, y_bar = (
        jnp.asarray(a, jnp.bfloat16) for a in random_arguments((2, 2, 2, 2), num_masks=40, outputs=1, share_masks=False)
    )
    op = partial(perturb_combine, implementation=implementation)
    ours = outputs_and_gradients(op, x, masks, weights, y_bar, activation='relu')
    assert {a.dtype for a in jax.tree.leaves(ours)} == {jnp.dtype(jnp.bfloat16)}
    wide = [a.astype(jnp.float32) for a in (x, masks, weights, y_bar)]
    expected = outputs_and_gradients(perturb_combine_reference, *wide, activation='relu')
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(expected), strict=True):
        # One rounding to 8 bits at the end; a sum of 40 terms in bfloat16 would be off by percents.
        np.testing.assert_allclose(a.astype(np.float32), b, rtol=2**-8, atol=1e-3)


@pytest.mark.parametrize('activation', [None, 'relu'])
def test_result_has_the_type_of_x(activation):
    """Also where the weights and the level are wider."""
    x, masks, weights, _ = random_arguments((2, 2, 2, 2), num_masks=40, outputs=1, share_masks=False)
    options = {'noise_level': np.float64(0.5), 'activation': activation}
    narrow, wide = jnp.asarray(x, jnp.bfloat16), jnp.asarray(x, jnp.bfloat16).astype(jnp.float32)
    masks, weights = jnp.asarray(masks, jnp.float32), jnp.asarray(weights, jnp.float32)
    expected = perturb_combine_reference(wide, masks, weights, **options)
    for implementation in FUSED:
        y = perturb_combine(narrow, masks, weights, implementation=implementation, **options)
        assert y.dtype == jnp.bfloat16
        np.testing.assert_allclose(y.astype(np.float32), expected, rtol=2**-8, atol=1e-3)
    dense = perturb_combine_dense(narrow, masks[..., :1], weights[:, 0], **options)
    assert dense.dtype == jnp.bfloat16


@pytest.mark.parametrize('implementation', IMPLEMENTATIONS)
@pytest.mark.parametrize('shape', [(0, 2, 2, 2), (2, 0, 0, 2)])
def test_an_empty_batch_or_map_has_an_empty_result(implementation, shape):
    x, masks, weights, y_bar = random_arguments(shape, num_masks=3, outputs=1, share_masks=False)
    op = partial(perturb_combine, implementation=implementation)
    y, (x_bar, _, weights_bar, _) = outputs_and_gradients(op, x, masks, weights, y_bar, activation='relu')
    assert y.shape == (*shape, 1) and x_bar.shape == shape
    assert np.all(weights_bar == 0)


def compiled_gradient(op, num_masks, *, of_masks=False):
    """The compiled gradient for float32 [16, 8, 8, 16], and the bytes of masks and weights."""
    x, masks, weights, y_bar = (
        jnp.asarray(a, jnp.float32)
        for a in random_arguments((16, 8, 8, 16), num_masks=num_masks, outputs=1, share_masks=False)
    )

    @jax.jit
    def gradients(x, masks, weights, y_bar):
        apply = lambda x, masks, weights: op(x, masks, weights, noise_level=0.5, activation='relu')
        bars = jax.vjp(apply, x, masks, weights)[1](y_bar)
        return bars if of_masks else (bars[0], bars[2])

    return gradients.lower(x, masks, weights, y_bar).compile(), masks.nbytes, weights.nbytes


def test_memory_does_not_grow_with_copies_of_the_input():
    """From 128 to 512 masks, temporaries grow by no more than the masks and a gradient of the weights for each lane."""

    def growth_and_allowance(op):
        few, few_masks, few_weights = compiled_gradient(op, 128)
        many, more_masks, more_weights = compiled_gradient(op, 512)
        growth = many.memory_analysis().temp_size_in_bytes - few.memory_analysis().temp_size_in_bytes
        return growth, more_masks - few_masks + (cpu.LANES + 1) * (more_weights - few_weights)

    growth, allowance = growth_and_allowance(perturb_combine)
    assert growth <= allowance
    growth, allowance = growth_and_allowance(perturb_combine_reference)
    assert growth > 4 * allowance


def test_gradient_of_fixed_masks_costs_nothing():
    fixed, trained = (compiled_gradient(perturb_combine, 8, of_masks=of_masks)[0] for of_masks in (False, True))
    loops = [len(re.findall(r' while\(', program.as_text())) for program in (fixed, trained)]
    assert loops == [2, 4]  # those over masks and over images, inside the one over blocks, are gone
    assert fixed.cost_analysis()['flops'] < 0.9 * trained.cost_analysis()['flops']


def test_gradient_of_fixed_masks_is_not_left_to_the_compiler():
    op = partial(perturb_combine, noise_level=0.5, activation='relu', implementation='cpu')
    x, masks, weights, _ = random_arguments((2, 2, 2, 2), num_masks=2, outputs=1, share_masks=True)
    lowered = [
        jax.jit(jax.grad(lambda *arguments: op(*arguments).sum(), wanted)).lower(x, masks, weights).as_text()
        for wanted in ((0, 2), (0, 1, 2))
    ]
    loops = [len(re.findall('stablehlo.while', text)) for text in lowered]
    assert loops[0] == loops[1] - 2


@pytest.mark.parametrize('implementation', ['auto', *IMPLEMENTATIONS])
def test_gradients_are_the_same_whether_masks_are_fixed_or_trained(implementation):
    x, masks, weights, _ = random_arguments((3, 2, 4, 2), num_masks=6, outputs=2, share_masks=False)
    op = partial(perturb_combine, noise_level=0.5, activation='tanh', implementation=implementation)

    def loss(x, masks, weights):
        return jnp.square(jax.checkpoint(op)(x, masks, weights)).sum()

    with jax.enable_x64(True):
        x, masks, weights = map(jnp.asarray, (x, masks, weights))
        x_bar, masks_bar, weights_bar = jax.jit(jax.grad(loss, (0, 1, 2)))(x, masks, weights)
        assert_same(jax.jit(jax.grad(loss, (0, 2)))(x, masks, weights), (x_bar, weights_bar), 1e-12)
        assert_same(jax.jit(jax.grad(loss, 1))(x, masks, weights), masks_bar, 1e-12)
        several = jax.vmap(jax.grad(loss, 2), (None, 0, None))(x, jnp.stack([masks, 2 * masks]), weights)
        assert_same(several[0], weights_bar, 1e-12)


@pytest.mark.parametrize('implementation', ['auto', *IMPLEMENTATIONS])
def test_residuals_are_the_arguments(implementation):
    """What the forward pass keeps for the backward pass has no array of num_masks times the input."""
    x, masks, weights, _ = random_arguments((4, 3, 3, 8), num_masks=16, outputs=2, share_masks=True)
    options = {'noise_level': 0.5, 'activation': 'tanh', 'implementation': implementation}
    pullback = jax.vjp(partial(perturb_combine, **options), *map(jnp.float32, (x, masks, weights)))[1]
    shapes = [leaf.shape for leaf in jax.tree.leaves(pullback)]
    assert sorted(shapes) == sorted([x.shape, masks.shape, weights.shape])


def test_auto_lowers_only_the_implementation_of_the_platform():
    arguments = [
        jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((2, 3, 3, 4), (3, 3, 4, 5), (4, 5, 2), (2, 3, 3, 4, 2))
    ]

    def lowered(platform, implementation):
        """Operations of the forward and backward pass, without the wrapper of the choice."""
        op = partial(perturb_combine, noise_level=0.5, activation='tanh', implementation=implementation)
        gradients = jax.jit(lambda x, masks, weights, y_bar: jax.vjp(op, x, masks, weights)[1](y_bar))
        text = gradients.trace(*arguments).lower(lowering_platforms=(platform,)).as_text()
        return {name: len(re.findall(rf'stablehlo.{name}\b', text)) for name in ('tanh', 'while', 'reduce', 'multiply')}

    cpu_counts, accelerator_counts = lowered('cpu', 'cpu'), lowered('cpu', 'accelerator')
    assert cpu_counts['while'] > 0 == accelerator_counts['while']
    assert lowered('cpu', 'auto') == cpu_counts
    assert lowered('tpu', 'auto') == lowered('cuda', 'auto') == accelerator_counts


def test_a_strided_1x1_convolution_equals_that_of_lax():
    with jax.enable_x64(True):
        draw = np.random.default_rng(0).normal
        x, weights = jnp.asarray(draw(size=(2, 5, 4, 3))), jnp.asarray(draw(size=(3, 6)))

        def convolve(x, weights, stride):
            return jax.lax.conv_general_dilated(
                x, weights[None, None], (stride, stride), 'VALID', dimension_numbers=('NHWC', 'HWIO', 'NHWC')
            )

        for stride in (1, 2, 3):
            y, pullback = jax.vjp(partial(combine_channels, stride=stride), x, weights)
            expected, expected_pullback = jax.vjp(partial(convolve, stride=stride), x, weights)
            assert_same((y, pullback(y)), (expected, expected_pullback(y)), 1e-12)


@pytest.mark.parametrize(
    ('changes', 'words'),
    [
        ({'x': jnp.ones((2, 3, 4))}, ['x of shape (2, 3, 4)', '[b, h, w, g]']),
        ({'x': jnp.ones((2, 3, 3, 4), jnp.int32)}, ['x of shape', 'int32', 'floating']),
        ({'noise_masks': jnp.ones((3, 3, 2, 5))}, ['noise_masks of shape (3, 3, 2, 5)', '[3, 3, 4 or 1, m]']),
        ({'noise_masks': jnp.ones((3, 2, 4, 5))}, ['noise_masks of shape (3, 2, 4, 5)']),
        ({'noise_masks': jnp.ones((3, 3, 4, 0))}, ['at least one mask']),
        ({'weights': jnp.ones((4, 6, 2))}, ['weights of shape (4, 6, 2)', '[4, 5, outputs per channel]']),
        ({'weights': jnp.ones((4, 5))}, ['weights of shape (4, 5)']),
        ({'activation': 'rellu'}, ["activation='rellu'", 'relu, lrelu']),
        ({'activation': 'prelu'}, ['slope=None', 'scalar']),
        ({'activation': 'lrelu', 'slope': jnp.ones(4)}, ['slope=', 'scalar']),
        ({'activation': ['relu']}, ["activation=['relu']", 'hashable']),
        ({'key': jax.random.key(0)}, ['key', 'rrelu']),
        ({'noise_level': jnp.ones(())}, ['noise_level', 'number']),
        ({'implementation': 'cpuu'}, ["implementation='cpuu'", 'auto, reference, cpu, accelerator']),
    ],
)
def test_arguments_that_do_not_fit_are_refused_in_one_line(changes, words):
    arguments = {
        'x': jnp.ones((2, 3, 3, 4)),
        'noise_masks': jnp.ones((3, 3, 4, 5)),
        'weights': jnp.ones((4, 5, 2)),
        'noise_level': 0.5,
        'activation': 'relu',
    }
    with pytest.raises(InputError) as error:
        perturb_combine(**arguments | changes)
    message = str(error.value)
    assert '\n' not in message
    assert all(word in message for word in words)


@pytest.mark.parametrize(
    ('changes', 'words'),
    [
        ({'noise_masks': jnp.ones((3, 3, 4, 2))}, ['noise_masks of shape (3, 3, 4, 2)', 'one mask per channel']),
        ({'weights': jnp.ones((5, 2))}, ['weights of shape (5, 2)', '[4, outputs]']),
        ({'weights': jnp.ones((4, 1, 2))}, ['weights of shape (4, 1, 2)', '[4, outputs]']),
    ],
)
def test_arguments_of_the_dense_form_that_do_not_fit_are_refused(changes, words):
    arguments = {'x': jnp.ones((2, 3, 3, 4)), 'noise_masks': jnp.ones((3, 3, 4, 1)), 'weights': jnp.ones((4, 2))}
    with pytest.raises(InputError) as error:
        perturb_combine_dense(**arguments | changes, noise_level=0.5, activation='relu')
    assert all(word in str(error.value) for word in words)


def test_gradients_inside_shard_map():
    """As docs/layer.md says: without its checks, and with the sum over devices taken by hand."""
    mesh = jax.make_mesh((2,), ('batch',), axis_types=(AxisType.Auto,), devices=jax.devices()[:2])
    x, masks, weights, _ = map(jnp.asarray, random_arguments((4, 3, 3, 2), num_masks=2, outputs=1, share_masks=True))
    loss = lambda x, weights: perturb_combine(x, masks, weights, noise_level=0.7, activation='elu').sum()
    local = lambda x, weights: jax.lax.psum(jax.grad(loss, argnums=1)(x, weights), 'batch')
    specs = {'in_specs': (PartitionSpec('batch'), PartitionSpec()), 'out_specs': PartitionSpec()}
    summed = jax.jit(jax.shard_map(local, mesh=mesh, check_vma=False, **specs))(x, weights)
    np.testing.assert_allclose(summed, jax.grad(loss, argnums=1)(x, weights), rtol=5e-7)  # measured: 8e-8
