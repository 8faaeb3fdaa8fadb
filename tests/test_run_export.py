"""What a run leaves: its plots, and its export, which counts exactly as the run did, without this package."""

import dataclasses
import importlib.util
import json
import subprocess
import sys
from importlib import import_module

import jax
import numpy as np
import pytest
import safetensors.numpy
import torch

from configs import quickstart
from experiments.verify import networks, torch_twin
from pnn_jax import convert, export
from pnn_jax.data import Dataset, Split
from pnn_jax.errors import InputError
from pnn_jax.models.registry import create_model
from pnn_jax.models.variables import variable_shapes
from pnn_jax.pytorch.convert import to_workdir
from pnn_jax.pytorch.files import read_file
from pnn_jax.run.export import PLATFORMS, export_run, stablehlo_bytes
from pnn_jax.run.load import Run, flat, load_run, nested
from pnn_jax.run.provenance import provenance
from pnn_jax.run.workdir import read_config
from pnn_jax.train import train_and_evaluate


def tiny_config():
    config = quickstart.get_config()
    config.num_epochs, config.batch_size, config.eval_batch_size = 2, 8, 16
    config.model.num_filters, config.model.num_masks = 4, 2
    config.schedule.milestones = (1,)
    config.log.tensorboard = False
    return config


@pytest.fixture(scope='module')
def dataset():
    rng = np.random.default_rng(0)
    split = lambda n: Split(
        images=rng.integers(0, 256, (n, 8, 8, 1), dtype=np.uint8), labels=rng.integers(0, 3, n).astype(np.int32)
    )
    return Dataset(name='random', train=split(29), test=split(13), class_names=('a', 'b', 'c'), digest='random')


@pytest.fixture(scope='module')
def finished(tmp_path_factory, dataset):
    """The workdir of a finished run, and its result."""
    workdir = tmp_path_factory.mktemp('run')
    return workdir, train_and_evaluate(tiny_config(), workdir, dataset=dataset)


@pytest.fixture(scope='module')
def exported(finished, tmp_path_factory):
    target = tmp_path_factory.mktemp('exported') / 'network'
    assert export.main([str(finished[0]), str(target)]) == 0
    return target


def test_finished_run_leaves_plots(finished):
    workdir, result = finished
    assert result['final_test_correct'] < result['final_test_count']  # otherwise there are no mistakes
    for name in ('curves', 'plots/confusion', 'plots/masks', 'plots/mistakes'):
        assert (workdir / f'{name}.png').read_bytes().startswith(b'\x89PNG')
    assert 'note:' not in (workdir / 'train.log').read_text()  # no writer failed


def test_files_describe_the_run(finished, exported):
    workdir, result = finished
    names = {'model.safetensors', 'model.stablehlo', 'config.json', 'export.json'}
    assert {path.name for path in exported.iterdir()} == names
    assert list(exported.parent.iterdir()) == [exported]
    assert read_config(exported) == read_config(workdir)
    description = json.loads((exported / 'export.json').read_text())
    assert description['class_names'] == ['a', 'b', 'c'] and description['image_shape'] == [8, 8, 1]
    assert (description['step'], description['checkpoint']) == (8, 'latest')
    assert description['test_accuracy'] == result['final_test_accuracy']
    assert description['code'] == provenance()


def test_weights_are_those_of_the_checkpoint_and_build_the_same_network(finished, exported, dataset):
    run = load_run(finished[0])
    arrays = read_file(exported / 'model.safetensors')  # the reader that executes nothing
    expected = flat(run.variables)
    assert arrays.keys() == expected.keys()
    assert any(name.startswith('noise_masks.') for name in arrays)
    for name, array in arrays.items():
        assert array.dtype == np.float32
        np.testing.assert_array_equal(array, expected[name])
    model = create_model(read_config(exported).model, num_classes=3)
    inputs = np.ones((2, 8, 8, 1), np.float32)
    logits = jax.eval_shape(lambda variables: model.apply(variables, inputs, train=False), nested(arrays))
    assert logits.shape == (2, 3)


def test_program_counts_as_the_run_did(finished, exported, dataset):
    weights = safetensors.numpy.load_file(exported / 'model.safetensors')
    network = jax.export.deserialize((exported / 'model.stablehlo').read_bytes())
    assert network.platforms == PLATFORMS
    images, labels = dataset.test.images, dataset.test.labels
    logits = np.asarray(network.call(weights, images))
    assert logits.dtype == np.float32 and logits.shape == (13, 3)
    assert (logits.argmax(1) == labels).sum() == finished[1]['final_test_correct']
    run = load_run(finished[0])
    np.testing.assert_allclose(logits, jax.jit(run.predict)(run.variables, images), rtol=2e-6, atol=2e-6)
    np.testing.assert_allclose(network.call(weights, images[:1]), logits[:1], rtol=2e-6, atol=2e-6)


def test_the_checkpoint_that_was_asked_for_is_exported(tmp_path, monkeypatch):
    """To PyTorch likewise."""
    asked = []

    def load(workdir, checkpoint):
        asked.append(checkpoint)
        raise InputError('enough')

    monkeypatch.setattr('pnn_jax.run.export.load_run', load)
    monkeypatch.setattr('pnn_jax.pytorch.convert.load_run', load)
    (tmp_path / 'run/checkpoints').mkdir(parents=True)
    assert export.main([str(tmp_path / 'run'), str(tmp_path / 'out'), '--checkpoint=best']) == 2
    assert convert.main([str(tmp_path / 'run'), str(tmp_path / 'out.pth'), '--checkpoint=best']) == 2
    assert asked == ['best', 'best']


