"""The config of one run: that of its row, scaled by the preset, with its seed."""

from __future__ import annotations

import bisect
import importlib
from collections.abc import Sequence

import ml_collections

from configs import default
from experiments.ablation.presets import Preset
from experiments.ablation.rows import ROWS, Row


def data_config(preset: Preset):
    """The `config.data` that all runs of a preset share."""
    config = default.get_config()
    config.update_from_flattened_dict(preset.changes)
    return config.data


def is_matched(row: Row, preset: Preset) -> bool:
    """Whether the width of the row is computed. At full size the audit's rows keep the widths that it published."""
    return bool(row.match) and (preset.num_filters > 0 or row.audit_row is None)


def unmatched_config(row: Row, preset: Preset, seed: int) -> ml_collections.ConfigDict:
    """The config of one run, except for the width of a matched row and the path of the data."""
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
    """The config of one run on images of shape [h, w, c], except for the path of the data."""
    config = unmatched_config(row, preset, seed)
    if is_matched(row, preset):
        other = unmatched_config(next(candidate for candidate in ROWS if candidate.name == row.match), preset, seed)
        target = learned_parameters(other, input_shape, num_classes)
        config.model.num_filters = matched_filters(config, target, input_shape, num_classes)
    return config


def learned_parameters(config, input_shape: Sequence[int], num_classes: int) -> int:
    """Number of trained values without the masks, which is how the audit counts weights. Computed from shapes alone."""
    import jax  # here, because the report reads configs and has no other use for jax

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
    """The width at which the network of `config` has about `target` learned parameters."""
    config = config.copy_and_resolve_references()

    def count(num_filters: int) -> int:
        config.model.num_filters = num_filters
        return learned_parameters(config, input_shape, num_classes)

    above = bisect.bisect_left(range(2, 1024), target, key=count) + 2
    return min((above - 1, above), key=lambda num_filters: abs(count(num_filters) - target))
