"""Verification against PyTorch: the numbers in tests/data hold, wrong ones are noticed, wrong input is one line."""

import json
import pathlib
import shutil

import numpy as np
import pytest
import torch

from experiments.command import exit_code
from experiments.verify import __main__ as verify_main
from experiments.verify.golden import golden_files, read_golden, verify_golden
from pnn_jax.errors import InputError

torch.set_num_threads(1)
# ml_collections loads a config file by a method that Python 3.12 deprecates.
pytestmark = [
    pytest.mark.filterwarnings('ignore:the load_module:DeprecationWarning'),
    pytest.mark.usefixtures('quick_compilation'),
]
DATA = pathlib.Path(__file__).parent / 'data'
EVALUATION_ONLY = DATA / 'lenet28_act_rrelu.npz'


def changed_copy(folder, *, arrays=None, facts=None):
    """A copy of the smallest golden case with some of its content replaced; None removes a key."""
    path = folder / EVALUATION_ONLY.name
    with np.load(EVALUATION_ONLY) as file:
        content = {key: file[key] for key in file.files} | (arrays or {})
    np.savez(path, **{key: value for key, value in content.items() if value is not None})
    described = json.loads(EVALUATION_ONLY.with_suffix('.json').read_text()) | (facts or {})
    described = {key: value for key, value in described.items() if value is not None}
    path.with_suffix('.json').write_text(json.dumps(described))
    return path


@pytest.mark.parametrize('path', sorted(DATA.glob('*.npz')), ids=lambda path: path.stem)
def test_golden_numbers_hold_to_a_millionth(path):
    golden = read_golden(path)
    rows = verify_golden(golden)
    assert {row.quantity for row in rows} == golden.case.quantities & {key.partition('/')[0] for key in golden.expected}
    assert all(row.passed and row.max_rel_error <= 1e-6 for row in rows), rows


def test_a_golden_number_that_is_off_fails_the_command(tmp_path, capsys):
    golden = read_golden(EVALUATION_ONLY)
    logits = golden.expected['eval_logits'].copy()
    logits[2, 3] += 1e-5
    path = changed_copy(tmp_path, arrays={'eval_logits': logits})
    report = tmp_path / 'report.json'
    assert exit_code(verify_main.main, ['--golden', str(path), '--json', str(report)]) == 1
    assert 'FAILS: lenet28_act_rrelu' in capsys.readouterr().out
    (row,) = json.loads(report.read_text())['cases']['lenet28_act_rrelu']
    assert row['quantity'] == 'eval_logits' and not row['passed'] and 0.9e-5 < row['max_abs_error'] < 1.1e-5
    assert str(tmp_path) not in report.read_text()


@pytest.mark.parametrize(
    'change, message',
    [
        ({'arrays': {'eval_logits': None}}, 'eval_logits is missing'),
        ({'arrays': {'x': None}}, 'x is missing'),
        ({'arrays': {'sd/linear2.bias': None}}, 'linear2.bias'),
        ({'facts': {'net_type': None}}, 'net_type is missing'),
        ({'facts': {'net_type': 'vgg16'}}, 'vgg16'),
        ({'facts': {'colour': 'red'}}, "unknown field 'colour'"),
        ({'facts': {'ref': 'someone/else@1'}}, 'someone/else'),
        ({'facts': {'args': {'nfilters': 6, 'depth': 3}}}, "'depth'"),
    ],
)
def test_incomplete_or_unknown_golden_is_one_line_and_exit_code_2(tmp_path, capsys, change, message):
    path = changed_copy(tmp_path, **change)
    assert exit_code(verify_main.main, ['--golden', str(path)]) == 2
    error = capsys.readouterr().err
    assert error.startswith('error: ') and error.count('\n') == 1 and message in error


def test_truncated_golden_file(tmp_path, capsys):
    path = changed_copy(tmp_path)
    path.write_bytes(path.read_bytes()[:50_000])
    assert exit_code(verify_main.main, ['--golden', str(path)]) == 2
    assert 'no readable npz file' in capsys.readouterr().err


def test_empty_folder_of_goldens(tmp_path):
    with pytest.raises(InputError, match='holds no npz'):
        golden_files([str(tmp_path)])


@pytest.mark.parametrize('optimizer', [{'sgd': {'lr': 0.1}}, {'lion': {'lr': 0.1}}])
def test_unknown_optimizer_settings_are_an_error(tmp_path, optimizer):
    path = tmp_path / 'lenet28_perturb.npz'
    shutil.copy(DATA / path.name, path)
    facts = json.loads((DATA / 'lenet28_perturb.json').read_text()) | {'opt': optimizer, 'thinned': [*optimizer, 'sgd']}
    path.with_suffix('.json').write_text(json.dumps(facts))
    with pytest.raises(InputError, match=next(iter(optimizer))):
        read_golden(path)


CLONE = """
from types import SimpleNamespace
import torch
from configs import default
from experiments.verify.torch_twin import build_twin

class NoiseLayer(torch.nn.Module):
    pass

class PerturbBasicBlock(torch.nn.Module):
    pass

def lenet(nfilters, nclasses, input_size, **arguments):
    assert arguments['unique_masks'] is False and arguments['filter_size'] == 0 and arguments['level'] == 0.25
    model = default.get_config().model
    model.update(name='lenet', num_filters=nfilters, num_masks=2, share_masks=True, noise_level=0.25, dropout_rate=0.0)
    return build_twin(model, nclasses, input_size, 1)
"""


def test_a_clone_is_imported_and_its_path_stays_out_of_the_results(tmp_path, capsys):
    clone = tmp_path / 'clone'
    clone.mkdir()
    (clone / 'models.py').write_text(CLONE)
    report = tmp_path / 'report.json'
    options = ['--config=configs/lenet_mnist.py', '--config.model.num_filters=2', '--config.model.num_masks=2']
    options += ['--config.model.share_masks', '--config.model.noise_level=0.25', '--config.model.dropout_rate=0.0']
    options += ['--config.model.stem_layer=perturbation', '--config.model.layer=perturbation']
    command = ['--torch_repo', str(clone), '--num_steps', '0', '--json', str(report), *options]
    assert exit_code(verify_main.main, command) == 0, capsys.readouterr()
    assert str(tmp_path) not in report.read_text() + capsys.readouterr().out
    assert not (clone / '__pycache__').exists()


def test_a_folder_that_is_no_clone(tmp_path, capsys):
    command = ['--torch_repo', str(tmp_path), '--config=configs/no_noise.py']
    assert exit_code(verify_main.main, command) == 2
    assert 'has no models.py' in capsys.readouterr().err
    (tmp_path / 'models.py').write_text('class Something: pass')
    assert exit_code(verify_main.main, command) == 2
    assert 'is not that of' in capsys.readouterr().err


def test_a_mode_that_needs_a_config_says_so(tmp_path, capsys):
    (tmp_path / 'models.py').write_text(CLONE)
    assert exit_code(verify_main.main, ['--torch_repo', str(tmp_path)]) == 2
    assert '--config=FILE is missing' in capsys.readouterr().err
    assert exit_code(verify_main.main, ['--peer', '--config=configs/no_noise.py', '--config.model.depth=3']) == 2
    assert capsys.readouterr().err == "error: unknown config field: 'depth'\n"


def test_networks_are_compared_without_dropout(capsys):
    assert verify_main.config_of(['--config=configs/lenet_mnist.py']).model.dropout_rate == 0
    assert capsys.readouterr().out.startswith('config.model.dropout_rate=0.5: compared with 0')
