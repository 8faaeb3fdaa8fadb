"""Checkpoints across frameworks: evaluated alike, back bit for bit, and nothing in a file is ever executed."""

import collections
import errno
import io
import json
import os
import pathlib
import pickle
import sys
import tempfile
import types
import zipfile

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_data_hostile import damaged

from configs import default
from experiments.verify import networks, torch_twin
from pnn_jax import convert
from pnn_jax.data import load_dataset
from pnn_jax.data.pickles import PickleError, UnsafePickleError
from pnn_jax.errors import InputError, RunError
from pnn_jax.evaluate_run import evaluate_checkpoint
from pnn_jax.pytorch import checkpoints
from pnn_jax.pytorch.architecture import quotient, unseen
from pnn_jax.pytorch.checkpoints import noise_file, read_checkpoint
from pnn_jax.pytorch.files import Module, Storage, Tensor, TorchUnpickler
from pnn_jax.run.checkpoints import Checkpointer
from pnn_jax.run.workdir import read_config
from pnn_jax.train import train_and_evaluate

torch.set_num_threads(1)
# ml_collections loads a config file by a method that Python 3.12 deprecates.
pytestmark = pytest.mark.filterwarnings('ignore:the load_module:DeprecationWarning')
DIGITS = ['--config=configs/quickstart.py', '--config.model.name=lenet', '--config.model.num_filters=4']
DIGITS += ['--config.model.num_masks=2', '--config.model.share_masks', '--config.model.layer=perturbation']
DIGITS += ['--config.model.stem_layer=perturbation', '--config.model.activation=tanh']


def digits_network():
    """A LeNet for the bundled digits, with batch statistics that are not those of a fresh one."""
    config = convert.read_config(DIGITS).config
    torch.manual_seed(3)
    network = torch_twin.build_twin(config.model, 10, 16, 1)
    networks.randomise_constants(network, 3)
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
    for key, value in state_dict.items():
        if key.endswith('num_batches_tracked'):
            value.fill_(41)
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


@pytest.mark.filterwarnings("ignore:Couldn't retrieve source code")  # by torch, in the format of 2018
@pytest.mark.parametrize('zipped', [True, False], ids=['today', '2018'])
def test_a_whole_model_of_the_audit_tells_everything(tmp_path, monkeypatch, zipped):
    model = default.get_config().model
    model.update(num_filters=3, num_masks=2, activation='elu', pooling='avg', noise_level=0.2, stem_noise_scale=2.0)
    model.update(mix_channels=True, noise_type='normal', activate_after_noise=True)
    network = torch_twin.build_twin(model, 10, 32, 3)
    tensors = networks.tensors_of(network)
    path = save_as_the_audit_does(
        tmp_path / 'model.pth', network, model, monkeypatch, _use_new_zipfile_serialization=zipped
    )
    checkpoint = read_checkpoint(path)
    architecture = checkpoint.architecture
    assert {key: model[key] for key in architecture.fields} == architecture.fields
    assert unseen(architecture) == []
    assert (architecture.num_classes, architecture.image_size, architecture.channels) == (10, 32, 3)
    assert checkpoint.tensors.state_dict.keys() == tensors.state_dict.keys()
    for key, value in tensors.state_dict.items():
        np.testing.assert_array_equal(checkpoint.tensors.state_dict[key], value)


def test_a_whole_model_still_has_the_noise_that_its_state_dict_lacks(tmp_path, monkeypatch):
    model = default.get_config().model
    model.update(name='noise_resnet18', num_filters=2, noise_level=0.1, freeze_stem=True)
    network = torch_twin.build_twin(model, 10, 32, 3)
    noise = networks.tensors_of(network).noise_masks
    path = save_as_the_audit_does(tmp_path / 'model.pth', network, model, monkeypatch)
    checkpoint = read_checkpoint(path)
    fields = checkpoint.architecture.fields
    assert fields['noise_level'] == 0.1 and fields['freeze_stem'] is True
    assert checkpoint.tensors.noise_masks.keys() == noise.keys()
    for key, value in noise.items():
        np.testing.assert_array_equal(checkpoint.tensors.noise_masks[key], value)