def test_a_converted_network_is_exported_and_computes_as_pytorch_does(tmp_path, monkeypatch):
    config = tiny_config()
    torch.manual_seed(0)
    network = torch_twin.build_twin(config.model, 3, 8, 1)
    networks.randomise_constants(network, 0)
    torch.save(network.state_dict(), tmp_path / 'model.pth')
    to_workdir(tmp_path / 'model.pth', tmp_path / 'run', config)
    export.main([str(tmp_path / 'run'), str(tmp_path / 'exported')])
    description = json.loads((tmp_path / 'exported' / 'export.json').read_text())
    assert description['image_shape'] == [8, 8, 1]
    assert description['class_names'] is None and description['test_accuracy'] is None

    images = np.random.default_rng(0).integers(0, 256, (5, 8, 8, 1), dtype=np.uint8)
    weights = safetensors.numpy.load_file(tmp_path / 'exported' / 'model.safetensors')
    program = jax.export.deserialize((tmp_path / 'exported' / 'model.stablehlo').read_bytes())
    normalised = (torch.tensor(images).permute(0, 3, 1, 2) / 255 - config.data.mean[0]) / config.data.std[0]
    with torch.no_grad():
        expected = network.eval()(normalised)
    np.testing.assert_allclose(program.call(weights, images), expected, rtol=2e-6, atol=2e-6)

    older = dataclasses.replace(load_run(tmp_path / 'run'), meta={'converted_from': 'model.pth'})
    monkeypatch.setattr('pnn_jax.run.export.load_run', lambda *_: older)
    with pytest.raises(InputError, match=r'an older version converted it; convert model\.pth again with pnn-convert$'):
        export_run(tmp_path / 'run', tmp_path / 'again')


READER = """
import sys
sys.modules['pnn_jax'] = sys.modules['flax'] = None  # importing either would fail
import jax, jax.export, numpy as np, safetensors.numpy
images = np.load('images.npy')
weights = safetensors.numpy.load_file('network/model.safetensors')
network = jax.export.deserialize(open('network/model.stablehlo', 'rb').read())
print(int((np.asarray(network.call(weights, images)).argmax(1) == np.load('labels.npy')).sum()))
"""


@pytest.mark.slow
def test_program_evaluates_where_this_package_is_not_installed(finished, exported, dataset):
    folder = exported.parent
    np.save(folder / 'images.npy', dataset.test.images)
    np.save(folder / 'labels.npy', dataset.test.labels)
    done = subprocess.run([sys.executable, '-c', READER], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) == finished[1]['final_test_correct']
    for name in ('images.npy', 'labels.npy'):
        (folder / name).unlink()


@pytest.mark.slow
@pytest.mark.parametrize('name', ['noise_masks', 'trained_masks', 'authors_answer', 'cvpr_original', 'cifarnet'])
def test_every_kind_of_network_is_exported_for_any_number_of_images(name, tmp_path):
    config = import_module(f'configs.{name}').get_config()
    config.model.num_filters = 6 if config.model.name == 'answer_resnet18' else 4
    config.model.num_masks = min(config.model.num_masks, 2)
    model = create_model(config.model, num_classes=10)
    shapes = variable_shapes(model, (32, 32, 3))
    variables = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)
    network = jax.export.deserialize(stablehlo_bytes(Run(tmp_path, config, model, variables, 10, 0, None), (32, 32, 3)))
    (logits,) = network.out_avals
    assert not jax.export.is_symbolic_dim(logits.shape[1]) and logits.shape[1] == 10
    assert jax.export.is_symbolic_dim(logits.shape[0])


def test_what_cannot_be_exported_is_one_line_and_leaves_nothing(finished, exported, tmp_path, capsys, monkeypatch):
    def refused(*arguments) -> str:
        assert export.main([str(argument) for argument in arguments]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert list(tmp_path.glob('*/.*.tmp')) == list(tmp_path.glob('.*.tmp')) == []
        return line

    workdir = finished[0]
    assert refused(workdir, exported) == f'error: {exported} exists already; name another folder'
    assert 'nothing: there is no such folder' in refused(tmp_path / 'nothing', tmp_path / 'new')
    assert 'URLs are not read or written' in refused(workdir, 's3://bucket/new')
    (tmp_path / 'file').write_text('')
    assert refused(workdir, tmp_path / 'file' / 'new').endswith('cannot be written: Not a directory')
    result = (workdir / 'result.json').rename(workdir / 'elsewhere')
    try:
        assert refused(workdir, tmp_path / 'new').endswith(
            f'{workdir}: its run is not finished; the command that started it resumes it'
        )
    finally:
        result.rename(workdir / 'result.json')
    monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None)
    line = refused(workdir, tmp_path / 'new')
    assert line == "error: exporting a network needs safetensors: pip install 'pnn-jax[export]'"
    assert not (tmp_path / 'new').exists()
