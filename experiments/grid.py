"""The grid of the audit: its rows, its presets, and the config of each run.

A row is a config file and what it changes; a preset scales all rows to a machine. To add a row, add a line to `ROWS`.
"""

from __future__ import annotations

import bisect
import dataclasses
import importlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import ml_collections

from configs import default


@dataclasses.dataclass(frozen=True, eq=False)
class Row:
    """One network of the comparison.

    Attributes:
        name: in file names and on the command line.
        what: in tables.
        config: file in `configs/`.
        audit_row: number in the audit's README, if it is there.
        changes: fields that differ from the config file; they win over the preset's.
        match: name of the row whose number of learned parameters this row's width is chosen to come nearest to.
        late: run after all other rows: sweeps, and what takes long.
    """

    name: str
    what: str
    config: str
    audit_row: int | None = None
    changes: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    match: str = ''
    late: bool = False


ROWS = (
    # The audit's rows.
    Row('baseline', '3x3 convolutions', 'baseline', 1, match='no_noise'),
    Row('original', 'original network, 7x7 first layer', 'original', 2),
    Row('original_stem3', 'original network, 3x3 first layer', 'original_stem3', 3),
    Row('no_noise', '1x1 convolutions', 'no_noise', 4),
    Row('noise_everywhere', 'one mask, in every layer', 'noise_everywhere', 5),
    Row('noise_masks', 'many masks, own set per channel, mixed', 'noise_masks', 6),
    Row('shared_masks', 'many masks, one set', 'shared_masks', 7),
    Row('trained_masks', 'many masks, one set, trained', 'trained_masks', 8),
    # The comparisons that the audit could not make: equal parameters.
    Row('grouped_no_noise', 'as row 7 without noise', 'shared_masks', changes={'model.noise_level': 0.0}),
    Row('baseline_small', '3x3 convolutions, weights as row 7', 'baseline', match='shared_masks'),
    Row(
        'one_mask',
        'row 4 with one mask per channel',
        'noise_masks',
        changes={'model.num_masks': 1, 'model.mix_channels': False},
    ),
    # Controls: is it that the masks are fixed, and would any fixed spatial mixing do?
    Row('redrawn_masks', 'as row 7, masks redrawn every step', 'shared_masks', changes={'model.redraw_masks': True}),
    Row(
        'random_filters',
        'as row 7, random 3x3 filters for masks',
        'shared_masks',
        changes={'model.layer': 'random_filters'},
        late=True,
    ),
    Row(
        'one_random_filter',
        'row 4 with one random 3x3 filter per channel',
        'noise_masks',
        changes={'model.layer': 'random_filters', 'model.num_masks': 1, 'model.mix_channels': False},
    ),
    Row(
        'trained_masks_no_decay',
        'as row 8, no weight decay on masks',
        'trained_masks',
        changes={'optimizer.decay_masks': False},
    ),
    # Sweeps about row 7, which is a point of both, with `grouped_no_noise` (level 0) and `one_mask` (one mask, dense).
    *(
        Row(
            f'level_{level}',
            f'as row 7, noise level {level}',
            'shared_masks',
            changes={'model.noise_level': level},
            late=True,
        )
        for level in (0.1, 0.25, 1.0, 2.0)
    ),
    *(
        Row(
            f'masks_{count}',
            f'as row 7, {count} masks',
            'shared_masks',
            changes={'model.num_masks': count},
            late=True,
        )
        for count in (4, 16, 64)
    ),
)

SWEEPS = tuple(row.name for row in ROWS if row.name.startswith(('level_', 'masks_')))

# The comparisons of the report: question, row, the row that it is compared with.
PAIRS = (
    ('Many fixed masks against none, equal parameters', 'shared_masks', 'grouped_no_noise'),
    ('One fixed mask against none, equal parameters', 'one_mask', 'no_noise'),
    ("The authors' network against 1x1 convolutions", 'original_stem3', 'no_noise'),
    ('Trained masks against fixed ones', 'trained_masks', 'shared_masks'),
    ('Trained masks without weight decay against with it', 'trained_masks_no_decay', 'trained_masks'),
    ('Own masks per channel and mixing against one set', 'noise_masks', 'shared_masks'),
    ('Fixed masks against masks redrawn at every step', 'shared_masks', 'redrawn_masks'),
    ('Random 3x3 filters against masks, equal parameters', 'random_filters', 'shared_masks'),
    ('One random 3x3 filter against one mask, equal parameters', 'one_random_filter', 'one_mask'),
    ('3x3 convolutions against many masks, equal parameters', 'baseline_small', 'shared_masks'),
    ('3x3 convolutions against 1x1 convolutions, equal parameters', 'baseline', 'no_noise'),
)


