"""Training: one jitted step over a mesh, and `train_and_evaluate(config, workdir)`, which is a whole run."""

import math
import os
import time
from collections.abc import Callable
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.experimental import multihost_utils
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from pnn_jax.data import Dataset, load_dataset
from pnn_jax.data.augment import preprocess
from pnn_jax.data.batches import steps_per_epoch
from pnn_jax.data.streams import STREAMS, Stream, open_stream
from pnn_jax.errors import InputError, RunError, StoppedEarly
from pnn_jax.evaluate import Evaluation, make_evaluate
from pnn_jax.feeds import BATCH_AXIS, DeviceFeed, StreamFeed, Update
from pnn_jax.hosts import from_process_0, replicate
from pnn_jax.metrics import judge
from pnn_jax.models.registry import count_variables, create_model
from pnn_jax.optim import create_optimizer, learning_rate_at, learning_rate_schedule
from pnn_jax.run import log as runlog
from pnn_jax.run.checkpoints import Checkpointer, Restored, tree_digest
from pnn_jax.run.workdir import Workdir, check_same_network
from pnn_jax.runtime import release_unused
from pnn_jax.train_state import TrainState, create_train_state
from pnn_jax.validate import check_fits_data, check_platform, validate_config


def make_update(model: nn.Module, optimizer: optax.GradientTransformation, data_config, dtype: jnp.dtype) -> Update:
    """Makes update(state, fixed, images uint8 [b, h, w, c], labels int32 [b]) -> state: augment, differentiate, step.

    `fixed` are the state's fixed collections, passed apart so that the state's buffers can be donated. The result does
    not depend on the number of devices but for rounding: random draws are per example, and batch norms see the global
    batch.
    """

    def loss_and_updates(params, state: TrainState, fixed, images, labels, keys):
        variables = {'params': params, 'batch_stats': state.batch_stats, **fixed}
        logits, updates = model.apply(variables, images, train=True, mutable=['batch_stats'], rngs=keys)
        logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
        loss = optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()
        return loss, (logits, updates.get('batch_stats', {}))

    def update(state: TrainState, fixed, images: jax.Array, labels: jax.Array) -> TrainState:
        names = ('augment', 'dropout', 'activation', 'redraw')
        keys = dict(zip(names, jax.random.split(jax.random.fold_in(state.key, state.step), len(names)), strict=True))
        images = preprocess(
            images,
            data_config.mean,
            data_config.std,
            augment=data_config.augment,
            key=keys.pop('augment'),
            dtype=dtype,
        )
        grad = jax.value_and_grad(loss_and_updates, has_aux=True)
        (loss, (logits, batch_stats)), gradients = grad(state.params, state, fixed, images, labels, keys)
        changes, opt_state = optimizer.update(gradients, state.opt_state, state.params)
        diverged_now = ~jnp.isfinite(loss) & (state.diverged_at < 0)
        return state.replace(
            step=state.step + 1,
            params=optax.apply_updates(state.params, changes),
            batch_stats=batch_stats,
            opt_state=opt_state,
            epoch_metrics=state.epoch_metrics.merge(judge(logits, labels, jnp.ones(labels.shape, bool)).total()),
            diverged_at=jnp.where(diverged_now, state.step, state.diverged_at),
        )

    return update


def never_stop() -> str:
    return ''