@pytest.mark.parametrize(
    'name, changes',
    [
        ('resnet18', {}),
        ('perturb_resnet18', {'num_masks': 2, 'stem_layer': 'conv', 'mix_channels': True}),
        ('perturb_resnet18', {'layer': 'conv', 'kernel_size': 1, 'stem_layer': 'conv'}),
        ('perturb_resnet18', {'num_masks': 2, 'stem_layer': 'conv', 'stem_kernel_size': 7}),
        ('perturb_resnet18', {'num_masks': 2, 'stem_layer': 'conv', 'stem_kernel_size': 5}),
        ('answer_resnet18', {'stem_layer': 'perturbation'}),
        ('noise_resnet50', {'stem_kernel_size': 7}),
        ('lenet', {'num_masks': 2, 'activation': 'prelu'}),
        ('lenet', {'num_masks': 2, 'stem_layer': 'conv', 'stem_kernel_size': 5}),
        ('lenet', {'num_masks': 2, 'stem_layer': 'conv', 'stem_kernel_size': 7}),
        ('cifarnet', {'num_masks': 2, 'stem_layer': 'conv'}),
        ('cifarnet', {'layer': 'conv', 'kernel_size': 3, 'stem_layer': 'conv'}),
    ],
)
def test_names_and_shapes_tell_the_architecture(tmp_path, name, changes):
    model = default.get_config().model
    model.update(name=name, num_filters=3, **changes)
    network = torch_twin.build_twin(model, 7, 32, 3)
    path = saved(tmp_path / 'model.pth', network.state_dict())
    if noise := torch_twin.noise_buffers(network):
        saved(noise_file(path), noise)
    architecture = read_checkpoint(path).architecture
    assert {key: model[key] for key in architecture.fields} == architecture.fields
    assert set(architecture.fields) >= {'name', 'num_filters', *changes}
    assert (architecture.num_classes, architecture.image_size, architecture.channels) == (7, 32, 3)


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
            saved(noise_file(path), payload)
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
        ('torch', 'Tensor'),
        ('torch.storage', '_load_from_bytes'),
        ('numpy', 'load'),
        ('numpy.core.multiarray', 'fromfile'),
    ],
)
def test_names_outside_the_list_are_refused(module, name):
    unpickler = TorchUnpickler(io.BytesIO(b''), limit=0)
    with pytest.raises(UnsafePickleError, match='only tensors, modules and plain data are read'):
        unpickler.find_class(module, name)


def test_a_module_of_a_file_is_inert():
    found = TorchUnpickler(io.BytesIO(b''), limit=0).find_class('torch.nn.modules.activation', 'ReLU')
    made = found.call()
    assert type(made) is Module and made.kind == 'ReLU' and not callable(found) and not callable(made)


def edited(state_dict, **changes):
    return collections.OrderedDict(state_dict, **{key.replace('__', '.'): value for key, value in changes.items()})


@pytest.mark.parametrize(
    'make, message',
    [
        (lambda sd: edited(sd, linear1__bias=torch.zeros(128, 1)), 'linear1.bias has shape'),
        (lambda sd: edited(sd, linear2__bias=torch.zeros(10, dtype=torch.int32)), 'linear2.bias is int32'),
        (lambda sd: edited(sd, linear2__bias=torch.zeros(10, dtype=torch.cfloat)), "'torch.ComplexFloatStorage'"),
        (lambda sd: edited(sd, extra=torch.zeros(9)), 'extra is not part of'),
        (lambda sd: edited({k: v for k, v in sd.items() if k != 'linear1.weight'}), 'linear1.weight is missing'),
        (lambda sd: edited(sd, epoch=3), "'epoch' is a int, not a tensor"),
        (lambda sd: edited(sd, linear2__bias=sd['linear2.bias'] / 0), 'linear2.bias has values that are not finite'),
        (
            lambda sd: edited(sd, linear2__bias=sd['linear2.bias'].double() * 1e60),
            'linear2.bias is float64 with',
        ),
        (lambda sd: edited(sd, batch_norm__num_batches_tracked=torch.zeros(2)), 'batch_norm.num_batches_tracked is'),
        (lambda sd: edited(sd, batch_norm__num_batches_tracked=torch.tensor(2**40)), 'below 2**31'),
        (lambda sd: edited(sd, **{'new\nline': torch.zeros(9)}), "'new\\nline' is a Tensor, not a tensor with a name"),
        (lambda sd: {'model': sd, 'ema': sd}, "both 'model' and 'ema' hold"),
        (
            lambda sd: {'model': sd, 'ema': {'shadow': sd, 'decay': 0.9}},
            "both 'model' and 'ema' hold",
        ),
        (lambda sd: {'epoch': 3, 'accuracy': 0.5}, "'epoch' is a int, not a tensor; save a state_dict"),
        (lambda sd: {'a': {'b': {'c': sd}}}, "'a' is a dict, not a tensor; save a state_dict"),
        (lambda sd: {'conv9.weight': torch.zeros(3)}, "no network that is known; its first key is 'conv9.weight'"),
        (lambda sd: {'conv1.weight': torch.zeros(3)}, 'its tensors have unexpected shapes'),
        (lambda sd: [1, 2], 'holds a list'),
        (lambda sd: {0: torch.zeros(3), 1: torch.zeros(3)}, 'holds tensors under keys that are no names'),
        (lambda sd: {}, 'not a state_dict'),
        (lambda sd: torch.zeros(3), 'holds a Tensor'),
    ],
)
def test_contents_that_are_no_network_are_one_line(tmp_path, capsys, make, message):
    _, network = digits_network()
    assert message in refused(saved(tmp_path / 'a.pth', make(network.state_dict())), tmp_path, capsys, DIGITS)
    assert os.listdir(tmp_path) == ['a.pth']


