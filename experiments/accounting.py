"""Reported against actual: what each historical way of counting makes of the same predictions.

python -m experiments.accounting --workdir=W [--batch_size=10]   a run, epoch by epoch: table and plot
python -m experiments.accounting --simulate                      the bias by batch size, epochs, correlation
python -m experiments.accounting --published                     the audit's rows with the flooring undone
"""

from __future__ import annotations

import argparse
import json
import pathlib
import sys
import zipfile
from collections.abc import Sequence
from typing import NamedTuple

import matplotlib
import numpy as np
from rich.console import Console
from rich.table import Table

from experiments.command import exit_code
from experiments.published import AUDIT_ROWS
from pnn_jax import accounting
from pnn_jax.errors import InputError

matplotlib.use('Agg')
import matplotlib.pyplot as plt  # noqa: E402  (the backend is chosen before pyplot starts)

SIMULATED_EPOCHS = (1, 10, 50, 150, 500)
SIMULATED_BATCH_SIZES = (5, 10, 16, 20, 64, 100)
SIMULATED_CORRELATIONS = (0, 0.8, 0.9, 0.95, 0.98, 0.99, 1)
# The article's example: exact accuracy of the run whose smoothed accuracy was reported as 90.53
SIMULATED_ACCURACY, SIMULATED_CORRELATION, SIMULATED_BATCH_SIZE = 85.9, 0.95, 10

COLOURS = {
    'exact_accuracy': 'black',
    'smoothed_accuracy': 'tab:red',
    'mean_batch_accuracy': 'tab:blue',
    'floored_batch_accuracy': 'tab:orange',
}


class Outcomes(NamedTuple):
    """Per-example outcomes of a run's epochs on one test set."""

    correct: np.ndarray  # bool [epochs, examples], dataset order
    labels: np.ndarray  # int32 [examples]
    test_digest: str