class Trainer:
    """The compiled programs and the data of one config; runs any number of seeds."""

    def __init__(self, config, data: Dataset | Stream):
        self.config = config
        self.model = create_model(config.model, len(data.class_names))
        self.image_shape = image_shape_of(data)
        self.mesh = jax.make_mesh((jax.device_count(),), (BATCH_AXIS,), axis_types=(AxisType.Auto,))
        self.replicated = NamedSharding(self.mesh, PartitionSpec())
        num_train = len(data.train_index) if isinstance(data, Stream) else len(data.train.labels)
        self.steps_per_epoch = steps_per_epoch(num_train, config.batch_size)
        self.schedule = learning_rate_schedule(config.schedule, config.optimizer.learning_rate, self.steps_per_epoch)
        self.optimizer = create_optimizer(config.optimizer, self.schedule)
        dtype = jnp.dtype(config.model.dtype)
        update = make_update(self.model, self.optimizer, config.data, dtype)
        if isinstance(data, Stream):
            self.feed = StreamFeed(data, update, self.mesh, batch_size=config.batch_size)
        else:
            on_cpu = jax.default_backend() == 'cpu'
            num_steps = config.steps_per_dispatch or (1 if on_cpu else 20)
            self.feed = DeviceFeed(data, update, self.mesh, batch_size=config.batch_size, num_steps=num_steps)
        self.data = runlog.DataSummary(
            data.name, data.digest, self.feed.num_train, self.feed.num_test, data.class_names
        )
        self.evaluate_batches = make_evaluate(
            lambda variables, images: self.model.apply(
                variables,
                preprocess(images, config.data.mean, config.data.std, augment='none', dtype=dtype),
                train=False,
            )
        )

    def state_shapes(self) -> TrainState:
        """Shapes and types of a state, without computing anything."""
        return jax.eval_shape(
            lambda: create_train_state(self.model, self.optimizer, self.image_shape, seed=0, mask_seed=0)
        )

    def compile(self) -> None:
        """Compiles what a run will do at every step; to be called before `fresh_state`, to save memory."""
        self.feed.compile(self.state_shapes())

    def fresh_state(self, seed: int, mask_seed: int) -> TrainState:
        state = create_train_state(self.model, self.optimizer, self.image_shape, seed=seed, mask_seed=mask_seed)
        state = replicate(state, self.replicated)
        release_unused()
        return state

    def evaluate(self, variables, should_stop: Callable[[], str] = never_stop) -> Evaluation:
        """Exact outcomes on the test set; raises StoppedEarly where `should_stop`, asked at every batch, says so."""

        def batches():
            for batch in self.feed.eval_batches(self.config.eval_batch_size):
                if reason := agreed(should_stop()):
                    raise StoppedEarly(reason)
                yield batch

        return self.evaluate_batches(variables, batches(), self.feed.num_test)


def load_data(data_config) -> Dataset | Stream:
    """What `config.data` says, in memory or as a stream."""
    return open_stream(data_config) if data_config.source in STREAMS else load_dataset(data_config)


def image_shape_of(data: Dataset | Stream) -> tuple[int, ...]:
    """[h, w, c] of every image."""
    return data.image_shape if isinstance(data, Stream) else data.train.images.shape[1:]


def train_and_evaluate(
    config,
    workdir: str,
    *,
    should_stop: Callable[[], str] = never_stop,
    dataset: Dataset | Stream | None = None,
) -> dict:
    """Trains and evaluates as `config` says, going on where the run in `workdir` stands.

    Args:
        config: as `configs/default.py`.
        workdir: what the run leaves goes here; with several seeds into a folder for each.
        should_stop: asked between dispatches and batches of evaluation; a non-empty reason saves the state and raises
            StoppedEarly.
        dataset: already loaded data, otherwise what `config.data` says.

    Returns:
        The content of `result.json`.

    Raises:
        InputError: for a config, data set or workdir that is not valid; nothing has been written.
        RunError: for a loss that is not finite, damaged checkpoints, a full disk.
        StoppedEarly: when `should_stop` asked for it; run again to go on.
    """
    validate_config(config)
    check_platform(config.platform)
    dataset = dataset or load_data(config.data)
    check_fits_data(config, image_shape_of(dataset))
    trainer = Trainer(config, dataset)
    check_builds(trainer)
    if config.num_seeds == 1:
        return _run(trainer, config, workdir, should_stop)
    with Workdir.open(workdir, config, primary=jax.process_index() == 0) as parent:
        results = []
        for offset in range(config.num_seeds):
            single = config.copy_and_resolve_references()
            single.seed, single.mask_seed, single.num_seeds = config.seed + offset, config.mask_seed + offset, 1
            results.append(_run(trainer, single, os.path.join(workdir, f'seed_{single.seed}'), should_stop))
        parent.write_result(runlog.summarise_seeds(results))
        return parent.result()


