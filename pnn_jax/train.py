"""The training loop. `train_and_evaluate(config, workdir)` does a whole run, or resumes the run in `workdir`.

The loop of a run is a generator, `train_seed`. `train_side_by_side` makes its steps, of one run or of several in step.
"""

import contextlib
import os
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from pnn_jax.data import Dataset
from pnn_jax.data.dataset import added_field
from pnn_jax.data.feeds import Batches, StreamFeed
from pnn_jax.data.streams import Stream
from pnn_jax.errors import DivergedError, InputError, RunError, StoppedEarly
from pnn_jax.evaluate import Evaluation
from pnn_jax.hosts import agreed
from pnn_jax.models.registry import count_variables
from pnn_jax.optim import learning_rate_at
from pnn_jax.run.checkpoints import Checkpointer
from pnn_jax.run.console import say
from pnn_jax.run.log import FinishedRun, Progress, RunLog, check_writers
from pnn_jax.run.provenance import provenance
from pnn_jax.run.result import describe_run, run_result, summarise_seeds
from pnn_jax.run.resume import check_resumable, resume
from pnn_jax.run.workdir import Workdir
from pnn_jax.train_step import TrainState, Variables, all_variables
from pnn_jax.trainer import Trainer
from pnn_jax.validate import check_batch_norms

SEEDS = ('seed', 'mask_seed', 'num_seeds')  # the fields of a config that its trainer does not depend on


def never_stop() -> str:
    return ''


def train_and_evaluate(
    config,
    workdir: str | os.PathLike,
    *,
    should_stop: Callable[[], str] = never_stop,
    dataset: Dataset | Stream | None = None,
    trainer: Trainer | None = None,
    lock: bool = True,
) -> dict:
    """Trains and evaluates as `config` says. A run that `workdir` holds already is resumed from its latest checkpoint.

    Args:
        config: an ml_collections.ConfigDict with the fields of `configs/default.py`.
        workdir: the folder for all files of the run. With several seeds, each has a folder `seed_<seed>` in it.
        should_stop: returns the reason to stop, or '' to continue. It is called between steps, and between
            batches of evaluation. When it returns a reason, the state is saved and StoppedEarly is raised.
        dataset: data that are loaded already; None loads what `config.data` says. Of `config.data`, only normalisation
            and augmentation then have an effect.
        trainer: what `create_trainer` made of a config that differs in its seeds alone, so that several runs share its
            data and compiled programs; None makes one.
        lock: keep other processes out of the workdir; see `Workdir.open`.

    Returns:
        The content of `result.json`: counts, accuracies (fractions), interval, versions; see `run_result` in
        pnn_jax/run/result.py. For several seeds: their mean, standard deviation and results (`summarise_seeds`).

    Raises:
        InputError: the config, data set or workdir is not valid, or the workdir holds another run. It is raised before
            anything is written, except for an image that turns out to be damaged and for the folder of a later seed.
        RunError: the loss is not finite, checkpoints are damaged, the disk is full. Where the loss of one of several
            seeds is not finite, the others are trained first.
        StoppedEarly: `should_stop` returned a reason; the same call resumes the run.
        ValueError: `trainer` was made of another config.
    """
    provenance()  # read before the data: the code may be edited while they load
    if trainer is None:
        trainer = create_trainer(config, dataset)
    elif _without_seeds(trainer.config) != _without_seeds(config):
        raise ValueError('trainer: was made of a config that differs in more than its seeds')
    train = partial(train_seed, trainer, should_stop=should_stop, lock=lock)
    if config.num_seeds == 1:
        (outcome,) = train_side_by_side(trainer, {'': train(config, workdir)}).values()
        if isinstance(outcome, DivergedError):
            raise outcome
        return outcome
    with Workdir.open(workdir, config, primary=jax.process_index() == 0, lock=lock) as parent:
        results, diverged = [], []
        configs = [config_of_seed(config, offset) for offset in range(config.num_seeds)]
        for first in range(0, config.num_seeds, config.seeds_at_once):
            group = configs[first : first + config.seeds_at_once]
            train_one = partial(train, parent=parent, shared=len(group) > 1)
            runs = {f'seed {one.seed}': train_one(one, parent.path / f'seed_{one.seed}') for one in group}
            for name, outcome in train_side_by_side(trainer, runs).items():
                if isinstance(outcome, DivergedError):
                    diverged.append(f'{name}: {outcome}')
                else:
                    results.append(outcome)
        if diverged:
            raise RunError('\n'.join(diverged))
        summary = summarise_seeds(results)
        return summary if parent.result() == summary else parent.write_result(summary)


