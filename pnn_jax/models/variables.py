"""The variables of a fresh network: weights from one key, noise masks from another."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp


def init_variables(
    model: nn.Module, image_shape: tuple[int, ...], *, key: jax.Array, mask_key: jax.Array
) -> dict[str, Any]:
    """All collections of `model` for images of shape [h, w, c]: weights from `key`, masks from `mask_key` alone.

    Only the random draws are computed, not the network's output. They are one program, which a CPU compiles without
    optimizations: with them, the draws of a network take longer to compile than its training step.
    """

    def init(key, mask_key):
        images = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
        return model.lazy_init({'params': key, 'noise_masks': mask_key}, images, train=False)

    on_cpu = jax.default_backend() == 'cpu'
    return jax.jit(init, compiler_options={'xla_backend_optimization_level': 0} if on_cpu else None)(key, mask_key)
