"""Measuring on an accelerator in calls of limited time: what runs, what is tried again, what is kept."""

import dataclasses
import json
import subprocess
import time
from pathlib import Path

import pytest

from experiments.accelerator import __main__ as command
from experiments.accelerator import operation
from experiments.accelerator.__main__ import GRACE, Device, run_stages
from experiments.accelerator.stages import Stage, calls, stages
from pnn_jax.errors import InputError, StoppedEarly


@dataclasses.dataclass(frozen=True)
class Script(Stage):
    """A stage that runs a line of shell."""

    @property
    def command(self):
        return ['sh', '-c', self.arguments[0]]


def script(name, line, minutes=0.0, **options):
    return Script(name, name, [line], minutes, **options)


def call(found, folder, seconds=60.0, device='H100'):
    return run_stages(found, folder, Device('cuda', device), time.monotonic() + GRACE + seconds)


def test_a_stage_runs_until_it_succeeds_and_then_never_again(tmp_path, capsys):
    first = script('first', f'echo run >> {tmp_path}/runs')
    second = script('second', f'test -e {tmp_path}/ready || {{ echo not ready; exit 3; }}')
    third = script('third', 'true')
    assert call([first, second, third], tmp_path) == 1
    captured = capsys.readouterr()
    assert 'failed: exit code 3: not ready' in captured.out and 'failed: second' in captured.err
    progress = json.loads((tmp_path / 'stages.json').read_text())
    assert sorted(progress['seconds']) == ['first', 'third'] and list(progress['failed']) == ['second']
    (tmp_path / 'ready').touch()
    assert call([first, second, third], tmp_path) == 0
    assert (tmp_path / 'runs').read_text() == 'run\n'
    assert json.loads((tmp_path / 'stages.json').read_text())['failed'] == {}


def test_a_stage_waits_for_a_call_that_has_time_for_it(tmp_path):
    short, long = script('short', 'true'), script('long', f'touch {tmp_path}/ran', minutes=2)
    with pytest.raises(StoppedEarly, match='long needs another call'):
        call([short, long], tmp_path)
    assert list(json.loads((tmp_path / 'stages.json').read_text())['seconds']) == ['short']
    assert not (tmp_path / 'ran').exists()
    assert call([short, long], tmp_path, seconds=121) == 0


def test_stages_that_fit_run_in_the_time_that_a_long_one_leaves(tmp_path):
    long, short = script('long', 'true', minutes=2), script('short', 'true')
    with pytest.raises(StoppedEarly, match='long needs another call'):
        call([long, short], tmp_path)
    assert list(json.loads((tmp_path / 'stages.json').read_text())['seconds']) == ['short']


def test_a_call_that_is_too_short_for_every_stage_tries_one_all_the_same(tmp_path):
    assert call([script('long', 'true', minutes=2)], tmp_path) == 0


def test_one_file_holds_all_results_and_is_enough_to_go_on(tmp_path):
    there, here = tmp_path / 'there', tmp_path / 'here'
    there.mkdir()
    here.mkdir()
    found = lambda folder: [
        script('speed', f'echo 3 images; echo "[3]" > {folder}/speed.json'),
        script('other', 'exit 1'),
    ]
    assert call(found(there), there) == 1
    (here / 'stages.json').write_bytes((there / 'stages.json').read_bytes())
    assert call(found(here), here) == 1
    progress = json.loads((here / 'stages.json').read_text())
    assert progress['results'] == {'speed': [3]} and progress['logs'] == {'speed': ['3 images'], 'other': []}
    assert not (here / 'speed.log').exists() and (here / 'other.log').exists()


def test_a_stage_that_aborts_runs_again_without_triton(tmp_path, capsys, monkeypatch):
    monkeypatch.delenv('XLA_FLAGS', raising=False)
    aborts = script('aborts', 'case "$XLA_FLAGS" in *triton_gemm=false*) echo fine;; *) kill -ABRT $$;; esac')
    assert call([aborts], tmp_path) == 0
    assert 'exit code -6' in capsys.readouterr().out
    first, last = json.loads((tmp_path / 'stages.json').read_text())['logs']['aborts']
    assert first.endswith('again with XLA_FLAGS=--xla_gpu_enable_triton_gemm=false') and last == 'fine'


@pytest.mark.parametrize(('side', 'runs'), [('ours', 2), ('torch_compile', 1)])
def test_only_an_abort_of_ours_is_tried_without_triton(tmp_path, side, runs):
    line = (
        f'echo run >> {tmp_path}/runs; echo "error: {side}, Case(row=7): its process ended with exit code -6"; exit 1'
    )
    assert call([script('row7', line)], tmp_path) == 1
    assert (tmp_path / 'runs').read_text() == 'run\n' * runs


def test_a_stage_sees_one_device_and_no_cpu_in_its_place(tmp_path, monkeypatch):
    monkeypatch.setenv('CUDA_VISIBLE_DEVICES', '2,3')
    variables = command.environment({'A': 'b'}, tmp_path, 'cuda')
    assert (variables['CUDA_VISIBLE_DEVICES'], variables['JAX_PLATFORMS'], variables['A']) == ('2', 'cuda,cpu', 'b')
    assert command.environment({}, tmp_path, 'tpu')['JAX_PLATFORMS'] == 'tpu,cpu'


