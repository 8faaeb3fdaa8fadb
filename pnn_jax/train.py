"""The training loop: `train_and_evaluate(config, workdir)` is a whole run, resumed wherever its workdir stands."""

import os
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp

from pnn_jax.data import Dataset
from pnn_jax.data.streams import Stream
from pnn_jax.evaluate import Evaluation
from pnn_jax.hosts import agreed
from pnn_jax.models.registry import count_variables
from pnn_jax.optim import learning_rate_at
from pnn_jax.run.checkpoints import Checkpointer
from pnn_jax.run.console import say
from pnn_jax.run.log import Progress, RunLog
from pnn_jax.run.result import describe_run, run_result, summarise_seeds
from pnn_jax.run.resume import check_resumable, resume
from pnn_jax.run.workdir import Workdir
from pnn_jax.train_step import TrainState, all_variables
from pnn_jax.trainer import Trainer
from pnn_jax.validate import check_batch_norms


def never_stop() -> str:
    return ''


def train_and_evaluate(
    config,
    workdir: str | os.PathLike,
    *,
    should_stop: Callable[[], str] = never_stop,
    dataset: Dataset | Stream | None = None,
    lock: bool = True,
) -> dict:
    """Trains and evaluates as `config` says, resuming where the run in `workdir` stands.

    Args:
        config: as `configs/default.py`.
        workdir: the folder for what the run leaves; with several seeds, each has a folder in it.
        should_stop: asked between dispatches and between batches of evaluation for a reason to stop, '' for none. A
            reason saves the state and raises StoppedEarly.
        dataset: already loaded data, otherwise what `config.data` says.
        lock: keep other processes out of the workdir; see `Workdir.open`.

    Returns:
        The content of `result.json`.

    Raises:
        InputError: the config, data set or workdir is not valid, or they do not belong together. Nothing was written.
        RunError: the loss is not finite, checkpoints are damaged, the disk is full.
        StoppedEarly: `should_stop` asked for it; the same call resumes the run.
    """
    trainer = Trainer.create(config, dataset)
    check_batch_norms(
        trainer.model, trainer.feed.image_shape, batch_size=config.batch_size, num_train=trainer.feed.num_train
    )
    if config.num_seeds == 1:
        return train_seed(trainer, config, workdir, should_stop, lock=lock)
    with Workdir.open(workdir, config, primary=jax.process_index() == 0, lock=lock) as parent:
        results = []
        for offset in range(config.num_seeds):
            single = config.copy_and_resolve_references()
            single.seed, single.mask_seed, single.num_seeds = config.seed + offset, config.mask_seed + offset, 1
            path = parent.path / f'seed_{single.seed}'
            results.append(train_seed(trainer, single, path, should_stop, lock=lock, parent=parent))
        summary = summarise_seeds(results)
        return summary if parent.result() == summary else parent.write_result(summary)


def train_seed(
    trainer: Trainer,
    config,
    path: str | os.PathLike,
    should_stop: Callable[[], str],
    *,
    lock: bool = True,
    parent: Workdir | None = None,
) -> dict:
    """One seed, from wherever its workdir stands to its result. Arguments and errors as `train_and_evaluate`."""
    primary = jax.process_index() == 0
    with (
        Workdir.open(path, config, primary=primary, lock=lock, parent=parent) as workdir,
        Checkpointer(workdir.checkpoints_dir, keep=config.checkpoint.keep) as checkpointer,
    ):
        check_resumable(workdir, checkpointer, trainer)
        if (result := workdir.result()) is not None and len(workdir.history) == config.num_epochs:
            return result
        say('compiling the training step; on a CPU this takes about 10 seconds, for large networks up to a minute')
        trainer.compile()
        state, fixed, saver = resume(workdir, checkpointer, trainer, config)
        counts = count_variables(all_variables(state, fixed))
        step, evaluation = int(state.step), None
        with RunLog(workdir, config, primary=primary) as log:
            describe_run(log.say, config, trainer.data, counts, epochs_done=len(workdir.history))
            while len(workdir.history) < config.num_epochs:
                epoch = len(workdir.history)
                end = (epoch + 1) * trainer.steps_per_epoch
                first = step - epoch * trainer.steps_per_epoch
                began, images = time.perf_counter(), 0
                if first == 0:
                    state = state.replace(epoch_metrics=jax.tree.map(jnp.zeros_like, state.epoch_metrics))
                for batches in trainer.feed.batches(state.key, epoch, first):
                    state = trainer.train_steps(state, fixed, batches)
                    before, step = step, step + batches.num_steps
                    images += batches.num_steps * batches.batch_size
                    logged = crossed(config.log.every_steps, before, step) or step == end
                    if logged:  # the only place within an epoch that waits for the device
                        saver.check_finite(state)
                        log.progress(progress(trainer, config, state, step, images / (time.perf_counter() - began)))
                    if step < end:
                        # Several hosts agree where they wait anyway; a single one is asked at every dispatch.
                        reason = agreed(should_stop()) if logged or jax.process_count() == 1 else ''
                        saver.between_steps(state, reason, due=crossed(config.checkpoint.every_steps, before, step))
                images_per_second = images / (time.perf_counter() - began)
                with saver.saving_if_stopped(state):
                    evaluation = trainer.evaluate(all_variables(state, fixed), should_stop)
                metrics = epoch_metrics(trainer, state, evaluation) | {
                    'images_per_second': images_per_second,
                    'seconds': time.perf_counter() - began,
                }
                saver.after_epoch(state, metrics, evaluation)
                log.epoch(metrics)
                if len(workdir.history) < config.num_epochs:
                    saver.stop(agreed(should_stop()))
            checkpointer.wait()
            evaluation = evaluation or trainer.evaluate(all_variables(state, fixed))
            result = workdir.write_result(run_result(evaluation, trainer.data, config, counts, workdir.history))
            log.finish(workdir.history)
            return result


def progress(trainer: Trainer, config, state: TrainState, step: int, images_per_second: float) -> Progress:
    """Where the run stands; waits for the device."""
    train = jax.device_get(state.epoch_metrics).compute()
    total = config.num_epochs * trainer.steps_per_epoch
    return Progress(step, total, train['loss'], train['accuracy'], images_per_second)


def epoch_metrics(trainer: Trainer, state: TrainState, evaluation: Evaluation) -> dict:
    """What metrics.jsonl holds of a finished epoch, except for timings."""
    train = jax.device_get(state.epoch_metrics).compute()
    step = int(state.step)
    return {
        'epoch': step // trainer.steps_per_epoch,
        'step': step,
        'learning_rate': learning_rate_at(trainer.schedule, step - 1),
        'train_loss': train['loss'],
        'train_accuracy': train['accuracy'],
        'test_correct': evaluation.num_correct,
        'test_count': evaluation.count,
        'test_accuracy': evaluation.accuracy,
        'test_loss': evaluation.loss,
        'nonfinite': evaluation.nonfinite,
    }


def crossed(interval: int, before: int, after: int) -> bool:
    """Whether a multiple of `interval` (0: none) lies in (before, after]."""
    return interval > 0 and before // interval != after // interval