# --- files as people have them ------------------------------------------------------------------------------------


def trained(network):
    """The state_dict of an optimizer after a step, with moments as large as the weights."""
    optimizer = torch.optim.Adam(network.parameters())
    network(torch.zeros(2, 1, 16, 16)).sum().backward()
    optimizer.step()
    return optimizer.state_dict()


def training_checkpoint(key):
    return lambda sd: {
        key: sd,
        'optimizer': trained(digits_network()[1]),
        'scheduler': {'last_epoch': 3, 'milestones': collections.Counter([2, 4])[2] * [2]},
        'epoch': 3,
        'best_acc': np.float64(91.5),
        'loss': torch.tensor(0.25),
        'rng_state': torch.get_rng_state(),
        'arch': 'lenet',
        'history': [0.5, 0.75],
    }


def prefixed(prefix):
    return lambda sd: collections.OrderedDict((prefix + key, value) for key, value in sd.items())


def cast(dtype):
    return lambda sd: collections.OrderedDict(
        (key, value.to(dtype) if value.is_floating_point() else value) for key, value in sd.items()
    )


def as_numpy(sd):
    return {key: value.numpy() for key, value in sd.items()}


SAME_VALUES = {
    'module.': prefixed('module.'),
    '_orig_mod.': prefixed('_orig_mod.'),
    'module._orig_mod.': prefixed('module._orig_mod.'),
    **{
        f'under {key}': training_checkpoint(key)
        for key in ('net', 'state_dict', 'model', 'model_state_dict', 'weights')
    },
    'net with module.': lambda sd: {'net': prefixed('module.')(sd), 'acc': 91.5, 'epoch': 7},
    'double': cast(torch.float64),
    'numpy arrays': as_numpy,
    'numpy arrays under a key': lambda sd: {'params': as_numpy(sd), 'step': 5},
    'parameters': lambda sd: {key: torch.nn.Parameter(v) if v.is_floating_point() else v for key, v in sd.items()},
    'views of one storage': lambda sd: views_of_one_storage(sd),
    'transposed': lambda sd: edited(sd, linear2__weight=sd['linear2.weight'].T.contiguous().T),
}


def views_of_one_storage(sd):
    flat = torch.cat([value.flatten() for value in sd.values() if value.is_floating_point()])
    sizes = [value.numel() for value in sd.values() if value.is_floating_point()]
    parts = iter(flat.split(sizes))
    return {key: next(parts).view(v.shape) if v.is_floating_point() else v for key, v in sd.items()}


def assert_same_tensors(path, state_dict):
    tensors = read_checkpoint(path).tensors.state_dict
    assert tensors.keys() == state_dict.keys()
    for key, value in state_dict.items():
        assert tensors[key].dtype == value.numpy().dtype, key
        np.testing.assert_array_equal(tensors[key], value.numpy(), err_msg=key)


