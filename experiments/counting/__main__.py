"""Reported against actual: what each historical way of counting makes of the same predictions.

python -m experiments.counting WORKDIR [--batch_size=10]   a run, epoch by epoch: table and plot
python -m experiments.counting --simulate                  the bias by batch size, epochs and correlation
python -m experiments.counting --published                 the audit's rows with the integer division undone
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from experiments.command import Parser, exit_code, whole_number
from experiments.counting import curves, published, simulate
from experiments.counting.outcomes import is_sorted_by_class, read_outcomes, shuffled
from experiments.plots import check_plot, save_plot
from pnn_jax.errors import InputError


def count_run(workdir: Path, batch_size: int, plot: Path, console: Console) -> None:
    """Prints the table of a run, and plots its curves."""
    outcomes = read_outcomes(workdir)
    correct = outcomes.correct
    if is_sorted_by_class(outcomes.labels):
        console.print('The test images are stored class by class, so a fixed random order is used instead.')
        correct = shuffled(correct)
    counted = curves.recount(correct, batch_size)
    title = f'Accuracy (%) of {workdir.name}, {correct.shape[1]} test examples, batch size {batch_size}'
    console.print(curves.table_of(counted, correct, title))
    console.print(curves.summary_of(counted, correct))
    save_plot(curves.plot_of(counted, batch_size, workdir.name), plot)


def count_simulated(runs: int, plot: Path, console: Console) -> None:
    """Prints and plots the bias of the smoothed maximum."""
    simulated = simulate.simulate(runs)
    for title, reports in simulated.items():
        console.print(simulate.table_of(title, reports, runs))
    save_plot(simulate.plot_of(simulated), plot)


def main(argv: Sequence[str] | None = None) -> None:
    parser = Parser('experiments.counting', __doc__)
    parser.add_path('workdir', nargs='?', help='a run that has evaluated at least one epoch')
    parser.add_argument('--simulate', action='store_true', help='bias of the smoothed maximum')
    parser.add_argument('--published', action='store_true', help="the audit's rows, integer division undone")
    parser.add_argument('--batch_size', type=whole_number(), default=10, help='of the evaluation that is imitated')
    parser.add_argument('--runs', type=whole_number(), default=300, help='simulated runs for each setting')
    parser.add_path('--plot', help='image file; default: counting.png, in the workdir if there is one')
    args = parser.parse_args(argv)
    if (args.workdir is not None) + args.simulate + args.published != 1:
        raise InputError('name one of: a workdir, --simulate, --published')
    console = Console()
    if args.published:
        console.print(published.table())
        console.print(published.NOTE)
        return
    plot = args.plot or (args.workdir or Path.cwd()) / 'counting.png'
    if args.plot:
        check_plot(plot, '--plot')
    if args.workdir:
        count_run(args.workdir, args.batch_size, plot, console)
    else:
        count_simulated(args.runs, plot, console)
    console.print(f'plot: {plot}', soft_wrap=True)


if __name__ == '__main__':
    sys.exit(exit_code(main))
