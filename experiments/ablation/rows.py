"""The networks that are compared. A row is a config file and the fields that it changes; `ROWS` has them all."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any


@dataclasses.dataclass(frozen=True, eq=False)
class Row:
    """One network of the comparison.

    Attributes:
        name: used in file names and on the command line.
        what: a few words for tables.
        config: name of the file in `configs/`.
        audit_row: number of the row in the audit's README, or None.
        changes: fields that differ from the config file. They override those of the preset.
        match: name of another row. The width of this row is chosen so that both have about as many learned parameters.
        late: trained after all other rows, because it takes long or is of minor interest.
    """

    name: str
    what: str
    config: str
    audit_row: int | None = None
    changes: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    match: str = ''
    late: bool = False


ROWS = (
    # The rows of the audit.
    Row('baseline', '3x3 convolutions', 'baseline', 1, match='no_noise'),
    Row('original', 'original network, 7x7 first layer', 'original', 2),
    Row('original_stem3', 'original network, 3x3 first layer', 'original_stem3', 3),
    Row('no_noise', '1x1 convolutions', 'no_noise', 4),
    Row('noise_everywhere', 'one mask, in every layer', 'noise_everywhere', 5),
    Row('noise_masks', 'many masks, own set per channel, mixed', 'noise_masks', 6),
    Row('shared_masks', 'many masks, one set', 'shared_masks', 7),
    Row('trained_masks', 'many masks, one set, trained', 'trained_masks', 8),
    # Comparisons at equal parameters, which the audit does not have.
    Row('grouped_no_noise', 'as row 7 without noise', 'shared_masks', changes={'model.noise_level': 0.0}),
    Row('baseline_small', '3x3 convolutions, weights as row 7', 'baseline', match='shared_masks'),
    Row(
        'one_mask',
        'row 4 with one mask per channel',
        'noise_masks',
        changes={'model.num_masks': 1, 'model.mix_channels': False},
    ),
    # Controls: does it matter that masks are fixed, and does any fixed spatial mixing do as well?
    Row('redrawn_masks', 'as row 7, masks redrawn every step', 'shared_masks', changes={'model.redraw_masks': True}),
    Row(
        'random_filters',
        'as row 7, random 3x3 filters for masks',
        'shared_masks',
        changes={'model.layer': 'random_filters'},
        late=True,
    ),
    Row(
        'flat_mask',
        'as `one_mask`, each mask the same number at all pixels',
        'noise_masks',
        changes={'model.num_masks': 1, 'model.mix_channels': False, 'model.noise_type': 'flat'},
    ),
    Row(
        'ramp_mask',
        'as `one_mask`, each mask a linear ramp',
        'noise_masks',
        changes={'model.num_masks': 1, 'model.mix_channels': False, 'model.noise_type': 'ramp'},
    ),
    Row(
        'shift',
        'row 4 with each channel shifted by a pixel',
        'noise_masks',
        changes={'model.layer': 'shift', 'model.num_masks': 1, 'model.mix_channels': False},
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
    # Sweeps of one field of row 7. Their end points are `grouped_no_noise` (level 0) and `one_mask` (one mask, dense).
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
