"""How far is the smoothed maximum off? Simulated runs of a model whose accuracy is known and never changes.

The model is the audit's example: exactly 85.9% accurate, reported as 90.53%.
"""

from __future__ import annotations

import numpy as np
from rich.table import Table

from experiments.plots import plt
from pnn_jax import accounting

ACCURACY, CORRELATION, BATCH_SIZE = 85.9, 0.95, 10
EPOCHS = (1, 10, 50, 150, 500)
BATCH_SIZES = (5, 10, 16, 20, 64, 100)
CORRELATIONS = (0, 0.8, 0.9, 0.95, 0.98, 0.99, 1)

Reports = dict[str, np.ndarray]  # setting -> percent [runs, epochs], reported if the run stopped after that epoch


def simulate(runs: int) -> dict[str, Reports]:
    """The smoothed maximum over batch sizes, and over correlations of the outcomes between epochs."""
    return {
        f'correlation between epochs {CORRELATION}': {
            f'batch size {batch_size}': _smoothed(batch_size, CORRELATION, runs) for batch_size in BATCH_SIZES
        },
        f'batch size {BATCH_SIZE}': {
            f'correlation {correlation}': _smoothed(BATCH_SIZE, correlation, runs) for correlation in CORRELATIONS
        },
    }


def _smoothed(batch_size: int, correlation: float, runs: int) -> np.ndarray:
    reports = accounting.simulate_reports(
        ACCURACY, batch_size, max(EPOCHS), correlation, runs=runs, examples=40 * batch_size
    )
    return reports['smoothed_accuracy']


def table_of(title: str, reports: Reports, runs: int) -> Table:
    """Mean and standard deviation over runs, by number of epochs."""
    table = Table(
        title=f'Smoothed accuracy reported for a model of exactly {ACCURACY}% by number of epochs; {title}; '
        f'mean (standard deviation) of {runs} runs'
    )
    table.add_column('', no_wrap=True)
    for epochs in EPOCHS:
        table.add_column(str(epochs), justify='right')
    for name, values in reports.items():
        at = [values[:, epochs - 1] for epochs in EPOCHS]
        table.add_row(name, *(f'{value.mean():.1f} ({value.std():.1f})' for value in at))
    return table


def plot_of(simulated: dict[str, Reports]) -> plt.Figure:
    figure, panels = plt.subplots(1, 2, figsize=(11, 4.5), layout='constrained', sharey=True)
    for axes, (title, reports) in zip(panels, simulated.items(), strict=True):
        colours = plt.cm.viridis(np.linspace(0, 0.9, len(reports)))
        for colour, (name, values) in zip(colours, reports.items(), strict=True):
            axes.plot(np.arange(1, values.shape[1] + 1), values.mean(axis=0), color=colour, label=name)
        axes.axhline(ACCURACY, color='black', linestyle=':', label='exact')
        axes.set(xscale='log', xlabel='number of epochs', title=title)
        axes.legend(fontsize='small')
        axes.grid(alpha=0.3)
    panels[0].set(ylabel='reported accuracy (%)')
    return figure
