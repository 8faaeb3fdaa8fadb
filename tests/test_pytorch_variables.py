"""State_dicts and variables: exact both ways for every golden case, and one line for what does not fit."""

import dataclasses
import pathlib

import numpy as np
import pytest
import torch
from test_torch_twin import FILES, build

from configs import default
from experiments.verify import networks, torch_twin
from experiments.verify.golden import read_golden
from pnn_jax.errors import InputError
from pnn_jax.pytorch import variables as torch_variables
from pnn_jax.pytorch.constructors import constructor_arguments, model_fields
from pnn_jax.pytorch.layouts import undo_level
from pnn_jax.pytorch.names import TABLES
from pnn_jax.pytorch.variables import TorchTensors

torch.set_num_threads(1)
DATA = pathlib.Path(__file__).parent / 'data'


def variables_of(case, tensors=None):
    shapes = torch_variables.variable_shapes(case.model, 10, case.x.shape[-1], case.x.shape[1])
    return torch_variables.from_torch(tensors or case.tensors, case.model, shapes)


def golden(name):
    return read_golden(DATA / f'{name}.npz').case


def assert_identical(ours, theirs):
    assert ours.keys() == theirs.keys()
    for key, value in theirs.items():
        assert ours[key].dtype == value.dtype and ours[key].shape == value.shape, key
        assert ours[key].tobytes() == value.tobytes(), key


