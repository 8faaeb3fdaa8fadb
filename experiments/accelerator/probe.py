"""Names the accelerator: prints PLATFORM:KIND in its last line, the platform as JAX_PLATFORMS names it.

On an accelerator it first imports what the stages need, and computes a convolution, so that a driver or library that is
missing is known before the first stage.
"""

import importlib

import jax
import jax.numpy as jnp

NEEDED = ('configs.default', 'experiments.benchmark.__main__', 'experiments.verify.__main__')


def main() -> None:
    device = jax.devices()[0]
    if device.platform != 'cpu':
        for module in NEEDED:
            importlib.import_module(module)
    images, kernel = jnp.ones((1, 4, 8, 8)), jnp.ones((4, 4, 3, 3))
    jax.block_until_ready(jax.lax.conv(images, kernel, (1, 1), 'SAME'))
    names = {'gpu': 'rocm' if 'rocm' in device.client.platform_version.lower() else 'cuda'}
    print(f'{names.get(device.platform, device.platform)}:{device.device_kind}')


if __name__ == '__main__':
    main()
