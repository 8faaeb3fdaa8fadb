"""Initial values against those of PyTorch after the audit's `weights_init`: the same distribution, tensor by tensor."""

import math

import jax
import numpy as np
import pytest
import torch
from scipy import stats

from configs import default
from experiments.verify import networks, torch_twin
from pnn_jax.models import create_model
from pnn_jax.models.variables import draw_variables
from pnn_jax.pytorch import variables as torch_variables

pytestmark = pytest.mark.slow

torch.set_num_threads(1)
NUM_NETWORKS = 12
LEAST_P = 1e-4  # with fixed seeds: no draw of the tests below is rarer than one in ten thousand


def pooled(model, image_shape):
    """Every tensor of NUM_NETWORKS networks in both frameworks: name in PyTorch -> (ours, theirs), flat."""
    height, _, channels = image_shape
    network = create_model(model, 10)
    draw = lambda key: draw_variables(network, image_shape, key=key, mask_key=jax.random.fold_in(key, 1))
    init = jax.jit(draw, compiler_options={'xla_backend_optimization_level': 0})  # as `init_variables` on a CPU
    ours, theirs = {}, {}
    for seed in range(NUM_NETWORKS):
        torch.manual_seed(seed)
        twin = networks.tensors_of(torch_twin.build_twin(model, 10, height, channels))
        mine = torch_variables.to_torch(init(jax.random.key(seed)), model)
        for group, tensors in ((ours, mine), (theirs, twin)):
            for name, value in (tensors.state_dict | tensors.noise_masks).items():
                group.setdefault(name, []).append(value.ravel())
    names = [name for name in theirs if not name.endswith('num_batches_tracked')]
    assert set(names) == set(ours)
    return {name: (np.concatenate(ours[name]), np.concatenate(theirs[name])) for name in names}


@pytest.mark.parametrize(
    'changes',
    [
        {'num_masks': 2, 'mix_channels': True, 'activation': 'prelu'},
        {'layer': 'conv', 'kernel_size': 1, 'stem_layer': 'conv', 'stem_kernel_size': 5},
        {'share_masks': True, 'noise_type': 'normal', 'trainable_masks': True},
    ],
    ids=['two masks', 'convolutions', 'dense'],
)
def test_every_tensor_is_distributed_as_in_torch(changes):
    model = default.get_config().model
    model.update(name='lenet', num_filters=6, **changes)
    for name, (ours, theirs) in pooled(model, (12, 12, 3)).items():
        if np.ptp(theirs) == 0:
            assert np.ptp(ours) == 0 and ours[0] == theirs[0], name
            continue
        assert stats.ks_2samp(ours, theirs).pvalue > LEAST_P, name
        assert np.abs(ours.std() / theirs.std() - 1) < 6 / math.sqrt(len(ours)), name


def test_bounds_and_deviations_are_the_published_ones():
    """Kernels N(0, 2 / fan-out), groups ignored; biases and linear layers U(+-1/sqrt(fan_in)) (mk utils.py:51-57)."""
    model = default.get_config().model
    model.update(name='lenet', num_filters=6, num_masks=4)
    tensors = pooled(model, (12, 12, 3))
    for name, (ours, _) in tensors.items():
        if name == 'first_layers.0.layers.0.weight':
            assert ours.std() == pytest.approx(math.sqrt(2 / 6), rel=4 / math.sqrt(2 * len(ours)))
        if name.endswith('layers.0.bias'):  # four masks of one channel
            assert 0.95 / math.sqrt(4) < np.abs(ours).max() <= 1 / math.sqrt(4)
        if name == 'linear1.weight':
            assert 0.99 / math.sqrt(6 * 4) < np.abs(ours).max() <= 1 / math.sqrt(6 * 4)
        if name.endswith('noise'):
            assert 0.99 < np.abs(ours).max() <= 1 and abs(ours.mean()) < 4 / math.sqrt(3 * len(ours))
