"""The benchmark: turns and medians with processes that only pretend, counted operations, and one real small run."""

import json

import pytest

from experiments.benchmark import __main__ as command
from experiments.benchmark import turns
from experiments.benchmark.__main__ import main, parse
from experiments.benchmark.cases import STEPS_PER_CALL, Case, scaling_cases
from experiments.benchmark.roofline import operation_costs
from experiments.benchmark.show import describe
from experiments.benchmark.turns import Measurement, measure
from experiments.command import exit_code
from pnn_jax.errors import InputError, RunError
from pnn_jax.trainer import STEPS_PER_DISPATCH

pytestmark = pytest.mark.slow

LOG = []


class FakeProcess:
    """Takes 0.2 s a step as 'ours' and 2 s as the peer, but an hour in the turn that warms up and in one other."""

    def __init__(self, name, case):
        self.name, self.turns = name, []
        LOG.append(('start', name))

    def turn(self, steps):
        seconds = {'ours': 0.2, 'torch': 2.0, 'torch_compile': 1.0}[self.name]
        LOG.append((self.name, steps))
        self.turns.append((3600.0 if len(self.turns) == 2 else seconds, 2 * seconds))
        return seconds

    def finish(self):
        wall, cpu = sorted(self.turns)[len(self.turns) // 2]
        return Measurement('machine', 16, 1.0, wall, cpu, 100.0)


def test_sides_take_turns_of_a_second_or_one_step(monkeypatch):
    LOG.clear()
    monkeypatch.setattr(turns, 'Process', FakeProcess)
    found, failures = measure(['ours', 'torch'], Case(7, 'train', 16), turns=3)
    ours, peer = found['ours'], found['torch']
    assert not failures
    warm_up = [('start', 'ours'), ('start', 'torch'), ('ours', 1), ('torch', 1)]
    assert warm_up + [('ours', 5), ('torch', 1)] * 3 == LOG
    assert ours.images_per_second == 80 and peer.images_per_second == 8
    result = describe(Case(7, 'train', 16), ours, 'torch', peer)
    assert result['ratio'] == 10 and result['row'] == 7 and result['config'] == 'shared_masks'


@pytest.mark.parametrize('when', ['start', 'turn', 'finish'])
def test_a_side_that_fails_does_not_stop_the_others(monkeypatch, when):
    class Failing(FakeProcess):
        def fail(self, now):
            if (self.name, now) == ('torch_compile', when):
                raise RunError('torch_compile: out of memory')

        def __init__(self, name, case):
            super().__init__(name, case)
            self.fail('start')

        def turn(self, steps):
            self.fail('turn')
            return super().turn(steps)

        def finish(self):
            self.fail('finish')
            return super().finish()

    monkeypatch.setattr(turns, 'Process', Failing)
    found, failures = measure(['ours', 'torch_compile', 'torch'], Case(7, 'train', 16), turns=3)
    assert list(found) == ['ours', 'torch'] and failures == ['torch_compile: out of memory']


def test_each_side_sees_as_many_gpus_as_are_compared(monkeypatch):
    monkeypatch.delenv('CUDA_VISIBLE_DEVICES', raising=False)
    assert (turns.gpus(1), turns.gpus(4)) == ('0', '0,1,2,3')
    monkeypatch.setenv('CUDA_VISIBLE_DEVICES', '2,3')
    assert (turns.gpus(1), turns.gpus(4)) == ('2', '2,3')
    monkeypatch.setenv('CUDA_VISIBLE_DEVICES', '')
    assert turns.gpus(1) == ''


def test_a_peer_on_a_cpu_is_not_compared_with_an_accelerator(monkeypatch, tmp_path, capsys):
    machines = {'ours': 'NVIDIA H100, 16 cores', 'torch': 'cpu, 16 threads', 'torch_compile': 'NVIDIA H100, torch'}
    found = {name: Measurement(machine, 16, 1.0, 0.2, 0.2, 100.0) for name, machine in machines.items()}
    monkeypatch.setattr(command, 'measure', lambda *arguments: (dict(found), []))
    file = tmp_path / 'speed.json'
    argv = ['--rows=7', '--modes=train', '--peer=torch,torch_compile', f'--json={file}']
    assert exit_code(main, argv) == 1
    assert 'torch, Case(row=7' in capsys.readouterr().err
    assert [result['peer'] for result in json.loads(file.read_text())] == ['torch_compile']


def test_a_call_has_as_many_steps_as_a_dispatch_of_training():
    assert STEPS_PER_CALL == STEPS_PER_DISPATCH


def test_operations_and_bytes_of_a_case_counted_by_hand():
    """2 images of 3x3 with 5 channels, 4 masks, 1 output: 90 values, 360 perturbed values, 20 weights."""
    costs = operation_costs((2, 3, 3, 5), num_masks=4, outputs=1, share_masks=False)
    assert costs['forward'] == (360 * 4, 4 * (90 + 180 + 20 + 90))
    assert costs['gradients'] == (360 * 8, 4 * (2 * 90 + 180 + 2 * 20 + 90))
    shared = operation_costs((2, 3, 3, 5), num_masks=4, outputs=2, share_masks=True)
    assert shared['forward'] == (360 * 6, 4 * (90 + 36 + 40 + 180))


def test_scaling_changes_one_quantity():
    options = parse([])
    assert [case.num_masks for _, case in scaling_cases('num_masks', options)] == [1, 4, 16, 64, 256]
    assert [case.config().model.num_masks for _, case in scaling_cases('batch', options)] == [64] * 4
    assert {(case.seeds, case.seed_style) for _, case in scaling_cases('seeds', options)} >= {(8, 'vmap'), (1, 'loop')}


@pytest.mark.parametrize(
    'argv', [['--rows=9'], ['--modes=test'], ['--peer=numpy'], ['--steps=0'], ['--scaling=width'], ['--rows=6;7']]
)
def test_wrong_options_are_one_line_and_exit_code_2(argv, capsys):
    assert exit_code(main, argv) == 2
    message = capsys.readouterr().err
    option, value = argv[0].split('=')
    assert message.startswith(f'error: {option}') and value in message and message.count('\n') == 1


def test_a_readme_without_its_markers_is_refused_before_anything_runs(tmp_path):
    (tmp_path / 'README.md').write_text('no markers')
    with pytest.raises(InputError, match='speed: begin'):
        main(['--peer=torch', f'--readme={tmp_path / "README.md"}'])
    with pytest.raises(InputError, match='needs rows and one peer'):
        main([f'--readme={tmp_path / "README.md"}'])


def test_a_folder_that_does_not_exist_is_refused_before_anything_runs():
    with pytest.raises(InputError, match='--json=.*nowhere/a.json'):
        main(['--json=nowhere/a.json'])


def test_a_small_run_beside_pytorch(tmp_path, capsys):
    path = tmp_path / 'speed.json'
    options = ['--rows=3', '--modes=eval', '--num_filters=2', '--eval_batch_size=4', '--steps=1', '--peer=torch']
    readme = tmp_path / 'README.md'
    readme.write_text('a\n<!-- speed: begin -->\nb\n<!-- speed: end -->\nc\n')
    main([*options, f'--json={path}', f'--plot={tmp_path / "speed.png"}', f'--readme={readme}'])
    (result,) = json.loads(path.read_text())
    assert (result['row'], result['mode'], result['batch_size']) == (3, 'eval', 4)
    assert result['ratio'] == pytest.approx(result['images_per_second'] / result['peer_images_per_second'])
    assert result['peak_memory_mb'] > 50 and result['peer_peak_memory_mb'] > 50
    assert (tmp_path / 'speed.png').stat().st_size > 1000
    assert capsys.readouterr().out.count('| 3 original_stem3 |') == 1
    text = readme.read_text()
    assert text.startswith('a\n<!-- speed: begin -->\n\n') and text.endswith('\n\n<!-- speed: end -->\nc\n')
    assert f'| **{result["ratio"]:.2f}** |' in text and result['peer_machine'] in text
