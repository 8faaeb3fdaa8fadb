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

Images are scaled to unit standard deviation and not centred, because these layers stand behind a ReLU, where inputs
are not negative. The convolution repeats the border, so that its output depends on nothing but the image.

python -m experiments.single_input [--data=FILE.npz] [--output=DIR] [--workdir=RUN]
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Sequence

import numpy as np
from rich.console import Console

from experiments.command import Parser, exit_code, make_folder, whole_number, write_file
from experiments.images import add_image_options, load_images
from experiments.plots import save_plot
from experiments.single_input.convolutions import random_kernel, train_convolution, trained_kernel
from experiments.single_input.imitation import imitate, plot_of, table_of
from experiments.single_input.layer import Layer
from pnn_jax.data import Dataset
from pnn_jax.errors import InputError

COUNTS = '1,2,5,10,100,1000'


def parse(argv: Sequence[str] | None):
    parser = Parser('experiments.single_input', __doc__)
    add_image_options(parser, image_size=16)
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
    args.counts = parse_counts(args.counts)
    return args


def parse_counts(text: str) -> list[int]:
    """'1,2,5' -> [1, 2, 5]."""
    counts = [int(count) for count in text.split(',') if count.isdecimal() and int(count) > 0]
    if len(counts) != text.count(',') + 1 or len(set(counts)) < len(counts):
        raise InputError(f'--counts={text}: must be different whole numbers above 0, with commas between')
    return counts


def scaled(dataset: Dataset, held_out: int) -> tuple[np.ndarray, np.ndarray]:
    """Training images and the first `held_out` test images as float32, each channel of unit standard deviation."""
    train, test = (split.astype(np.float32) for split in (dataset.train.images, dataset.test.images[:held_out]))
    deviation = train.std((0, 1, 2))
    return train / deviation, test / deviation


def main(argv: Sequence[str] | None = None) -> None:
    args = parse(argv)
    dataset, data = load_images(args)
    height, width, channels = dataset.train.images.shape[1:]
    images, held_out = scaled(dataset, args.held_out)
    if max(args.counts) > len(images):
        raise InputError(f'--counts: {max(args.counts)} is more than the {len(images)} training images')
    num_masks = args.num_masks or math.ceil(1.5 * height * width / channels)
    make_folder(args.output, '--output')

    workdir = args.workdir or args.output / 'trained_convolution'
    if not args.workdir:
        train_convolution(workdir, data, dataset, args.outputs)
    kernels = {
        'random': random_kernel(channels, args.outputs),
        'trained': trained_kernel(workdir, dataset, args.outputs),
    }
    # In random order, because files and folders may store images class by class.
    images = images[np.random.default_rng(2).permutation(len(images))[: max(args.counts)]]
    masks = np.random.default_rng(0).uniform(-1, 1, (height, width, channels, num_masks)).astype(np.float32)
    results = [
        result
        for name, kernel in kernels.items()
        for result in imitate(name, kernel, images, held_out, Layer(masks, args.level), args.counts, args.steps)
    ]

    title = (
        f'{dataset.name}, {height}x{width}x{channels}, {num_masks} masks: {num_masks * channels + 1} weights for '
        f'{height * width} pixels'
    )
    Console(soft_wrap=True).print(table_of(results, title))
    content = {'images': title, 'level': args.level, 'results': [result._asdict() for result in results]}
    write_file(args.output / 'single_input.json', json.dumps(content, indent=1) + '\n')
    save_plot(plot_of(results, title), args.output / 'single_input.png')
    print(f'plot: {args.output / "single_input.png"}')


if __name__ == '__main__':
    sys.exit(exit_code(main))
