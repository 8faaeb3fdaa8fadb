"""The file of counts that the probes leave; the report reads it.

{"code": {...}, "settings": {...},
 "runs": {NAME: {"data": DIGEST, "weights": DIGEST, "counts": [[...], ...], "position": [[...], ...]}}}

The lists are the fields of `Count` and of `ReadOut`, in their order.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from rich.table import Table

from experiments.command import write_file
from experiments.probes.position import ReadOut
from pnn_jax.errors import InputError, one_line, os_reason

BATCH_NORMS = ('stored', 'recalibrated')
TRAINED = 'as trained'  # the name of the unchanged network
# How much is drawn and counted, unless the command says otherwise.
DEFAULTS = {
    'draws': 3,
    'batch_size': 500,
    'recalibration_images': 10_000,
    'fitted_images': 2_000,
    'held_out_images': 1_000,
}


class Count(NamedTuple):
    """The exact count of one changed network.

    Attributes:
        change: what was changed.
        draw: number of the random draw.
        batch_norm: 'stored' or 'recalibrated' statistics.
        correct, count: test images.
    """

    change: str
    draw: int
    batch_norm: str
    correct: int
    count: int


class ProbedRun(NamedTuple):
    """What was counted on one run.

    Attributes:
        data: digest of the data set.
        weights: digest of the variables.
        counts: in the order of the changes.
        position: of the maps, from the stem to the last one.
    """

    data: str
    weights: str
    counts: list[Count]
    position: list[ReadOut]

    def accuracy(self, change: str, batch_norm: str) -> float:
        """Percent, mean over draws; nan where the change was not probed."""
        found = [one for one in self.counts if (one.change, one.batch_norm) == (change, batch_norm)]
        return float(np.mean([100 * one.correct / one.count for one in found])) if found else float('nan')


@dataclasses.dataclass(frozen=True)
class Probes:
    """All probed runs of one command.

    Attributes:
        code: `pnn_jax.run.provenance.provenance()`.
        settings: how much was drawn and counted.
        runs: name of the run -> what was counted.
    """

    code: dict[str, Any]
    settings: dict[str, int]
    runs: dict[str, ProbedRun]

    @property
    def changes(self) -> list[str]:
        """Names of all changes but none, in their order; a network without masks has fewer."""
        names = _once(one.change for run in self.runs.values() for one in run.counts)
        first = [
            one.change for run in sorted(self.runs.values(), key=lambda run: -len(run.counts)) for one in run.counts
        ]
        return sorted((name for name in names if name != TRAINED), key=first.index)

    def of_arm(self, arm: str) -> list[ProbedRun]:
        """The runs that are named ARM_seedK, as the grids name them."""
        return [run for name, run in self.runs.items() if name.rpartition('_seed')[0] == arm]

    def write(self, path: Path) -> None:
        """Writes the file as a whole.

        Raises:
            RunError: it cannot be written.
        """
        runs = {
            name: run._asdict() | {'counts': list(map(list, run.counts)), 'position': list(map(list, run.position))}
            for name, run in self.runs.items()
        }
        write_file(path, json.dumps({'code': self.code, 'settings': self.settings, 'runs': runs}, indent=1) + '\n')


def merged_probes(paths: Sequence[Path]) -> Probes:
    """The probes of several files, which commands that ran side by side wrote.

    Raises:
        InputError: a file is not one of probes, or they were made by different code or with different settings.
    """
    first, *others = (read_probes(path) for path in paths)
    for path, probes in zip(paths[1:], others, strict=True):
        if (probes.settings, probes.code.get('sha256')) != (first.settings, first.code.get('sha256')):
            raise InputError(f'{path}: was made by other code or with other settings than {paths[0]}')
        first.runs.update(probes.runs)
    return first


def read_probes(path: Path) -> Probes:
    """Reads what `Probes.write` wrote.

    Raises:
        InputError: the file cannot be read, or is not a file of probes.
    """
    try:
        content = json.loads(path.read_text())
        runs = {
            name: ProbedRun(
                run['data'],
                run['weights'],
                [Count(*one) for one in run['counts']],
                [ReadOut(*one) for one in run['position']],
            )
            for name, run in content['runs'].items()
        }
        return Probes(content['code'], content['settings'], runs)
    except OSError as error:
        raise InputError(f'{path}: cannot be read ({os_reason(error)})') from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f'{path}: cut short or not a file of probes ({one_line(error)})') from None


def table_of(runs: dict[str, ProbedRun]) -> Table:
    """A column per run: accuracy after each change, batch norm as stored and recalibrated; then the read-outs."""
    table = Table(title='Accuracy (%) on the test images, batch norm as stored / recalibrated; mean over draws')
    table.add_column('change')
    for name in runs:
        table.add_column(name, justify='right')
    for change in _once(one.change for run in runs.values() for one in run.counts):
        cells = (' / '.join(f'{run.accuracy(change, norm):.2f}' for norm in BATCH_NORMS) for run in runs.values())
        table.add_row(change, *cells)
    table.add_section()
    for name in _once(one.map for run in runs.values() for one in run.position):
        found = ([one for one in run.position if one.map == name] for run in runs.values())
        cells = (f'{100 * one[0].correct / one[0].count:.1f} (chance {100 / one[0].tiles:.1f})' for one in found)
        table.add_row(f'tile read from {name}', *cells)
    return table


def _once(names: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(names))