def config_of_seed(config, offset: int) -> Any:
    """The config of one run of several, `offset` after the first."""
    one = config.copy_and_resolve_references()
    one.update(seed=config.seed + offset, mask_seed=config.mask_seed + offset, num_seeds=1, seeds_at_once=1)
    return one


def create_trainer(config, dataset: Dataset | Stream | None = None) -> Trainer:
    """What runs of `config` share, whatever their seeds: the data, the network and the compiled programs.

    Args:
        config, dataset: as in `train_and_evaluate`.

    Raises:
        InputError: the config or data set is not valid, or the network cannot be trained on it.
    """
    check_writers(config)
    if dataset is not None:
        check_is_dataset_of(config.data, dataset)
    trainer = Trainer.create(config, dataset)
    if config.seeds_at_once > 1 and isinstance(trainer.feed, StreamFeed):
        raise InputError(
            f'config.seeds_at_once={config.seeds_at_once}: must be 1 for data that stay on disk '
            f'(config.data.source={config.data.source!r})'
        )
    # Not part of `create`, because a network can be evaluated with a batch size that it cannot be trained with.
    check_batch_norms(
        trainer.model, trainer.feed.image_shape, batch_size=config.batch_size, num_train=trainer.feed.num_train
    )
    return trainer


def check_is_dataset_of(data_config, dataset: Dataset | Stream) -> None:
    """Raises InputError where a data set that was given cannot be trained and evaluated on as `config.data` says."""
    wanted = added_field(data_config, 'validation_examples')
    if wanted and dataset.validation is None:
        raise InputError(f'config.data.validation_examples={wanted}: the data set that was given has none')
    if isinstance(dataset, Dataset):
        if data_config.augment == 'resized_crop_flip':
            raise InputError("config.data.augment='resized_crop_flip': only for streamed sources")
        return
    for field in ('augment', 'image_size'):
        if data_config[field] != getattr(dataset, field):
            raise InputError(
                f'config.data.{field}={data_config[field]!r}: the stream that was given has {getattr(dataset, field)!r}'
            )


def _without_seeds(config) -> dict:
    return {name: value for name, value in config.to_dict().items() if name not in SEEDS}


class Dispatch(NamedTuple):
    """What a run needs next: its state after the steps of `batches`.

    Attributes:
        step: of the run, before them.
    """

    step: int
    state: TrainState
    fixed: Variables
    batches: Batches


class Steps(NamedTuple):
    """What a run is sent for a dispatch.

    Attributes:
        state: after the steps.
        runs: how many runs made them in one program.
        compiled: seconds that went into compiling it.
    """

    state: TrainState
    runs: int
    compiled: float


# A run that is being trained. StoppedEarly is thrown into it where another run was stopped.
Training = Generator[Dispatch, Steps, dict]


