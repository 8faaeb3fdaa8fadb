"""The probes on a run as training leaves it: a whole residual network, loaded from its workdir."""

import numpy as np
import pytest

from configs import noise_masks
from experiments.command import exit_code
from experiments.probes.__main__ import main
from experiments.probes.results import read_probes
from pnn_jax.train import train_and_evaluate


@pytest.mark.slow
def test_a_trained_run_is_probed(tmp_path):
    rng = np.random.default_rng(0)
    arrays = {}
    for split in ('train', 'test'):
        arrays[f'{split}_images'] = rng.integers(0, 256, (32, 16, 16, 1), dtype=np.uint8)
        arrays[f'{split}_labels'] = np.arange(32) % 3
    np.savez(tmp_path / 'images.npz', **arrays)
    config = noise_masks.get_config()
    config.model.update(num_filters=2, num_masks=1, mix_channels=False)
    config.data.update(source='npz', path=str(tmp_path / 'images.npz'), mean=(0.5,), std=(0.25,), augment='none')
    config.update(num_epochs=1, batch_size=16)
    config.log.tensorboard = False
    run = tmp_path / 'one_mask_seed0'
    result = train_and_evaluate(config, str(run))

    numbers = (
        '--draws=1',
        '--batch_size=16',
        '--recalibration_images=32',
        '--fitted_images=32',
        '--held_out_images=32',
    )
    assert exit_code(main, [str(run), f'--json={tmp_path}/probes.json', *numbers]) == 0
    probed = read_probes(tmp_path / 'probes.json').runs['one_mask_seed0']
    assert probed.counts[0].correct == result['final_test_correct'] and probed.counts[0].count == 32
    assert [one.tiles for one in probed.position] == [4] * 5
