"""The 3x3 convolutions that are imitated: a random one and a trained one."""

from __future__ import annotations

import math
from pathlib import Path

import jax
import numpy as np

from configs import default
from pnn_jax.data import Dataset
from pnn_jax.errors import InputError
from pnn_jax.run.load import load_run
from pnn_jax.train import train_and_evaluate


def convolve(images: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    """3x3 convolution that repeats the border: images [n, h, w, c], kernel [3, 3, c, o] -> [n, h, w, o]."""
    padded = np.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)), mode='edge')
    dims = ('NHWC', 'HWIO', 'NHWC')
    return np.asarray(jax.lax.conv_general_dilated(padded, kernel, (1, 1), 'VALID', dimension_numbers=dims))


def random_kernel(channels: int, outputs: int) -> np.ndarray:
    """A 3x3 convolution [3, 3, channels, outputs] as it is initialised: N(0, 2 / (9 * outputs))."""
    deviation = math.sqrt(2 / (9 * outputs))
    return np.random.default_rng(1).normal(0, deviation, (3, 3, channels, outputs)).astype(np.float32)


def trained_kernel(workdir: Path, number: int, channels: int, outputs: int) -> np.ndarray:
    """`outputs` filters of a 3x3 convolution of the run in `workdir`, [3, 3, channels, outputs].

    Args:
        number: of the convolution; 0 is the first layer. Only small networks have others that are found.

    Raises:
        InputError: that run has no such convolution, or it has other channels or too few filters.
    """
    params = load_run(workdir).variables['params']
    name = f'layer{number + 1}' if 'layer1' in params else 'stem'
    try:
        if number and name == 'stem':
            raise KeyError(name)
        kernel = np.asarray((params[name].get('layer') or params[name])['conv']['kernel'])
    except KeyError:
        raise InputError(f'{workdir}: convolution {number + 1} of its network is not found') from None
    if kernel.shape[:3] != (3, 3, channels) or kernel.shape[-1] < outputs:
        needed = f'[3, 3, {channels}, {outputs} or more]'
        raise InputError(f'{workdir}: its convolution {number + 1} is {list(kernel.shape)}; {needed} is needed')
    return kernel[..., :outputs]


def train_convolution(workdir: Path, data, dataset: Dataset, num_filters: int) -> None:
    """Trains LeNet with 3x3 convolutions for 20 epochs in `workdir`, or resumes it there."""
    config = default.get_config()
    config.update_from_flattened_dict(
        {
            'model.name': 'lenet',
            'model.layer': 'conv',
            'model.stem_layer': 'conv',
            'model.num_filters': num_filters,
            'num_epochs': 20,
            'optimizer.name': 'adam',
            'log.tensorboard': False,
            'log.plots': False,
        }
    )
    config.data = data
    config.data.augment = 'none'
    train_and_evaluate(config, str(workdir), dataset=dataset)
