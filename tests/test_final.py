"""Accuracy in training mode and with recalibrated batch norms, against known answers."""

from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import default
from experiments.ablation import final
from pnn_jax.data import Split
from pnn_jax.evaluate import evaluate_exactly
from pnn_jax.models.registry import create_model
from pnn_jax.models.variables import init_variables
from pnn_jax.nn.norm import TorchBatchNorm
from pnn_jax.run.load import Run

BATCH = 8


class Bright(nn.Module):
    """Says 1 for images that are brighter than the batch norm expects."""

    @nn.compact
    def __call__(self, x, train=False):
        brightness = TorchBatchNorm(name='norm')(x, train).mean((1, 2, 3))
        return jnp.stack([-brightness, brightness], axis=-1)


@pytest.fixture(scope='module')
def images() -> Split:
    """29 images, dark and bright ones, sorted by class as some sets are."""
    rng = np.random.default_rng(0)
    labels = np.sort(np.arange(29) % 2).astype(np.int32)
    levels = np.where(labels, 180, 60)[:, None, None, None]
    return Split((levels + rng.integers(-20, 20, (29, 3, 3, 1))).astype(np.uint8), labels)


@pytest.fixture(scope='module')
def run() -> Run:
    """A network whose running mean is far from the images, so that every image looks dark in evaluation."""
    config = default.get_config()
    config.batch_size = BATCH
    config.data.mean, config.data.std = (0.5,), (0.25,)
    variables = {
        'params': {'norm': {'scale': np.ones(1, np.float32), 'bias': np.zeros(1, np.float32)}},
        'batch_stats': {'norm': {'mean': np.full(1, 50, np.float32), 'var': np.ones(1, np.float32)}},
    }
    return Run(Path(), config, Bright(), variables, 2, 0, None)


def test_a_collapsed_network_is_told_from_one_that_has_learned_nothing(run, images):
    count = lambda variables: evaluate_exactly(run.predict, variables, images.images, images.labels, batch_size=29)
    assert count(run.variables).num_correct == (images.labels == 0).sum()
    accuracy, loss = final.in_train_mode(run, images, BATCH)
    assert accuracy == 1 and 0 < loss < 0.7
    variables = final.recalibrated_on(run, images.images, BATCH)
    assert count(variables).accuracy == 1
    assert run.variables['batch_stats']['norm']['mean'] == 50  # it was not changed


def test_recalibrated_statistics_are_the_means_over_full_batches(run, images):
    inputs = (images.images / 255 - 0.5) / 0.25
    order = np.random.default_rng(0).permutation(29)
    batches = [inputs[order[start : start + BATCH]].ravel() for start in (0, 8, 16)]  # 5 images are left over
    statistics = final.recalibrated_on(run, images.images, BATCH)['batch_stats']['norm']
    np.testing.assert_allclose(statistics['mean'], np.mean([batch.mean() for batch in batches]), rtol=2e-6)
    np.testing.assert_allclose(statistics['var'], np.mean([batch.var(ddof=1) for batch in batches]), rtol=2e-6)


def test_masks_that_are_drawn_again_in_training_are_those_of_evaluation_when_statistics_are_recalibrated(images):
    """They are the ones that the statistics will be used with."""
    config = default.get_config()
    config.data.mean, config.data.std = (0.5,), (0.25,)
    config.model.update(name='lenet', num_filters=2, num_masks=2, redraw_masks=True)
    size, pixels = 29, np.pad(images.images, ((0, 0), (0, 5), (0, 5), (0, 0)))
    found = []
    for redraw in (True, False):
        config.model.redraw_masks = redraw
        model = create_model(config.model, 2)
        key = jax.random.key(0)
        variables = jax.device_get(init_variables(model, (8, 8, 1), key=key, mask_key=key))
        found.append(final.recalibrated_on(Run(Path(), config, model, variables, 2, 0, None), pixels, size))
    for one, other in zip(*map(jax.tree.leaves, found), strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_record_says_on_what_machine_it_was_made(monkeypatch, tmp_path):
    monkeypatch.setenv('XLA_FLAGS', '--xla_one=1 --xla_dump_to=/a/folder')
    monkeypatch.setattr(final, 'CPUINFO', tmp_path / 'cpuinfo')
    (tmp_path / 'cpuinfo').write_text(
        'processor\t: 0\nmodel name\t: A Processor 9\nprocessor\t: 1\nmodel name\t: A B\n'
    )
    found = final.machine()
    assert (found['processor'], found['xla_flags']) == ('A Processor 9', ['--xla_one=1']) and found['cores'] >= 1
    (tmp_path / 'cpuinfo').unlink()
    assert final.machine()['processor']
