"""A run counted in every historical way, epoch by epoch: numbers, table, plot, and the sentence that sums them up."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from rich.table import Table

from experiments.counting.orders import random_order
from experiments.plots import plt
from pnn_jax import accounting
from pnn_jax.stats import wilson_interval

Curves = dict[str, np.ndarray]  # name of the estimator -> percent [epochs]

COLOURS = {
    'exact_accuracy': 'black',
    'smoothed_accuracy': 'tab:red',
    'mean_batch_accuracy': 'tab:blue',
    'floored_batch_accuracy': 'tab:orange',
}


class Expected(NamedTuple):
    """What a way of counting reports for the same predictions, over random orders of the test images.

    Attributes:
        mean: of the maximum over epochs, in percent.
        deviation: its standard deviation over orders.
        bias: mean minus the exact maximum, in points.
    """

    mean: float
    deviation: float
    bias: float


def recount(correct: np.ndarray, batch_size: int) -> Curves:
    """Every estimator on the outcomes [epochs, examples], with evaluation batches of `batch_size`."""
    return {name: estimator(correct, batch_size) for name, estimator in accounting.ESTIMATORS.items()}


def expected_reports(correct: np.ndarray, batch_size: int, orders: int) -> dict[str, Expected]:
    """Name of the estimator -> what it is expected to report, from `orders` random orders of the images."""
    seeds = range(1, orders + 1)  # not 0, which is the order that a table shows when it has to choose one
    reported = {name: np.empty(orders) for name in accounting.ESTIMATORS}
    for index, seed in enumerate(seeds):
        for name, curve in recount(correct[:, random_order(correct.shape[1], seed)], batch_size).items():
            reported[name][index] = curve.max()
    exact = float(accounting.exact_accuracy(correct).max())
    return {
        name: Expected(float(values.mean()), float(values.std()), float(values.mean()) - exact)
        for name, values in reported.items()
    }


def label_of(name: str) -> str:
    return name.removesuffix('_accuracy').replace('_', ' ')


def table_of(curves: Curves, correct: np.ndarray, expected: dict[str, Expected], title: str) -> Table:
    """A line per epoch, the maxima, and what is expected over random orders."""
    table = Table(title=title)
    for heading in ('epoch', 'correct', *map(label_of, curves)):
        table.add_column(heading, justify='right')
    counts = correct.sum(axis=1)
    for epoch, count in enumerate(counts):
        table.add_row(str(epoch + 1), str(count), *(f'{curve[epoch]:.2f}' for curve in curves.values()))
    table.add_section()
    table.add_row('max', str(counts.max()), *(f'{curve.max():.2f}' for curve in curves.values()))
    table.add_row('expected max', '', *(f'{expected[name].mean:.2f}' for name in curves))
    table.add_row('its sd', '', *(f'{expected[name].deviation:.2f}' for name in curves))
    table.add_row('expected bias', '', *(f'{expected[name].bias:+.2f}' for name in curves))
    return table


def summary_of(curves: Curves, correct: np.ndarray) -> str:
    """What smoothing reports, against exact counts."""
    low, high = wilson_interval(int(correct[-1].sum()), correct.shape[1])
    reported, best = curves['smoothed_accuracy'].max(), curves['exact_accuracy'].max()
    return (
        f'Reported by smoothing {reported:.2f}%, exactly {best:.2f}% at best: {reported - best:+.2f} points. '
        f'Last epoch: {curves["exact_accuracy"][-1]:.2f}%, 95% CI {100 * low:.2f} to {100 * high:.2f}%.'
    )


def plot_of(curves: Curves, batch_size: int, title: str, split: str = 'test') -> plt.Figure:
    """Accuracy against epoch for every way of counting. Dotted lines: the exact and the smoothed maximum."""
    figure, axes = plt.subplots(figsize=(8, 4.8), layout='constrained')
    epochs = np.arange(1, len(curves['exact_accuracy']) + 1)
    for name, curve in curves.items():
        label = f'{label_of(name)}: best epoch {curve.max():.2f}%'
        front = name == 'exact_accuracy'
        axes.plot(
            epochs, curve, color=COLOURS[name], label=label, linewidth=2 if front else 1.2, zorder=3 if front else 2
        )
        if name in ('exact_accuracy', 'smoothed_accuracy'):
            axes.axhline(curve.max(), color=COLOURS[name], linestyle=':', linewidth=1)
    gap = curves['smoothed_accuracy'].max() - curves['exact_accuracy'].max()
    axes.set(
        xlabel='epoch',
        ylabel=f'{split} accuracy (%)',
        title=f'{title}\nThe smoothed maximum is {abs(gap):.1f} points {"above" if gap >= 0 else "below"} the exact '
        f'one, for the same predictions (batch size {batch_size})',
    )
    axes.title.set_fontsize('medium')
    axes.legend(loc='lower right')
    axes.grid(alpha=0.3)
    return figure
