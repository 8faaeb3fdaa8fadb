"""What a grid would train: the weights of its arms, the mismatch of those that are matched, and core-hours."""

from __future__ import annotations

from collections.abc import Mapping

import ml_collections
from rich.table import Table

from experiments.ablation.registration import SEARCH, Grid
from experiments.ablation.run_config import learned_parameters
from pnn_jax.data import Dataset


def plan_table(grid: Grid, configs: Mapping[str, ml_collections.ConfigDict], dataset: Dataset) -> Table:
    """A line for each arm. Core-hours follow from `images_per_second` in the grid; evaluation is not in them.

    Args:
        configs: name of an arm -> the config of its runs.
        dataset: that the grid is trained on.
    """
    shape, num_classes = dataset.train.images.shape[1:], len(dataset.class_names)
    weights = {name: learned_parameters(config, shape, num_classes) for name, config in configs.items()}
    table = Table(title=grid.what, caption=_caption(grid))
    for column in ('arm', 'runs', 'filters', 'weights', 'against', 'rate', 'epochs', 'core-hours'):
        table.add_column(column, justify='left' if column in ('arm', 'against') else 'right', no_wrap=True)
    total, known = 0.0, all(arm.images_per_second for arm in grid.arms)
    for arm in grid.arms:
        config = configs[arm.name]
        against = f'{weights[arm.name] / weights[arm.match] - 1:+.1%} {arm.match}' if arm.match else ''
        images = arm.runs * config.num_epochs * len(dataset.train.labels)
        hours = images / arm.images_per_second / 3600 if arm.images_per_second else 0.0
        total += hours
        table.add_row(
            arm.name,
            str(arm.runs),
            str(config.model.num_filters),
            f'{weights[arm.name]:,}',
            against,
            arm.learning_rate if arm.learning_rate == SEARCH else f'{config.optimizer.learning_rate:g}',
            str(config.num_epochs),
            f'{hours:.1f}' if hours else '?',
        )
    table.add_section()
    table.add_row('all', str(sum(arm.runs for arm in grid.arms)), '', '', '', '', '', f'{total:.1f}' if known else '?')
    return table


def _caption(grid: Grid) -> str:
    if grid.look is None:
        return f'sha256 {grid.sha256[:12]}'
    return (
        f'sha256 {grid.sha256[:12]}; {grid.look.runs} runs of {" and ".join(grid.look.arms)} if their pooled standard '
        f'deviation after {grid.look.after} is above {grid.look.pooled_sd_above:g} points'
    )
