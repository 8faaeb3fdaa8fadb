"""All records of a grid, checked: of this text of the grid, of these configs, of one data set, of one code."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

import ml_collections

from experiments.ablation.records import (
    Record,
    check_code,
    check_registration,
    differences,
    read_record,
    record_path,
    settings,
)
from experiments.ablation.registration import Grid
from experiments.ablation.run_config import check_rates_are_chosen, unmatched_config, with_seeds
from experiments.ablation.runs import LookResult, Run, runs_of, take_look
from pnn_jax.errors import InputError


class Results(NamedTuple):
    """What there is of a grid.

    Attributes:
        records: name of a run -> its record, in the order of training.
        missing: the runs that have no record, in the order of training.
        look: what the blinded look found; None where there is none, or not yet.
    """

    records: dict[str, Record]
    missing: list[Run]
    look: LookResult | None

    def of_arm(self, name: str) -> list[Record]:
        return [record for record in self.records.values() if record.arm == name]


def read_results(
    folder: Path,
    grid: Grid,
    *,
    configs: Mapping[str, ml_collections.ConfigDict] | None = None,
    code: str = '',
    allow_mixed_code: bool = False,
) -> Results:
    """Reads the records of a grid, with the runs that its blinded look has added.

    Args:
        folder: of the records.
        grid: whose runs they must be.
        configs: name of an arm -> the config of its runs, without seeds. None: as the grid says, with any width in arms
            that are matched, because the width follows from the data.
        code: digest that all records must have; '' if they must only agree with each other.
        allow_mixed_code: also takes records of different or unknown code.

    Raises:
        InputError: learning rates are still to be chosen; a record is damaged, or of another registration, config, data
            set or code; or a file has the name of a run that the grid does not have.
    """
    check_rates_are_chosen(grid)
    fixed = configs if configs is not None else {arm.name: unmatched_config(grid, arm) for arm in grid.arms}
    records: dict[str, Record] = {}
    planned = runs_of(grid)
    _read_runs(folder, planned, fixed, records, any_width=configs is None)
    look = take_look(grid, records)
    runs = runs_of(grid, look)
    _read_runs(folder, runs[len(planned) :], fixed, records, any_width=configs is None)
    names = {run.name for run in runs}
    for path in sorted(folder.glob('*_seed*.json')):
        if path.stem not in names:
            raise InputError(f'{path}: is no run of the grid {grid.name}; move it away')
    check_registration(records.values(), grid)
    if not allow_mixed_code:
        check_code(records.values(), code)
    return Results(records, [run for run in runs if run.name not in records], look)


def _read_runs(
    folder: Path,
    runs: Iterable[Run],
    configs: Mapping[str, ml_collections.ConfigDict],
    records: dict[str, Record],
    *,
    any_width: bool,
) -> None:
    """Adds the records of `runs` that exist to `records`."""
    for run in runs:
        path = record_path(folder, run.name)
        if not path.exists():
            continue
        record = read_record(path)
        if record.name != run.name:
            raise InputError(f'{path}: is the record of {record.name}')
        free = {'data.source'} | ({'model.num_filters'} if any_width and run.arm.match else set())
        wanted = settings(with_seeds(configs[run.arm.name], run))
        found = [line for line in differences(record.config, wanted) if line.partition(':')[0] not in free]
        if found:
            raise InputError(f'{path}: is of another grid, move it away; fields that differ: {", ".join(found)}')
        first = next(iter(records.values()), record)
        if record.data_digest != first.data_digest:
            raise InputError(f'{path}: another data set than {first.name}')
        if len(record.history) != wanted['num_epochs'] or record.correct.shape != first.correct.shape:
            raise InputError(
                f'{path}: another length than the grid says or than {first.name} has ({len(record.history)} epochs, '
                f'outcomes {list(record.correct.shape)} and {list(first.correct.shape)})'
            )
        records[run.name] = record