def train_side_by_side(trainer: Trainer, runs: Mapping[str, Training]) -> dict[str, dict | DivergedError]:
    """Takes runs to their ends. Those that are at the same step are trained by one program.

    Args:
        runs: by name.

    Returns:
        The result of each run, or why it diverged, in the order of `runs`.

    Raises:
        StoppedEarly: one run was asked to stop. All have been saved, but for those that diverged.
        Exception: what else a run raises. The others are left at their last checkpoints.
    """
    outcomes: dict[str, dict | DivergedError] = {}
    waiting: dict[str, Dispatch] = {}
    stopped: list[StoppedEarly] = []

    def proceed(name: str, advance: Callable[[], Dispatch]) -> None:
        try:
            waiting[name] = advance()
        except StopIteration as end:
            outcomes[name] = end.value
        except DivergedError as error:
            outcomes[name] = error
            if len(runs) > 1:
                say(f'{name}: {error}')  # now, because the others may go on for long
        except StoppedEarly as error:
            stopped.append(error)

    with contextlib.ExitStack() as stack, trainer.ending_compilation():
        for name, run in runs.items():
            stack.callback(run.close)
            if not stopped:
                proceed(name, partial(next, run))
        while waiting and not stopped:
            # Runs that were saved at different steps are together again when the last one has caught up.
            step = min(dispatch.step for dispatch in waiting.values())
            ready = [name for name, dispatch in waiting.items() if dispatch.step == step]
            made = train_dispatches(trainer, [waiting.pop(name) for name in ready])
            for name, steps in zip(ready, made, strict=True):
                proceed(name, partial(runs[name].send, steps))
        for name in list(waiting):  # one run was asked to stop: the others are saved where they are
            proceed(name, partial(runs[name].throw, StoppedEarly(str(stopped[0]))))
    if stopped:
        raise stopped[0]
    return {name: outcomes[name] for name in runs}


def train_dispatches(trainer: Trainer, dispatches: Sequence[Dispatch]) -> list[Steps]:
    """Makes the steps of each dispatch. All are at the same step."""
    _, states, fixed, batches = zip(*dispatches, strict=True)
    if len(dispatches) == 1:
        trainer.compile()  # begun long ago, unless this is the last one of several runs
        compiled = trainer.wait_for_program(batches[0])
        after = [trainer.train_steps(states[0], fixed[0], batches[0])]
    else:
        compiled = trainer.compile_together(states, fixed, batches)
        after = trainer.train_together(states, fixed, batches)
    return [Steps(state, len(dispatches), compiled) for state in after]


def train_seed(
    trainer: Trainer,
    config,
    path: str | os.PathLike,
    *,
    should_stop: Callable[[], str],
    lock: bool = True,
    parent: Workdir | None = None,
    shared: bool = False,
) -> Training:
    """Trains one seed, or resumes it, up to its result; `train_side_by_side` makes its steps.

    Arguments and errors as `train_and_evaluate`; `shared` says whether other runs are trained side by side with it.
    """
    primary = jax.process_index() == 0
    with (
        Workdir.open(path, config, primary=primary, lock=lock, parent=parent) as workdir,
        Checkpointer(workdir.checkpoints_dir, keep=config.checkpoint.keep) as checkpointer,
    ):
        check_resumable(workdir, checkpointer, trainer)
        if (result := workdir.result()) is not None and len(workdir.history) == config.num_epochs:
            return result  # this run is finished already
        if not shared:  # it is not known yet how many runs one program will train
            trainer.compile()
        state, fixed, saver = resume(workdir, checkpointer, trainer, config)
        counts = count_variables(all_variables(state, fixed))
        step = int(state.step)  # counted on the host, so that no step waits for the device
        evaluation = None
        with RunLog(workdir, config, primary=primary, name=f'seed {config.seed}' if shared else '') as log:
            describe_run(log.say, config, trainer.data, counts, epochs_done=len(workdir.history))
            while len(workdir.history) < config.num_epochs:  # one entry per finished epoch
                epoch = len(workdir.history)
                epoch_end = (epoch + 1) * trainer.steps_per_epoch
                first_step = step - epoch * trainer.steps_per_epoch  # not 0 where the run stopped within the epoch
                started, images = time.perf_counter(), 0
                sharing: list[int] = []  # how many runs made each dispatch
                if first_step == 0:  # a resumed epoch goes on counting
                    state = state.replace(epoch_metrics=jax.tree.map(jnp.zeros_like, state.epoch_metrics))
                for batches in trainer.feed.batches(state.key, epoch, first_step):
                    with saver.saving_if_stopped(state):
                        state, runs, compiled = yield Dispatch(step, state, fixed, batches)
                    started += compiled  # which is not training
                    sharing.append(runs)
                    before, step = step, step + batches.num_steps
                    images += batches.num_steps * batches.batch_size
                    logged = crossed(config.log.every_steps, before, step) or step == epoch_end
                    if logged:  # within an epoch, only this and checkpoints wait for the device
                        saver.check_finite(state)
                        speed = images / (time.perf_counter() - started)
                        log.progress(progress_so_far(trainer, config, state, step, speed))
                    if step < epoch_end:
                        # Hosts must stop together. To agree they wait for each other, so they do it only where they
                        # wait for the device anyway. A single host can look after every call.
                        reason = agreed(should_stop()) if logged or jax.process_count() == 1 else ''
                        saver.between_steps(state, reason, due=crossed(config.checkpoint.every_steps, before, step))
                # Of training, without the evaluation. None where the epoch was trained before the run was resumed, and
                # where other runs took a part of the time.
                alone = images > 0 and set(sharing) == {1}
                images_per_second = images / (time.perf_counter() - started) if alone else None
                with saver.saving_if_stopped(state):
                    evaluation = trainer.evaluate(all_variables(state, fixed), should_stop, split=trainer.epoch_split)
                metrics = record_of_epoch(trainer, state, evaluation) | {
                    'images_per_second': images_per_second,
                    'seconds': (time.perf_counter() - started) * own_share(sharing),
                }
                saver.after_epoch(state, metrics, evaluation)
                log.epoch(metrics)
                if len(workdir.history) < config.num_epochs:  # after the last epoch only the result is left
                    saver.stop(agreed(should_stop()))
            checkpointer.wait()
            # Where there are validation examples, this is the only time that the test set is read. Otherwise the last
            # epoch was evaluated on it, unless the last attempt ended between that epoch and its result.
            if evaluation is None or trainer.epoch_split != 'test':
                evaluation = trainer.evaluate(all_variables(state, fixed), should_stop)
                if trainer.epoch_split != 'test':
                    workdir.write_test_outcomes(evaluation.correct, evaluation.labels)
            result = run_result(
                evaluation, trainer.data, config, counts, workdir.history, saver.meta['computed_by'][:-1]
            )
            log.finish(finished_run(trainer, workdir, result, evaluation, all_variables(state, fixed)))
            return workdir.write_result(result)  # last: from then on the run counts as finished


