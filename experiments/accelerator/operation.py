"""Is the perturbation operation right on this device? Errors of float32 and bfloat16 against float64 on the host's CPU.

python -m experiments.accelerator.operation

Compared are the output and all gradients: for every activation, and for own and shared masks with 1, 2 and 4 outputs a
channel. An error is relative to the largest value of its array. Set JAX_DEFAULT_MATMUL_PRECISION=highest.

Exit codes: 0 all errors are small; 1 some are not.
"""

from __future__ import annotations

import itertools
import os
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import jax
import jax.numpy as jnp
import numpy as np

from experiments.command import Parser, exit_code
from pnn_jax.ops import ACTIVATIONS, perturb_combine, perturb_combine_reference

NAMES = ('y', 'x_bar', 'masks_bar', 'weights_bar', 'slope_bar')
NEED_A_SLOPE = ('lrelu', 'prelu', 'rrelu')

# Allowed errors; on a CPU the largest ones are 5e-7 and 4e-3.
TOLERANCES = {'float32': 5e-6, 'bfloat16': 1e-2}
SMALL, LARGE = (16, 8, 8, 32), (16, 32, 32, 128)  # b, h, w, channels; the second is that of the first layers of row 7
NUM_MASKS = {SMALL: 16, LARGE: 64}

# (shape, activation, share_masks, outputs)
CASES = [
    *((SMALL, activation, False, 2) for activation in ACTIVATIONS),
    *itertools.product([SMALL], ['prelu'], (False, True), (1, 2, 4)),
    *itertools.product([LARGE], ['relu'], (False, True), (1,)),
]


def main(argv: Sequence[str] | None = None) -> int:
    Parser('experiments.accelerator.operation', __doc__).parse_args(argv)
    print(f'device: {jax.devices()[0].device_kind}, jax {jax.__version__}')
    worst = dict.fromkeys(TOLERANCES, 0.0)
    cases = list(itertools.product(TOLERANCES, CASES))
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # compilation takes most of the time
        found = pool.map(lambda case: errors_on_device(case[0], *case[1]), cases)
    for (dtype, (shape, activation, share_masks, outputs)), errors in zip(cases, found, strict=True):
        worst[dtype] = max(worst[dtype], *errors.values())
        for name, error in errors.items():
            if not error <= TOLERANCES[dtype]:  # also where it is NaN
                kind = 'shared' if share_masks else 'own'
                case = f'{dtype} {shape} {activation}, {kind} masks, {outputs} outputs'
                print(f'WRONG {case}: error of {name} is {error:.1e}')
                worst[dtype] = float('inf')
    for dtype, error in worst.items():
        print(f'{dtype}: largest error {error:.1e}, allowed {TOLERANCES[dtype]:.0e}')
    return 0 if max(worst.values()) < float('inf') else 1


def errors_on_device(
    dtype: str, shape: tuple[int, int, int, int], activation: str, share_masks: bool, outputs: int
) -> dict[str, float]:
    """Largest error of each result in relation to the largest value of that result: name -> error."""
    rng = np.random.default_rng(0)
    array = lambda *shape: jnp.asarray(rng.normal(size=shape), dtype)
    _, height, width, channels = shape
    num_masks = NUM_MASKS[shape]
    x, masks = array(*shape), array(height, width, 1 if share_masks else channels, num_masks)
    weights, y_bar = array(channels, num_masks, outputs), array(*shape, outputs)
    slope = jnp.asarray(0.25, dtype) if activation in NEED_A_SLOPE else None
    arguments = x, masks, weights, slope
    ours = jax.device_get(jax.jit(results(perturb_combine, activation))(*arguments, y_bar))
    with jax.enable_x64(True), jax.default_device(jax.local_devices(backend='cpu')[0]):
        wide = jax.tree.map(lambda a: jnp.asarray(np.asarray(a, np.float64)), jax.device_get((arguments, y_bar)))
        exact = jax.device_get(jax.jit(results(perturb_combine_reference, activation))(*wide[0], wide[1]))
    pairs = zip(NAMES, jax.tree.leaves(ours), jax.tree.leaves(exact), strict=False)  # the last one is the slope's
    return {name: float(np.abs(a.astype(np.float64) - e).max() / np.abs(e).max()) for name, a, e in pairs}


def results(operation, activation: str):
    """A function of (x, masks, weights, slope, y_bar) that returns y and all gradients."""

    def run(x, masks, weights, slope, y_bar):
        apply = lambda *arguments: operation(*arguments[:3], slope=arguments[3], noise_level=0.5, activation=activation)
        y, pullback = jax.vjp(apply, x, masks, weights, slope)
        return y, *pullback(y_bar)

    return run


if __name__ == '__main__':
    sys.exit(exit_code(main))
