"""The records of one grid: arm by arm, checked to be of one grid, one data set and one version of the code."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

from experiments.ablation.records import Record
from experiments.ablation.registration import Collapse, Grid
from experiments.ablation.results import read_results
from experiments.ablation.runs import LookResult, Run
from pnn_jax.errors import InputError


@dataclasses.dataclass(frozen=True)
class Study:
    """What a report is made from.

    Attributes:
        grid: what was to be trained, and by which rules it is analysed.
        arms: name of an arm -> the records of its runs, in the order of the grid; only arms that have any.
        missing: the runs that have no record.
        look: what the blinded look of the grid found.
        again: name of a run -> the record of that run, trained a second time. No number comes from it; its network may
            be the one that was probed.
    """

    grid: Grid
    arms: dict[str, list[Record]]
    missing: Sequence[Run] = ()
    look: LookResult | None = None
    again: Mapping[str, Record] = dataclasses.field(default_factory=dict)

    @property
    def records(self) -> list[Record]:
        return [record for records in self.arms.values() for record in records]

    @property
    def missing_primary(self) -> list[Run]:
        """The missing runs of the primary comparisons of a registration: nobody sees a result before they are done."""
        primary = self.grid.primary_arms if self.grid.registration else set()
        return [run for run in self.missing if run.arm.name in primary]

    @property
    def compared(self) -> dict[str, list[Record]]:
        """The analysed arms that are compared with others: of a registration, those that are complete."""
        incomplete = {run.arm.name for run in self.missing} if self.grid.registration else set()
        return {name: records for name, records in self.analysed.items() if name not in incomplete}

    @property
    def analysed(self) -> dict[str, list[Record]]:
        """The arms of the primary analysis: without collapsed runs where the grid says so."""
        if not self.grid.analysis.exclude_collapsed:
            return self.arms
        kept = {
            name: [record for record in records if not is_collapsed(record, self.grid.collapse)]
            for name, records in self.arms.items()
        }
        return {name: records for name, records in kept.items() if records}

    def codes(self) -> list[str]:
        """Digests of the code of the records, each once."""
        return sorted({record.code for record in self.records})

    def devices(self) -> dict[str, dict[str, int]]:
        """What the runs were trained on -> name of an arm -> how many of its runs, the commonest device first."""
        found: dict[str, dict[str, int]] = collections.defaultdict(dict)
        for name, records in self.arms.items():
            for device, count in collections.Counter(map(trained_on, records)).items():
                found[device][name] = count
        return dict(sorted(found.items(), key=lambda item: -sum(item[1].values())))


def trained_on(record: Record) -> str:
    """The device of a run: the accelerators, or the kind of processor where there are none."""
    device = record.summary.get('device', 'an unknown device')
    processor = record.summary.get('machine', {}).get('processor', device)
    return processor if device.endswith(' x cpu') else device


def training_mode(record: Record) -> float | None:
    """Test accuracy with batch norms in training mode, in percent; None in records that do not have it."""
    value = record.summary.get('train_mode_accuracy')
    return None if value is None else 100 * value


def recalibrated(record: Record) -> float | None:
    """Test accuracy with recalibrated batch norms, in percent; None in records that do not have it."""
    value = record.summary.get('recalibrated_accuracy')
    return None if value is None else 100 * value


def is_collapsed(record: Record, rule: Collapse) -> bool:
    """Whether a run fails in evaluation although it learned, or did not stay finite, by the rule of its grid.

    Records without an accuracy in training mode are judged by their loss alone.
    """
    mode = training_mode(record)
    gap = 0.0 if mode is None else mode - 100 * record.accuracy
    loss = record.summary['final_test_loss']
    return gap > rule.train_minus_eval or not loss <= rule.loss or bool(record.summary.get('nonfinite'))


def read_study(results: Path, grid: Grid, *, again: Path | None = None, allow_mixed_code: bool = False) -> Study:
    """Reads and checks all records of a grid.

    Args:
        results: folder of the records, without the name of the grid.
        grid: whose runs they must be.
        again: folder of the records of runs that were trained a second time, likewise.
        allow_mixed_code: also takes records of different or unknown code.

    Raises:
        InputError: there are no records; or one is damaged, or of another registration, config, data set or code.
    """
    folder = results / grid.name
    found = read_results(folder, grid, allow_mixed_code=allow_mixed_code)
    if not found.records:
        raise InputError(f'{folder}: no results of this grid; python -m experiments.ablation makes them')
    arms = {arm.name: found.of_arm(arm.name) for arm in grid.arms}
    return Study(
        grid,
        {name: sorted(records, key=lambda record: record.seed) for name, records in arms.items() if records},
        found.missing,
        found.look,
        read_results(again / grid.name, grid, allow_mixed_code=allow_mixed_code).records if again else {},
    )
