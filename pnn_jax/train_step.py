"""Everything that training computes, as pure functions: the loss, one step, and several steps in one program.

Variables come in three parts. `params` are trained, `batch_stats` are the running statistics of the batch norms, and
`fixed` holds the collections that never change: the noise masks and a frozen stem. `fixed` is an argument of its own,
never part of the train state, so that the state's buffers can be donated.
"""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import optax

from pnn_jax.data.feeds import Batches
from pnn_jax.metrics import Metrics, judge

Variables = dict[str, Any]
Preprocess = Callable[[jax.Array, jax.Array], jax.Array]  # (key, images uint8 [b, h, w, c]) -> what the network sees

# What a training step draws at random, each from a key of its own.
RANDOM_STREAMS = ('augment', 'dropout', 'activation', 'redraw')


class TrainState(flax.struct.PyTreeNode):
    """Everything that training changes.

    Attributes:
        step: int32 [], updates made.
        params: trained parameters.
        batch_stats: running statistics of the batch norms.
        opt_state: of the optimizer.
        key: typed PRNG key of the run. Everything random in training is `fold_in` of it, so that the position
            (seed, epoch, step) determines all draws.
        epoch_metrics: sums over the examples of the current epoch, in training mode.
        diverged_at: int32 [], the first step whose loss was not finite, or -1.
    """

    step: jax.Array
    params: Variables
    batch_stats: Variables
    opt_state: optax.OptState
    key: jax.Array
    epoch_metrics: Metrics
    diverged_at: jax.Array


def create_train_state(variables: Variables, optimizer: optax.GradientTransformation, key: jax.Array) -> TrainState:
    """A state at step 0 with the given variables; `fixed_collections(variables)` are not part of it."""
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
    """The collections that training never changes: `noise_masks`, and `frozen` where the stem is."""
    return {name: value for name, value in variables.items() if name not in ('params', 'batch_stats')}


def all_variables(state: TrainState, fixed: Variables) -> Variables:
    """What `model.apply` takes."""
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
    """Mean cross entropy of a batch in training mode (nats), with the logits [b, classes] and the new batch_stats."""
    variables = {'params': params, 'batch_stats': batch_stats, **fixed}
    logits, updates = model.apply(variables, images, train=True, mutable=['batch_stats'], rngs=keys)
    logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
    loss = optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()
    return loss, (logits, updates.get('batch_stats', {}))


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
    """One update: augment, differentiate, step.

    The result does not depend on the number of devices, except for rounding: random draws are per example, and batch
    norms see the whole batch.

    Args:
        state: before the update.
        fixed: the collections that never change.
        images: uint8 [b, h, w, c].
        labels: int32 [b].
        model: called as model.apply(variables, images, train).
        optimizer: of `params`.
        preprocess: augments and normalises the images, inside the compiled step.
    """
    step_key = jax.random.fold_in(state.key, state.step)
    keys = dict(zip(RANDOM_STREAMS, jax.random.split(step_key, len(RANDOM_STREAMS)), strict=True))
    images = preprocess(keys.pop('augment'), images)
    grad = jax.value_and_grad(loss_fn, has_aux=True)
    (loss, (logits, batch_stats)), gradients = grad(
        state.params, state.batch_stats, fixed, images, labels, keys, model=model
    )
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


def train_steps(state: TrainState, fixed: Variables, batches: Batches, **parts) -> TrainState:
    """`batches.num_steps` updates in one program; `parts` are those of `train_step`."""

    def step(state, index):
        images, labels = batches.batch(index)
        return train_step(state, fixed, images, labels, **parts), None

    if batches.num_steps == 1:
        return step(state, 0)[0]
    return jax.lax.scan(step, state, jnp.arange(batches.num_steps))[0]
