"""Everything that training changes, and the fixed tensors beside it."""

from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import optax
from jax.extend.core import ClosedJaxpr, jaxpr_as_fun
from jax.interpreters.partial_eval import dce_jaxpr

from pnn_jax.metrics import Metrics

Variables = dict[str, Any]


@flax.struct.dataclass
class TrainState:
    """One run's state.

    Attributes:
        step: int32 [], updates made.
        params: trained parameters.
        batch_stats: running statistics of the batch norms.
        fixed: collections that never change: `noise_masks`, and `frozen` where the stem is. Saved once a run.
        opt_state: of the optimizer.
        key: typed PRNG key of the run. Everything random in training is `fold_in` of it, so that the position
            (seed, epoch, step) says all.
        epoch_metrics: sums over the examples of the current epoch, in training mode.
        diverged_at: int32 [], the first update whose loss was not finite, or -1.
    """

    step: jax.Array
    params: Variables
    batch_stats: Variables
    fixed: Variables
    opt_state: optax.OptState
    key: jax.Array
    epoch_metrics: Metrics
    diverged_at: jax.Array

    @property
    def variables(self) -> Variables:
        """What `model.apply` takes."""
        return {'params': self.params, 'batch_stats': self.batch_stats, **self.fixed}


def init_variables(model: nn.Module, input_shape: tuple[int, ...], *, key: jax.Array, mask_key: jax.Array) -> Variables:
    """All collections of `model` for images of shape [h, w, c]: weights from `key`, masks from `mask_key` alone.

    Runs only the draws, one program for each shape, not the network: compiling that takes longer, and jax 0.12 compiles
    many draws in one program slowly.
    """
    keys = {'params': key, 'noise_masks': mask_key}
    images = jnp.zeros((1, *input_shape), jnp.float32)
    program, shapes = jax.make_jaxpr(lambda keys: model.init(keys, images, train=False), return_shape=True)(keys)
    leaves, structure = jax.tree.flatten(shapes)
    draws, _ = dce_jaxpr(program.jaxpr, [True] * len(leaves), instantiate=True)
    return structure.unflatten(jaxpr_as_fun(ClosedJaxpr(draws, program.consts))(*jax.tree.leaves(keys)))


def create_train_state(
    model: nn.Module,
    optimizer: optax.GradientTransformation,
    input_shape: tuple[int, ...],
    *,
    seed: int,
    mask_seed: int,
) -> TrainState:
    """A fresh state. Initialises eagerly, because jax 0.12 compiles many random draws in one CPU program slowly."""
    init_key, run_key = jax.random.split(jax.random.key(seed))
    variables = init_variables(model, input_shape, key=init_key, mask_key=jax.random.key(mask_seed))
    return from_variables(variables, optimizer, run_key)


def from_variables(variables: Variables, optimizer: optax.GradientTransformation, key: jax.Array) -> TrainState:
    """A state at step 0 with the given variables."""
    fixed = {name: value for name, value in variables.items() if name not in ('params', 'batch_stats')}
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=variables['params'],
        batch_stats=variables.get('batch_stats', {}),
        fixed=fixed,
        opt_state=optimizer.init(variables['params']),
        key=key,
        epoch_metrics=Metrics.empty(),
        diverged_at=jnp.full((), -1, jnp.int32),
    )