def read_outcomes(workdir: pathlib.Path) -> Outcomes:
    """Reads `workdir`/outcomes.npz.

    Raises:
      InputError: there is none, it is damaged, or it does not belong to the metrics.jsonl beside it.
    """
    path = workdir / 'outcomes.npz'
    try:
        with np.load(path, allow_pickle=False) as arrays:
            outcomes = Outcomes(arrays['correct'], arrays['labels'], str(arrays['test_digest']))
    except FileNotFoundError:
        raise InputError(f'{path}: not found; a workdir in which at least one epoch was evaluated is needed') from None
    except (OSError, KeyError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise InputError(f'{path}: damaged or not an outcomes file ({error})') from None
    correct, labels = outcomes.correct, outcomes.labels
    if correct.dtype != np.bool_ or correct.ndim != 2 or correct.size == 0 or correct.shape[1:] != labels.shape:
        shapes = f'correct {correct.dtype}{list(correct.shape)}, labels {list(labels.shape)}'
        raise InputError(f'{path}: {shapes}; bool [epochs, examples] and [examples] are needed')
    metrics = workdir / 'metrics.jsonl'
    if metrics.exists():
        lines = metrics.read_text().splitlines()[: len(correct)]
        try:
            logged = [(line['test_correct'], line['test_count']) for line in map(json.loads, lines)]
        except (ValueError, KeyError, TypeError):
            raise InputError(f'{metrics}: cut short or not a log of epochs') from None
        counted = [(int(epoch.sum()), epoch.size) for epoch in correct]
        if logged != counted:
            raise InputError(f'{path}: its counts of correct examples are not those of {metrics.name}')
    return outcomes


def shuffled(correct: np.ndarray, seed: int = 0) -> np.ndarray:
    """The outcomes [epochs, examples] in a fixed random order of the examples.

    Folders of images are read class by class, and the last batches, which are nearly all that the smoothed accuracy
    sees, would be of one class; CIFAR's own order is mixed.
    """
    return correct[:, np.random.default_rng(seed).permutation(correct.shape[1])]


def compare_workdir(workdir: pathlib.Path, batch_size: int, plot: pathlib.Path, console: Console) -> None:
    """Prints the table of a run and draws its curves."""
    outcomes = read_outcomes(workdir)
    correct = outcomes.correct
    if (np.diff(outcomes.labels) >= 0).all() and outcomes.labels[0] != outcomes.labels[-1]:
        console.print('The test images are stored class by class; a fixed random order is used instead.')
        correct = shuffled(correct)
    curves = {name: estimator(correct, batch_size) for name, estimator in accounting.ESTIMATORS.items()}
    table = Table(title=f'Accuracy (%) of {workdir.name}, {correct.shape[1]} test examples, batch size {batch_size}')
    for heading in (
        'epoch',
        'correct',
        *(name.removesuffix('_accuracy').replace('_', ' ') for name in curves),
    ):
        table.add_column(heading, justify='right')
    for epoch, count in enumerate(correct.sum(axis=1)):
        table.add_row(str(epoch + 1), str(count), *(f'{curve[epoch]:.2f}' for curve in curves.values()))
    table.add_section()
    table.add_row('max', str(correct.sum(axis=1).max()), *(f'{curve.max():.2f}' for curve in curves.values()))
    console.print(table)
    low, high = accounting.wilson_interval(int(correct[-1].sum()), correct.shape[1])
    reported, best = curves['smoothed_accuracy'].max(), curves['exact_accuracy'].max()
    console.print(
        f'Reported by smoothing {reported:.2f}%, exactly {best:.2f}% at best: {reported - best:+.2f} points. '
        f'Last epoch: {curves["exact_accuracy"][-1]:.2f}%, 95% CI {100 * low:.2f} to {100 * high:.2f}%.'
    )
    save(plot_curves(curves, batch_size, workdir.name), plot, console)


def plot_curves(curves: dict[str, np.ndarray], batch_size: int, title: str) -> plt.Figure:
    """Accuracy against epoch for every way of counting; dotted: the exact and the smoothed maximum."""
    figure, axes = plt.subplots(figsize=(7, 4.5), layout='constrained')
    epochs = np.arange(1, len(curves['exact_accuracy']) + 1)
    for name, curve in curves.items():
        label = f'{name.removesuffix("_accuracy").replace("_", " ")} (max {curve.max():.2f})'
        axes.plot(epochs, curve, color=COLOURS[name], marker='.', label=label, linewidth=1.5)
        if name in ('exact_accuracy', 'smoothed_accuracy'):
            axes.axhline(curve.max(), color=COLOURS[name], linestyle=':', linewidth=1)
    axes.set(
        xlabel='epoch',
        ylabel='test accuracy (%)',
        title=f'{title}: reported and actual, batch size {batch_size}',
    )
    axes.legend()
    axes.grid(alpha=0.3)
    return figure


def simulate(runs: int, plot: pathlib.Path, console: Console) -> None:
    """Prints and draws what the smoothed maximum reports for a model whose accuracy is known."""
    by_batch_size = {
        f'batch size {batch_size}': _smoothed_reports(batch_size, SIMULATED_CORRELATION, runs)
        for batch_size in SIMULATED_BATCH_SIZES
    }
    by_correlation = {
        f'correlation {correlation}': _smoothed_reports(SIMULATED_BATCH_SIZE, correlation, runs)
        for correlation in SIMULATED_CORRELATIONS
    }
    for title, reports in (
        (f'correlation between epochs {SIMULATED_CORRELATION}', by_batch_size),
        (f'batch size {SIMULATED_BATCH_SIZE}', by_correlation),
    ):
        table = Table(
            title=f'Smoothed accuracy reported for a model of exactly {SIMULATED_ACCURACY}% by epochs run; '
            f'{title}; '
            f'mean (standard deviation) of {runs} runs'
        )
        table.add_column('', no_wrap=True)
        for epochs in SIMULATED_EPOCHS:
            table.add_column(str(epochs), justify='right')
        for name, values in reports.items():
            at = [values[:, epochs - 1] for epochs in SIMULATED_EPOCHS]
            table.add_row(name, *(f'{value.mean():.1f} ({value.std():.1f})' for value in at))
        console.print(table)
    figure, panels = plt.subplots(1, 2, figsize=(11, 4.5), layout='constrained', sharey=True)
    for axes, reports in zip(panels, (by_batch_size, by_correlation), strict=True):
        for colour, (name, values) in zip(
            plt.cm.viridis(np.linspace(0, 0.9, len(reports))), reports.items(), strict=True
        ):
            axes.plot(np.arange(1, values.shape[1] + 1), values.mean(axis=0), color=colour, label=name)
        axes.axhline(SIMULATED_ACCURACY, color='black', linestyle=':', label='exact')
        axes.set(xscale='log', xlabel='epochs run')
        axes.legend(fontsize='small')
        axes.grid(alpha=0.3)
    panels[0].set(ylabel='reported accuracy (%)', title=f'correlation between epochs {SIMULATED_CORRELATION}')
    panels[1].set(title=f'batch size {SIMULATED_BATCH_SIZE}')
    save(figure, plot, console)


def _smoothed_reports(batch_size: int, correlation: float, runs: int) -> np.ndarray:
    reports = accounting.simulate_reports(
        SIMULATED_ACCURACY,
        batch_size,
        max(SIMULATED_EPOCHS),
        correlation,
        runs=runs,
        examples=40 * batch_size,
    )
    return reports['smoothed_accuracy']


def undo_published(console: Console) -> None:
    """Prints the audit's rows with the truncation of integer tensors undone."""
    table = Table(title='Audit: published accuracy (%) and, inferred, what exact counting would have given')
    for heading in ('row', 'what', 'batch size', 'published', 'inferred'):
        table.add_column(heading, justify='left' if heading == 'what' else 'right')
    for row in AUDIT_ROWS:
        exact = accounting.undo_flooring(row.accuracy, row.batch_size)
        table.add_row(str(row.number), row.what, str(row.batch_size), f'{row.accuracy:.1f}', f'{exact:.1f}')
    console.print(table)
    console.print(
        'An inference, not a measurement: it assumes that PyTorch 0.4 truncated as 1.0.0 was seen to do, '
        'and that the images of a batch are independent.'
    )


def save(figure: plt.Figure, path: pathlib.Path, console: Console) -> None:
    """Writes the figure and says where."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=120)
    except OSError as error:
        raise InputError(f'{path}: cannot be written ({error.strerror})') from None
    except ValueError as error:
        raise InputError(f'{path}: {error}') from None
    plt.close(figure)
    console.print(f'Plot: {path}')


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog='python -m experiments.accounting', description=__doc__.splitlines()[0])
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument('--workdir', type=pathlib.Path, help='a run whose epochs were evaluated')
    what.add_argument('--simulate', action='store_true', help='bias of the smoothed maximum')
    what.add_argument('--published', action='store_true', help="the audit's rows with the flooring undone")
    parser.add_argument('--batch_size', type=int, default=10, help='evaluation batch of the historical programs')
    parser.add_argument('--runs', type=int, default=300, help='simulated runs for each setting')
    parser.add_argument('--plot', type=pathlib.Path, help='image file; default: accounting.png in the workdir or here')
    args = parser.parse_args(argv)
    if args.runs < 1:
        raise InputError(f'--runs: {args.runs}; at least 1 is needed')
    console = Console()
    if args.workdir:
        compare_workdir(args.workdir, args.batch_size, args.plot or args.workdir / 'accounting.png', console)
    elif args.simulate:
        simulate(args.runs, args.plot or pathlib.Path('accounting.png'), console)
    else:
        undo_published(console)


if __name__ == '__main__':
    sys.exit(exit_code(main))