def check_builds(trainer: Trainer) -> None:
    """Traces the network without computing anything, so that one that does not fit its images or memory stops here."""
    needed = sum(math.prod(leaf.shape) * 4 for leaf in jax.tree.leaves(trainer.state_shapes()))
    memory = os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES')
    if needed > memory:
        raise InputError(
            f'config.model.num_filters={trainer.config.model.num_filters}, '
            f'config.model.num_masks={trainer.config.model.num_masks}: the network takes {needed / 2**30:,.0f} GiB, '
            f'and this machine has {memory / 2**30:,.0f}'
        )


def saved_part(state: TrainState) -> dict:
    """What a checkpoint holds: all but the fixed collections, saved once, and the key, which the seed gives."""
    return {
        'step': state.step,
        'params': state.params,
        'batch_stats': state.batch_stats,
        'opt_state': state.opt_state,
        'epoch_metrics': state.epoch_metrics,
    }


def restore(checkpointer: Checkpointer, state: TrainState, which: str = 'latest') -> tuple[TrainState, Restored | None]:
    """`state` with the checkpoint's values and the run's own masks, or as it is where nothing was saved yet."""
    restored = checkpointer.restore(saved_part(state), which=which)
    if restored is None:
        return state, None
    fixed = state.fixed
    if fixed:
        fixed = checkpointer.load_masks(fixed, restored.meta['fixed_digest'])
    return state.replace(fixed=fixed, **restored.state), restored


def _run(trainer: Trainer, config, path: str, should_stop: Callable[[], str]) -> dict:
    """One seed, from wherever its workdir stands to its result."""
    primary = jax.process_index() == 0
    with (
        Workdir.open(path, config, primary=primary) as workdir,
        Checkpointer(workdir.checkpoints_dir, keep=config.checkpoint.keep) as checkpointer,
    ):
        if workdir.result() is not None and len(workdir.history) >= config.num_epochs:
            return workdir.result()
        trainer.compile()
        state = trainer.fresh_state(config.seed, config.mask_seed)
        meta = {'fixed_digest': tree_digest(state.fixed), 'data_digest': trainer.data.digest}
        state, restored = restore(checkpointer, state)
        if restored is None:
            if len(workdir.history) > 1:  # one line may stand before the first checkpoint is written
                raise RunError(
                    f'{path}: metrics.jsonl has {len(workdir.history)} epochs, but there is no checkpoint; put '
                    'checkpoints/ back, or name another workdir'
                )
            checkpointer.save_masks(state.fixed)
        elif restored.meta['data_digest'] != meta['data_digest']:
            raise InputError(f'--workdir={path}: its run was trained on other images or labels than config.data gives')
        else:
            meta = restored.meta
        epochs, steps = divmod(int(state.step), trainer.steps_per_epoch)
        # Saved at the end of an epoch without an accuracy: stopped in the evaluation, which is done anew.
        stopped_in_evaluation = restored is not None and steps == 0 and restored.accuracy is None
        workdir.truncate(epochs - stopped_in_evaluation)

        counts = count_variables(state.variables)
        with runlog.RunLog(workdir, config, trainer.data, counts, primary=primary) as log:
            save = partial(checkpointer.save, meta=meta)
            evaluation = None
            while len(workdir.history) < config.num_epochs:
                began = time.perf_counter()
                epoch = len(workdir.history)
                state, images_per_second = _train_epoch(trainer, config, state, epoch, save, log, should_stop)
                try:
                    evaluation = trainer.evaluate(state.variables, should_stop)
                except StoppedEarly:
                    save(int(state.step), saved_part(state), accuracy=None)
                    raise
                line = _epoch_line(trainer, state, evaluation) | {
                    'images_per_second': images_per_second,
                    'seconds': time.perf_counter() - began,
                }
                workdir.use_test_set(evaluation.labels, trainer.data.digest)
                workdir.append_epoch(line, evaluation.correct)
                save(line['step'], saved_part(state), accuracy=evaluation.accuracy)
                log.epoch(line)
                reason = agreed(should_stop())
                if reason and len(workdir.history) < config.num_epochs:
                    checkpointer.wait()
                    raise StoppedEarly(reason)
            checkpointer.wait()
            return log.finish(evaluation or trainer.evaluate(state.variables))


