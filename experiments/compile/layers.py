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
    return in_child('experiments.compile.layers', target, request, timeout, schedules=True)


def compiled_steps(target: str, num_steps: int) -> str | dict:
    """The text of a training program over a layer with masks of each channel, or {'error': one line}."""
    return in_child('experiments.compile.layers', target, {'target': target, 'steps': num_steps}, 1800)


def _arrays_on(target: str):
    """A function that stands for arrays on the first chip of a target: (2, 3) -> float32 [2, 3], without values."""
    import jax
    import jax.numpy as jnp
    from jax.sharding import SingleDeviceSharding

    from experiments.compile.targets import open_devices

    sharding = SingleDeviceSharding(open_devices(target)[0])
    return lambda *shape: jax.ShapeDtypeStruct(shape, jnp.float32, sharding=sharding)


def lower_layer(target: str, layer: Layer):
    """The layer, lowered for a target with the implementation that is chosen there.

    The masks have the layout that the compiler likes best. In training XLA copies them into it once for all steps of a
    program (`lower_steps`), so that the copy is no part of a layer's time.
    """
    import jax
    from jax.experimental.layout import Format, Layout

    from pnn_jax.ops import perturb_combine

    array = _arrays_on(target)
    shape = layer.batch, layer.size, layer.size, layer.channels
    x, mask_shape = array(*shape), (*shape[1:3], 1 if layer.share_masks else layer.channels, layer.num_masks)
    masks, best = jax.ShapeDtypeStruct(mask_shape, x.dtype), Format(Layout.AUTO, x.sharding)
    weights, y_bar = array(layer.channels, layer.num_masks, layer.outputs), array(*shape, layer.outputs)
    operation = partial(perturb_combine, noise_level=0.5, activation=layer.activation)

    def backward(x, masks, weights, y_bar):
        x_bar, masks_bar, weights_bar = jax.vjp(operation, x, masks, weights)[1](y_bar)
        return (x_bar, masks_bar, weights_bar) if layer.trained_masks else (x_bar, weights_bar)

    if layer.direction == 'forward':
        return jax.jit(operation, in_shardings=(None, best, None)).lower(x, masks, weights)
    return jax.jit(backward, in_shardings=(None, best, None, None)).lower(x, masks, weights, y_bar)


def lower_steps(target: str, layer: Layer, num_steps: int):
    """A program that makes several steps of gradient descent on the layer's weights, lowered for a target."""
    import jax
    import jax.numpy as jnp

    from pnn_jax.ops import perturb_combine

    array = _arrays_on(target)
    shape = layer.size, layer.size, layer.channels

    def steps(weights, masks, batches):
        def loss(weights, x):
            y = perturb_combine(x, masks, weights, noise_level=0.5, activation=layer.activation)
            return jnp.square(y).sum()

        return jax.lax.scan(lambda weights, x: (weights - jax.grad(loss)(weights, x), None), weights, batches)[0]

    weights, masks = array(layer.channels, layer.num_masks, layer.outputs), array(*shape, layer.num_masks)
    return jax.jit(steps).lower(weights, masks, array(num_steps, layer.batch, *shape))


def _measure(request: dict, schedule_folder: str) -> list[dict] | str:
    target = request['target']
    if 'steps' in request:
        return lower_steps(target, Layer('backward', share_masks=False), request['steps']).compile().as_text()
    return [describe(lower_layer(target, Layer(**layer)), target, schedule_folder) for layer in request['layers']]


if __name__ == '__main__':
    answer(_measure)
