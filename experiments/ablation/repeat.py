"""Compares runs that were trained a second time with their records, bit for bit.

python -m experiments.ablation --grid=fashion_mnist --data_path=DIR --jobs=2 --arms=no_noise_seed0,one_mask_seed3 \
    --output=runs/again --results=runs/again/results
python -m experiments.ablation.repeat --grid=fashion_mnist --again=runs/again/results

The outcome of every test image, and counts and losses of every epoch, must be the same; timings are not compared. Train
the second time as the first time, on the same kind of machine: another processor, other versions of jax or another
number of threads may round differently.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from experiments.ablation.records import Record
from experiments.ablation.registration import read_grid
from experiments.ablation.results import read_results
from experiments.command import Parser, exit_code
from pnn_jax.errors import InputError, RunError

TIMINGS = ('seconds', 'images_per_second')
# Of a run; they may explain a difference, and are none.
CIRCUMSTANCES = ('code', 'resumed_from', 'device', 'versions', 'machine')


def differing(before: Record, after: Record) -> list[str]:
    """What two records of one run do not agree on; [] where they are the same bit for bit."""
    found = []
    if not np.array_equal(before.correct, after.correct):
        found.append(f'{int((before.correct != after.correct).sum())} outcomes')
    for epoch, lines in enumerate(zip(before.history, after.history, strict=True), start=1):
        found += [f'epoch {epoch}: {change}' for change in _changes(*lines, without=TIMINGS)]
    return found + _changes(before.summary, after.summary, without=(*TIMINGS, *CIRCUMSTANCES))


def _changes(before: Mapping[str, Any], after: Mapping[str, Any], without: Sequence[str]) -> list[str]:
    text = lambda values, name: json.dumps(values.get(name))  # in which nan equals nan
    names = sorted((before.keys() | after.keys()) - set(without))
    pairs = [(name, text(before, name), text(after, name)) for name in names]
    return [f'{name} {old} -> {new}' for name, old, new in pairs if old != new]


def main(argv: Sequence[str] | None = None) -> None:
    parser = Parser('experiments.ablation.repeat', __doc__)
    parser.add_argument('--grid', required=True, help='a name, or a .toml file')
    parser.add_path('--results', default='experiments/results', help='folder of the records')
    parser.add_path('--again', required=True, help='folder of the records of the runs that were trained again')
    args = parser.parse_args(argv)
    grid = read_grid(args.grid)
    first = read_results(args.results / grid.name, grid, allow_mixed_code=True).records
    again = read_results(args.again / grid.name, grid, allow_mixed_code=True).records
    if not again:
        raise InputError(f'--again={args.again}: there is no record of the grid {grid.name}')
    if missing := sorted(set(again) - set(first)):
        raise InputError(f'--again={args.again}: {args.results / grid.name} has no record of {", ".join(missing)}')
    different = []
    for name, record in again.items():
        if record.data_digest != first[name].data_digest:
            raise InputError(f'--again={args.again}: {name} was trained on another data set than its record')
        changes = differing(first[name], record)
        print(f'{name}: {"; ".join(changes[:5]) or "the same bit for bit"}')
        if changes:
            different.append(name)
            print(*(f'  {line}' for line in _circumstances(first[name], record)), sep='\n')
    if different:
        raise RunError(f'{len(different)} of {len(again)} runs are not the same: {", ".join(different)}')


def _circumstances(before: Record, after: Record) -> list[str]:
    others = [name for name in before.summary if name not in CIRCUMSTANCES]
    return _changes(before.summary, after.summary, without=others) or ['by the same code on the same kind of machine']


if __name__ == '__main__':
    sys.exit(exit_code(main))
