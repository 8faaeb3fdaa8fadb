"""AdamW, warm-up and cosine against torch.optim and its schedulers, step by step in double precision."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from test_optim_parity import NUM_EPOCHS, START, STEPS_PER_EPOCH, TARGETS, loss

from configs import default
from pnn_jax.optim import create_optimizer, learning_rate_at, learning_rate_schedule

TOTAL = NUM_EPOCHS * STEPS_PER_EPOCH


def config_with(**schedule):
    config = default.get_config()
    config.schedule.update(schedule)
    return config


def torch_scheduler(optimizer, config):
    """The scheduler of a config, stepped after every update."""
    warmup = round(config.schedule.warmup_epochs * STEPS_PER_EPOCH)
    lr = torch.optim.lr_scheduler
    if config.schedule.name == 'cosine':
        main = lr.CosineAnnealingLR(optimizer, TOTAL - warmup)
    else:  # counted from the end of the warm-up, as SequentialLR does
        at = [epoch * STEPS_PER_EPOCH - warmup for epoch in config.schedule.milestones]
        main = lr.MultiStepLR(optimizer, at, config.schedule.factor)
    if not warmup:
        return main
    return lr.SequentialLR(optimizer, [lr.LinearLR(optimizer, 1 / warmup, 1.0, warmup), main], [warmup])


@pytest.mark.filterwarnings('ignore:The epoch parameter')  # torch's own SequentialLR warns of its own argument
@pytest.mark.parametrize(
    'schedule',
    [
        {'name': 'cosine'},
        {'name': 'cosine', 'warmup_epochs': 1.0},
        {'name': 'cosine', 'warmup_epochs': 2.4},
        {'milestones': (3, 7)},
        {'milestones': (3, 7), 'warmup_epochs': 1.5},
    ],
)
def test_learning_rates_of_every_step_equal_torch(schedule):
    config = config_with(**schedule)
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], 0.3)
    scheduler = torch_scheduler(optimizer, config)
    expected = []
    for _ in range(TOTAL):
        expected.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
    ours = learning_rate_schedule(config.schedule, 0.3, STEPS_PER_EPOCH, NUM_EPOCHS)
    np.testing.assert_allclose([learning_rate_at(ours, step) for step in range(TOTAL)], expected, rtol=2e-6, atol=1e-8)
    if config.schedule.warmup_epochs:
        assert expected[0] < 0.15  # it does begin low


def test_adamw_with_warmup_and_cosine_equals_torch():
    config = config_with(name='cosine', warmup_epochs=1.0)
    config.optimizer.update(name='adamw', learning_rate=0.05, weight_decay=0.3)
    weights = torch.tensor(START, requires_grad=True)
    optimizer = torch.optim.AdamW([weights], 0.05, weight_decay=0.3)
    scheduler = torch_scheduler(optimizer, config)
    theirs = []
    for target in TARGETS:
        optimizer.zero_grad()
        loss(torch, weights, torch.tensor(target)).backward()
        optimizer.step()
        scheduler.step()
        theirs.append(weights.detach().numpy().copy())
    assert np.abs(theirs[-1] - START).max() > 0.1  # it went somewhere
    with jax.enable_x64(True):
        np.testing.assert_allclose(adamw_path(config), theirs, rtol=1e-6, atol=1e-6)


def adamw_path(config) -> np.ndarray:
    schedule = learning_rate_schedule(config.schedule, config.optimizer.learning_rate, STEPS_PER_EPOCH, NUM_EPOCHS)
    optimizer = create_optimizer(config.optimizer, schedule)

    def step(carry, target):
        params, state = carry
        gradients = jax.grad(lambda params: loss(jnp, params['kernel'], target))(params)
        changes, state = optimizer.update(gradients, state, params)
        params = optax.apply_updates(params, changes)
        return (params, state), params['kernel']

    params = {'kernel': jnp.asarray(START)}
    return np.asarray(jax.lax.scan(step, (params, optimizer.init(params)), jnp.asarray(TARGETS))[1])


def test_decay_of_adamw_is_decoupled_and_spares_masks_where_asked():
    """Without a gradient, Adam's step is 0, and the parameter shrinks by learning rate times decay alone."""
    config = default.get_config().optimizer
    config.update(name='adamw', weight_decay=0.1, decay_masks=False)
    optimizer = create_optimizer(config, lambda step: 0.5)
    params = {'kernel': jnp.array([2.0]), 'masks': jnp.array([2.0])}
    zeros = jax.tree.map(jnp.zeros_like, params)
    changes, _ = optimizer.update(zeros, optimizer.init(params), params)
    np.testing.assert_allclose(changes['kernel'], [-0.1], rtol=1e-6)
    assert changes['masks'] == 0
