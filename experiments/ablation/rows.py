"""The networks that grids choose from. A row is a config file and the fields that it changes; `ROWS` has them all."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any


@dataclasses.dataclass(frozen=True)
class Row:
    """One network.

    Attributes:
        name: as grids call it.
        what: a few words for tables.
        config: name of the file in `configs/`.
        audit_row: number of the row in the audit's README, or None.
        changes: fields that differ from the config file. They override those of a grid.
    """

    name: str
    what: str
    config: str
    audit_row: int | None = None
    changes: Mapping[str, Any] = dataclasses.field(default_factory=dict)


# One mask or filter per channel, so that every output reads all channels, and no second 1x1 convolution: the weights
# are those of `no_noise`.
ONE = {'model.num_masks': 1, 'model.mix_channels': False}

ROWS = {
    row.name: row
    for row in (
        # The rows of the audit.
        Row('baseline', '3x3 convolutions', 'baseline', 1),
        Row('original', 'original network, 7x7 first layer', 'original', 2),
        Row('original_stem3', 'original network, 3x3 first layer', 'original_stem3', 3),
        Row('no_noise', '1x1 convolutions', 'no_noise', 4),
        Row('noise_everywhere', 'one mask, in every layer', 'noise_everywhere', 5),
        Row('noise_masks', 'many masks, own set per channel, mixed', 'noise_masks', 6),
        Row('shared_masks', 'many masks, one set', 'shared_masks', 7),
        Row('trained_masks', 'many masks, one set, trained', 'trained_masks', 8),
        # Row 4 with one mask, or one of its controls. All have the weights of row 4.
        Row('one_mask', '1x1 convolutions with one mask per channel, noise level 0.5', 'noise_masks', changes=ONE),
        Row(
            'flat_mask',
            '1x1 convolutions with one number per channel for a mask',
            'noise_masks',
            changes=ONE | {'model.noise_type': 'flat'},
        ),
        Row(
            'ramp_mask',
            '1x1 convolutions with one linear ramp per channel for a mask',
            'noise_masks',
            changes=ONE | {'model.noise_type': 'ramp'},
        ),
        Row(
            'shift',
            '1x1 convolutions, each channel shifted by one pixel',
            'noise_masks',
            changes=ONE | {'model.layer': 'shift'},
        ),
        Row(
            'one_random_filter',
            '1x1 convolutions with one random 3x3 filter per channel',
            'noise_masks',
            changes=ONE | {'model.layer': 'random_filters'},
        ),
        # Controls of row 7: does it matter that masks are fixed, and does any fixed spatial mixing do as well?
        Row(
            'redrawn_masks',
            'as row 7, masks redrawn every step',
            'shared_masks',
            changes={'model.redraw_masks': True},
        ),
        Row(
            'random_filters',
            'as row 7, random 3x3 filters for masks',
            'shared_masks',
            changes={'model.layer': 'random_filters'},
        ),
        Row(
            'trained_masks_no_decay',
            'as row 8, no weight decay on masks',
            'trained_masks',
            changes={'optimizer.decay_masks': False},
        ),
    )
}
