"""Resuming a run: the checks before anything is printed or written, restoring the state, and when it is saved."""

import contextlib
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp

from pnn_jax.errors import DivergedError, InputError, RunError, StoppedEarly
from pnn_jax.evaluate import Evaluation
from pnn_jax.run.checkpoints import Checkpointer, tree_digest
from pnn_jax.run.result import circumstances, evaluated_split
from pnn_jax.run.workdir import Workdir, other_data
from pnn_jax.train_step import TrainState, Variables
from pnn_jax.trainer import Trainer


def check_resumable(workdir: Workdir, checkpointer: Checkpointer, trainer: Trainer) -> None:
    """Checks that the run in a workdir can be resumed on the trainer's data. A workdir without a run passes.

    `Workdir.open` has compared the configs already. Nothing is written.

    Raises:
        InputError: the run was trained on other data, or was converted from PyTorch.
        RunError: the noise masks are not those that the run was trained with, or all checkpoints are gone.
    """
    workdir.check_data(trainer.data.digest)
    check_class_names(workdir, trainer.data.class_names)
    if workdir.history and evaluated_split(workdir.history[-1]) != trainer.epoch_split:
        raise InputError(
            f'--workdir={workdir.path}: an older version evaluated its epochs on other examples than '
            f'{trainer.epoch_split} examples; name another folder'
        )
    meta = checkpointer.latest_meta()
    if meta is None:
        # One epoch without a checkpoint is a run that was killed between the two; its first epoch is repeated.
        if len(workdir.history) > 1 and workdir.result() is None:
            raise lost_checkpoints(workdir)
        return
    # Older conversions left no `converted_from`, but have no digest of training data either.
    if 'converted_from' in meta or (trainer.data.digest and not meta['data_digest']):
        source = f' from {meta["converted_from"]}' if 'converted_from' in meta else ''
        raise InputError(
            f'--workdir={workdir.path}: it was converted{source}, not trained here, so it can only be evaluated '
            '(--mode=eval); to train, name another folder'
        )
    if meta['data_digest'] != trainer.data.digest:
        raise other_data(workdir.path, meta['data_digest'], trainer.data.digest)
    has_fixed = meta['fixed_digest'] != tree_digest({})
    if workdir.result() is not None and has_fixed:  # an unfinished run checks its masks when it restores them
        checkpointer.check_masks(meta['fixed_digest'])


def check_class_names(workdir: Workdir, class_names: tuple[str, ...]) -> None:
    """Raises InputError where a finished run counted other classes. The digest of the data does not cover names."""
    result = workdir.result()
    if result is not None and list(result['per_class']) != list(class_names):
        raise InputError(
            f'--workdir={workdir.path}: its run was trained on data with the classes {", ".join(result["per_class"])}, '
            f'and config.data has {", ".join(class_names)}; name another folder'
        )


def lost_checkpoints(workdir: Workdir) -> RunError:
    return RunError(
        f'--workdir={workdir.path}: metrics.jsonl has {len(workdir.history)} epochs, but there is no checkpoint; put '
        'checkpoints/ back, or name another folder'
    )


def saved_part(state: TrainState) -> dict[str, Any]:
    """The part of a state that a checkpoint holds.

    The key is left out, because it follows from the seed; `diverged_at` too, because a diverged state is never saved.
    """
    return {
        'step': state.step,
        'params': state.params,
        'batch_stats': state.batch_stats,
        'opt_state': state.opt_state,
        'epoch_metrics': state.epoch_metrics,
    }


def resume(
    workdir: Workdir, checkpointer: Checkpointer, trainer: Trainer, config
) -> tuple[TrainState, Variables, 'Saver']:
    """The state and the fixed collections to start from: those of the latest checkpoint, or new ones without any.

    Returns:
        (state, fixed collections, saver).

    Raises:
        InputError: the run has trained for more than `config.num_epochs` already.
        RunError: checkpoints or noise masks are damaged or lost.
    """
    state, fixed = trainer.init(config.seed, config.mask_seed)
    digest, present = tree_digest(fixed), circumstances()
    earlier: list[dict] = []
    restored = checkpointer.restore(saved_part(state))
    if restored is None:
        if len(workdir.history) > 1:
            raise lost_checkpoints(workdir)
        workdir.truncate(0)
    else:
        epochs, steps_into_epoch = divmod(restored.step, trainer.steps_per_epoch)
        needed = epochs + (steps_into_epoch > 0)
        if needed > config.num_epochs:
            raise InputError(
                f'--workdir={workdir.path}: its run is in epoch {needed}; config.num_epochs={config.num_epochs} must '
                'be at least that'
            )
        digest = restored.meta['fixed_digest']
        fixed = checkpointer.load_masks(fixed, digest) if fixed else fixed
        state = state.replace(**restored.state)
        begun_by = restored.meta.get('computed_by', [{'code': 'unknown'}])  # checkpoints of older versions have none
        earlier = [one for one in begun_by if one != present]
        # A checkpoint at the end of an epoch, but without an accuracy, was saved when the evaluation was stopped. The
        # epoch then does not count as finished: its evaluation is done again.
        stopped_in_evaluation = steps_into_epoch == 0 and restored.accuracy is None
        workdir.truncate(epochs - 1 if stopped_in_evaluation else epochs)
    meta = {'fixed_digest': digest, 'data_digest': trainer.data.digest, 'computed_by': [*earlier, present]}
    step = None if restored is None else restored.step
    return state, fixed, Saver(workdir, checkpointer, fixed, meta, restored=step)


