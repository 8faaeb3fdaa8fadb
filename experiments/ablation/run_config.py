"""The config of a run: the file of its row, with the changes of the grid, the row and the arm, and its seeds."""

from __future__ import annotations

import bisect
import functools
import importlib
from collections.abc import Mapping, Sequence
from typing import Any

import ml_collections

from configs import default
from experiments.ablation.registration import SEARCH, Arm, Grid
from experiments.ablation.runs import Run
from pnn_jax.errors import InputError, one_line

OF_AN_ARM = ('augment', 'mean', 'std')  # fields of config.data that are no part of the data set
MATCH_WITHIN = 0.03  # how much the weights of matched arms may differ, as a fraction


def data_config(grid: Grid):
    """The `config.data` that all runs of a grid share."""
    config = default.get_config()
    _update(config, grid.changes, f'{grid.name}: changes')
    return config.data


def unmatched_config(grid: Grid, arm: Arm) -> ml_collections.ConfigDict:
    """The config of the runs of an arm, except for seeds, the width of a matched arm, and the path of the data.

    Raises:
        InputError: a field of the grid does not exist, its value is of another type, or an arm has data of its own.
    """
    config = importlib.import_module(f'configs.{arm.network.config}').get_config()
    _update(config, {**grid.changes, **arm.network.changes, **arm.changes}, f'{grid.name}: changes of arm {arm.name}')
    if arm.num_filters:
        config.model.num_filters = arm.num_filters
    if arm.learning_rate and arm.learning_rate != SEARCH:
        config.optimizer.learning_rate = arm.learning_rate
    _check_shares_data(grid, arm, config)
    return config


def _check_shares_data(grid: Grid, arm: Arm, config: ml_collections.ConfigDict) -> None:
    """Raises InputError where an arm would be trained or evaluated on other images: a grid has one data set."""
    shared = data_config(grid)
    for field in shared:
        if field not in OF_AN_ARM and config.data[field] != shared[field]:
            raise InputError(
                f'{grid.name}: arm {arm.name}: data.{field} = {config.data[field]!r}: must be {shared[field]!r} as in '
                f'the whole grid; of data.*, only {", ".join(OF_AN_ARM)} may differ between arms'
            )


def check_rates_are_chosen(grid: Grid) -> None:
    """Raises InputError where the learning rate of an arm is still to be chosen, so that nothing can be trained."""
    for arm in grid.arms:
        if arm.learning_rate == SEARCH:
            raise InputError(
                f'{grid.name}: arm {arm.name}: learning_rate = {SEARCH!r}: fill in the rate that python -m '
                f'experiments.ablation.rates --grid={grid.rates_from} chooses'
            )


def _update(config: ml_collections.ConfigDict, changes: Mapping[str, Any], where: str) -> None:
    try:
        config.update_from_flattened_dict(
            {name: tuple(value) if isinstance(value, list) else value for name, value in changes.items()}
        )
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f'{where}: {one_line(error)}') from None


def with_seeds(config: ml_collections.ConfigDict, run: Run) -> ml_collections.ConfigDict:
    """The config of an arm with the seeds of one of its runs."""
    config = config.copy_and_resolve_references()
    config.seed, config.mask_seed = run.seed, run.mask_seed
    return config


def build_config(grid: Grid, arm: Arm, input_shape: Sequence[int], num_classes: int) -> ml_collections.ConfigDict:
    """The config of the runs of an arm on images of shape [h, w, c], except for seeds and the path of the data.

    Raises:
        InputError: as `unmatched_config`; or at no width does a matched arm have as many weights as the arm it names.
    """
    config = unmatched_config(grid, arm)
    if arm.match:
        other = build_config(grid, grid.arm(arm.match), input_shape, num_classes)
        target = learned_parameters(other, input_shape, num_classes)
        config.model.num_filters, weights = matched_filters(config, target, input_shape, num_classes)
        if abs(weights / target - 1) > MATCH_WITHIN:
            raise InputError(
                f'{grid.name}: arm {arm.name}: the nearest to the {target:,} weights of {arm.match} are {weights:,}, '
                f'with {config.model.num_filters} filters; they must be within {MATCH_WITHIN:.0%}'
            )
    return config


def learned_parameters(config, input_shape: Sequence[int], num_classes: int) -> int:
    """Number of trained values without the masks, which is how the audit counts weights. Computed from shapes alone."""
    # Imported here, because the report reads configs and has no other use for jax.
    from pnn_jax.models.registry import count_variables, create_model
    from pnn_jax.models.variables import variable_shapes

    model = create_model(config.model, num_classes)
    variables = variable_shapes(model, tuple(input_shape))
    counts = count_variables(variables)
    return counts['trained'] - (counts['masks'] if config.model.trainable_masks else 0)


def matched_filters(
    config: ml_collections.ConfigDict, target: int, input_shape: Sequence[int], num_classes: int
) -> tuple[int, int]:
    """The width at which the network of `config` has about `target` learned parameters, and how many it has then."""
    config = config.copy_and_resolve_references()

    @functools.cache
    def count(num_filters: int) -> int:
        config.model.num_filters = num_filters
        return learned_parameters(config, input_shape, num_classes)

    above = bisect.bisect_left(range(2, 512), target, key=count) + 2
    nearest = min((above - 1, above), key=lambda num_filters: abs(count(num_filters) - target))
    return nearest, count(nearest)
