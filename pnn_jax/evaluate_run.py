"""Exact evaluation of a run's checkpoint, on its own data or on any other: `--mode=eval`."""

import os

from pnn_jax.data import Dataset, load_data
from pnn_jax.data.streams import Stream
from pnn_jax.errors import InputError
from pnn_jax.run.load import load_run
from pnn_jax.run.result import evaluation_result
from pnn_jax.run.workdir import check_same_network
from pnn_jax.trainer import Trainer
from pnn_jax.validate import check_platform, validate_config


def evaluate_checkpoint(
    config, workdir: str | os.PathLike, *, which: str = 'latest', dataset: Dataset | Stream | None = None
) -> dict:
    """Evaluates the `latest` or `best` checkpoint of the run in `workdir`; writes nothing.

    Args:
        config: its model must be that of the run; its data may be any with the same classes.
        workdir: of one seed.
        which: 'latest' or 'best'.
        dataset: already loaded data, otherwise what `config.data` says.

    Returns:
        As `evaluation_result`, with the checkpoint's step.

    Raises:
        InputError: there is no checkpoint, it is of another network, or of another number of classes than the data.
        RunError: the checkpoint is damaged.
    """
    validate_config(config)
    check_platform(config.platform)
    run = load_run(workdir, which)
    check_same_network(run.path, config)
    if dataset is None:
        dataset = load_data(config.data)
    if run.num_classes != len(dataset.class_names):
        raise InputError(
            f'--workdir={run.path}: the network has {run.num_classes} classes, the data {len(dataset.class_names)} '
            f'({", ".join(dataset.class_names[:5])}{", ..." if len(dataset.class_names) > 5 else ""})'
        )
    trainer = Trainer.create(config, dataset)
    evaluation = trainer.evaluate(run.variables)
    return evaluation_result(evaluation, trainer.data.class_names) | {'step': run.step}
