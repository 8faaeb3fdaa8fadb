"""Chooses the learning rate of every arm of a rate search, by the accuracy on validation examples alone.

python -m experiments.ablation --grid=fashion_mnist_rates --data_path=DIR --jobs=2    trains the search
python -m experiments.ablation.rates --grid=fashion_mnist_rates                      prints what it chooses

The rates go into the grid that names this one in `rates_from`, by hand, and are committed with it before its first run.
`--check=fashion_mnist` compares: it fails where a rate of that grid is not the one that was chosen.

The rule: of the runs of an arm, the one with the highest validation accuracy after its last epoch; of equal ones the
smaller rate. A run that collapsed has a low accuracy and is not treated apart. Where the chosen rate is the smallest or
the largest that was tried, the search is not finished: add the next rate to the grid, and train again.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import NamedTuple

from rich.console import Console
from rich.table import Table

from experiments.ablation.registration import Grid, read_grid
from experiments.ablation.results import Results, read_results
from experiments.command import Parser, exit_code
from pnn_jax.errors import InputError


class Choice(NamedTuple):
    """The learning rate of one arm.

    Attributes:
        rate: that was chosen.
        accuracies: rate -> validation accuracy after the last epoch, as a fraction; mean over runs.
    """

    rate: float
    accuracies: dict[float, float]

    @property
    def at_the_edge(self) -> bool:
        """Whether it is the smallest or largest that was tried, so that a better one may lie outside."""
        return self.rate in (min(self.accuracies), max(self.accuracies))


def choose_rates(grid: Grid, results: Results) -> dict[str, Choice]:
    """Name of an arm, without its rate -> what was chosen.

    Raises:
        InputError: the grid is no rate search, records are missing, or they have no validation accuracy.
    """
    searched = [arm for arm in grid.arms if arm.searched]
    if not searched:
        raise InputError(f'--grid={grid.name}: is no rate search; none of its arms has `rates`')
    if results.missing:
        names = ', '.join(run.name for run in results.missing)
        raise InputError(f'--grid={grid.name}: {len(results.missing)} runs are missing: {names}')
    found: dict[str, dict[float, float]] = {}
    for arm in searched:
        values = [record.summary.get('final_validation_accuracy') for record in results.of_arm(arm.name)]
        if None in values:
            raise InputError(f'--grid={grid.name}: its runs have no validation examples; set data.validation_examples')
        found.setdefault(arm.searched, {})[arm.learning_rate] = sum(values) / len(values)
    return {name: Choice(_best(accuracies), accuracies) for name, accuracies in found.items()}


def _best(accuracies: dict[float, float]) -> float:
    return min(accuracies, key=lambda rate: (-accuracies[rate], rate))


def check_rates(grid: Grid, choices: dict[str, Choice]) -> None:
    """Compares the rates of a grid with those that its search chose, by the row of each arm.

    Raises:
        InputError: names the first arm whose rate is another one, at the edge of the search, or was not searched.
    """
    for arm in grid.arms:
        choice = choices.get(arm.name) or choices.get(arm.row)
        if choice is None:
            raise InputError(f'{grid.name}: arm {arm.name}: neither it nor its row {arm.row} was searched')
        if choice.at_the_edge:
            raise InputError(
                f'{grid.name}: arm {arm.name}: {choice.rate:g} is the smallest or largest rate that was tried; add one '
                'beyond it to the search'
            )
        if arm.learning_rate != choice.rate:
            raise InputError(
                f'{grid.name}: arm {arm.name}: learning_rate = {arm.learning_rate}, but {choice.rate:g} was chosen'
            )


def table_of(choices: dict[str, Choice]) -> Table:
    """A line for each arm: the validation accuracy at every rate, and the rate that is chosen."""
    rates = sorted({rate for choice in choices.values() for rate in choice.accuracies})
    table = Table(title='Validation accuracy (%) after the last epoch')
    for column in ('arm', *(f'{rate:g}' for rate in rates), 'chosen'):
        table.add_column(column, justify='left' if column == 'arm' else 'right')
    for name, choice in choices.items():
        cells = [f'{100 * choice.accuracies[rate]:.2f}' if rate in choice.accuracies else '' for rate in rates]
        table.add_row(name, *cells, f'{choice.rate:g}' + (' (at the edge)' if choice.at_the_edge else ''))
    return table


def main(argv: Sequence[str] | None = None) -> None:
    parser = Parser('experiments.ablation.rates', __doc__)
    parser.add_argument('--grid', required=True, help='the rate search: a name, or a .toml file')
    parser.add_argument('--check', help='a grid whose rates must be the chosen ones')
    parser.add_path('--results', default='experiments/results', help='folder of the records')
    args = parser.parse_args(argv)
    grid = read_grid(args.grid)
    choices = choose_rates(grid, read_results(args.results / grid.name, grid))
    Console().print(table_of(choices))
    if args.check:
        checked = read_grid(args.check)
        if checked.rates_from != grid.name:
            raise InputError(f'--check={args.check}: its rates are from {checked.rates_from or "no search"}')
        check_rates(checked, choices)
        print(f'{args.check}: its rates are the chosen ones')


if __name__ == '__main__':
    sys.exit(exit_code(main))
