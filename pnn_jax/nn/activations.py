"""The activations as a flax module, which owns the slope that prelu learns. The functions are in `ops/activations.py`.

The leaky family needs a slope for negative values: `lrelu` has a constant, `prelu` learns one scalar, and `rrelu` draws
a random slope per value in training and uses their mean in evaluation. All constants are the defaults of `torch.nn`.
"""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from pnn_jax.errors import InputError
from pnn_jax.ops.activations import ACTIVATIONS, RRELU_BOUNDS

LRELU_SLOPE = 0.01
PRELU_INITIAL_SLOPE = 0.25
RRELU_EVAL_SLOPE = sum(RRELU_BOUNDS) / 2


def check_activation(kind: Any) -> None:
    """Raises InputError unless `kind` is a name in `ACTIVATIONS` or a function. Modules with parameters are neither."""
    known = kind in ACTIVATIONS if isinstance(kind, str) else callable(kind)
    if not known or isinstance(kind, nn.Module):
        text = ' '.join(repr(kind).split())  # the repr of a module has several lines
        raise InputError(f'activation={text}: must be one of {", ".join(ACTIVATIONS)}, or an elementwise function')


class Activation(nn.Module):
    """An elementwise activation on x of any shape. As in torch, all calls of one module use the same learned slope.

    Attributes:
        kind: a name in `ACTIVATIONS`, or an elementwise function of x.

    Raises:
        InputError: the name is unknown, or `kind` is neither a name nor a function.
    """

    kind: str | Callable[[jax.Array], jax.Array]

    def setup(self):
        check_activation(self.kind)
        if self.kind == 'prelu':
            self.learned_slope = self.param('slope', nn.initializers.constant(PRELU_INITIAL_SLOPE), (1,), jnp.float32)

    def slope(self) -> jax.Array | None:
        """The slope for negative values as a scalar, None outside the leaky family. For rrelu: that of evaluation."""
        if self.kind == 'prelu':
            return self.learned_slope[0]
        constants = {'lrelu': LRELU_SLOPE, 'rrelu': RRELU_EVAL_SLOPE}
        return jnp.float32(constants[self.kind]) if self.kind in constants else None

    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """Returns an array of x's shape and dtype. In training rrelu needs the random stream `activation`."""
        if not isinstance(self.kind, str):
            return self.kind(x)
        if self.kind == 'rrelu' and train:
            low, high = RRELU_BOUNDS
            slopes = jax.random.uniform(self.make_rng('activation'), x.shape, x.dtype, low, high)
            return ACTIVATIONS[self.kind](x, slopes)
        slope = self.slope()
        return ACTIVATIONS[self.kind](x, slope if slope is None else slope.astype(x.dtype))
