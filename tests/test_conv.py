"""The convolution equals XLA's, in values and gradients, whichever way it is computed."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax
from jax.sharding import NamedSharding, PartitionSpec

from pnn_jax.ops.conv import conv


def xla_conv(x, kernel, *, stride, padding):
    return lax.conv_general_dilated(
        x, kernel, (stride, stride), ((padding, padding),) * 2, dimension_numbers=('NHWC', 'HWIO', 'NHWC')
    )


def values_and_gradients(function, x, kernel, y_bar, **options):
    y, pullback = jax.vjp(lambda x, kernel: function(x, kernel, **options), x, kernel)
    return y, *pullback(y_bar)


def compile_without_optimization(function):
    """`jax.jit`, but LLVM does not optimize: what these small programs compute takes no time, compiling them does."""
    return jax.jit(function, compiler_options={'xla_backend_optimization_level': 0})


def random_case(x_shape, kernel_shape, stride, padding, dtype, seed=0):
    rng = np.random.default_rng(seed)
    height, width = ((n + 2 * padding - kernel_shape[0]) // stride + 1 for n in x_shape[1:3])
    shapes = x_shape, kernel_shape, (x_shape[0], height, width, kernel_shape[-1])
    return [jnp.asarray(rng.standard_normal(shape), dtype) for shape in shapes]


def assert_equals_xla(x_shape, kernel_shape, stride, padding, dtype, tolerance):
    case = random_case(x_shape, kernel_shape, stride, padding, dtype)
    run = lambda *case: [values_and_gradients(f, *case, stride=stride, padding=padding) for f in (conv, xla_conv)]
    ours, expected = compile_without_optimization(run)(*case)
    for name, value, reference in zip(('y', 'x_bar', 'kernel_bar'), ours, expected, strict=True):
        assert value.dtype == reference.dtype and value.shape == reference.shape, name
        error = jnp.abs(value - reference).max() / jnp.abs(reference).max()
        assert error < tolerance, f'{name} of {x_shape}, {kernel_shape}, stride {stride}: {error}'


@settings(max_examples=5, deadline=None)
@given(
    height=st.sampled_from([3, 6, 16, 17]),
    width=st.sampled_from([4, 5, 16, 20]),  # a sum over taps needs 16 or more
    channels=st.integers(1, 6),
    outputs=st.integers(1, 6),
    stride=st.integers(1, 2),
    batch=st.integers(1, 4),
)
def test_equals_xla_in_float64(height, width, channels, outputs, stride, batch):
    shapes = (batch, height, width, channels), (3, 3, channels, outputs)
    with jax.enable_x64(True):
        assert_equals_xla(*shapes, stride, 1, jnp.float64, 1e-14)


SHAPES = {
    'sum over taps': ((8, 16, 16, 3), (3, 3, 3, 2), 1),
    'stride 2': ((4, 5, 8, 16), (3, 3, 16, 5), 2),
    '5x5': ((2, 6, 6, 2), (5, 5, 2, 3), 1),
}


@pytest.mark.parametrize(('dtype', 'tolerance'), [(jnp.float32, 5e-7), (jnp.bfloat16, 1e-2)])
@pytest.mark.parametrize('shape', SHAPES)
def test_errors_in_narrow_types(shape, dtype, tolerance):
    x_shape, kernel_shape, stride = SHAPES[shape]
    case = random_case(x_shape, kernel_shape, stride, 1, dtype)
    values = compile_without_optimization(partial(values_and_gradients, conv, stride=stride, padding=1))(*case)
    with jax.enable_x64(True):
        run = compile_without_optimization(partial(values_and_gradients, xla_conv, stride=stride, padding=1))
        exact = run(*(a.astype(jnp.float64) for a in case))
        errors = [float(abs(a - e).max() / abs(e).max()) for a, e in zip(values, exact, strict=True)]
    assert all(value.dtype == dtype for value in values)
    assert max(errors) < tolerance


def test_shards_of_the_batch_stay_on_their_devices():
    devices = jax.devices()
    mesh = jax.sharding.Mesh(np.array(devices), ('batch',))
    x_shape, kernel_shape, stride = SHAPES['sum over taps']
    shardings = [NamedSharding(mesh, PartitionSpec(*axes)) for axes in (('batch',), (), ('batch',))]
    case = random_case(x_shape, kernel_shape, stride, 1, jnp.float32)

    run = compile_without_optimization(partial(values_and_gradients, conv, stride=stride, padding=1))
    expected = run(*case)
    sharded = run.lower(*map(jax.device_put, case, shardings)).compile()
    text = sharded.as_text()
    assert 'all-reduce' in text
    for collective in ('all-gather', 'all-to-all', 'collective-permute'):
        assert collective not in text
    for value, reference in zip(sharded(*map(jax.device_put, case, shardings)), expected, strict=True):
        assert jnp.abs(value - reference).max() <= 1e-6 * jnp.abs(reference).max()


def test_vmap_equals_a_loop():
    x_shape, kernel_shape, stride = SHAPES['sum over taps']
    runs = [random_case(x_shape, kernel_shape, stride, 1, jnp.float32, seed) for seed in range(2)]
    run = partial(values_and_gradients, conv, stride=stride, padding=1)
    together = compile_without_optimization(jax.vmap(run))(*map(jnp.stack, zip(*runs, strict=True)))
    run = compile_without_optimization(run)
    for index, case in enumerate(runs):
        for value, reference in zip(together, run(*case), strict=True):
            np.testing.assert_allclose(value[index], reference, rtol=1e-6, atol=1e-6)


def test_empty_batch():
    case = random_case((0, 16, 16, 3), (3, 3, 3, 2), 1, 1, jnp.float32)
    run = compile_without_optimization(partial(values_and_gradients, conv, stride=1, padding=1))
    y, x_bar, kernel_bar = run(*case)
    assert y.shape == (0, 16, 16, 2) and x_bar.shape == (0, 16, 16, 3)
    np.testing.assert_array_equal(kernel_bar, np.zeros((3, 3, 3, 2)))