def _epoch_line(trainer: Trainer, state: TrainState, evaluation: Evaluation) -> dict:
    """What metrics.jsonl holds of a finished epoch, timings aside."""
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


def _train_epoch(
    trainer: Trainer,
    config,
    state: TrainState,
    epoch: int,
    save: Callable[..., None],
    log: runlog.RunLog,
    should_stop: Callable[[], str],
) -> tuple[TrainState, float]:
    """Trains to the end of `epoch` (from 0), where `state` is not there already; returns it and images per second."""
    first = int(state.step) - epoch * trainer.steps_per_epoch
    if first == 0:
        state = state.replace(epoch_metrics=jax.tree.map(jnp.zeros_like, state.epoch_metrics))
    step = epoch * trainer.steps_per_epoch + first
    end = (epoch + 1) * trainer.steps_per_epoch
    images = 0
    began = time.perf_counter()
    for new_state, num_steps, num_images in trainer.feed.train(state, epoch, first):
        state = new_state
        before, step = step, step + num_steps
        images += num_images
        log_now = crossed(config.log.every_steps, before, step) or step == end
        if log_now:  # the only place within an epoch that waits for the device
            check_finite(state)
            train = jax.device_get(state.epoch_metrics).compute()
            speed = images / (time.perf_counter() - began)
            log.progress(step, config.num_epochs * trainer.steps_per_epoch, train, speed)
        if step == end:
            continue
        # Hosts agree where they wait anyway; a single one is asked at every dispatch.
        reason = agreed(should_stop()) if log_now or jax.process_count() == 1 else ''
        if reason or crossed(config.checkpoint.every_steps, before, step):
            check_finite(state)
            save(step, saved_part(state), accuracy=None)
        if reason:
            raise StoppedEarly(reason)
    return state, images / (time.perf_counter() - began)


def check_finite(state: TrainState) -> None:
    """Raises RunError where a loss was not finite, or where the last update left something that is not."""
    diverged_at = int(state.diverged_at)
    if diverged_at >= 0:
        what = f'the loss is not finite at step {diverged_at + 1}'
    elif not _all_finite(state.params, state.batch_stats):
        what = f'parameters or batch statistics are not finite after step {int(state.step)}'
    else:
        return
    raise RunError(f'{what}; the last checkpoint is from before it (a lower config.optimizer.learning_rate may help)')


@jax.jit
def _all_finite(*trees) -> jax.Array:
    return jnp.stack([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(trees)]).all()


def crossed(interval: int, before: int, after: int) -> bool:
    """Whether a multiple of `interval` (0: none) lies in (before, after]."""
    return interval > 0 and before // interval != after // interval


def agreed(reason: str) -> str:
    """The reason to stop of any host, the same on all of them."""
    if jax.process_count() == 1:
        return reason
    anyone = np.any(multihost_utils.process_allgather(np.array(bool(reason))))
    return (reason or 'another host was asked to stop') if anyone else ''


def evaluate_checkpoint(
    config, workdir: str, *, which: str = 'latest', dataset: Dataset | Stream | None = None
) -> dict:
    """Exact evaluation of the `latest` or `best` checkpoint of a run; writes nothing."""
    validate_config(config)
    check_platform(config.platform)
    if not from_process_0(lambda: os.path.isdir(os.path.join(workdir, 'checkpoints'))):
        hint = ' (each seed has a workdir in it, named seed_<k>)' if config.num_seeds > 1 else ''
        raise InputError(f'--workdir={workdir}: there is no checkpoint to evaluate{hint}')
    check_same_network(workdir, config)
    dataset = dataset or load_data(config.data)
    check_fits_data(config, image_shape_of(dataset))
    trainer = Trainer(config, dataset)
    check_builds(trainer)
    with Checkpointer(os.path.join(os.path.abspath(workdir), 'checkpoints'), read_only=True) as checkpointer:
        state, restored = restore(checkpointer, trainer.fresh_state(config.seed, config.mask_seed), which)
    if restored is None:
        raise InputError(f'--workdir={workdir}: there is no checkpoint to evaluate')
    evaluation = trainer.evaluate(state.variables)
    return runlog.evaluation_result(evaluation, trainer.data.class_names) | {'step': int(state.step)}
