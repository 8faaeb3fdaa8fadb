"""Checkpoints across frameworks: evaluated alike, back bit for bit, and nothing in a file is ever executed."""

import collections
import io
import json
import os
import pathlib
import pickle
import sys
import types
import zipfile

import numpy as np
import pytest
import torch

from configs import default
from experiments import torch_twin, verify_torch
from pnn_jax import convert
from pnn_jax.data import load_dataset
from pnn_jax.errors import InputError
from pnn_jax.train import evaluate_checkpoint

torch.set_num_threads(1)
DIGITS = ['--config=configs/quickstart.py', '--config.model.name=lenet', '--config.model.num_filters=4']
DIGITS += ['--config.model.num_masks=2', '--config.model.share_masks', '--config.model.layer=perturbation']
DIGITS += ['--config.model.stem_layer=perturbation', '--config.model.activation=tanh']


def digits_network():
    """A LeNet for the bundled digits, with batch statistics that are not those of a fresh one."""
    config = convert.read_config(DIGITS).config
    torch.manual_seed(3)
    network = torch_twin.build_twin(config.model, 10, 16, 1)
    verify_torch.randomise_constants(network, 3)
    return config, network.eval()


def saved(path, content, **options):
    torch.save(content, path, **options)
    return path


def refused(path, tmp_path, capsys, arguments=()):
    """The one line with which a conversion is refused."""
    assert convert.main([str(path), str(tmp_path / 'out'), *arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith('error: ') and error.count('\n') == 1
    return error


def test_a_state_dict_is_evaluated_alike_and_comes_back_bit_for_bit(tmp_path, capsys):
    config, network = digits_network()
    source, workdir, back = tmp_path / 'a.pth', tmp_path / 'run', tmp_path / 'b.pth'
    state_dict = network.state_dict()
    saved(source, state_dict)
    assert convert.main([str(source), str(workdir), *DIGITS]) == 0, capsys.readouterr().err
    assert '--mode=eval' in capsys.readouterr().out

    test = load_dataset(config.data).test
    mean, std = (torch.tensor(v).reshape(1, -1, 1, 1) for v in (config.data.mean, config.data.std))
    images = torch.tensor(test.images.transpose(0, 3, 1, 2)) / 255
    with torch.no_grad():
        predicted = network((images - mean) / std).argmax(1).numpy()
    result = evaluate_checkpoint(config, str(workdir))
    assert result['final_test_count'] == len(test.labels)
    assert result['final_test_correct'] == (predicted == test.labels).sum()

    assert convert.main([str(workdir), str(back)]) == 0, capsys.readouterr().err
    returned = torch.load(back, weights_only=True)
    assert returned.keys() == state_dict.keys()
    for key, value in state_dict.items():
        assert returned[key].dtype == value.dtype and torch.equal(returned[key], value), key
    assert convert.main([str(source), str(workdir), *DIGITS]) == 2
    assert 'holds a run already' in capsys.readouterr().err
    before = source.read_bytes()
    assert convert.main([str(workdir), str(source)]) == 2
    assert 'exists already' in capsys.readouterr().err and source.read_bytes() == before


# What the audit's modules are called, by ours; their attributes follow mk models.py:19-31.
AUDIT_CLASSES = {
    'PerturbNetwork': 'PerturbResNet',
    'PerturbBlock': 'PerturbBasicBlock',
    'MaskedCombination': 'PerturbLayer',
    'PlainConvolution': 'PerturbLayer',
    'NoiseNetwork': 'NoiseResNet',
    'NoiseBlock': 'NoiseBasicBlock',
    'AdditiveNoise': 'NoiseLayer',
}


def save_as_the_audit_does(path, network, model, monkeypatch, **options):
    """torch.save(model) with the audit's module and class names and the attributes that it keeps."""
    module = types.ModuleType('models')
    monkeypatch.setitem(sys.modules, 'models', module)
    for ours, theirs in AUDIT_CLASSES.items():
        renamed = getattr(module, theirs, None) or type(theirs, (torch.nn.Module,), {'__module__': 'models'})
        for part in network.modules():
            if type(part).__name__ == ours:
                part.__class__ = renamed
                if theirs == 'PerturbLayer':
                    part.__dict__ |= {
                        'level': model.noise_level,
                        'noise_type': model.noise_type,
                        'unique_masks': not model.share_masks,
                        'train_masks': model.trainable_masks,
                        'use_act': model.activate_after_noise,
                    }
                if theirs == 'NoiseLayer':
                    part.__dict__['level'] = model.noise_level
                    part.__dict__['noise'] = part._buffers.pop('noise')
                    part._non_persistent_buffers_set.discard('noise')
        setattr(module, theirs, renamed)
    network.pre_layers[0].level = model.noise_level * model.stem_noise_scale
    return saved(path, network, **options)


@pytest.mark.parametrize('zipped', [True, False], ids=['today', '2018'])
def test_a_whole_model_of_the_audit_tells_everything(tmp_path, monkeypatch, zipped):
    model = default.get_config().model
    model.update(num_filters=3, num_masks=2, activation='elu', pooling='avg', noise_level=0.2, stem_noise_scale=2.0)
    model.update(mix_channels=True, noise_type='normal', activate_after_noise=True)
    network = torch_twin.build_twin(model, 10, 32, 3)
    tensors = verify_torch.tensors_of(network)
    path = save_as_the_audit_does(
        tmp_path / 'model.pth', network, model, monkeypatch, _use_new_zipfile_serialization=zipped
    )
    checkpoint = convert.read_checkpoint(path)
    assert {key: model[key] for key in checkpoint.fields} == checkpoint.fields
    assert convert.unseen(checkpoint) == []
    assert (checkpoint.num_classes, checkpoint.image_size, checkpoint.channels) == (10, 32, 3)
    assert checkpoint.tensors.state_dict.keys() == tensors.state_dict.keys()
    for key, value in tensors.state_dict.items():
        np.testing.assert_array_equal(checkpoint.tensors.state_dict[key], value)


def test_a_whole_model_still_has_the_noise_that_its_state_dict_lacks(tmp_path, monkeypatch):
    model = default.get_config().model
    model.update(name='noise_resnet18', num_filters=2, noise_level=0.1, freeze_stem=True)
    network = torch_twin.build_twin(model, 10, 32, 3)
    noise = verify_torch.tensors_of(network).noise_masks
    path = save_as_the_audit_does(tmp_path / 'model.pth', network, model, monkeypatch)
    checkpoint = convert.read_checkpoint(path)
    assert checkpoint.fields['noise_level'] == 0.1 and checkpoint.fields['freeze_stem'] is True
    assert checkpoint.tensors.noise_masks.keys() == noise.keys()
    for key, value in noise.items():
        np.testing.assert_array_equal(checkpoint.tensors.noise_masks[key], value)


@pytest.mark.parametrize(
    'name, changes',
    [
        ('resnet18', {}),
        ('perturb_resnet18', {'num_masks': 2, 'stem_layer': 'conv', 'mix_channels': True}),
        ('perturb_resnet18', {'layer': 'conv', 'kernel_size': 1, 'stem_layer': 'conv'}),
        ('answer_resnet18', {'stem_layer': 'perturbation'}),
        ('noise_resnet50', {'stem_kernel_size': 7}),
        ('lenet', {'num_masks': 2, 'activation': 'prelu'}),
        ('cifarnet', {'layer': 'conv', 'kernel_size': 3, 'stem_layer': 'conv'}),
    ],
)
def test_names_and_shapes_tell_the_architecture(tmp_path, name, changes):
    model = default.get_config().model
    model.update(name=name, num_filters=3, **changes)
    network = torch_twin.build_twin(model, 7, 32, 3)
    path = saved(tmp_path / 'model.pth', network.state_dict())
    if noise := torch_twin.noise_buffers(network):
        saved(convert.noise_file(path), noise)
    checkpoint = convert.read_checkpoint(path)
    assert {key: model[key] for key in checkpoint.fields} == checkpoint.fields
    assert set(checkpoint.fields) >= {'name', 'num_filters', *changes}
    assert (checkpoint.num_classes, checkpoint.image_size, checkpoint.channels) == (7, 32, 3)


def test_what_a_state_dict_does_not_tell_is_asked_for(tmp_path, capsys):
    _, network = digits_network()
    path = saved(tmp_path / 'a.pth', network.state_dict())
    error = refused(path, tmp_path, capsys)
    for field in ('activation', 'pooling', 'noise_level', 'stem_noise_scale', 'activate_after_noise'):
        assert f'--config.model.{field}=' in error
    error = refused(path, tmp_path, capsys, [*DIGITS, '--config.model.num_masks=3'])
    assert 'config.model.num_masks=3' in error and 'network with 2' in error


# --- files that must not be believed ------------------------------------------------------------------------------


class Payload:
    """Unpickled naively, writes a file."""

    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return os.mkdir, (str(self.target),)


@pytest.mark.parametrize('where', ['alone', 'in a state_dict', 'in a module', '2018', 'noise file', 'bare pickle'])
def test_a_malicious_file_is_refused_and_nothing_ran(tmp_path, capsys, monkeypatch, where):
    proof, path = tmp_path / 'it_ran', tmp_path / 'evil.pth'
    payload = Payload(proof)
    if where == 'alone':
        saved(path, payload)
    elif where == 'in a state_dict':
        saved(path, collections.OrderedDict(weight=torch.zeros(2), more=payload))
    elif where == '2018':
        saved(path, payload, _use_new_zipfile_serialization=False)
    elif where == 'bare pickle':
        path.write_bytes(pickle.dumps(payload))
    else:
        model = default.get_config().model
        model.update(name='noise_resnet18', num_filters=2)
        network = torch_twin.build_twin(model, 10, 32, 3)
        if where == 'noise file':
            saved(path, network.state_dict())
            saved(convert.noise_file(path), payload)
        else:
            network.avgpool.secret = payload
            save_as_the_audit_does(path, network, model, monkeypatch)
    error = refused(path, tmp_path, capsys)
    assert 'refused' in error or 'no PyTorch file' in error
    assert not proof.exists() and not (tmp_path / 'out').exists()
    if where == 'alone':  # the file does what it is meant to, if believed
        torch.load(path, weights_only=False)
        assert proof.exists()


@pytest.mark.parametrize(
    'module, name',
    [
        ('os', 'system'),
        ('builtins', 'eval'),
        ('builtins', 'getattr'),
        ('torch', 'load'),
        ('torch.hub', 'load'),
        ('torch.utils', '_import_dotted_name'),
        ('torch.nn.modules.module', 'Module.load_state_dict'),
        ('models.sub', 'PerturbLayer'),
        ('numpy.core.multiarray', 'scalar'),
    ],
)
def test_names_outside_the_list_are_refused(module, name):
    unpickler = convert._unpickler()(io.BytesIO(b''))
    with pytest.raises(pickle.UnpicklingError, match='neither a tensor nor a module'):
        unpickler.find_class(module, name)


def test_a_module_of_a_file_is_inert():
    made = convert._unpickler()(io.BytesIO(b'')).find_class('torch.nn.modules.activation', 'ReLU')
    assert made is not torch.nn.ReLU and issubclass(made, convert.Inert) and not callable(made())


def edited(state_dict, **changes):
    return collections.OrderedDict(state_dict, **{key.replace('__', '.'): value for key, value in changes.items()})


@pytest.mark.parametrize(
    'make, message',
    [
        (lambda sd: edited(sd, linear2__bias=sd['linear2.bias'].half()), 'linear2.bias is float16'),
        (lambda sd: edited(sd, linear2__bias=sd['linear2.bias'].bfloat16()), 'linear2.bias is bfloat16'),
        (lambda sd: edited(sd, linear1__bias=torch.zeros(128, 1)), 'linear1.bias has shape'),
        (lambda sd: edited(sd, extra=torch.zeros(9)), 'extra is not part of'),
        (lambda sd: edited({k: v for k, v in sd.items() if k != 'linear1.weight'}), 'linear1.weight is missing'),
        (lambda sd: edited(sd, epoch=3), "'epoch' is a int, not a tensor"),
        (lambda sd: edited(sd, linear2__bias=sd['linear2.bias'] / 0), 'linear2.bias has values that are not finite'),
        (lambda sd: {'state_dict': sd}, "'state_dict' is a OrderedDict, not a tensor; save a state_dict"),
        (lambda sd: {f'module.{key}': value for key, value in sd.items()}, 'which DataParallel wraps'),
        (lambda sd: {'conv9.weight': torch.zeros(3)}, 'no network that is known'),
        (lambda sd: [1, 2], 'holds a list'),
        (lambda sd: {}, 'not a state_dict'),
    ],
)
def test_contents_that_are_no_network_are_one_line(tmp_path, capsys, make, message):
    _, network = digits_network()
    assert message in refused(saved(tmp_path / 'a.pth', make(network.state_dict())), tmp_path, capsys, DIGITS)


def test_files_that_are_no_checkpoint_are_one_line(tmp_path, capsys):
    path = saved(tmp_path / 'a.pth', digits_network()[1].state_dict())
    whole = path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        weights = max(archive.infolist(), key=lambda entry: entry.file_size)
    at = weights.header_offset + 1000
    path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
    assert f'{weights.filename} differs from its checksum' in refused(path, tmp_path, capsys, DIGITS)
    path.write_bytes(whole[:5000])
    assert 'damaged or no PyTorch file' in refused(path, tmp_path, capsys, DIGITS)
    path.write_bytes(b'')
    assert 'damaged or no PyTorch file' in refused(path, tmp_path, capsys, DIGITS)
    assert 'does not exist' in refused(tmp_path / 'none.pth', tmp_path, capsys, DIGITS)
    with zipfile.ZipFile(path, 'w') as archive:
        archive.writestr('model/constants.pkl', b'')
    assert 'TorchScript' in refused(path, tmp_path, capsys, DIGITS)
    (tmp_path / 'folder').mkdir()
    assert 'is no workdir' in refused(tmp_path / 'folder', tmp_path, capsys)
    (tmp_path / 'folder' / 'config.json').write_text(json.dumps({'model': 1})[:-3])
    assert 'is no workdir' in refused(tmp_path / 'folder', tmp_path, capsys)


def test_saved_models_of_unknown_structure_are_one_line(tmp_path, capsys):
    without, endless = torch.nn.ReLU(), torch.nn.ReLU()
    del without.__dict__['_modules']
    endless._modules['self'] = endless
    for module in (without, endless):
        message = refused(saved(tmp_path / 'a.pth', module), tmp_path, capsys, DIGITS)
        assert 'a saved model of unknown structure' in message


def test_unknown_fields_and_arguments_are_refused(tmp_path):
    with pytest.raises(InputError, match='--config'):
        convert.read_config(['--config.model.depth=3'])
    with pytest.raises(InputError, match='unexpected argument'):
        convert.read_config(['more.pth'])
    with pytest.raises(InputError, match='--config'):
        convert.read_config([f'--config={pathlib.Path(tmp_path) / "none.py"}'])
