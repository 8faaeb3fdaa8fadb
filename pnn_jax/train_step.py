"""Everything that training computes, as pure functions: the loss, one step, and several steps in one program.

Variables come in three parts. `params` are trained, `batch_stats` are the running statistics of the batch norms, and
`fixed` holds the collections that never change: the noise masks and a frozen stem. `fixed` is an argument of its own,
never part of the train state. The compiled step can then donate the state's buffers without losing the masks.
"""

from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import optax

from pnn_jax.data.feeds import Batches, ResidentBatches
from pnn_jax.metrics import Metrics, example_metrics

Variables = dict[str, Any]
Preprocess = Callable[[jax.Array, jax.Array], jax.Array]  # (key, images uint8 [b, h, w, c]) -> what the network sees

# One key per random stream of a training step. `preprocess` gets 'augment'; the model gets the others as `rngs`.
RANDOM_STREAMS = ('augment', 'dropout', 'activation', 'redraw')


class TrainState(flax.struct.PyTreeNode):
    """Everything that training changes.

    Attributes:
        step: int32 [], number of updates so far.
        params: trained parameters.
        batch_stats: running statistics of the batch norms.
        opt_state: state of the optimizer.
        key: typed PRNG key of the run; it never changes. Every random draw of training uses a key that is folded from
            it, so (seed, epoch, step) determines all draws.
        epoch_metrics: running counts and loss of the current epoch. Each batch is scored in training mode, before its
            update.
        diverged_at: int32 [], the first step (from 0) whose loss was not finite, or -1.
    """

    step: jax.Array
    params: Variables
    batch_stats: Variables
    opt_state: optax.OptState
    key: jax.Array
    epoch_metrics: Metrics
    diverged_at: jax.Array


def create_train_state(variables: Variables, optimizer: optax.GradientTransformation, key: jax.Array) -> TrainState:
    """A state at step 0. It holds the given variables without their `fixed_collections`."""
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=variables['params'],
        batch_stats=variables.get('batch_stats', {}),
        opt_state=optimizer.init(variables['params']),
        key=key,
        epoch_metrics=Metrics.empty(),
        diverged_at=jnp.full((), -1, jnp.int32),
    )


def fixed_collections(variables: Variables) -> Variables:
    """The collections that training never changes: `noise_masks`, and `frozen` for a frozen stem."""
    return {name: value for name, value in variables.items() if name not in ('params', 'batch_stats')}


def all_variables(state: TrainState, fixed: Variables) -> Variables:
    """All collections of the network, as `model.apply` takes them."""
    return {'params': state.params, 'batch_stats': state.batch_stats, **fixed}


def loss_fn(
    params: Variables,
    batch_stats: Variables,
    fixed: Variables,
    images: jax.Array,
    labels: jax.Array,
    keys: dict[str, jax.Array],
    *,
    model: nn.Module,
) -> tuple[jax.Array, tuple[jax.Array, Variables]]:
    """The loss of a batch in training mode; differentiable in `params`.

    Returns:
        Mean cross entropy in nats, and (logits [b, classes], new batch_stats).
    """
    variables = {'params': params, 'batch_stats': batch_stats, **fixed}
    logits, new_stats = model.apply(variables, images, train=True, mutable=['batch_stats'], rngs=keys)
    logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
    loss = optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()
    return loss, (logits, new_stats.get('batch_stats', {}))


def train_step(
    state: TrainState,
    fixed: Variables,
    images: jax.Array,
    labels: jax.Array,
    *,
    model: nn.Module,
    optimizer: optax.GradientTransformation,
    preprocess: Preprocess,
) -> TrainState:
    """One update: augment the images, differentiate the loss, apply the optimizer.

    The result does not depend on the number of devices, except for rounding: random draws are per example, and batch
    norms see the whole batch.

    Args:
        state: before the update. Its `step` and `key` determine all random draws.
        fixed: the collections that never change.
        images: uint8 [b, h, w, c].
        labels: int32 [b].
        model: called as model.apply(variables, images, train=True).
        optimizer: updates `params`.
        preprocess: augments and normalises the images, inside the compiled step.
    """
    # Differs from the key of every epoch's order; see `epoch_order` in data/batches.py.
    step_key = jax.random.fold_in(state.key, state.step)
    keys = dict(zip(RANDOM_STREAMS, jax.random.split(step_key, len(RANDOM_STREAMS)), strict=True))
    images = preprocess(keys.pop('augment'), images)
    grad = jax.value_and_grad(loss_fn, has_aux=True)
    (loss, (logits, batch_stats)), gradients = grad(
        state.params, state.batch_stats, fixed, images, labels, keys, model=model
    )
    updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
    no_padding = jnp.ones(labels.shape, bool)
    metrics = example_metrics(logits, labels, no_padding).sum()
    diverged_now = ~jnp.isfinite(loss) & (state.diverged_at < 0)
    return state.replace(
        step=state.step + 1,
        params=optax.apply_updates(state.params, updates),
        batch_stats=batch_stats,
        opt_state=opt_state,
        epoch_metrics=state.epoch_metrics.merge(metrics),
        diverged_at=jnp.where(diverged_now, state.step, state.diverged_at),
    )


def train_steps(state: TrainState, fixed: Variables, batches: Batches, **parts) -> TrainState:
    """Makes `batches.num_steps` updates in one program.

    `parts` are the keyword arguments of `train_step`: model, optimizer, preprocess.
    """

    def step(state, index):
        images, labels = batches.batch(index)
        return train_step(state, fixed, images, labels, **parts), None

    if batches.num_steps == 1:  # no scan: XLA:CPU computes convolutions slowly inside loops
        return step(state, 0)[0]
    return jax.lax.scan(step, state, jnp.arange(batches.num_steps))[0]


def train_together(
    states: Sequence[TrainState], fixed: Sequence[Variables], batches: Sequence[ResidentBatches], **parts
) -> list[TrainState]:
    """`train_steps` for several runs in one program, with a leading axis over runs.

    For small networks on an accelerator, which takes about as long for a small operation as for one several times as
    large. The draws are those of each run alone; sums may be rounded differently.

    Args:
        states, fixed: of each run. All are at the same step.
        batches: of each run. They differ in their order alone.
    """
    stacked = lambda trees: jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)
    in_order = lambda state, fixed, order: train_steps(state, fixed, batches[0].replace(order=order), **parts)
    after = jax.vmap(in_order)(stacked(states), stacked(fixed), stacked([one.order for one in batches]))
    state_of = lambda run: jax.tree.map(lambda leaf: leaf[run], after)
    return [state_of(run) for run in range(len(states))]
