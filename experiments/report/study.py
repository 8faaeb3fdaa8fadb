"""The records of one preset, checked to be of one grid, one data set and one version of the code."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from experiments.ablation.presets import PRESETS, Preset, Run, runs_of
from experiments.ablation.records import Record, check_code, differences, read_record, record_path, settings
from experiments.ablation.rows import Row
from experiments.ablation.run_config import is_matched, unmatched_config
from pnn_jax.errors import InputError


@dataclasses.dataclass(frozen=True)
class Study:
    """What a report is made from.

    Attributes:
        name: of the preset.
        preset: the preset.
        records: of all runs that are done, in the order of the grid: row by row, and by seed.
        missing: the runs that have no record.
    """

    name: str
    preset: Preset
    records: dict[Run, Record]
    missing: Sequence[Run]

    def rows(self) -> dict[Row, list[Record]]:
        """Every row that has records, with them, in the order of the first seed of each row."""
        rows: dict[Row, list[Record]] = {}
        for run, record in self.records.items():
            rows.setdefault(run.row, []).append(record)
        return rows

    def of_row(self, name: str) -> list[Record]:
        return [record for run, record in self.records.items() if run.row.name == name]

    def codes(self) -> list[str]:
        """Digests of the code of the records, each once."""
        return sorted({record.code for record in self.records.values()})


def read_study(results: Path, name: str, *, allow_mixed_code: bool) -> Study:
    """Reads all records of a preset.

    Args:
        results: folder of the records, without the name of the preset.
        name: of the preset.
        allow_mixed_code: also takes records of different or unknown code.

    Raises:
        InputError: a record is damaged, of another grid, data set or code; or there is none.
    """
    preset, folder = PRESETS[name], results / name
    records, missing = {}, []
    for run in sorted(runs_of(preset), key=lambda run: run.seed):
        path = record_path(folder, run.row.name, run.seed)
        if not path.exists():
            missing.append(run)
            continue
        record = read_record(path)
        first = next(iter(records.values()), record)
        _check_record(record, run, preset, path)
        if record.data_digest != first.data_digest or record.correct.shape != first.correct.shape:
            raise InputError(
                f'{path}: another data set or number of epochs than {first.name} '
                f'({record.correct.shape} against {first.correct.shape} outcomes)'
            )
        records[run] = record
    if not records:
        raise InputError(f'{folder}: no results of this grid; python -m experiments.ablation makes them')
    if not allow_mixed_code:
        check_code(records.values())
    return Study(name, preset, records, missing)


def _check_record(record: Record, run: Run, preset: Preset, path: Path) -> None:
    """Raises InputError where a record is not of this run of the grid."""
    if record.name != run.name:
        raise InputError(f'{path}: is the record of {record.name}')
    open_fields = {'data.source'} | ({'model.num_filters'} if is_matched(run.row, preset) else set())
    wanted = settings(unmatched_config(run.row, preset, run.seed))
    differing = [line for line in differences(record.config, wanted) if line.partition(':')[0] not in open_fields]
    if differing:
        raise InputError(f'{path}: of another grid; fields that differ: {", ".join(differing)}')
