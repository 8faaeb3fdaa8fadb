"""The weak step of the theory: noise masks can imitate a convolution on one image, but on how many at once?

Sections 3.3 and 3.4 of the paper argue that, for a given input, a perturbation layer can give the output of a 3x3
convolution. This command solves for the weights that do it. With c channels and m masks per channel, each output
channel has c * m + 1 free weights, and n images of h * w pixels put n * h * w equations on them.

If c * m >= h * w, one image can be matched exactly, whatever the masks are. This is the paper's argument, and it is
right. But it says nothing about a second image, because its equations have other coefficients and the same weights.
Training the masks adds h * w * c * m free values. But the masks of one pixel affect this pixel alone: they can learn
what is usual there, and no number of them can know the neighbouring pixels.

The relative residual is ||y - t|| / ||t - mean of each channel of t||. It is 0 for a perfect imitation, and 1 for the
best constant. It is shown on the images that were solved for and on held-out ones, for a random and a trained 3x3
convolution, beside that of a 1x1 convolution without noise.

With --num_filters=14 --num_masks=1 the layer is one of the networks that are trained: its input is what a first 3x3
convolution with that many filters and a ReLU makes of the images, and there are only 15 weights for each output.

Images are scaled to unit standard deviation and not centred, because these layers stand behind a ReLU, where inputs
are not negative. The convolution repeats the border, so that its output depends on nothing but the image.

python -m experiments.single_input [--data=...] [--output=DIR] [--workdir=RUN]
python -m experiments.single_input --num_filters=14 --num_masks=1 --image_size=0 --pad=32 --data=FASHION_MNIST
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from rich.console import Console

from experiments.command import Parser, exit_code, make_folder, whole_number, write_file
from experiments.images import add_image_options, load_images
from experiments.plots import save_plot
from experiments.single_input.convolutions import convolve, random_kernel, train_convolution, trained_kernel
from experiments.single_input.imitation import imitate, plot_of, table_of
from experiments.single_input.layer import Layer
from pnn_jax.data import Dataset
from pnn_jax.errors import InputError

COUNTS = '1,2,5,10,100,1000'


def parse(argv: Sequence[str] | None):
    parser = Parser('experiments.single_input', __doc__)
    add_image_options(parser, image_size=16)
    parser.add_argument('--num_filters', type=whole_number(0), default=0, help='of a first layer; 0: no first layer')
    parser.add_argument('--num_masks', type=whole_number(), help='default: one and a half times what one image needs')
    parser.add_argument('--level', type=float, default=0.5, help='noise level')
    parser.add_argument('--outputs', type=whole_number(), default=8, help='filters of the convolution')
    parser.add_argument('--counts', default=COUNTS, help='numbers of images, with commas between')
    parser.add_argument('--held_out', type=whole_number(), default=200, help='test images that nothing is fitted to')
    parser.add_argument('--steps', type=whole_number(), default=1000, help='of gradient descent on the masks')
    parser.add_path('--workdir', help='run with the trained convolution; default: train one')
    parser.add_path('--output', default='runs/single_input')
    args = parser.parse_args(argv)
    if not math.isfinite(args.level):
        raise InputError(f'--level={args.level}: must be finite')
    if 0 < args.num_filters < args.outputs and not args.workdir:
        raise InputError(f'--outputs={args.outputs}: must be at most --num_filters={args.num_filters}')
    args.counts = parse_counts(args.counts)
    return args


def parse_counts(text: str) -> list[int]:
    """'1,2,5' -> [1, 2, 5]."""
    counts = [int(count) for count in text.split(',') if count.isdecimal() and int(count) > 0]
    if len(counts) != text.count(',') + 1 or len(set(counts)) < len(counts):
        raise InputError(f'--counts={text}: must be different whole numbers above 0, with commas between')
    return counts


def scaled(fitted: np.ndarray, held_out: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Maps [n, h, w, c] as float32, scaled alike, not centred: each channel of `fitted` has unit standard deviation."""
    deviations = np.maximum(fitted.astype(np.float32).std((0, 1, 2)), np.finfo(np.float32).tiny)
    return fitted / deviations, held_out / deviations


def chosen_images(dataset: Dataset, args) -> tuple[np.ndarray, np.ndarray]:
    """The training images that are fitted, and the test images that nothing is fitted to, scaled alike.

    Both are drawn at random, because files and folders may store images class by class.
    """
    if max(args.counts) > len(dataset.train.images):
        raise InputError(f'--counts: {max(args.counts)} is more than the {len(dataset.train.images)} training images')
    some = lambda images, count, seed: images[np.random.default_rng(seed).permutation(len(images))[:count]]
    return scaled(some(dataset.train.images, max(args.counts), 2), some(dataset.test.images, args.held_out, 3))


def targets_of(workdir: Path, dataset: Dataset, args) -> dict[str, tuple[np.ndarray | None, np.ndarray]]:
    """Name of the convolution -> the kernel of the first layer before it, if there is one, and its own kernel."""
    channels, width = dataset.train.images.shape[-1], args.num_filters
    if not width:
        kernel = trained_kernel(workdir, 0, channels, args.outputs)
        return {'random': (None, random_kernel(channels, args.outputs)), 'trained': (None, kernel)}
    first, second = trained_kernel(workdir, 0, channels, width), trained_kernel(workdir, 1, width, args.outputs)
    return {
        'random': (random_kernel(channels, width), random_kernel(width, args.outputs)),
        'trained': (first, second),
    }


def main(argv: Sequence[str] | None = None) -> None:
    args = parse(argv)
    dataset, data = load_images(args)
    height, width, channels = dataset.train.images.shape[1:]
    images, held_out = chosen_images(dataset, args)
    inputs = args.num_filters or channels
    num_masks = args.num_masks or math.ceil(1.5 * height * width / inputs)
    make_folder(args.output, '--output')

    workdir = args.workdir or args.output / 'trained_convolution'
    if not args.workdir:
        train_convolution(workdir, data, dataset, max(args.outputs, args.num_filters))
    masks = np.random.default_rng(0).uniform(-1, 1, (height, width, inputs, num_masks)).astype(np.float32)
    results = []
    for name, (first, kernel) in targets_of(workdir, dataset, args).items():
        fitted, others = images, held_out
        if first is not None:
            fitted, others = scaled(*(np.maximum(convolve(maps, first), 0) for maps in (images, held_out)))
        results += imitate(name, kernel, fitted, others, Layer(masks, args.level), args.counts, args.steps)

    title = (
        f'{dataset.name}, {height}x{width}x{inputs}, {num_masks} mask{"s" if num_masks > 1 else ""} per channel: '
        f'{num_masks * inputs + 1} weights per output for {height * width} pixels per image'
    )
    Console(soft_wrap=True).print(table_of(results, title))
    content = {'images': title, 'level': args.level, 'results': [result._asdict() for result in results]}
    write_file(args.output / 'single_input.json', json.dumps(content, indent=1) + '\n')
    save_plot(plot_of(results, title), args.output / 'single_input.png')
    print(f'plot: {args.output / "single_input.png"}')


if __name__ == '__main__':
    sys.exit(exit_code(main))
