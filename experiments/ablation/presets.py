"""How large and how long the runs of a grid are, and in which order they are trained."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from experiments.ablation.rows import ROWS, SWEEPS, Row
from pnn_jax.errors import InputError


@dataclasses.dataclass(frozen=True)
class Preset:
    """How all rows are scaled to a machine.

    Attributes:
        what: the data and the scale in a few words; every report begins with it.
        seeds: runs of each row. Run k has seed k and mask seed k.
        num_filters: width of the rows that are not matched; 0 keeps that of each config.
        num_masks: for configs with more than one mask; 0 keeps that of each config.
        num_epochs: 0 keeps that of each config. The milestones of the learning rate are scaled with it.
        changes: further fields, for every row.
        rows: names of the rows; empty for all.
        without: names of rows that this preset leaves out.
    """

    what: str
    seeds: int
    num_filters: int = 0
    num_masks: int = 0
    num_epochs: int = 0
    changes: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    rows: Sequence[str] = ()
    without: Sequence[str] = ()


PRESETS = {
    'full': Preset(what='CIFAR-10, the published widths, 150 epochs', seeds=3, without=('masks_64',)),
    'reduced': Preset(
        what='JPEG CIFAR-10, 8 filters, 8 masks, 10,000 training images, 6 epochs',
        seeds=3,
        num_filters=8,
        num_masks=8,
        num_epochs=6,
        changes={
            'batch_size': 64,
            # The published rates are for 150 epochs with batches of 10 and 16; here every row has the same rate.
            'optimizer.learning_rate': 0.1,
            'data.source': 'folder',
            'data.train_examples': 10_000,
        },
        # These take long on two cores.
        without=(*SWEEPS, 'random_filters'),
    ),
    'smoke': Preset(
        what="scikit-learn's digits, 4 filters, 2 masks, 300 training images, 2 epochs",
        seeds=2,
        num_filters=4,
        num_masks=2,
        num_epochs=2,
        changes={
            'model.name': 'lenet',
            'batch_size': 50,
            'data.source': 'digits',
            'data.train_examples': 300,
            'optimizer.learning_rate': 0.05,
            'data.mean': (0.5,),
            'data.std': (0.5,),
            'log.tensorboard': False,
            'log.plots': False,
        },
        rows=('no_noise', 'shared_masks', 'trained_masks'),
    ),
}


class Run(NamedTuple):
    """One run of the grid: a row and a seed."""

    row: Row
    seed: int

    @property
    def name(self) -> str:
        return f'{self.row.name}_seed{self.seed}'


def preset_rows(preset: Preset) -> list[Row]:
    return [row for row in ROWS if row.name in (preset.rows or [row.name]) and row.name not in preset.without]


def runs_of(preset: Preset) -> list[Run]:
    """All runs in the order in which they are trained: seed 0 of every row first, late rows last."""
    runs = [Run(row, seed) for row in preset_rows(preset) for seed in range(preset.seeds)]
    return sorted(runs, key=lambda run: (run.row.late, run.seed))


def parse_shard(text: str) -> tuple[int, int]:
    """'i/n' -> (i, n), with 0 <= i < n.

    Raises:
        InputError: it is anything else.
    """
    index, slash, count = text.partition('/')
    if not (slash and index.isdecimal() and count.isdecimal() and int(index) < int(count)):
        raise InputError(f'--shard={text}: must be i/n with 0 <= i < n, such as 0/4')
    return int(index), int(count)


def choose_runs(preset: Preset, shard: str, rows: str) -> list[Run]:
    """The runs of one shard, in order.

    Args:
        shard: 'i/n' for every n-th run, starting with the i-th (from 0).
        rows: names of rows with commas between; '' for all.

    Raises:
        InputError: the shard is not of this form, or the preset has no such row.
    """
    runs = runs_of(preset)
    if rows:
        known = [row.name for row in preset_rows(preset)]
        for name in rows.split(','):
            if name not in known:
                raise InputError(f'--rows: {name!r} is not one of {", ".join(known)}')
        runs = [run for run in runs if run.row.name in rows.split(',')]
    index, count = parse_shard(shard)
    return runs[index::count]
