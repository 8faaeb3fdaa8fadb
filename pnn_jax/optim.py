"""Optimizers and learning rates exactly as `torch.optim` and the three repositories' training loops have them.

Weight decay is coupled L2: it is added to the gradient first, for every trained parameter (torch's default, not AdamW).
To add an optimizer, add its chain to `OPTIMIZERS`.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax

Schedule = Callable[[jax.Array | int], jax.Array]


def scale_by_adam(beta1: float, beta2: float, eps: float) -> optax.GradientTransformation:
    """`optax.scale_by_adam` with bias corrections that are exact in float32.

    optax computes 1 - beta2 ** t there, which cancels: every step of the first hundred is off by 7e-6 of its size, a
    hundred times the error of torch, which corrects in double precision.
    """
    plain = optax.scale_by_adam(beta1, beta2, eps)

    def update(gradients, state, params=None):
        del params
        count = optax.safe_increment(state.count)
        mu = jax.tree.map(lambda m, g: beta1 * m + (1 - beta1) * g, state.mu, gradients)
        nu = jax.tree.map(lambda v, g: beta2 * v + (1 - beta2) * jnp.square(g), state.nu, gradients)
        correction1, correction2 = (-jnp.expm1(count * math.log(beta)) if beta else 1.0 for beta in (beta1, beta2))
        step = jax.tree.map(lambda m, v: (m / correction1) / (jnp.sqrt(v / correction2) + eps), mu, nu)
        return step, optax.ScaleByAdamState(count=count, mu=mu, nu=nu)

    return optax.GradientTransformation(plain.init, update)


# name -> transformation of decayed gradients, from (config.optimizer, schedule).
OPTIMIZERS: dict[str, Callable[..., optax.GradientTransformation]] = {
    'sgd': lambda config, schedule: optax.sgd(schedule, momentum=config.momentum or None, nesterov=config.momentum > 0),
    'adam': lambda config, schedule: optax.chain(
        scale_by_adam(config.beta1, config.beta2, config.eps), optax.scale_by_learning_rate(schedule)
    ),
    # optax.rmsprop applies the learning rate before the momentum and eps inside the root; torch does neither.
    'rmsprop': lambda config, schedule: optax.chain(
        optax.scale_by_rms(decay=0.99, eps=config.eps, eps_in_sqrt=False),
        optax.trace(decay=config.momentum),
        optax.scale_by_learning_rate(schedule),
    ),
}


def learning_rate_schedule(config, base: float, steps_per_epoch: int) -> Schedule:
    """step -> learning rate: `base` times `factor` for every milestone reached.

    Milestones count epochs from 0. The repositories call learning_rate(epoch + 1), so their "60" is index 59
    (michaelklachko/pnn.pytorch@08865db main.py:171,262).
    """
    boundaries = {int(epoch) * steps_per_epoch: config.factor for epoch in config.milestones}
    return optax.piecewise_constant_schedule(base, boundaries)


def create_optimizer(config, schedule: Schedule) -> optax.GradientTransformation:
    """The optimizer of a validated `config.optimizer`, for the `params` collection."""

    def decayed(params):
        return jax.tree_util.tree_map_with_path(lambda path, _: config.decay_masks or path[-1].key != 'masks', params)

    decay = optax.add_decayed_weights(config.weight_decay, mask=decayed)
    return optax.chain(decay, OPTIMIZERS[config.name](config, schedule))


def learning_rate_at(schedule: Schedule, step: int) -> float:
    """The learning rate of update number `step` (from 0) as a Python float, for logs."""
    return float(np.asarray(schedule(step)))
