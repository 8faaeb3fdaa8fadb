"""Effective receptive fields: which pixels can a network's last features depend on, and how strongly do they?

For each network, the gradient of one central unit of the last feature map (summed over channels) with respect to the
image, in absolute value, summed over colours and averaged over test images (Luo et al., Understanding the Effective
Receptive Field, 2016). A perturbation layer sees one pixel, so that only the first layer and pooling let a unit see
further; every 3x3 convolution widens what a ResNet sees.

python -m experiments.receptive_field [--data=FILE.npz] [--output=DIR]            networks as they are initialised
python -m experiments.receptive_field --workdir=RUN [--workdir=RUN ...] --data=... trained ones
"""

from __future__ import annotations

import argparse
import importlib
import json
import pathlib
import sys
from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
from rich.console import Console
from rich.table import Table

from configs import default
from experiments.command import exit_code
from pnn_jax.data import load_dataset
from pnn_jax.data.augment import preprocess
from pnn_jax.errors import InputError
from pnn_jax.models.registry import create_model
from pnn_jax.models.variables import init_variables
from pnn_jax.run.load import load_run

matplotlib.use('Agg')
import matplotlib.pyplot as plt

CONFIGS = ('baseline', 'no_noise', 'shared_masks', 'noise_everywhere', 'original', 'original_stem3')
LAST_BLOCK = 'stage4_block2'
BATCH_SIZE = 20


def receptive_field(model: nn.Module, variables, images: np.ndarray) -> np.ndarray:
    """Mean absolute gradient of the central last feature with respect to images [n, h, w, c]: [h, w], summing to 1."""

    def central_feature(images):
        is_last = lambda module, _: module.name == LAST_BLOCK
        _, kept = model.apply(variables, images, train=False, capture_intermediates=is_last, mutable='intermediates')
        features = kept['intermediates'][LAST_BLOCK]['__call__'][0]
        # Images do not influence each other in evaluation, so that one gradient of the sum is all of theirs.
        return features[:, features.shape[1] // 2, features.shape[2] // 2].sum()

    gradient = jax.jit(jax.grad(central_feature))
    field = np.zeros(images.shape[1:3])
    for start in range(0, len(images), BATCH_SIZE):
        field += np.abs(np.asarray(gradient(images[start : start + BATCH_SIZE]))).sum((0, 3))
    return field / max(field.sum(), np.finfo(float).tiny)


def describe(field: np.ndarray) -> dict[str, float]:
    """Pixels that have any influence, and the least number of pixels that have 95% of it."""
    shares = np.sort(field.ravel())[::-1]
    return {'pixels': int((field > 0).sum()), 'pixels_95': int(np.searchsorted(np.cumsum(shares), 0.95) + 1)}


def plot_fields(fields: dict[str, np.ndarray], title: str) -> plt.Figure:
    columns = min(3, len(fields))
    rows = -(-len(fields) // columns)
    figure, panels = plt.subplots(
        rows, columns, figsize=(3 * columns, 3.2 * rows + 0.4), layout='constrained', squeeze=False
    )
    for axes in panels.flat:
        axes.set_axis_off()
    for axes, (name, field) in zip(panels.flat, fields.items(), strict=False):
        numbers = describe(field)
        # The square root shows weak influence too.
        axes.imshow(np.sqrt(field), cmap='magma', vmin=0)
        axes.set_title(f'{name}\n{numbers["pixels"]} pixels, 95% in {numbers["pixels_95"]}', fontsize='small')
    figure.suptitle(title)
    return figure


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog='python -m experiments.receptive_field', description=__doc__.splitlines()[0])
    parser.add_argument('--data', type=pathlib.Path, help=".npz as config.data.source='npz' reads; default: digits")
    parser.add_argument('--image_size', type=int, default=32, help='images are resized to this; 0 keeps their size')
    parser.add_argument('--images', type=int, default=100, help='test images to average over')
    parser.add_argument('--num_filters', type=int, default=16, help='width of networks that are not trained')
    parser.add_argument('--num_masks', type=int, default=8, help='masks of networks that are not trained')
    parser.add_argument('--workdir', type=pathlib.Path, action='append', default=[], help='a run; may be repeated')
    parser.add_argument('--output', type=pathlib.Path, default=pathlib.Path('runs/receptive_field'))
    args = parser.parse_args(argv)
    for name in ('images', 'num_filters', 'num_masks'):
        if getattr(args, name) < 1:
            raise InputError(f'--{name}={getattr(args, name)}: must be at least 1')
    data = default.get_config().data
    if args.image_size < 0:
        raise InputError(f'--image_size={args.image_size}: must be at least 0')
    data.source, data.image_size = 'digits', args.image_size
    if args.data:
        data.source, data.path = 'npz', str(args.data)
    dataset = load_dataset(data)
    shape, num_classes = dataset.test.images.shape[1:], len(dataset.class_names)

    networks = {}
    for workdir in args.workdir:
        run = load_run(workdir)
        networks[workdir.name] = run.model, run.variables, run.config.data
    if not args.workdir:
        data.mean, data.std = (0.5,) * shape[-1], (0.25,) * shape[-1]
        for name in CONFIGS:
            config = importlib.import_module(f'configs.{name}').get_config().model
            config.num_filters = args.num_filters
            config.num_masks = min(config.num_masks, args.num_masks)
            model = create_model(config, num_classes)
            variables = init_variables(model, shape, key=jax.random.key(0), mask_key=jax.random.key(0))
            networks[name] = model, variables, data

    fields = {}
    for name, (model, variables, data) in networks.items():
        if not hasattr(model, 'stage_sizes'):
            raise InputError(f'{name}: only residual networks have the last block whose features are looked at')
        chosen = dataset.test.images[: args.images]
        images = preprocess(jnp.asarray(chosen), data.mean, data.std, augment='none', dtype=jnp.float32)
        fields[name] = receptive_field(model, variables, images)

    title = f'{dataset.name}, {shape[0]}x{shape[1]}: influence on the central last feature'
    table = Table(title=title)
    table.add_column('network')
    for heading in ('pixels with influence', 'pixels with 95% of it'):
        table.add_column(heading, justify='right')
    for name, field in fields.items():
        table.add_row(name, *map(str, describe(field).values()))
    console = Console(soft_wrap=True)
    console.print(table)
    figure = plot_fields(fields, title)
    save(figure, args.output / 'receptive_field.png', console)
    content = {'title': title, 'networks': {name: describe(field) for name, field in fields.items()}}
    (args.output / 'receptive_field.json').write_text(json.dumps(content, indent=1) + '\n')


if __name__ == '__main__':
    sys.exit(exit_code(main))
