"""Effective receptive fields: on which pixels do the last features of a network depend, and how strongly?

A perturbation layer sees one pixel. So only the first layer and the poolings let a unit see further, to a patch of
10x10 pixels. In a network of 3x3 convolutions every layer widens what a unit sees.

python -m experiments.receptive_field [--grid=fashion_mnist] [--data=...]           arms of a grid, as initialised
python -m experiments.receptive_field --workdir=RUN [--workdir=RUN ...] --data=...  trained networks
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.table import Table

from experiments.ablation.registration import Grid, read_grid
from experiments.ablation.run_config import build_config
from experiments.command import Parser, exit_code, make_folder, whole_number, write_file
from experiments.images import add_image_options, load_images
from experiments.plots import save_plot
from experiments.receptive_field.influence import describe, plot_of, receptive_field
from pnn_jax.data.augment import preprocess
from pnn_jax.errors import InputError
from pnn_jax.models.registry import create_model
from pnn_jax.models.variables import init_variables
from pnn_jax.run.load import load_run


def trained_networks(workdirs: Sequence[Path]) -> dict[str, tuple]:
    """Name -> (model, variables, config.data) of every run."""
    names = [workdir.name for workdir in workdirs]
    if repeated := [name for name in names if names.count(name) > 1]:
        raise InputError(f'--workdir: two runs are named {repeated[0]!r}, so the plot could not tell them apart')
    networks = {}
    for workdir in workdirs:
        run = load_run(workdir)
        networks[workdir.name] = run.model, run.variables, run.config.data
    return networks


def fresh_networks(grid: Grid, data, shape: Sequence[int], num_classes: int) -> dict[str, tuple]:
    """Name -> (model, variables, config.data) of the arms of a grid as they are initialised, with their widths.

    Of arms that differ only in how they are trained, or that are exploratory, one is enough: `late` arms are left out.
    """
    networks = {}
    for arm in grid.arms:
        if arm.late or arm.exploratory:
            continue
        config = build_config(grid, arm, shape, num_classes).model
        model = create_model(config, num_classes)
        variables = init_variables(model, tuple(shape), key=jax.random.key(0), mask_key=jax.random.key(1))
        networks[f'{arm.name}, {config.num_filters} filters'] = model, variables, data
    return networks


def main(argv: Sequence[str] | None = None) -> None:
    parser = Parser('experiments.receptive_field', __doc__)
    add_image_options(parser, image_size=32)
    parser.add_argument('--images', type=whole_number(), default=100, help='test images to average over')
    parser.add_argument('--grid', default='fashion_mnist', help='whose arms are compared; a name or a TOML file')
    parser.add_path('--workdir', action='append', default=[], help='a run; may be repeated')
    parser.add_path('--output', default='runs/receptive_field')
    args = parser.parse_args(argv)
    dataset, data = load_images(args)
    shape, num_classes = dataset.test.images.shape[1:], len(dataset.class_names)
    if args.workdir:
        networks = trained_networks(args.workdir)
    else:
        networks = fresh_networks(read_grid(args.grid), data, shape, num_classes)
    make_folder(args.output, '--output')

    fields = {}
    for name, (model, variables, data) in networks.items():
        if not hasattr(model, 'stage_sizes'):
            raise InputError(f'{name}: only residual networks are supported')
        if len(data.mean) != shape[-1]:
            raise InputError(f'{name}: is a network for images with {len(data.mean)} channel(s), not {shape[-1]}')
        order = np.random.default_rng(0).permutation(len(dataset.test.images))  # files may store images class by class
        chosen = dataset.test.images[order[: args.images]]
        images = preprocess(jnp.asarray(chosen), data.mean, data.std, augment='none', dtype=jnp.float32)
        fields[name] = receptive_field(model, variables, images)

    state = 'trained' if args.workdir else 'as initialised'
    title = f'{dataset.name}, {shape[0]}x{shape[1]} pixels, networks {state}'
    table = Table(title=title)
    table.add_column('network')
    for heading in ('pixels with influence', 'pixels with 95% of it'):
        table.add_column(heading, justify='right')
    for name, field in fields.items():
        table.add_row(name, *map(str, describe(field).values()))
    Console(soft_wrap=True).print(table)
    save_plot(plot_of(fields, title), args.output / 'receptive_field.png')
    content = {'title': title, 'networks': {name: describe(field) for name, field in fields.items()}}
    write_file(args.output / 'receptive_field.json', json.dumps(content, indent=1) + '\n')
    print(f'plot: {args.output / "receptive_field.png"}')


if __name__ == '__main__':
    sys.exit(exit_code(main))