def test_a_stage_that_had_a_whole_call_has_failed_and_the_others_go_first(tmp_path):
    slow, other = script('slow', 'sleep 60'), script('other', 'true')
    with pytest.raises(StoppedEarly):
        call([slow, other], tmp_path, seconds=0.2)
    progress = json.loads((tmp_path / 'stages.json').read_text())
    assert progress['failed'] == {'slow': 'not done in the time of a call'}
    with pytest.raises(StoppedEarly, match='slow needs another call'):
        call([dataclasses.replace(slow, minutes=2), other], tmp_path)
    assert list(json.loads((tmp_path / 'stages.json').read_text())['seconds']) == ['other']


def test_a_stage_that_resumes_is_asked_to_save_and_continues(tmp_path, monkeypatch):
    line = f'trap "touch {tmp_path}/saved; exit 75" TERM; touch {tmp_path}/ready; while true; do sleep 0.05; done'
    grid = script('grid', f'test -e {tmp_path}/saved || {{ {line}; }}', resumes=True)
    wait = subprocess.Popen.wait

    def wait_until_ready(process, seconds):  # the time of the call is over as soon as the stage can be asked
        while seconds > GRACE and not (tmp_path / 'ready').exists():
            time.sleep(0.01)
        return wait(process, 0.01 if seconds > GRACE else seconds)

    with monkeypatch.context() as patch:
        patch.setattr(subprocess.Popen, 'wait', wait_until_ready)
        with pytest.raises(StoppedEarly, match='grid needs another call'):
            call([grid], tmp_path)
    assert call([grid], tmp_path) == 0
    assert (tmp_path / 'saved').exists()


def test_progress_of_another_device_or_of_another_program_is_refused(tmp_path):
    assert call([script('first', 'true')], tmp_path) == 0
    before = (tmp_path / 'stages.json').read_text()
    with pytest.raises(InputError, match='was measured on H100, and this is v5e'):
        call([], tmp_path, device='v5e')
    assert (tmp_path / 'stages.json').read_text() == before
    (tmp_path / 'stages.json').write_text('[1]')
    with pytest.raises(InputError, match='is not a file of this command'):
        call([], tmp_path)


def test_the_plan_divides_all_stages_among_calls_and_runs_nothing(tmp_path, capsys):
    output = tmp_path / 'output'
    assert command.main(['--plan', f'--output={output}', f'--data_path={tmp_path}']) == 0
    lines = capsys.readouterr().out.splitlines()
    found = stages(output, tmp_path, 'audit', tmp_path)
    names = [line.split()[0] for line in lines if line.startswith('  ')]
    assert names[:2] == ['operation', 'golden'] and sorted(names) == sorted(stage.name for stage in found)
    minutes = (540 - GRACE) / 60
    planned = calls(found, minutes)
    assert sum(line.startswith('call ') for line in lines) == len(planned)
    assert all(sum(stage.minutes for stage in one) <= minutes for one in planned)
    assert not output.exists()
    options = [option for stage in stages(output, tmp_path, 'audit', None, torch=False) for option in stage.arguments]
    assert not any('torch' in option for option in options)


def test_stages_are_chosen_by_name_and_keep_their_order(capsys):
    assert command.main(['--plan', '--stages=row4_eval,golden']) == 0
    names = [line.split()[0] for line in capsys.readouterr().out.splitlines() if line.startswith('  ')]
    assert names == ['golden', 'row4_eval']
    with pytest.raises(InputError, match="--stages: 'row9' in 'golden,row9' is not one of operation,golden,row7_train"):
        command.main(['--plan', '--stages=golden,row9'])


def test_what_ran_on_a_gpu_is_told_as_it_was_measured():
    folder = Path(command.__file__).parents[1] / 'results/accelerator'
    told, measured = (folder / 'README.md').read_text(), json.loads((folder / 'h100.json').read_text())['results']
    for row in (1, 4, 6, 7):
        line = next(line for line in told.splitlines() if line.startswith(f'| {row} `'))
        _, ours, *speeds, memory, torch_memory, compile_memory, _ = [cell.strip(' *') for cell in line.split('|')[1:-1]]
        peers = {'torch': (*speeds[:2], torch_memory), 'torch_compile': (*speeds[2:], compile_memory)}
        for result in measured[f'row{row}_train']:
            assert (f'{result["images_per_second"]:,.0f}', f'{result["peak_memory_mb"]:,.0f}') == (ours, memory)
            speed, of_peer = result['peer_images_per_second'], result['peer_peak_memory_mb']
            assert (f'{speed:,.0f}', f'{result["ratio"]:.2f}', f'{of_peer:,.0f}') == peers[result['peer']]
    cases = measured['golden']['cases']
    assert len(cases) == 6 and all(quantity['passed'] for case in cases.values() for quantity in case)


@pytest.mark.slow
def test_a_machine_without_accelerator_is_refused(tmp_path):
    with pytest.raises(InputError, match='jax finds no GPU or TPU here'):
        command.main([f'--output={tmp_path / "output"}'])
    assert not (tmp_path / 'output').exists()


def test_the_check_of_the_operation_finds_a_wrong_gradient(monkeypatch, capsys, quick_compilation):
    monkeypatch.setattr(operation, 'CASES', [((2, 3, 3, 4), 'relu', True, 2)])
    monkeypatch.setattr(operation, 'NUM_MASKS', {(2, 3, 3, 4): 16})
    assert operation.main([]) == 0
    capsys.readouterr()
    right = operation.perturb_combine
    wrong = lambda x, masks, *rest, **options: right(x, 1.001 * masks, *rest, **options)
    monkeypatch.setattr(operation, 'perturb_combine', wrong)
    assert operation.main([]) == 1
    assert 'WRONG float32 (2, 3, 3, 4) relu, shared masks, 2 outputs: error of y is' in capsys.readouterr().out
