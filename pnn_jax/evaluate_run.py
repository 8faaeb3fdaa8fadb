"""Exact evaluation of a run's checkpoint, on its own data or on any other: `--mode=eval`."""

import os
from collections.abc import Callable, Sequence

import jax

from pnn_jax.data import Dataset
from pnn_jax.data.streams import Stream
from pnn_jax.errors import InputError
from pnn_jax.hosts import from_process_0, replicate
from pnn_jax.run.console import say
from pnn_jax.run.load import Run, load_run
from pnn_jax.run.result import evaluation_result
from pnn_jax.run.workdir import check_same_network, read_json
from pnn_jax.train_step import all_variables
from pnn_jax.trainer import Trainer, read_data
from pnn_jax.validate import check_platform, validate_config


def evaluate_checkpoint(
    config,
    workdir: str | os.PathLike,
    *,
    which: str = 'latest',
    dataset: Dataset | Stream | None = None,
    should_stop: Callable[[], str] = lambda: '',
) -> dict:
    """Evaluates the `latest` or `best` checkpoint of the run in `workdir`; writes nothing.

    Args:
        config: its model must be that of the run; its data may be any with the same classes.
        workdir: of one seed.
        which: 'latest' or 'best'.
        dataset: already loaded data, otherwise what `config.data` says.
        should_stop: called before every batch; returns the reason to stop, or '' to continue.

    Returns:
        As `evaluation_result`, with the checkpoint's step.

    Raises:
        InputError: there is no checkpoint, it is of another network, or the data have another number of classes, the
            same ones in another order, or images of another size.
        RunError: the checkpoint is damaged.
        StoppedEarly: `should_stop` returned a reason.
    """
    validate_config(config)
    check_platform(config.platform)
    run = load_run(workdir, which)
    check_same_network(run.path, config)
    dataset = read_data(config.data) if dataset is None else dataset
    if run.num_classes != len(dataset.class_names):
        raise InputError(
            f'--workdir={run.path}: the network has {run.num_classes} classes, the data {len(dataset.class_names)} '
            f'({_some(dataset.class_names)})'
        )
    trainer = Trainer.create(config, dataset)
    check_same_classes(run, trainer.data.class_names)
    check_same_shapes(run, trainer)
    say(f'evaluating the {which} checkpoint, of step {run.step}, on {trainer.feed.num_examples["test"]:,} images')
    evaluation = trainer.evaluate(replicate(run.variables, trainer.replicated), should_stop)
    return evaluation_result(evaluation, trainer.data.class_names) | {'step': run.step}


def check_same_classes(run: Run, class_names: Sequence[str]) -> None:
    """Refuses data in which the labels of a finished run's classes mean other ones of its classes.

    Data that name their classes otherwise may mean the same; a note says so.

    Raises:
        InputError: names a class with another label.
    """
    path = run.path / 'result.json'
    known = list(from_process_0(lambda: read_json(path)['per_class'] if path.exists() else class_names))
    if known == list(class_names):
        return
    for label, name in enumerate(class_names):
        if name in known and known.index(name) != label:
            raise InputError(
                f'--workdir={run.path}: class {name!r} had label {known.index(name)} in the training data, and has '
                f'{label} in config.data; the order of the classes must be the same'
            )
    say(f'note: the classes were named {_some(known)} in training, and are {_some(class_names)} in these data')


def _some(names: Sequence[str]) -> str:
    return ', '.join(names[:5]) + (', ...' if len(names) > 5 else '')


def check_same_shapes(run: Run, trainer: Trainer) -> None:
    """Raises InputError where a run's network does not take the trainer's images: masks and classifiers have a size."""
    shapes_of = lambda tree: {path: leaf.shape for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}
    if shapes_of(run.variables) != shapes_of(all_variables(*trainer.shapes)):
        height, width, channels = trainer.feed.image_shape
        raise InputError(
            f'--workdir={run.path}: its network was trained on images of another size than those of config.data, '
            f'which are {height}x{width} with {channels} channel(s); config.data.image_size resizes them'
        )