def own_share(sharing: Sequence[int]) -> float:
    """The part of an epoch's time that is one run's own, if so many runs made each dispatch; 1 without dispatches."""
    return sum(1 / runs for runs in sharing) / len(sharing) if sharing else 1.0


def progress_so_far(trainer: Trainer, config, state: TrainState, step: int, images_per_second: float) -> Progress:
    """The progress of the run, for the log. Waits for the device."""
    train = jax.device_get(state.epoch_metrics).compute()
    total = config.num_epochs * trainer.steps_per_epoch
    return Progress(step, total, train['loss'], train['accuracy'], images_per_second)


def finished_run(
    trainer: Trainer, workdir: Workdir, result: dict, evaluation: Evaluation, variables: Variables
) -> FinishedRun:
    """What the log writers are told at the end."""
    return FinishedRun(
        history=workdir.history,
        result=result,
        evaluation=evaluation,
        class_names=trainer.data.class_names,
        images=trainer.feed.test_images,
        model=trainer.model,
        variables=variables,
        preprocess=partial(trainer.preprocess, None, augment='none'),
    )


def record_of_epoch(trainer: Trainer, state: TrainState, evaluation: Evaluation) -> dict:
    """What metrics.jsonl holds of a finished epoch, except for timings."""
    train = jax.device_get(state.epoch_metrics).compute()
    step, split = int(state.step), trainer.epoch_split
    return {
        'epoch': step // trainer.steps_per_epoch,
        'step': step,
        'learning_rate': learning_rate_at(trainer.schedule, step - 1),
        'train_loss': train['loss'],
        'train_accuracy': train['accuracy'],
        f'{split}_correct': evaluation.num_correct,
        f'{split}_count': evaluation.count,
        f'{split}_accuracy': evaluation.accuracy,
        f'{split}_loss': evaluation.loss,
        'nonfinite': evaluation.nonfinite,
    }


def crossed(interval: int, before: int, after: int) -> bool:
    """Whether a multiple of `interval` (0: none) lies in (before, after]."""
    return interval > 0 and before // interval != after // interval