@pytest.mark.parametrize('path', FILES, ids=lambda path: path.stem)
def test_round_trip_is_exact_and_what_is_exported_gives_the_golden_logits(path):
    case = (read := read_golden(path)).case
    variables, num_steps = variables_of(case)
    exported = torch_variables.to_torch(variables, case.model, num_steps=num_steps)
    assert_identical(exported.state_dict, case.tensors.state_dict)
    assert_identical(exported.noise_masks, case.tensors.noise_masks)
    network = build(dataclasses.replace(read, case=dataclasses.replace(case, tensors=exported)))
    with torch.no_grad():
        logits = network(torch.tensor(case.x).double()).numpy()
    np.testing.assert_allclose(logits, read.expected['eval_logits'], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize('name', sorted(TABLES))
@pytest.mark.parametrize('stem_kernel_size', [3, 7])
def test_every_network_and_the_state_dict_of_its_twin_hold_the_same_tensors(name, stem_kernel_size):
    model = default.get_config().model
    model.update(name=name, num_filters=3, layer='conv', stem_layer='conv', activation='prelu', noise_level=0.3)
    model.stem_kernel_size = stem_kernel_size
    network = torch_twin.build_twin(model, 10, 32, 3)
    tensors = networks.tensors_of(network)
    variables, num_steps = torch_variables.from_torch(tensors, model, torch_variables.variable_shapes(model, 10, 32, 3))
    exported = torch_variables.to_torch(variables, model, num_steps=num_steps)
    assert_identical(exported.state_dict, tensors.state_dict)
    assert_identical(exported.noise_masks, tensors.noise_masks)


def test_grouped_kernels_keep_outputs_of_a_channel_together():
    """torch's output o of a grouped convolution reads group o // (outputs // inputs), and masks within it in order."""
    model = default.get_config().model
    model.update(name='lenet', num_filters=6, num_masks=4, dropout_rate=0.0)
    network = torch_twin.build_twin(model, 10, 28, 3)
    weight = network.first_layers[0].layers[0].weight
    assert weight.shape == (6, 4, 1, 1)
    shapes = torch_variables.variable_shapes(model, 10, 28, 3)
    variables, _ = torch_variables.from_torch(networks.tensors_of(network), model, shapes)
    kernel = variables['params']['layer1']['kernel']
    assert kernel.shape == (3, 4, 2)
    assert kernel[2, 1, 0] == weight[4, 1, 0, 0] and kernel[0, 3, 1] == weight[1, 3, 0, 0]


def edited(case, edit):
    tensors = dict(case.tensors.state_dict)
    edit(tensors)
    return TorchTensors(tensors, case.tensors.noise_masks)


@pytest.mark.parametrize(
    'edit, message',
    [
        (lambda t: t.pop('first_layers.2.layers.0.weight'), 'first_layers.2.layers.0.weight is missing'),
        (lambda t: t.pop('last_layers.5.bias'), 'last_layers.5.bias is missing'),
        (lambda t: t.update({'first_layers.8.bias': np.zeros(2, np.float32)}), 'first_layers.8.bias is not part of'),
        (lambda t: t.update({'linear2.bias': np.zeros(11, np.float32)}), r'linear2.bias has shape \[11\]'),
        (lambda t: t.update({'linear2.bias': t['linear2.bias'].astype(np.float16)}), 'linear2.bias is float16'),
        (lambda t: t.update({'last_layers.5.bias': t['linear2.bias'] + 1}), 'differs from linear2.bias'),
        (lambda t: t.update({'batch_norm.num_batches_tracked': np.int64(7)}), 'num_batches_tracked differs'),
    ],
)
def test_tensors_that_do_not_fit_are_named(edit, message):
    case = golden('lenet28_perturb')
    with pytest.raises(InputError, match=message):
        variables_of(case, edited(case, edit))


def test_steps_are_counted_where_torch_counts_them():
    case = golden('lenet28_act_rrelu')
    counters = [key for key in case.tensors.state_dict if key.endswith('num_batches_tracked')]
    trained = edited(case, lambda t: t.update(dict.fromkeys(counters, np.asarray(41, np.int64))))
    variables, num_steps = variables_of(case, trained)
    assert num_steps == 41
    assert_identical(torch_variables.to_torch(variables, case.model, num_steps=41).state_dict, trained.state_dict)
    old = edited(case, lambda t: [t.pop(key) for key in counters])  # before PyTorch 0.4.1
    variables, num_steps = variables_of(case, old)
    assert num_steps is None
    assert_identical(torch_variables.to_torch(variables, case.model).state_dict, old.state_dict)


def test_lost_noise_is_refused_and_so_is_noise_of_another_level():
    case = golden('jfu_noiseresnet18_frozen')
    with pytest.raises(InputError, match='noise masks of this network are lost'):
        variables_of(case, TorchTensors(case.tensors.state_dict))
    case.model.noise_level = 0.3
    with pytest.raises(InputError, match='is not 0.3.* times any mask: model.noise_level'):
        variables_of(case)


@pytest.mark.parametrize('level', [0.1, 0.3, 0.5, 0.7, 1.0])
def test_every_mask_comes_back_from_its_product_with_the_level(level):
    masks = np.random.default_rng(0).uniform(-1, 1, 20_000).astype(np.float32)
    scaled = masks * np.float32(level)
    np.testing.assert_array_equal(undo_level('mask', scaled, level) * np.float32(level), scaled)


@pytest.mark.parametrize('change', [{'redraw_masks': True}, {'layer': 'random_filters'}])
def test_what_torch_does_not_have_is_not_exported(change):
    model = default.get_config().model
    model.update(**change)
    with pytest.raises(InputError, match=f'model.{next(iter(change))}=.* has no PyTorch counterpart'):
        torch_variables.to_torch({'params': {}}, model)


@pytest.mark.parametrize('path', sorted(DATA.glob('*.npz')), ids=lambda path: path.stem)
def test_constructor_arguments_are_the_inverse_of_model_fields(path):
    model = read_golden(path).case.model
    arguments = constructor_arguments(model, 10, 32)
    answer = model.name == 'answer_resnet18' or model.freeze_stem
    name = {'answer_resnet18': 'perturb_resnet18'}.get(model.name, model.name.replace('noise_resnet', 'noiseresnet'))
    fields = model_fields(
        name,
        arguments | {'first_filter_size': model.stem_kernel_size} if 'noise_resnet' in model.name else arguments,
        authors_answer=answer,
    )
    assert {field: model[field] for field in fields} == fields
