"""Optimizers and learning rates against torch.optim: 30 steps, the rate dropping twice, in double precision."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch

from configs import default
from pnn_jax.optim import create_optimizer, learning_rate_schedule

torch.set_num_threads(1)
STEPS_PER_EPOCH, NUM_EPOCHS = 3, 10
START = np.random.default_rng(0).standard_normal((5, 4))
TARGETS = np.random.default_rng(1).standard_normal((STEPS_PER_EPOCH * NUM_EPOCHS, 5, 4))

TORCH = {
    'sgd': lambda p, c: torch.optim.SGD(
        p, c.learning_rate, momentum=c.momentum, nesterov=c.momentum > 0, weight_decay=c.weight_decay
    ),
    'adam': lambda p, c: torch.optim.Adam(
        p, c.learning_rate, betas=(c.beta1, c.beta2), eps=c.eps, weight_decay=c.weight_decay
    ),
    'rmsprop': lambda p, c: torch.optim.RMSprop(
        p, c.learning_rate, momentum=c.momentum, eps=c.eps, weight_decay=c.weight_decay
    ),
}


def loss(backend, weights, target):
    """A loss whose gradient is neither linear nor equal from step to step."""
    return (backend.tanh(weights) * target + (weights - target) ** 2).sum()


def torch_weights(config):
    weights = torch.tensor(START, requires_grad=True)
    optimizer = TORCH[config.optimizer.name]([weights], config.optimizer)
    milestones, factor = list(config.schedule.milestones), config.schedule.factor
    scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, milestones, factor)
    path = []
    for step, target in enumerate(TARGETS):
        optimizer.zero_grad()
        loss(torch, weights, torch.tensor(target)).backward()
        optimizer.step()
        if (step + 1) % STEPS_PER_EPOCH == 0:
            scheduler.step()
        path.append(weights.detach().numpy().copy())
    return np.array(path)


def jax_weights(config):
    schedule = learning_rate_schedule(config.schedule, config.optimizer.learning_rate, STEPS_PER_EPOCH, NUM_EPOCHS)
    optimizer = create_optimizer(config.optimizer, schedule)

    def step(carry, target):
        weights, state = carry
        gradients = jax.grad(lambda w: loss(jnp, w, target))(weights)
        changes, state = optimizer.update({'kernel': gradients}, state, {'kernel': weights})
        weights = optax.apply_updates({'kernel': weights}, changes)['kernel']
        return (weights, state), weights

    weights = jnp.asarray(START)
    return jax.lax.scan(step, (weights, optimizer.init({'kernel': weights})), jnp.asarray(TARGETS))[1]


@pytest.mark.parametrize(
    'name, changes',
    [
        ('sgd', {}),
        ('sgd', {'momentum': 0.0}),
        ('sgd', {'weight_decay': 0.1}),
        ('adam', {'weight_decay': 0.1}),
        ('adam', {'beta1': 0.5, 'beta2': 0.9, 'eps': 1e-3}),
        ('rmsprop', {'weight_decay': 0.1}),
        ('rmsprop', {'momentum': 0.0, 'eps': 1e-3}),
    ],
)
def test_thirty_steps_equal_torch(name, changes):
    config = default.get_config()
    config.optimizer.update(name=name, learning_rate=0.02, **changes)
    config.schedule.milestones = (3, 7)
    with jax.enable_x64(True):
        ours = np.asarray(jax_weights(config))
    theirs = torch_weights(config)
    assert np.abs(theirs[-1] - START).max() > 0.1  # it went somewhere
    np.testing.assert_allclose(ours, theirs, rtol=1e-6, atol=1e-6)


def test_adam_in_single_precision_is_as_exact_as_torch():
    """1 - 0.999 ** t cancels in float32; computed so, every early step would be off by 7e-6 of its size."""
    config = default.get_config()
    config.optimizer.update(name='adam', learning_rate=1e-3, weight_decay=0.0)
    optimizer = create_optimizer(config.optimizer, lambda step: 1e-3)
    params, gradients = {'kernel': jnp.zeros(3)}, {'kernel': jnp.array([0.3, -0.02, 1.7])}
    exact = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    theirs = torch.optim.Adam([exact], lr=1e-3)
    state = optimizer.init(params)
    for _ in range(5):
        changes, state = optimizer.update(gradients, state, params)
        params = optax.apply_updates(params, changes)
        exact.grad = torch.tensor(np.asarray(gradients['kernel'], np.float64))
        theirs.step()
        np.testing.assert_allclose(params['kernel'], exact.detach().numpy(), rtol=5e-7)
