"""How well each kind of layer imitates a convolution on n images: the measurements, their table and their plot."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from rich.table import Table

from experiments.plots import plt
from experiments.single_input.convolutions import convolve
from experiments.single_input.layer import Layer, descend, relative_residual, solve

AXIS_FLOOR = 1e-3  # of the plot: smaller residuals are drawn here
LAYERS = {
    'masks': 'fixed masks, weights solved for',
    'trained_masks': 'masks and weights by gradient descent',
    'no_noise': '1x1 convolution without noise',
}


class Result(NamedTuple):
    """Relative residuals of one layer imitating one convolution on n images."""

    convolution: str
    layer: str
    images: int
    fitted: float
    held_out: float


def imitate(
    convolution: str,
    kernel: np.ndarray,
    images: np.ndarray,
    held_out: np.ndarray,
    layer: Layer,
    counts: Sequence[int],
    steps: int,
) -> list[Result]:
    """Residuals of every kind of layer that imitates one convolution.

    Args:
        convolution: name of the convolution.
        kernel: [3, 3, c, o].
        images: to imitate it on: the first `count` of them, for each of `counts`.
        held_out: images that no layer is fitted to.
        layer: with fixed masks.
        steps: of gradient descent, for the trained masks.
    """
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


def table_of(results: Sequence[Result], title: str) -> Table:
    """Residuals on the fitted images, and in parentheses on held-out ones."""
    counts = list(dict.fromkeys(result.images for result in results))
    table = Table(title=f'Relative residual on the fitted images (on held-out images); {title}')
    for heading in ('convolution', 'layer', *map(str, counts)):
        table.add_column(heading)
    for convolution in dict.fromkeys(result.convolution for result in results):
        for layer, what in LAYERS.items():
            cells = [
                f'{result.fitted:.2g} ({result.held_out:.2g})'
                for result in results
                if (result.convolution, result.layer) == (convolution, layer)
            ]
            table.add_row(convolution, what, *cells)
    return table


def plot_of(results: Sequence[Result], title: str) -> plt.Figure:
    """Relative error against the number of images: solid on these images, dashed on other images."""
    convolutions = list(dict.fromkeys(result.convolution for result in results))
    figure, panels = plt.subplots(
        1, len(convolutions), figsize=(6 * len(convolutions), 5.4), layout='constrained', sharey=True, squeeze=False
    )
    for axes, convolution in zip(panels[0], convolutions, strict=True):
        for colour, (name, label) in zip(('tab:blue', 'tab:red', 'tab:grey'), LAYERS.items(), strict=True):
            rows = [row for row in results if row.convolution == convolution and row.layer == name]
            counts = [row.images for row in rows]
            # A logarithmic axis has no place for a residual of 0; exact imitations are drawn at its lower end.
            fitted = [max(row.fitted, AXIS_FLOOR) for row in rows]
            axes.plot(counts, fitted, color=colour, marker='o', label=label)
            axes.plot(
                counts, [row.held_out for row in rows], color=colour, marker='o', fillstyle='none', linestyle='--'
            )
        axes.axhline(1, color='black', linewidth=0.8, linestyle=':')
        axes.text(max(counts), 1.1, 'no better than a constant', ha='right', fontsize='small')
        axes.text(min(counts), AXIS_FLOOR / 1.3, 'exact', va='top', fontsize='small')
        axes.set(xscale='log', yscale='log', title=f'Target: a {convolution} 3x3 convolution')
        axes.set(xlabel='number of images that one set of weights must fit', ylim=(AXIS_FLOOR / 2, 30))
        axes.grid(alpha=0.3)
    panels[0, 0].set_ylabel('relative error (0.1: a tenth of the spread of the target)')
    styles = [plt.Line2D([], [], color='black', linestyle=style) for style in ('-', '--')]
    panels[0, -1].legend(styles, ['on the images that are fitted', 'on other images'], loc='lower right')
    panels[0, 0].legend(loc='lower right', fontsize='small')
    figure.suptitle(f'Can a layer of noise masks do what a 3x3 convolution does?\n{title}')
    return figure