@pytest.mark.parametrize('kind', SAME_VALUES)
@pytest.mark.parametrize('zipped', [True, False], ids=['today', '2018'])
def test_what_people_save_is_the_same_network(tmp_path, kind, zipped):
    state_dict = digits_network()[1].state_dict()
    content = SAME_VALUES[kind](state_dict)
    assert_same_tensors(saved(tmp_path / 'a.pth', content, _use_new_zipfile_serialization=zipped), state_dict)


@pytest.mark.parametrize('protocol', [2, 4, 5])
def test_a_pickle_of_numpy_arrays_is_the_same_network(tmp_path, protocol):
    state_dict = digits_network()[1].state_dict()
    (tmp_path / 'a.pkl').write_bytes(pickle.dumps({'net': as_numpy(state_dict)}, protocol))
    assert_same_tensors(tmp_path / 'a.pkl', state_dict)


def test_a_model_inside_data_parallel_is_the_same_network(tmp_path):
    model = default.get_config().model
    model.update(name='resnet18', num_filters=2)
    network = torch_twin.build_twin(model, 10, 32, 3)
    for module in (torch_twin.BaselineNetwork, torch_twin.BaselineBlock):
        module.__module__ = 'models'  # as in the clone that saved it
    sys.modules['models'] = torch_twin
    try:
        saved(tmp_path / 'a.pth', {'net': torch.nn.DataParallel(network), 'epoch': 3})
    finally:
        del sys.modules['models']
        for module in (torch_twin.BaselineNetwork, torch_twin.BaselineBlock):
            module.__module__ = torch_twin.__name__
    assert_same_tensors(tmp_path / 'a.pth', network.state_dict())


def test_a_data_parallel_that_holds_itself_is_refused(tmp_path):
    module = Module('DataParallel')
    module.set_state({'_modules': {'module': module}, '_parameters': {}, '_buffers': {}})
    with pytest.raises(InputError, match='a saved model of unknown structure .*too many modules'):
        checkpoints._taken_apart(module, tmp_path / 'a.pth')


@pytest.mark.parametrize('level', [0.1, 0.2, 0.5, 1.0])
def test_the_scale_of_the_stem_is_exact(level):
    """It is read as the quotient of two levels, 0.1 * 3 and 0.1."""
    for scale in (0.25, 1.0, 1.5, 2.0, 3.0, 20.0):
        assert quotient(level * scale, level) == scale


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize('file_format', ['pth', 'safetensors'])
def test_other_precisions_become_float32_and_a_note_says_so(tmp_path, capsys, dtype, file_format):
    network = digits_network()[1].double()
    network.linear2.bias.data += 1e-12
    state_dict = cast(dtype)(network.state_dict())
    path = tmp_path / f'a.{file_format}'
    saved(path, state_dict) if file_format == 'pth' else save_safetensors(path, state_dict)
    tensors = read_checkpoint(path).tensors.state_dict
    for key, value in state_dict.items():
        assert tensors[key].dtype == (np.float32 if value.is_floating_point() else np.int64)
        np.testing.assert_array_equal(tensors[key], value.float().numpy(), err_msg=key)
    assert convert.main([str(path), str(tmp_path / 'run'), *DIGITS]) == 0, capsys.readouterr().err
    name = str(dtype).removeprefix('torch.')
    expected = f'tensors were {name} in the file; they are float32 now, '
    (note,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith('note: ')]
    assert expected + ('rounded' if dtype == torch.float64 else 'with the same values') in note


def save_safetensors(path, state_dict):
    """As safetensors.torch.save_model does: a tensor with two names is stored once, the metadata has the other."""
    first, metadata, kept = {}, {}, {}
    for key, value in state_dict.items():
        values = (value.double().numpy().tobytes(), value.shape)
        if not key.startswith(('last_layers.', 'first_layers.')) or values not in first:
            kept[key] = value.contiguous().clone()
            first.setdefault(values, key)
        else:
            metadata[key] = first[values]
    safetensors.torch.save_file(kept, path, metadata)
    return path


def test_safetensors_of_a_model_with_shared_tensors(tmp_path):
    network = digits_network()[1]
    safetensors.torch.save_model(network, str(tmp_path / 'a.safetensors'))
    assert_same_tensors(tmp_path / 'a.safetensors', network.state_dict())
    (tmp_path / 'renamed').write_bytes((tmp_path / 'a.safetensors').read_bytes())
    assert_same_tensors(tmp_path / 'renamed', network.state_dict())


