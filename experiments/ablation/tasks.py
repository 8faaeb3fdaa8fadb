"""From a grid to what is trained: its data, the config of each arm, and the task of a run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import ml_collections

from experiments.ablation.records import record_path
from experiments.ablation.registration import Grid
from experiments.ablation.run_config import build_config, data_config, with_seeds
from experiments.ablation.runner import Task
from experiments.ablation.runs import Run
from pnn_jax.data import Dataset, load_dataset


def load_data(grid: Grid, source: str | None, path: Path | None) -> tuple[Dataset, ml_collections.ConfigDict]:
    """The data set of a grid, and the `config.data` that says where it is.

    Args:
        source: config.data.source; None for that of the grid.
        path: config.data.path, where the source needs one.
    """
    data = data_config(grid)
    data.path, data.source = str(path or ''), source or data.source
    return load_dataset(data), data


def configs_of(grid: Grid, dataset: Dataset, data: ml_collections.ConfigDict) -> dict[str, ml_collections.ConfigDict]:
    """Name of an arm -> the config of its runs, complete but for the seeds."""
    configs = {}
    for arm in grid.arms:
        config = build_config(grid, arm, dataset.train.images.shape[1:], len(dataset.class_names))
        config.data.path, config.data.source = data.path, data.source
        configs[arm.name] = config
    return configs


def make_task(
    grid: Grid,
    run: Run,
    configs: Mapping[str, ml_collections.ConfigDict],
    workdirs: Path,
    results: Path,
    *,
    mixed_code: bool = False,
) -> Task:
    """What a run needs to be trained.

    Args:
        configs: from `configs_of`.
        workdirs: folder of the workdirs.
        results: folder of the records.
        mixed_code: see `Task`.
    """
    config = with_seeds(configs[run.arm.name], run)
    workdir, record = workdirs / run.name, record_path(results, run.name)
    return Task(run.arm.name, run.seed, grid.sha256, config, workdir, record, mixed_code)