class Saver:
    """Saves a run's state: at intervals, when the run is asked to stop, and after every epoch.

    From the first save on, the other files of the workdir describe this attempt (`Workdir.begin`).

    Args:
        fixed: the fixed collections, saved once.
        meta: saved with every checkpoint: digests of the fixed collections and of the data, and the different
            `circumstances` in which this run was trained, the present ones last.
        restored: the step of the checkpoint that the run goes on from; None without one.

    Attributes:
        saved_step: of the latest checkpoint; 0 without one.
    """

    def __init__(
        self, workdir: Workdir, checkpointer: Checkpointer, fixed: Variables, meta: dict, *, restored: int | None
    ):
        self.workdir, self.checkpointer, self.fixed, self.meta = workdir, checkpointer, fixed, meta
        self.has_checkpoint, self.saved_step = restored is not None, restored or 0

    def save(self, state: TrainState, *, accuracy: float | None) -> None:
        """Starts to write a checkpoint. `accuracy` is None for a state that was not evaluated."""
        self.workdir.begin()
        if not self.has_checkpoint:
            self.checkpointer.save_masks(self.fixed)
        self.saved_step = int(state.step)
        self.checkpointer.save(self.saved_step, saved_part(state), self.meta, accuracy=accuracy)
        self.has_checkpoint = True

    def between_steps(self, state: TrainState, reason: str, *, due: bool) -> None:
        """Saves if a checkpoint is due or there is a reason to stop. Raises StoppedEarly if there is a reason."""
        if reason or due:
            self.check_finite(state)
            self.save(state, accuracy=None)
        if reason:
            raise StoppedEarly(reason)

    @contextlib.contextmanager
    def saving_if_stopped(self, state: TrainState) -> Iterator[None]:
        """A context that saves the state, unless it is saved, if the run is stopped in it."""
        try:
            yield
        except StoppedEarly:
            if int(state.step) != self.saved_step:
                self.check_finite(state)
                self.save(state, accuracy=None)
            raise

    def after_epoch(self, state: TrainState, metrics: dict, evaluation: Evaluation) -> None:
        """Records a finished epoch, then saves its state."""
        # The checkpoint of the epoch before must be on disk first. A killed run with two epochs more in metrics.jsonl
        # than in its checkpoints could not be told from one that lost its checkpoints.
        self.checkpointer.wait()
        self.workdir.set_examples(evaluation.labels, self.meta['data_digest'])
        self.workdir.append_epoch(metrics, evaluation.correct)
        self.save(state, accuracy=evaluation.accuracy)

    def stop(self, reason: str) -> None:
        """If there is a reason to stop: waits until everything is on disk, then raises StoppedEarly."""
        if reason:
            self.checkpointer.wait()
            raise StoppedEarly(reason)

    def check_finite(self, state: TrainState) -> None:
        """Raises DivergedError if a loss was not finite, or if parameters or batch statistics are not finite now."""
        diverged_at = int(state.diverged_at)
        if diverged_at >= 0:
            what = f'the loss is not finite at step {diverged_at + 1}'
        elif not _all_finite(state.params, state.batch_stats):
            what = f'parameters or batch statistics are not finite after step {int(state.step)}'
        else:
            return
        if not self.has_checkpoint:
            advice = 'nothing was saved; run it again with a lower config.optimizer.learning_rate'
        else:
            advice = 'the last checkpoint is older; try a lower config.optimizer.learning_rate in another --workdir'
        raise DivergedError(what, advice)


@jax.jit
def _all_finite(*trees) -> jax.Array:
    return jnp.stack([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(trees)]).all()
