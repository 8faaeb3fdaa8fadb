"""A run counted in every historical way, epoch by epoch: numbers, table, plot, and the sentence that sums them up."""

from __future__ import annotations

import numpy as np
from rich.table import Table

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


def recount(correct: np.ndarray, batch_size: int) -> Curves:
    """Every estimator on the outcomes [epochs, examples], with evaluation batches of `batch_size`."""
    return {name: estimator(correct, batch_size) for name, estimator in accounting.ESTIMATORS.items()}


def label_of(name: str) -> str:
    return name.removesuffix('_accuracy').replace('_', ' ')


def table_of(curves: Curves, correct: np.ndarray, title: str) -> Table:
    """A line per epoch, and the maxima."""
    table = Table(title=title)
    for heading in ('epoch', 'correct', *map(label_of, curves)):
        table.add_column(heading, justify='right')
    counts = correct.sum(axis=1)
    for epoch, count in enumerate(counts):
        table.add_row(str(epoch + 1), str(count), *(f'{curve[epoch]:.2f}' for curve in curves.values()))
    table.add_section()
    table.add_row('max', str(counts.max()), *(f'{curve.max():.2f}' for curve in curves.values()))
    return table


def summary_of(curves: Curves, correct: np.ndarray) -> str:
    """What smoothing reports, against exact counts."""
    low, high = wilson_interval(int(correct[-1].sum()), correct.shape[1])
    reported, best = curves['smoothed_accuracy'].max(), curves['exact_accuracy'].max()
    return (
        f'Reported by smoothing {reported:.2f}%, exactly {best:.2f}% at best: {reported - best:+.2f} points. '
        f'Last epoch: {curves["exact_accuracy"][-1]:.2f}%, 95% CI {100 * low:.2f} to {100 * high:.2f}%.'
    )


def plot_of(curves: Curves, batch_size: int, title: str) -> plt.Figure:
    """Accuracy against epoch for every way of counting. Dotted lines: the exact and the smoothed maximum."""
    figure, axes = plt.subplots(figsize=(7, 4.5), layout='constrained')
    epochs = np.arange(1, len(curves['exact_accuracy']) + 1)
    for name, curve in curves.items():
        label = f'{label_of(name)} (max {curve.max():.2f})'
        axes.plot(epochs, curve, color=COLOURS[name], marker='.', label=label, linewidth=1.5)
        if name in ('exact_accuracy', 'smoothed_accuracy'):
            axes.axhline(curve.max(), color=COLOURS[name], linestyle=':', linewidth=1)
    axes.set(xlabel='epoch', ylabel='test accuracy (%)', title=f'{title}: reported and actual, batch size {batch_size}')
    axes.legend()
    axes.grid(alpha=0.3)
    return figure
