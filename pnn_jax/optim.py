"""Optimizers and learning rates: those of the three repositories as `torch.optim` computes them, and those of today.

sgd, adam and rmsprop have coupled weight decay, torch's default: weight_decay * parameter is added to the gradient of
every trained parameter before anything else. adamw has decoupled decay: the parameter itself shrinks.

To add an optimizer, add a line to `OPTIMIZERS`; to add a schedule, add a line to `SCHEDULES`.
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


# name -> the whole optimizer, from (config.optimizer, schedule, decay). `decay` adds weight_decay * parameter to what
# it gets. In front of everything else that is coupled decay, after `scale_by_adam` it is decoupled.
OPTIMIZERS: dict[str, Callable[..., optax.GradientTransformation]] = {
    'sgd': lambda config, schedule, decay: optax.chain(
        decay, optax.sgd(schedule, momentum=config.momentum or None, nesterov=config.momentum > 0)
    ),
    'adam': lambda config, schedule, decay: optax.chain(
        decay,
        optax.chain(scale_by_adam(config.beta1, config.beta2, config.eps), optax.scale_by_learning_rate(schedule)),
    ),
    'adamw': lambda config, schedule, decay: optax.chain(
        scale_by_adam(config.beta1, config.beta2, config.eps), decay, optax.scale_by_learning_rate(schedule)
    ),
    # optax.rmsprop applies the learning rate before the momentum and eps inside the root; torch does neither.
    'rmsprop': lambda config, schedule, decay: optax.chain(
        decay,
        optax.chain(
            optax.scale_by_rms(decay=0.99, eps=config.eps, eps_in_sqrt=False),
            optax.trace(decay=config.momentum),
            optax.scale_by_learning_rate(schedule),
        ),
    ),
}


def milestones(config, base: float, steps_per_epoch: int, total_steps: int, warmup_steps: int) -> Schedule:
    """`base` times `factor` for every milestone reached.

    Milestones count epochs from 0. The repositories call learning_rate(epoch + 1), so their "60" is index 59
    (michaelklachko/pnn.pytorch@08865db main.py:171,262).
    """
    del total_steps, warmup_steps
    boundaries = {int(epoch) * steps_per_epoch: config.factor for epoch in config.milestones}
    return optax.piecewise_constant_schedule(base, boundaries)


def cosine(config, base: float, steps_per_epoch: int, total_steps: int, warmup_steps: int) -> Schedule:
    """Half a cosine from `base` after the warm-up to 0 at the end of the run (arXiv 1608.03983, without restarts)."""
    del config, steps_per_epoch
    decay = optax.cosine_decay_schedule(base, max(1, total_steps - warmup_steps))  # a warm-up may be the whole run
    return lambda step: decay(step - warmup_steps)


# config.schedule.name -> function(config.schedule, base, steps_per_epoch, total_steps, warmup_steps) -> Schedule.
SCHEDULES: dict[str, Callable[..., Schedule]] = {'milestones': milestones, 'cosine': cosine}


def learning_rate_schedule(config, base: float, steps_per_epoch: int, num_epochs: int) -> Schedule:
    """step -> learning rate, from a validated `config.schedule`.

    The rate first rises in a straight line from base / n to `base`, over the n steps of `warmup_epochs`. From there on
    it is that of the schedule, which counts its steps from the beginning of the run.

    Args:
        base: config.optimizer.learning_rate.
        steps_per_epoch: updates in an epoch.
        num_epochs: of the run.
    """
    warmup_steps = round(config.warmup_epochs * steps_per_epoch)
    schedule = SCHEDULES[config.name](config, base, steps_per_epoch, num_epochs * steps_per_epoch, warmup_steps)
    if not warmup_steps:
        return schedule
    rise = optax.linear_schedule(base / warmup_steps, base, warmup_steps)
    return lambda step: jnp.where(step < warmup_steps, rise(step), schedule(step))


def create_optimizer(config, schedule: Schedule) -> optax.GradientTransformation:
    """The optimizer of a validated `config.optimizer`, for the `params` collection."""
    decay_masks = config.decay_masks

    def decayed(params):
        return jax.tree_util.tree_map_with_path(lambda path, _: decay_masks or path[-1].key != 'masks', params)

    decay = optax.add_decayed_weights(config.weight_decay, mask=decayed)
    return OPTIMIZERS[config.name](config, schedule, decay)


def learning_rate_at(schedule: Schedule, step: int) -> float:
    """The learning rate of update number `step` (from 0) as a Python float, for logs."""
    return float(np.asarray(schedule(step)))
