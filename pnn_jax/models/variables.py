"""The variables of a fresh network: weights from one key, noise masks from another."""

import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

# Up to this number of values, draws are ready sooner when they are compiled without any optimization.
MANY_VALUES = 2**24


def draw_variables(model: nn.Module, image_shape: tuple[int, ...], *, key: jax.Array, mask_key: jax.Array) -> Any:
    """All collections of `model` for images of shape [h, w, c]: weights from `key`, masks from `mask_key` alone.

    For use inside jit, where only the random draws are computed: nothing reads the network's output. (`lazy_init` tells
    the one from the other already when it traces the network, which takes several times as long.)
    """
    images = jnp.zeros((1, *image_shape))
    return model.init({'params': key, 'noise_masks': mask_key}, images, train=False)


def variable_shapes(model: nn.Module, image_shape: tuple[int, ...]) -> Any:
    """The shapes and types of what `init_variables` returns. Nothing is computed."""
    key = jax.random.key(0)
    return jax.eval_shape(lambda: draw_variables(model, image_shape, key=key, mask_key=key))


def init_variables(model: nn.Module, image_shape: tuple[int, ...], *, key: jax.Array, mask_key: jax.Array) -> Any:
    """Initialises a network by one compiled program, which computes only the random draws.

    Args:
        model: any network of `create_model`, or a linen module with a call (images, train).
        image_shape: [h, w, c]; masks have the size of the map that they are added to.
        key: for weights.
        mask_key: for noise masks, and for nothing else.

    Returns:
        The collections: `params`; `batch_stats`, `noise_masks` and `frozen` where the network has them.
    """
    draw = lambda key, mask_key: draw_variables(model, image_shape, key=key, mask_key=mask_key)
    traced = any(isinstance(one, jax.core.Tracer) for one in (key, mask_key))
    return (draw if traced else jit_draws(draw, variable_shapes(model, image_shape)))(key, mask_key)


def jit_draws(draw: Callable, variables: Any) -> Any:
    """jax.jit for a function whose work is random draws; not for use inside jit.

    A CPU compiles it with few optimizations: with all of them, the draws of a network take longer to compile than its
    training step. Without any, they compile fastest, but take eight times as long to run.

    Args:
        draw: the function.
        variables: the shapes of what it draws.
    """
    if jax.default_backend() != 'cpu':
        return jax.jit(draw)
    values = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(variables))
    return jax.jit(draw, compiler_options={'xla_backend_optimization_level': int(values > MANY_VALUES)})
