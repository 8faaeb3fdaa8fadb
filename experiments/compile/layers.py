"""The perturbation operation alone, compiled for accelerators that are not there.

python -m experiments.compile.layers is the child process of `measure_layers`.
"""

import dataclasses
from functools import partial

from experiments.compile.measure import answer, describe, in_child

# Operations of the vector unit for a perturbed value and output: add the noise, activate, multiply, add to the sum.
OPERATIONS_PER_VALUE = 4


@dataclasses.dataclass(frozen=True)
class Layer:
    """One call of `perturb_combine`.

    Attributes:
        direction: 'forward' or 'backward'.
        batch, size, channels: x is [batch, size, size, channels].
        num_masks, share_masks, outputs, activation: as in `perturb_combine`; outputs is k.
        trained_masks: 'backward' computes the gradient of the masks too.
    """

    direction: str
    batch: int = 16
    size: int = 32
    channels: int = 128
    num_masks: int = 64
    outputs: int = 1
    share_masks: bool = True
    trained_masks: bool = False
    activation: str = 'relu'

    @property
    def operations(self) -> int:
        """Operations of the vector unit that the forward pass needs at least."""
        return OPERATIONS_PER_VALUE * self.batch * self.size**2 * self.channels * self.num_masks * self.outputs


def measure_layers(target: str, layers: list[Layer], timeout: float = 1800) -> list[dict] | dict:
    """What `measure.describe` says of each layer, or {'error': one line} where the compiler fails."""
    request = {'target': target, 'layers': [dataclasses.asdict(layer) for layer in layers]}
    return in_child('experiments.compile.layers', target, request, timeout)


def lower_layer(target: str, layer: Layer):
    """The layer, lowered for a target with the implementation that is chosen there."""
    import jax
    import jax.numpy as jnp
    from jax.sharding import SingleDeviceSharding

    from experiments.compile.targets import open_devices
    from pnn_jax.ops import perturb_combine

    sharding = SingleDeviceSharding(open_devices(target)[0])
    array = lambda *shape: jax.ShapeDtypeStruct(shape, jnp.float32, sharding=sharding)
    shape = layer.batch, layer.size, layer.size, layer.channels
    x, masks = array(*shape), array(*shape[1:3], 1 if layer.share_masks else layer.channels, layer.num_masks)
    weights, y_bar = array(layer.channels, layer.num_masks, layer.outputs), array(*shape, layer.outputs)
    operation = partial(perturb_combine, noise_level=0.5, activation=layer.activation)

    def backward(x, masks, weights, y_bar):
        x_bar, masks_bar, weights_bar = jax.vjp(operation, x, masks, weights)[1](y_bar)
        return (x_bar, masks_bar, weights_bar) if layer.trained_masks else (x_bar, weights_bar)

    if layer.direction == 'forward':
        return jax.jit(operation).lower(x, masks, weights)
    return jax.jit(backward).lower(x, masks, weights, y_bar)


def _measure(request: dict, schedules: str) -> list[dict]:
    target = request['target']
    return [describe(lower_layer(target, Layer(**layer)), target, schedules) for layer in request['layers']]


if __name__ == '__main__':
    answer(_measure)