def test_without_the_package_a_safetensors_file_names_the_extra(tmp_path, capsys, monkeypatch):
    path = save_safetensors(tmp_path / 'a.safetensors', digits_network()[1].state_dict())
    monkeypatch.setitem(sys.modules, 'safetensors', None)
    assert "pip install 'pnn-jax[safetensors]'" in refused(path, tmp_path, capsys, DIGITS)


def test_noise_that_a_cpu_saved_with_the_state_dict(tmp_path):
    model = default.get_config().model
    model.update(name='noise_resnet18', num_filters=2, noise_level=0.1)
    network = torch_twin.build_twin(model, 10, 32, 3)
    noise = torch_twin.noise_buffers(network)
    path = saved(tmp_path / 'a.pth', {'net': prefixed('module.')({**network.state_dict(), **noise})})
    tensors = read_checkpoint(path).tensors
    assert tensors.state_dict.keys() == network.state_dict().keys() and tensors.noise_masks.keys() == noise.keys()
    half = saved(tmp_path / 'half.pth', {**network.state_dict(), **cast(torch.float16)(noise)})
    with pytest.raises(InputError, match='noise is float16; noise masks are only converted from float32'):
        read_checkpoint(half)


# --- damaged files ------------------------------------------------------------------------------------------------


def test_files_that_are_no_checkpoint_are_one_line(tmp_path, capsys):
    path = saved(tmp_path / 'a.pth', digits_network()[1].state_dict())
    whole = path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        weights = max(archive.infolist(), key=lambda entry: entry.file_size)
    at = weights.header_offset + 1000
    path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
    assert f"Bad CRC-32 for file '{weights.filename}'" in refused(path, tmp_path, capsys, DIGITS)
    path.write_bytes(whole[:5000])
    assert 'damaged or no PyTorch file' in refused(path, tmp_path, capsys, DIGITS)
    path.write_bytes(b'')
    assert 'damaged or no PyTorch file' in refused(path, tmp_path, capsys, DIGITS)
    assert 'does not exist' in refused(tmp_path / 'none.pth', tmp_path, capsys, DIGITS)
    with zipfile.ZipFile(path, 'w') as archive:
        archive.writestr('model/constants.pkl', b'')
    assert 'TorchScript' in refused(path, tmp_path, capsys, DIGITS)
    (tmp_path / 'folder').mkdir()
    assert 'there is no checkpoint to load' in refused(tmp_path / 'folder', tmp_path, capsys)
    (tmp_path / 'folder' / 'config.json').write_text(json.dumps({'model': 1})[:-3])
    assert 'there is no checkpoint to load' in refused(tmp_path / 'folder', tmp_path, capsys)
    (tmp_path / 'folder' / 'config.json').write_text('{"num_seeds": 1, "model": {}}')
    assert 'there is no checkpoint to load' in refused(tmp_path / 'folder', tmp_path, capsys)
    os.mkfifo(tmp_path / 'pipe')
    assert 'is no file' in refused(tmp_path / 'pipe', tmp_path, capsys, DIGITS)


def small_files():
    content = {'weight': torch.arange(6.0).reshape(2, 3), 'bias': np.arange(3), 'epoch': 3}
    buffers = io.BytesIO(), io.BytesIO()
    torch.save(content, buffers[0])
    torch.save(content, buffers[1], _use_new_zipfile_serialization=False)
    tensors = safetensors.torch.save({'weight': content['weight']})
    return [buffer.getvalue() for buffer in buffers] + [tensors, pickle.dumps({'bias': content['bias']})]


@given(st.sampled_from(small_files()).flatmap(damaged))
@settings(max_examples=400, deadline=None)
def test_damaged_files_are_read_or_are_one_line(content):
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / 'a.pth'
        path.write_bytes(content)
        try:
            read_checkpoint(path)
        except InputError as error:
            message = str(error)
            assert message.startswith(str(path)) and '\n' not in message and len(message) < 500
        assert os.listdir(folder) == ['a.pth']


