"""The theory's weak step: noise masks can imitate a convolution on one image, but on how many at once?

Sections 3.3 and 3.4 of the paper argue that for a given input a perturbation layer can give the output of a 3x3
convolution. Here the weights that do it are solved for. The layer with c input channels and m masks a channel is, at
pixel p of image i,

    y[i, p, :] = sum over c, m of weights[c, m, :] * relu(x[i, p, c] + level * masks[p, c, m]) + bias

so each output channel has c * m + 1 free weights, and n images of h * w pixels put n * h * w equations on them. With
c * m >= h * w a single image can be matched exactly, whatever the masks are: this is the paper's argument, and it is
right. It says nothing about a second image, whose equations have other coefficients and share the weights. Gradient
descent on the masks too adds h * w * c * m values, but those of one pixel see nothing but that pixel: they can learn
what is usual there, and no number of them can tell what the neighbours are.

The relative residual is ||y - t|| / ||t - mean of each channel of t||: 0 is a perfect imitation, 1 is what a constant
would give. It is shown on the images that were solved for and on held-out ones, beside that of a 1x1 convolution
without noise, for a random 3x3 convolution and for a trained one. Images are scaled to unit standard deviation and not
centred, because behind a ReLU, where these layers stand, inputs are not negative; the convolution repeats the border,
so that its output depends on nothing but the images.

python -m experiments.single_input [--data=FILE.npz] [--output=DIR] [--workdir=RUN]
"""

from __future__ import annotations

import argparse
import json
import math
import pathlib
import sys
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
import optax
from rich.console import Console
from rich.table import Table
from scipy import linalg

from configs import default
from experiments.command import exit_code
from pnn_jax.data import Dataset, load_dataset
from pnn_jax.errors import InputError
from pnn_jax.run.load import load_run
from pnn_jax.train import train_and_evaluate

matplotlib.use('Agg')
import matplotlib.pyplot as plt

AXIS_FLOOR = 1e-3  # of the plot: residuals below are drawn here
COUNTS = (1, 2, 5, 10, 100, 1000)
LAYERS = {
    'masks': 'fixed masks, weights solved for',
    'trained_masks': 'masks and weights by gradient descent',
    'no_noise': '1x1 convolution without noise',
}


class Layer(NamedTuple):
    """A perturbation layer and its noise level; without masks it is a 1x1 convolution."""

    masks: np.ndarray | None  # [h, w, c, m]
    level: float


class Result(NamedTuple):
    """Relative residuals of one layer imitating one convolution on n images."""

    convolution: str
    layer: str
    images: int
    fitted: float
    held_out: float


def convolve(images: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    """3x3 convolution that repeats the border: images [n, h, w, c], kernel [3, 3, c, o] -> [n, h, w, o]."""
    padded = np.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)), mode='edge')
    dims = ('NHWC', 'HWIO', 'NHWC')
    return np.asarray(jax.lax.conv_general_dilated(padded, kernel, (1, 1), 'VALID', dimension_numbers=dims))


def features(images: np.ndarray, layer: Layer) -> np.ndarray:
    """What the weights of `layer` multiply, bias included: float64 [n * h * w, c * m + 1] (c + 1 without masks)."""
    if layer.masks is None:
        responses = images
    else:
        responses = np.maximum(images[..., None] + layer.level * layer.masks, 0)
    flat = responses.reshape(math.prod(images.shape[:3]), -1)
    return np.concatenate([flat, np.ones((len(flat), 1))], axis=1, dtype=np.float64)


