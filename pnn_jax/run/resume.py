"""Resuming a run: what must agree before anything is shown or written, what is restored, and what is saved when."""

import contextlib
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp

from pnn_jax.errors import InputError, RunError, StoppedEarly
from pnn_jax.evaluate import Evaluation
from pnn_jax.run.checkpoints import Checkpointer, tree_digest
from pnn_jax.run.workdir import Workdir, other_data
from pnn_jax.train_step import TrainState, Variables
from pnn_jax.trainer import Trainer


def check_resumable(workdir: Workdir, checkpointer: Checkpointer, trainer: Trainer) -> None:
    """Raises where the work in a workdir was not done on the trainer's data, or cannot be resumed at all.

    The workdir has compared the configs already. Nothing is written.

    Raises:
        InputError: it was done on other data, or converted from PyTorch.
        RunError: the noise masks are not those that the run was trained with, or checkpoints are lost.
    """
    workdir.check_data(trainer.data.digest)
    meta = checkpointer.latest_meta()
    if meta is None:
        if len(workdir.history) > 1 and workdir.result() is None:  # one line may precede the first checkpoint
            raise lost_checkpoints(workdir)
        return
    if 'converted_from' in meta or (trainer.data.digest and not meta['data_digest']):
        source = f' from {meta["converted_from"]}' if 'converted_from' in meta else ''
        raise InputError(
            f'--workdir={workdir.path}: it was converted{source}, not trained here, so it can only be evaluated '
            '(--mode=eval); to train, name another folder'
        )
    if meta['data_digest'] != trainer.data.digest:
        raise other_data(workdir.path, meta['data_digest'], trainer.data.digest)
    if workdir.result() is not None and meta['fixed_digest'] != tree_digest({}):
        checkpointer.check_masks(meta['fixed_digest'])


def lost_checkpoints(workdir: Workdir) -> RunError:
    return RunError(
        f'--workdir={workdir.path}: metrics.jsonl has {len(workdir.history)} epochs, but there is no checkpoint; put '
        'checkpoints/ back, or name another folder'
    )


def saved_part(state: TrainState) -> dict[str, Any]:
    """What a checkpoint holds of a state: all but the key, which the seed gives, and `diverged_at`."""
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
    """The state and the fixed collections to resume from: fresh ones, or those of the latest checkpoint.

    Raises:
        InputError: the run is beyond `config.num_epochs` already.
        RunError: checkpoints or noise masks are damaged or lost.
    """
    state, fixed = trainer.init(config.seed, config.mask_seed)
    digest = tree_digest(fixed)
    restored = checkpointer.restore(saved_part(state))
    if restored is None:
        if len(workdir.history) > 1:
            raise lost_checkpoints(workdir)
    else:
        epochs, steps = divmod(restored.step, trainer.steps_per_epoch)
        if epochs + (steps > 0) > config.num_epochs:
            raise InputError(
                f'--workdir={workdir.path}: its run is in epoch {epochs + 1}; config.num_epochs={config.num_epochs} '
                'must be at least that'
            )
        digest = restored.meta['fixed_digest']
        fixed = checkpointer.load_masks(fixed, digest) if fixed else fixed
        state = state.replace(**restored.state)
        # A checkpoint at the end of an epoch without an accuracy was stopped in the evaluation, which is repeated.
        workdir.truncate(epochs - (steps == 0 and restored.accuracy is None))
    if restored is None:
        workdir.truncate(0)
    meta = {'fixed_digest': digest, 'data_digest': trainer.data.digest}
    return state, fixed, Saver(workdir, checkpointer, fixed, meta, new=restored is None)


class Saver:
    """Saves a run's state: at intervals, when it is asked to stop, and after every epoch.

    The workdir's other files begin to describe this attempt with the first save.
    """

    def __init__(self, workdir: Workdir, checkpointer: Checkpointer, fixed: Variables, meta: dict, *, new: bool):
        self.workdir, self.checkpointer, self.fixed, self.meta = workdir, checkpointer, fixed, meta
        self.masks_saved = not new
        self.last_saved: int | None = None if new else -1

    def save(self, state: TrainState, *, accuracy: float | None) -> None:
        """Starts to write a checkpoint. `accuracy` is None for a state that was not evaluated."""
        self.workdir.begin()
        if not self.masks_saved:
            self.checkpointer.save_masks(self.fixed)
            self.masks_saved = True
        self.checkpointer.save(int(state.step), saved_part(state), self.meta, accuracy=accuracy)
        self.last_saved = int(state.step)

    def between_steps(self, state: TrainState, reason: str, *, due: bool) -> None:
        """Saves where a checkpoint is due or there is a reason to stop; then raises StoppedEarly for the latter."""
        if reason or due:
            self.check_finite(state)
            self.save(state, accuracy=None)
        if reason:
            raise StoppedEarly(reason)

    @contextlib.contextmanager
    def saving_if_stopped(self, state: TrainState) -> Iterator[None]:
        """Saves the state where the evaluation inside is stopped."""
        try:
            yield
        except StoppedEarly:
            self.save(state, accuracy=None)
            raise

    def after_epoch(self, state: TrainState, metrics: dict, evaluation: Evaluation) -> None:
        """Records a finished epoch, then saves its state."""
        self.workdir.use_test_set(evaluation.labels, self.meta['data_digest'])
        self.workdir.append_epoch(metrics, evaluation.correct)
        self.save(state, accuracy=evaluation.accuracy)

    def stop(self, reason: str) -> None:
        """Raises StoppedEarly where there is a reason, when everything is on disk."""
        if reason:
            self.checkpointer.wait()
            raise StoppedEarly(reason)

    def check_finite(self, state: TrainState) -> None:
        """Raises RunError where a loss was not finite, or where the last update left something that is not."""
        diverged_at = int(state.diverged_at)
        if diverged_at >= 0:
            what = f'the loss is not finite at step {diverged_at + 1}'
        elif not _all_finite(state.params, state.batch_stats):
            what = f'parameters or batch statistics are not finite after step {int(state.step)}'
        else:
            return
        if self.last_saved is None:
            advice = 'nothing was saved; run it again with a lower config.optimizer.learning_rate'
        else:
            advice = (
                'the last checkpoint is from before it; a lower config.optimizer.learning_rate, in another --workdir, '
                'may help'
            )
        raise RunError(f'{what}; {advice}')


@jax.jit
def _all_finite(*trees) -> jax.Array:
    return jnp.stack([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(trees)]).all()
