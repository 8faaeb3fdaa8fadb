"""What every noise distribution must do, whatever its values are."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pnn_jax.nn.noise import NOISE_DISTRIBUTIONS


@pytest.mark.parametrize('shape', [(1, 1, 2, 8), (3, 2, 6)])
@pytest.mark.parametrize('name', NOISE_DISTRIBUTIONS)
def test_masks_come_from_the_key_alone_and_differ_from_each_other(name, shape):
    sample = jax.jit(lambda seed: NOISE_DISTRIBUTIONS[name](jax.random.key(seed), shape))
    masks = np.asarray(sample(0))
    assert masks.shape == shape and masks.dtype == jnp.float32
    assert np.isfinite(masks).all()
    np.testing.assert_array_equal(masks, sample(0))
    assert (masks != sample(1)).any()
    for_each_mask = masks.reshape(shape[0] * shape[1], -1)
    assert (for_each_mask != for_each_mask[:, :1]).any()  # not one mask for all