def solve(
    images: np.ndarray, targets: np.ndarray, layer: Layer, cutoff: float | None = None, images_at_once: int = 32
) -> np.ndarray:
    """The weights [c * m + 1, o] with the least squared error, those of least norm where several have it.

    The equations of all images are never held together: the triangular factor of those before takes part in the next
    factorisation as if it were further rows. Directions of less than `cutoff` times the largest are left out.
    """
    factor = None
    for start in range(0, len(images), images_at_once):
        chunk = slice(start, start + images_at_once)
        rows = np.hstack([features(images[chunk], layer), targets[chunk].reshape(-1, targets.shape[-1])])
        rows = rows if factor is None else np.vstack([factor, rows])
        factor = linalg.qr(rows, mode='r', overwrite_a=True, check_finite=False)[0][: rows.shape[1]]
    unknowns = factor.shape[1] - targets.shape[-1]
    return linalg.lstsq(factor[:, :unknowns], factor[:, unknowns:], cond=cutoff)[0]


def relative_residual(images: np.ndarray, targets: np.ndarray, layer: Layer, weights: np.ndarray) -> float:
    """||layer(images) - targets|| / ||targets - mean of each channel||, over all images together."""
    error = 0.0
    for image, target in zip(images, targets, strict=True):
        prediction = features(image[None], layer) @ weights
        error += np.sum((prediction - target.reshape(prediction.shape)) ** 2)
    return float(np.sqrt(error / np.sum((targets - targets.mean((0, 1, 2))) ** 2)))


