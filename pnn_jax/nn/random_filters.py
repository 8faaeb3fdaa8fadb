"""A control experiment: fixed random 3x3 filters in the place of the noise masks."""

from collections.abc import Iterator, Mapping
from functools import reduce
from typing import Any

import jax
import jax.numpy as jnp

from pnn_jax.nn.perturbation import PerturbationLayer, combine_responses
from pnn_jax.options import Conflict


class RandomFilterLayer(PerturbationLayer):
    """Convolve every channel with fixed random 3x3 filters, activate, combine.

    x [b, h, w, c] -> [b, h, w, features]. The learned weights are those of a `PerturbationLayer` with the same options.
    The difference is that each fixed response sees the pixel's neighbours. Neither side of the debate ran this control.

    The filters [3, 3, c or 1, num_masks] are the variable `masks`, as `noise_type` draws them; a third of that is used.
    """

    # Not options here: filters have no level, and are never redrawn.
    noise_level: float = 1.0
    redraw_masks: bool = False

    @staticmethod
    def conflicts(values: Mapping[str, Any]) -> Iterator[Conflict]:
        if values['redraw_masks']:
            yield 'redraw_masks', 'only noise masks can be redrawn, not random filters'

    def mask_shape(self, x: jax.Array) -> tuple[int, ...]:
        return 3, 3, 1 if self.share_masks else x.shape[-1], self.num_masks

    def respond(self, x: jax.Array, kernel: jax.Array, train: bool) -> jax.Array:
        filters = self.masks(self.mask_shape(x), train).astype(x.dtype) / 3
        height, width = x.shape[1:3]
        padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))[..., None]
        shifted = [
            padded[:, i : i + height, j : j + width] * filters[None, None, None, i, j]
            for i in range(3)
            for j in range(3)
        ]
        responses = reduce(jnp.add, shifted)
        activation = self.shared_activation()
        if activation is not None:
            responses = activation(responses, train)
        return combine_responses(responses, kernel)