@pytest.mark.parametrize(
    'offset, shape, strides',
    [
        (0, (7,), (1,)),
        (1, (6,), (1,)),
        (0, (2, 3), (4, 1)),
        (0, (6,), (-1,)),
        (-1, (6,), (1,)),
        (0, (2**40,), (0,)),
        (0, (-1, -6), (1, 1)),
        (0, (6,), ()),
        (0, (1,) * 70, (1,) * 70),
        (0, 6, 1),
        ('a', (6,), (1,)),
    ],
)
def test_a_tensor_that_does_not_fit_its_storage_is_refused(offset, shape, strides):
    storage = Storage(np.dtype(np.float32), 6, bytes(24))
    assert Tensor(storage, 0, (3, 2), (1, 3)).array().shape == (3, 2)
    with pytest.raises(PickleError, match='does not fit its storage'):
        Tensor(storage, offset, shape, strides).array()


def test_a_zip_that_unpacks_to_more_than_itself_is_refused(tmp_path, capsys):
    path = tmp_path / 'a.pth'
    with zipfile.ZipFile(path, 'w', zipfile.ZIP_DEFLATED) as archive:
        archive.writestr('a/data.pkl', bytes(2**26))
    assert 'its entries are larger than the file' in refused(path, tmp_path, capsys, DIGITS)


def test_dicts_that_hold_each_other_many_times_take_no_time(tmp_path, capsys):
    content = {'a': 1}
    for _ in range(60):
        content = {'a': content, 'b': content}
    assert 'not a tensor' in refused(saved(tmp_path / 'a.pth', content), tmp_path, capsys, DIGITS)


# --- nothing lost -------------------------------------------------------------------------------------------------


def contents_of(folder):
    return {path: path.read_bytes() for path in folder.rglob('*') if path.is_file()}


def test_a_folder_with_anything_in_it_is_left_as_it_is(tmp_path, capsys):
    path = saved(tmp_path / 'a.pth', digits_network()[1].state_dict())
    folder = tmp_path / 'mine'
    folder.mkdir()
    (folder / 'notes.txt').write_text('mine')
    (tmp_path / 'file').write_text('mine')
    before = contents_of(tmp_path)
    for target, message in ((folder, 'is not empty'), (tmp_path / 'file', 'is no folder'), (path, 'is no folder')):
        assert convert.main([str(path), str(target), *DIGITS]) == 2
        assert message in capsys.readouterr().err
    assert convert.main([str(path), str(tmp_path / 'file' / 'run'), *DIGITS]) == 2
    assert 'cannot be written: Not a directory' in capsys.readouterr().err
    assert contents_of(tmp_path) == before


def test_a_conversion_that_fails_at_the_end_leaves_nothing(tmp_path, capsys, monkeypatch):
    path = saved(tmp_path / 'a.pth', digits_network()[1].state_dict())

    def full(*arguments, **options):
        raise RunError('no space left on device')

    monkeypatch.setattr('pnn_jax.run.checkpoints.Checkpointer.save', full)
    assert convert.main([str(path), str(tmp_path / 'run'), *DIGITS]) == 1
    assert capsys.readouterr().err == 'error: no space left on device\n'
    assert os.listdir(tmp_path) == ['a.pth']


def test_an_export_that_fails_at_the_end_leaves_nothing(tmp_path, capsys, monkeypatch):
    model = default.get_config().model
    model.update(name='noise_resnet18', num_filters=2, noise_level=0.1)
    network = torch_twin.build_twin(model, 10, 32, 3)
    path = saved(tmp_path / 'a.pth', {**network.state_dict(), **torch_twin.noise_buffers(network)})
    options = ['--config=configs/original_stem3.py', '--config.model.num_filters=2', '--config.model.noise_level=0.1']
    assert convert.main([str(path), str(tmp_path / 'run'), *options]) == 0, capsys.readouterr().err
    assert convert.main([str(tmp_path / 'run'), str(tmp_path / 'none' / 'b.pth')]) == 2
    assert 'cannot be written: No such file or directory' in capsys.readouterr().err

    def full_for_the_second(path, content):
        if path.name == 'b.pth':
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        path.write_bytes(content)

    with monkeypatch.context() as patch:
        patch.setattr('pnn_jax.pytorch.convert.replace_file', full_for_the_second)
        assert convert.main([str(tmp_path / 'run'), str(tmp_path / 'b.pth')]) == 2
    assert 'cannot be written: No space left on device' in capsys.readouterr().err
    assert sorted(os.listdir(tmp_path)) == ['a.pth', 'run']
    assert convert.main([str(tmp_path / 'run'), str(tmp_path / 'b.pth')]) == 0, capsys.readouterr().err
    for written, theirs in (('b.pth', network.state_dict()), ('b.noise.pth', torch_twin.noise_buffers(network))):
        returned = torch.load(tmp_path / written, weights_only=True)
        assert returned.keys() == theirs.keys()
        assert all(torch.equal(returned[key], value) for key, value in theirs.items())


