"""The perturbation operation alone: how much of its time is unavoidable on this machine?"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator

import numpy as np

from experiments.benchmark.cases import STEPS_PER_CALL
from pnn_jax.runtime import CPU_XLA_FLAGS

NUM_MASKS = 64


def roofline(options, report: Callable[[dict], None]) -> None:
    """Measures the operation in the shapes of rows 6 (own masks) and 7 (shared masks)."""
    os.environ.setdefault('XLA_FLAGS', CPU_XLA_FLAGS)
    limits = machine_limits()
    width = options.num_filters or 128
    for size, channels in ((32, width), (16, 2 * width), (8, 4 * width), (4, 8 * width)):
        for outputs, share_masks in ((1, False), (1, True), (2, True)):
            shape = options.batch_size, size, size, channels
            for result in measure_operation(shape, outputs, share_masks, limits):
                report(result)


def measure_operation(
    shape: tuple[int, int, int, int], outputs: int, share_masks: bool, limits: tuple[float, float]
) -> Iterator[dict]:
    """The forward pass and the gradients on x [b, h, w, c]: their time, and the share of it that is unavoidable."""
    import jax
    import jax.numpy as jnp

    from pnn_jax.ops import perturb_combine

    def forward(x, masks, weights, y_bar):
        return perturb_combine(x, masks, weights, noise_level=0.5, activation='relu')

    def gradients(x, masks, weights, y_bar):
        apply = lambda x, weights: forward(x, masks, weights, None)
        return jax.vjp(apply, x, weights)[1](y_bar)

    rng = np.random.default_rng(0)
    array = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)
    _, height, width, channels = shape
    masks = array(height, width, 1 if share_masks else channels, NUM_MASKS)
    arguments = array(*shape), masks, array(channels, NUM_MASKS, outputs), array(*shape, outputs)
    costs = operation_costs(shape, NUM_MASKS, outputs, share_masks=share_masks)
    operations_per_second, bytes_per_second = limits
    for function in (forward, gradients):
        operations, size_in_bytes = costs[function.__name__]
        seconds = fastest(jax.jit(function), *arguments)
        least = max(operations / operations_per_second, size_in_bytes / bytes_per_second)
        yield {
            'roofline': function.__name__,
            'shape': shape,
            'num_masks': NUM_MASKS,
            'outputs': outputs,
            'share_masks': share_masks,
            'milliseconds': 1e3 * seconds,
            'operations': operations,
            'bytes': size_in_bytes,
            'share': least / seconds,
            'machine': f'{jax.local_devices()[0].device_kind}, {os.cpu_count()} cores, '
            f'{operations_per_second / 1e9:.0f} Gop/s, {bytes_per_second / 1e9:.0f} GB/s',
        }


def operation_costs(
    shape: tuple[int, int, int, int], num_masks: int, outputs: int, *, share_masks: bool
) -> dict[str, tuple[int, int]]:
    """The smallest number of operations and bytes that the perturbation operation needs on x [b, h, w, g] in float32.

    Forward, per perturbed value: an addition and a comparison, and per output a multiplication and an addition.
    Gradients, per perturbed value: addition and comparison again; for x a selection and an addition, and per output 2
    operations to sum the cotangents; for the weights 2 operations per output. Each array is read or written once.

    Returns:
        pass -> (operations, bytes), for 'forward' and 'gradients' (of x and weights, without the forward pass).
    """
    batch, height, width, channels = shape
    values = batch * height * width * channels
    masks = height * width * (1 if share_masks else channels) * num_masks
    weights = channels * num_masks * outputs
    return {
        'forward': (values * num_masks * (2 + 2 * outputs), 4 * (values + masks + weights + values * outputs)),
        'gradients': (
            values * num_masks * (4 + 4 * outputs),
            4 * (2 * values + masks + 2 * weights + values * outputs),
        ),
    }


def machine_limits() -> tuple[float, float]:
    """(operations, bytes) per second that XLA reaches on this machine, with a matrix product and with x + 1."""
    import jax
    import jax.numpy as jnp

    size, values = (2048, 2**26) if jax.default_backend() == 'cpu' else (8192, 2**29)
    matrix, vectors = jax.random.normal(jax.random.key(0), (size, size)), [jnp.ones(values)]
    # In float32, not TF32: the operation has no matrix products, and so cannot use the units for these.
    product, increment = jax.jit(lambda a: jnp.matmul(a, a, precision='highest')), jax.jit(jnp.add, donate_argnums=0)

    def in_place():  # into new memory it would measure how fast the system provides that
        vectors[0] = increment(vectors[0], 1)
        return vectors[0]

    return 2 * size**3 / fastest(product, matrix), 2 * 4 * values / fastest(in_place)


def fastest(function: Callable, *arguments, repeats: int = 10) -> float:
    """Seconds of the fastest call. The first one is not counted, because it compiles.

    On accelerators a time is that of many calls that are queued: a launch takes as long as a small one runs.
    """
    import jax

    queued = 1 if jax.default_backend() == 'cpu' else STEPS_PER_CALL
    jax.block_until_ready(function(*arguments))
    seconds = []
    for _ in range(repeats):
        began = time.perf_counter()
        for _ in range(queued):
            result = function(*arguments)
        jax.block_until_ready(result)
        seconds.append((time.perf_counter() - began) / queued)
    return min(seconds)
