"""Reported against actual: what each historical way of counting makes of the same predictions.

python -m experiments.counting RUN [--batch_size=10]   a run, epoch by epoch: table and plot
python -m experiments.counting --simulate              the bias by batch size, epochs and correlation
python -m experiments.counting --published             the audit's rows with the integer division undone

RUN is the workdir of a run, or its record (a .json file). --order says in which order the test images are evaluated:
stored    as the data set stores them; the default, except for images that are stored class by class
random    a random order, from --order_seed; the default for these
class     class by class
X.npz     as the original data set has them: the array all_test_labels of this file holds its labels
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from experiments.command import Parser, exit_code, whole_number
from experiments.counting import curves, published, simulate
from experiments.counting.orders import RANDOM, STORED, find_order, is_sorted_by_class
from experiments.counting.outcomes import read_outcomes
from experiments.plots import check_plot, save_plot
from pnn_jax.errors import InputError

EXPECTED_ORDERS = 100  # random orders of which the mean and the deviation are shown


def count_run(args, plot: Path, console: Console) -> None:
    """Prints the table of a run, and plots its curves."""
    outcomes = read_outcomes(args.run)
    order_name = args.order or STORED
    if not args.order and outcomes.labels is not None and is_sorted_by_class(outcomes.labels):
        console.print('The test images are stored class by class, so a fixed random order is used instead.')
        order_name = RANDOM
    count = outcomes.correct.shape[1]
    correct = outcomes.correct[:, find_order(order_name, outcomes.labels, count, args.order_seed)]
    counted = curves.recount(correct, args.batch_size)
    expected = curves.expected_reports(correct, args.batch_size, EXPECTED_ORDERS)
    title = f'Accuracy (%) of {outcomes.name}, {count} {outcomes.split} examples, batch size '
    title += f'{args.batch_size}, order: {order_name}'
    console.print(curves.table_of(counted, correct, expected, title))
    console.print(f'Expected: over {EXPECTED_ORDERS} random orders of the test images, for the same predictions.')
    console.print(curves.summary_of(counted, correct))
    save_plot(curves.plot_of(counted, args.batch_size, outcomes.name, outcomes.split), plot)


def count_simulated(runs: int, plot: Path, console: Console) -> None:
    """Prints and plots the bias of the smoothed maximum."""
    simulated = simulate.simulate(runs)
    for title, reports in simulated.items():
        console.print(simulate.table_of(title, reports, runs))
    save_plot(simulate.plot_of(simulated), plot)


def main(argv: Sequence[str] | None = None) -> None:
    parser = Parser('experiments.counting', __doc__)
    parser.add_path('run', nargs='?', help='workdir of a run that has evaluated at least one epoch, or a record')
    parser.add_argument('--simulate', action='store_true', help='bias of the smoothed maximum')
    parser.add_argument('--published', action='store_true', help="the audit's rows, integer division undone")
    parser.add_argument('--batch_size', type=whole_number(), default=10, help='of the evaluation that is imitated')
    parser.add_argument('--order', default='', help='of the test images: stored, random, class or a file; see above')
    parser.add_argument('--order_seed', type=whole_number(0), default=0, help='of the random order')
    parser.add_argument('--runs', type=whole_number(), default=300, help='simulated runs for each setting')
    parser.add_path('--plot', help='image file; default: counting.png in the workdir, or here')
    args = parser.parse_args(argv)
    if (args.run is not None) + args.simulate + args.published != 1:
        raise InputError('name one of: a run, --simulate, --published')
    console = Console()
    if args.published:
        console.print(published.table())
        console.print(published.NOTE)
        return
    folder = args.run if args.run and args.run.is_dir() else Path.cwd()
    plot = args.plot or folder / 'counting.png'
    if args.plot:
        check_plot(plot, '--plot')
    if args.run:
        count_run(args, plot, console)
    else:
        count_simulated(args.runs, plot, console)
    console.print(f'plot: {plot}', soft_wrap=True)


if __name__ == '__main__':
    sys.exit(exit_code(main))
