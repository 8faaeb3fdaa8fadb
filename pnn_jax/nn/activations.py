"""The eight activations of the audit's `utils.act_fn`, as functions of (x, slope).

The leaky family needs a slope: a constant for `lrelu`, a learned scalar for `prelu`, and for `rrelu` a random tensor in
training and a constant in evaluation. The other five ignore it. All defaults are those of `torch.nn`.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

LRELU_SLOPE = 0.01
PRELU_INITIAL_SLOPE = 0.25
RRELU_BOUNDS = (1 / 8, 1 / 3)
RRELU_EVAL_SLOPE = sum(RRELU_BOUNDS) / 2


def _leaky(x: jax.Array, slope: jax.Array | float) -> jax.Array:
    return jnp.where(x >= 0, x, slope * x)


ACTIVATIONS: dict[str, Callable[..., jax.Array]] = {
    'relu': lambda x, slope=None: jax.nn.relu(x),
    'lrelu': _leaky,
    'prelu': _leaky,
    'rrelu': _leaky,
    'elu': lambda x, slope=None: jax.nn.elu(x),
    'selu': lambda x, slope=None: jax.nn.selu(x),
    'tanh': lambda x, slope=None: jnp.tanh(x),
    'sigmoid': lambda x, slope=None: jax.nn.sigmoid(x),
}
