"""What the first layer with noise masks makes of an image, for plots."""

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import numpy as np

from pnn_jax.models.noise_resnet import NoiseLayer
from pnn_jax.nn.perturbation import PerturbationLayer


class Responses(NamedTuple):
    """One input channel of a layer, perturbed by each of its masks.

    Attributes:
        layer: its name in the network.
        x: float [h, w], the input.
        masks: float [m, h, w], multiplied by the level.
        responses: float [m, h, w], activation(x + masks).
    """

    layer: str
    x: np.ndarray
    masks: np.ndarray
    responses: np.ndarray


class _Found(Exception):
    """Ends the evaluation of a network at the layer that was looked for; carries its values."""


def first_responses(model: nn.Module, variables: Any, images: jax.Array) -> Responses | None:
    """The first input channel of the first layer with masks; None for a network without such a layer.

    The network is computed only up to that layer.

    Args:
        model: of `create_model`.
        variables: all of its collections.
        images: [1, h, w, c], its input.
    """
    name = ''

    def stop_at_masks(call: Callable, args: tuple, kwargs: dict, context) -> Any:
        nonlocal name
        layer = context.module
        # Subclasses that respond in another way (batch norm before the activation) are passed over.
        if context.method_name == 'respond' and type(layer).respond is PerturbationLayer.respond:
            activation = layer.shared_activation()
        elif context.method_name == '__call__' and isinstance(layer, NoiseLayer):
            activation = nn.relu
        else:
            return call(*args, **kwargs)
        name = '/'.join(layer.path)
        collection = 'params' if layer.trainable_masks else 'noise_masks'
        masks = layer.get_variable(collection, 'masks')
        masks = layer.noise_level * masks[:, :, 0].reshape(*masks.shape[:2], -1)  # [h, w, m]
        x = args[0][0, :, :, 0]
        perturbed = x[..., None] + masks
        raise _Found(x, masks, perturbed if activation is None else activation(perturbed))

    @jax.jit
    def compute(variables, images):
        try:
            with nn.intercept_methods(stop_at_masks):
                model.apply(variables, images, train=False)
        except _Found as found:
            return found.args
        return None

    found = compute(variables, images)
    if found is None:
        return None
    x, masks, responses = (np.asarray(array, np.float32) for array in found)
    return Responses(name, x, np.moveaxis(masks, -1, 0), np.moveaxis(responses, -1, 0))