def descend(
    images: np.ndarray,
    targets: np.ndarray,
    layer: Layer,
    weights: np.ndarray,
    steps: int,
    batch_size: int = 16,
    learning_rate: float = 0.03,
) -> tuple[Layer, np.ndarray]:
    """Adam on masks and weights together, beginning with the given ones; returns the layer and weights reached."""
    spread = float(np.mean((targets - targets.mean((0, 1, 2))) ** 2))
    optimizer = optax.adam(optax.warmup_cosine_decay_schedule(0.0, learning_rate, steps // 10, steps))
    values = {'masks': jnp.asarray(layer.masks, jnp.float32), 'weights': jnp.asarray(weights, jnp.float32)}

    def loss(values, x, target):
        responses = jax.nn.relu(x[..., None] + layer.level * values['masks'][None])
        prediction = (
            responses.reshape(*x.shape[:3], -1) @ values['weights'][:-1] + values['weights'][-1][None, None, None]
        )
        return jnp.mean(jnp.square(prediction - target)) / spread

    @jax.jit
    def step(values, state, x, target):
        gradients = jax.grad(loss)(values, x, target)
        updates, state = optimizer.update(gradients, state)
        return optax.apply_updates(values, updates), state

    state = optimizer.init(values)
    rng = np.random.default_rng(0)
    for _ in range(steps):
        batch = rng.choice(len(images), min(batch_size, len(images)), replace=False)
        values, state = step(values, state, images[batch], targets[batch])
    trained = layer._replace(masks=np.asarray(values['masks']))
    return trained, np.asarray(values['weights'], np.float64)


def random_kernel(channels: int, outputs: int) -> np.ndarray:
    """A 3x3 convolution [3, 3, channels, outputs] as it is initialised: N(0, 2 / (9 * outputs))."""
    deviation = math.sqrt(2 / (9 * outputs))
    return np.random.default_rng(1).normal(0, deviation, (3, 3, channels, outputs)).astype(np.float32)


def trained_kernel(workdir: pathlib.Path, dataset: Dataset, outputs: int) -> np.ndarray:
    """`outputs` filters of the first 3x3 convolution of the run in `workdir`, [3, 3, c, outputs].

    Raises:
        InputError: that run has no such convolution, or too few filters.
    """
    params = load_run(workdir).variables['params']
    try:
        first = params['layer1'] if 'layer1' in params else params['stem']
        kernel = np.asarray((first.get('layer') or first)['conv']['kernel'])
        if kernel.shape[:2] != (3, 3) or kernel.shape[-1] < outputs:
            raise InputError(
                f'{workdir}: its first convolution is {kernel.shape}; [3, 3, c, {outputs} or more] is needed'
            )
    except KeyError:
        raise InputError(f'{workdir}: its network does not begin with a convolution') from None
    return kernel[..., :outputs]


def train_convolution(workdir: pathlib.Path, data, dataset: Dataset, outputs: int) -> None:
    """Trains LeNet with 3x3 convolutions for a few epochs in `workdir`, or goes on with it."""
    config = default.get_config()
    config.update_from_flattened_dict(
        {
            'model.name': 'lenet',
            'model.layer': 'conv',
            'model.stem_layer': 'conv',
            'model.num_filters': outputs,
            'num_epochs': 20,
            'optimizer.name': 'adam',
            'log.tensorboard': False,
        }
    )
    config.data = data
    config.data.augment = 'none'
    train_and_evaluate(config, str(workdir), dataset=dataset)


def imitate(
    convolution: str,
    kernel: np.ndarray,
    images: np.ndarray,
    held_out: np.ndarray,
    layer: Layer,
    counts: Sequence[int],
    steps: int,
) -> list[Result]:
    """Residuals of every layer kind imitating one convolution on the first 1, 2, 5, ... images."""
    results = []
    held_out_targets = convolve(held_out, kernel)
    for count in counts:
        fitted = images[:count]
        targets = convolve(fitted, kernel)
        plain = Layer(None, 0.0)
        solutions = {
            'no_noise': (plain, solve(fitted, targets, plain)),
            'masks': (layer, solve(fitted, targets, layer)),
            'trained_masks': descend(fitted, targets, layer, solve(fitted, targets, layer, cutoff=1e-3), steps),
        }
        for name, (kind, solution) in solutions.items():
            residuals = [
                relative_residual(x, y, kind, solution) for x, y in ((fitted, targets), (held_out, held_out_targets))
            ]
            results.append(Result(convolution, name, count, *residuals))
    return results


def plot_residuals(results: Sequence[Result], title: str) -> plt.Figure:
    """Relative residual against the number of images: solid on these images, dashed on held-out ones."""
    convolutions = list(dict.fromkeys(result.convolution for result in results))
    figure, panels = plt.subplots(
        1, len(convolutions), figsize=(6 * len(convolutions), 4.8), layout='constrained', sharey=True, squeeze=False
    )
    for axes, convolution in zip(panels[0], convolutions, strict=True):
        for colour, (name, label) in zip(('tab:blue', 'tab:red', 'tab:grey'), LAYERS.items(), strict=True):
            rows = [row for row in results if row.convolution == convolution and row.layer == name]
            counts = [row.images for row in rows]
            # A logarithmic axis has no place for the exact imitations: they are drawn at its lower end.
            fitted = [max(row.fitted, AXIS_FLOOR) for row in rows]
            axes.plot(counts, fitted, color=colour, marker='o', label=label)
            axes.plot(counts, [row.held_out for row in rows], color=colour, marker='o', linestyle='--')
        axes.axhline(1, color='black', linewidth=0.8, linestyle=':')
        axes.set(xscale='log', yscale='log', xlabel='images to imitate it on', title=f'{convolution} 3x3 convolution')
        axes.set(ylim=(AXIS_FLOOR / 1.5, 30))
        axes.grid(alpha=0.3)
    panels[0, 0].set_ylabel('relative residual (dashed: on held-out images)')
    panels[0, 0].legend(loc='lower right', fontsize='small')
    figure.suptitle(title)
    return figure


def scaled(dataset: Dataset, held_out: int) -> tuple[np.ndarray, np.ndarray]:
    """Training images and the first `held_out` test images as float32, each channel of unit standard deviation."""
    train, test = (split.astype(np.float32) for split in (dataset.train.images, dataset.test.images[:held_out]))
    deviation = train.std((0, 1, 2))
    return train / deviation, test / deviation


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog='python -m experiments.single_input', description=__doc__.splitlines()[0])
    parser.add_argument('--data', type=pathlib.Path, help=".npz as config.data.source='npz' reads; default: digits")
    parser.add_argument('--image_size', type=int, default=16, help='images are resized to this; 0 keeps their size')
    parser.add_argument('--num_masks', type=int, help='default: as many as one image needs, and a half more')
    parser.add_argument('--level', type=float, default=0.5, help='noise level')
    parser.add_argument('--outputs', type=int, default=8, help='filters of the convolution')
    parser.add_argument('--counts', default=','.join(map(str, COUNTS)), help='numbers of images, with commas')
    parser.add_argument('--held_out', type=int, default=200, help='test images for the residual on unseen ones')
    parser.add_argument('--steps', type=int, default=1000, help='of gradient descent on the masks')
    parser.add_argument('--workdir', type=pathlib.Path, help='run with the trained convolution; default: train one')
    parser.add_argument('--output', type=pathlib.Path, default=pathlib.Path('runs/single_input'))
    args = parser.parse_args(argv)
    for name in ('outputs', 'held_out', 'steps'):
        if getattr(args, name) < 1:
            raise InputError(f'--{name}={getattr(args, name)}: must be at least 1')
    if args.image_size < 0 or not math.isfinite(args.level):
        raise InputError(f'--image_size={args.image_size}, --level={args.level}: must be at least 0, and finite')
    data = default.get_config().data
    data.source, data.image_size = 'digits', args.image_size
    if args.data:
        data.source, data.path = 'npz', str(args.data)
    dataset = load_dataset(data)
    height, width, channels = dataset.train.images.shape[1:]
    data.mean, data.std = (0.5,) * channels, (0.25,) * channels
    images, held_out = scaled(dataset, args.held_out)
    counts = [int(count) for count in args.counts.split(',') if count.isdecimal() and int(count) > 0]
    if len(counts) != args.counts.count(',') + 1:
        raise InputError(f'--counts={args.counts}: must be whole numbers above 0, with commas between')
    if max(counts) > len(images):
        raise InputError(f'--counts: {max(counts)} is more than the {len(images)} training images')
    num_masks = args.num_masks or math.ceil(1.5 * height * width / channels)
    if num_masks < 1:
        raise InputError(f'--num_masks={num_masks}: must be at least 1')

    console = Console(soft_wrap=True)
    workdir = args.workdir or args.output / 'trained_convolution'
    if not args.workdir:
        train_convolution(workdir, data, dataset, args.outputs)
    kernels = {
        'random': random_kernel(channels, args.outputs),
        'trained': trained_kernel(workdir, dataset, args.outputs),
    }
    # The order is mixed, because files and folders may store images class by class.
    images = images[np.random.default_rng(2).permutation(len(images))[: max(counts)]]
    masks = np.random.default_rng(0).uniform(-1, 1, (height, width, channels, num_masks)).astype(np.float32)
    results = [
        result
        for name, kernel in kernels.items()
        for result in imitate(name, kernel, images, held_out, Layer(masks, args.level), counts, args.steps)
    ]

    title = (
        f'{dataset.name}, {height}x{width}x{channels}, {num_masks} masks: {num_masks * channels + 1} weights for '
        f'{height * width} pixels'
    )
    table = Table(title=f'Relative residual on the images fitted (on held-out ones); {title}')
    for heading in ('convolution', 'layer', *map(str, counts)):
        table.add_column(heading)
    for convolution in kernels:
        for layer, what in LAYERS.items():
            cells = [
                f'{result.fitted:.2g} ({result.held_out:.2g})'
                for result in results
                if (result.convolution, result.layer) == (convolution, layer)
            ]
            table.add_row(convolution, what, *cells)
    console.print(table)
    content = {'images': title, 'level': args.level, 'results': [result._asdict() for result in results]}
    args.output.mkdir(parents=True, exist_ok=True)
    (args.output / 'single_input.json').write_text(json.dumps(content, indent=1) + '\n')
    save(plot_residuals(results, title), args.output / 'single_input.png', console)


if __name__ == '__main__':
    sys.exit(exit_code(main))