@pytest.mark.parametrize('url', ['s3://bucket/a.pth', 'https://host/a.pth', 'gs:/bucket/a'])
def test_urls_are_refused_on_either_side(tmp_path, capsys, monkeypatch, url):
    monkeypatch.chdir(tmp_path)
    path = saved(tmp_path / 'a.pth', {})
    for arguments, field in (([url, 'out'], 'IN'), ([str(path), url], 'OUT')):
        assert convert.main(arguments) == 2
        assert f'{field}={url}: URLs are not read or written' in capsys.readouterr().err
    assert os.listdir(tmp_path) == ['a.pth']


def test_a_tilde_is_the_home_directory_on_either_side(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv('HOME', str(tmp_path))
    arguments = [*DIGITS, '--config.model.num_filters=4']
    saved(tmp_path / 'a.pth', digits_network()[1].state_dict())
    assert convert.main(['~/a.pth', '~/run', *arguments]) == 0, capsys.readouterr().err
    assert convert.main(['~/run', '~/b.pth']) == 0, capsys.readouterr().err
    assert sorted(os.listdir(tmp_path)) == ['a.pth', 'b.pth', 'run']


def test_a_converted_workdir_cannot_be_trained(tmp_path, capsys):
    """The error says that it was converted; 'trained on other data' would be wrong."""
    path = saved(tmp_path / 'a.pth', digits_network()[1].state_dict())
    assert convert.main([str(path), str(tmp_path / 'run'), *DIGITS]) == 0, capsys.readouterr().err
    with Checkpointer(tmp_path / 'run' / 'checkpoints', read_only=True) as checkpointer:
        _, record = checkpointer.read()
    assert record['meta']['converted_from'] == 'a.pth' and record['meta']['data_digest'] == ''
    before = contents_of(tmp_path / 'run')
    config = read_config(tmp_path / 'run').unlock()
    config.num_epochs += 1
    with pytest.raises(InputError, match=r'it was converted from a\.pth, not trained here, so it can only be'):
        train_and_evaluate(config, tmp_path / 'run')
    assert contents_of(tmp_path / 'run') == before


def test_saved_models_of_unknown_structure_are_one_line(tmp_path, capsys):
    without, endless = torch.nn.ReLU(), torch.nn.ReLU()
    del without.__dict__['_modules']
    endless._modules['self'] = endless
    for module in (without, endless):
        message = refused(saved(tmp_path / 'a.pth', module), tmp_path, capsys, DIGITS)
        assert 'a saved model of unknown structure' in message


@pytest.mark.parametrize(
    'change',
    [
        {'level': 'high'},
        {'level': None},
        {'level': -1.0},
        {'level': torch.ones(1)},
        {'noise_type': 7},
        {'noise_type': 'cauchy'},
        {'_modules': {}},
        {'_parameters': {'weight': [[1.0], [2.0, 3.0]]}},
        {'_buffers': {3: torch.ones(1)}},
    ],
)
def test_saved_models_with_strange_attributes_are_one_line(tmp_path, capsys, monkeypatch, change):
    model = default.get_config().model
    model.update(num_filters=3, num_masks=2)
    network = torch_twin.build_twin(model, 10, 32, 3)
    save_as_the_audit_does(tmp_path / 'a.pth', network, model, monkeypatch)
    for module in network.modules():
        if type(module).__name__ == 'PerturbLayer':
            module.__dict__ |= change
    message = refused(saved(tmp_path / 'a.pth', network), tmp_path, capsys)
    assert str(tmp_path / 'a.pth') in message or 'the network of the file cannot be built' in message
    assert os.listdir(tmp_path) == ['a.pth']


def test_unknown_fields_and_arguments_are_refused(tmp_path):
    with pytest.raises(InputError, match="unknown config field: 'depth'"):
        convert.read_config(['--config.model.depth=3'])
    with pytest.raises(InputError, match='unexpected argument'):
        convert.read_config(['more.pth'])
    with pytest.raises(InputError, match='--config'):
        convert.read_config([f'--config={pathlib.Path(tmp_path) / "none.py"}'])