@dataclasses.dataclass(frozen=True)
class Preset:
    """How the rows are scaled.

    Attributes:
        what: says what the accuracies stand for, in every report.
        seeds: runs of each row; run k has seed and mask seed k.
        num_filters: width of all but the matched rows; 0 leaves each config's own.
        num_masks: where a config has more than one; 0 leaves each config's own.
        num_epochs: the milestones of the learning rate move with it; 0 leaves each config's own.
        changes: further fields, for every row.
        rows: names of the rows; empty for all.
        without: names of rows that would repeat another one at this preset's scale.
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
            # One rate for all rows: the published ones are for 150 epochs of batches of 10 and 16.
            'optimizer.learning_rate': 0.1,
            'data.source': 'folder',
            'data.train_examples': 10_000,
        },
        # What takes long on two cores; one random filter per channel stays.
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
    """All runs in the order in which they are worth having: seed 0 of every row first, late rows last."""
    runs = [Run(row, seed) for row in preset_rows(preset) for seed in range(preset.seeds)]
    return sorted(runs, key=lambda run: (run.row.late, run.seed))


def data_config(preset: Preset):
    """The `config.data` that all runs of a preset share."""
    config = default.get_config()
    config.update_from_flattened_dict(preset.changes)
    return config.data


def is_matched(row: Row, preset: Preset) -> bool:
    """Whether the row's width is computed. The published widths are matched already, if not as closely as could be."""
    return bool(row.match) and (preset.num_filters > 0 or row.audit_row is None)


def unmatched_config(row: Row, preset: Preset, seed: int) -> ml_collections.ConfigDict:
    """The config of one run; the width of a matched row and the data's path are still open."""
    config = importlib.import_module(f'configs.{row.config}').get_config()
    if preset.num_filters:
        config.model.num_filters = preset.num_filters
    if preset.num_masks and config.model.num_masks > 1:
        config.model.num_masks = preset.num_masks
    if preset.num_epochs:
        milestones = [round(epoch * preset.num_epochs / config.num_epochs) for epoch in config.schedule.milestones]
        config.schedule.milestones = tuple(sorted({max(1, epoch) for epoch in milestones}))
        config.num_epochs = preset.num_epochs
    config.update_from_flattened_dict({**preset.changes, **row.changes})
    config.seed = config.mask_seed = seed
    return config


def build_config(
    row: Row, preset: Preset, seed: int, input_shape: Sequence[int], num_classes: int
) -> ml_collections.ConfigDict:
    """The config of one run on images of shape [h, w, c]; the data's path is still open."""
    config = unmatched_config(row, preset, seed)
    if is_matched(row, preset):
        other = unmatched_config(next(candidate for candidate in ROWS if candidate.name == row.match), preset, seed)
        target = learned_parameters(other, input_shape, num_classes)
        config.model.num_filters = matched_filters(config, target, input_shape, num_classes)
    return config


def learned_parameters(config, input_shape: Sequence[int], num_classes: int) -> int:
    """Values that the optimizer updates, masks excepted: the audit's count of weights, from shapes alone."""
    import jax  # not at the top, so that the grid can be read before jax's flags are set

    from pnn_jax.models.registry import count_variables, create_model
    from pnn_jax.models.variables import draw_variables

    model = create_model(config.model, num_classes)
    key = jax.random.key(0)
    variables = jax.eval_shape(lambda: draw_variables(model, tuple(input_shape), key=key, mask_key=key))
    counts = count_variables(variables)
    return counts['trained'] - (counts['masks'] if config.model.trainable_masks else 0)


def matched_filters(
    config: ml_collections.ConfigDict, target: int, input_shape: Sequence[int], num_classes: int
) -> int:
    """The width at which the network of `config` comes nearest to `target` learned parameters."""
    config = config.copy_and_resolve_references()

    def count(num_filters: int) -> int:
        config.model.num_filters = num_filters
        return learned_parameters(config, input_shape, num_classes)

    above = bisect.bisect_left(range(2, 1024), target, key=count) + 2
    return min((above - 1, above), key=lambda num_filters: abs(count(num_filters) - target))
