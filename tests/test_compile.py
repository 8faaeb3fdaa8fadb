"""What compilers for TPUs and GPUs make of us, on a machine that has neither.

Needs the compilers: pip install -e '.[tpu-compile,gpu-compile]'. Each group of programs is compiled in a process of its
own, because a compiler that aborts takes its process with it.
"""

import collections
import functools
import importlib.util
import json
import math
import pathlib
import re
import subprocess
import sys

import pytest

from experiments.compile import __main__ as command
from experiments.compile import scaling, targets
from experiments.compile.__main__ import main, read_records, write_records
from experiments.compile.layers import Layer, compiled_steps, measure_layers
from experiments.compile.measure import Request, count, in_child, measure, reason
from experiments.compile.scaling import Step, share_of_compute
from experiments.compile.schedule import count_bundles
from experiments.compile.table import table
from pnn_jax.errors import InputError, RunError

MISSING = sorted({package for target in ('v5e', 'h100') if (package := targets.missing_compiler(target))})


def needs_compilers(test):
    """Marks a test that compiles for v5e or H100."""
    reason = f'not installed: {", ".join(MISSING)}; pip install -e ".[tpu-compile,gpu-compile]"'
    return pytest.mark.compile(pytest.mark.skipif(bool(MISSING), reason=reason)(test))


MEASURED = {'memory': 1, 'memory_there': 2, 'loops': 0, 'kernels': 1, 'collectives': {}, 'compile_seconds': 1}

# Small, because only the structure of the compiled program is looked at.
SMALL = {'size': 8, 'channels': 128, 'num_masks': 16}
ALL_OUTPUTS = [
    Layer(direction, outputs=outputs, share_masks=False, trained_masks=trained, **SMALL)
    for outputs in (1, 2, 4)
    for direction, trained in (('forward', False), ('backward', True))
]
# The layer of `docs`' measurements: 64 masks on the maps of the first stage.
FULL = {
    (direction, outputs, batch, share_masks): Layer(direction, outputs=outputs, batch=batch, share_masks=share_masks)
    for direction in ('forward', 'backward')
    for outputs in (1, 2)
    for batch in (16, 128)
    for share_masks in (True, False)
}


@functools.cache
def measured(target: str, kind: str) -> list[dict]:
    records = measure_layers(target, ALL_OUTPUTS if kind == 'all outputs' else list(FULL.values()))
    assert isinstance(records, list), records
    return records


@needs_compilers
@pytest.mark.parametrize('target', ['v5e', 'h100'])
def test_operation_has_no_loop_and_keeps_no_perturbed_maps(target):
    for layer, record in zip(ALL_OUTPUTS, measured(target, 'all outputs'), strict=True):
        perturbed_maps = 4 * layer.batch * layer.size**2 * layer.channels * layer.num_masks
        assert record['loops'] == 0, layer
        assert record['temporaries'] < perturbed_maps, layer


@needs_compilers
def test_layer_is_at_most_8_kernels_on_a_gpu():
    kernels = collections.Counter()
    for (_, *layer), record in zip(FULL, measured('h100', 'full'), strict=True):
        kernels[tuple(layer)] += record['kernels']
    assert len(kernels) == 8
    # With two outputs, XLA sums over a batch of 128 in one kernel more.
    assert all(count <= (9 if layer[:2] == (2, 128) else 8) for layer, count in kernels.items()), kernels


@needs_compilers
def test_static_time_on_a_tpu_is_near_the_floor_of_its_vector_unit():
    """The floor: 4 operations for each perturbed value, on four units of 8 x 128 lanes each cycle."""
    for (direction, *_), layer, record in zip(FULL, FULL.values(), measured('v5e', 'full'), strict=True):
        floor = layer.operations / (4 * 8 * 128)
        allowed = {'forward': 1.5, 'backward': 3}[direction]
        assert record['unknown_loops'] == 0, layer
        assert record['bundles'] <= allowed * floor, (layer, record['bundles'] / floor)


@needs_compilers
def test_masks_are_copied_into_the_layout_of_a_tpu_before_the_loop_over_steps():
    """So that the copy takes a small part of the time of a program of many steps."""
    text = compiled_steps('v5e', num_steps=3)
    assert isinstance(text, str), text
    assert text.count(' while(') == 1
    copies = {}  # computation -> copies and transpositions of all masks in it
    for line in text.splitlines():
        if line and not line.startswith((' ', '}')):
            copies[computation := line.split(' ')[0]] = 0
        elif re.search(r'= f32\[(32,32,128,64|64,32,32,128)\]\S* (copy|transpose)\(', line):
            copies[computation] += 1
    assert {name: count for name, count in copies.items() if count} == {'ENTRY': 1}


@needs_compilers
@pytest.mark.parametrize('config', ['no_noise', 'shared_masks'])
def test_narrow_network_trains_on_a_gpu(config, tmp_path):
    """XLA's Triton emitter aborted on the strided 1x1 convolutions of `no_noise`."""
    narrow = tmp_path / 'narrow.py'
    narrow.write_text(
        f'from configs import {config}\n\n\n'
        'def get_config():\n'
        f'    config = {config}.get_config()\n'
        '    config.model.num_filters = 8\n'
        '    return config\n'
    )
    record = measure(Request('h100', 'step', str(narrow)))
    assert 'error' not in record, record
    assert record['loops'] == 0


@needs_compilers
def test_gpu_compiler_still_aborts_on_the_smallest_program():
    """When this fails, XLA is fixed, and the barrier in `ops.combine_channels` can be removed."""
    answer = in_child('experiments.compile.triton_abort', 'h100', {'barrier': False}, 600)
    assert 'triton_tiling_propagation' in answer['error']
    assert in_child('experiments.compile.triton_abort', 'h100', {'barrier': True}, 600) == 'compiled'


@pytest.mark.parametrize(
    ('options', 'words'),
    [
        (['--target=v9'], ["'v9'", 'v4,v5e,v5p,v6e,h100']),
        (['--program=run'], ["'run'", 'train,step,evaluate']),
        (['--batch_size=7'], ["'7'", '0,16,128,1024']),
        (['--output=s3://bucket/x'], ['--output=s3://bucket/x', 'URL']),
        (['--config=baseline,shard_masks'], ['--config=shard_masks', 'there is no such file', 'shared_masks']),
        (['--target=v5e,v4', '--devices=256'], ['--devices=256', 'v4', '1,4,16']),
        (['--target='], ['--target', 'one value']),
        ([f'--readme={targets.__file__}'], ['--readme', 'needs --output']),
        ([f'--readme={targets.__file__}', '--output=records.json'], ['compiled: begin', 'compiled: end']),
    ],
)
def test_wrong_options_are_refused_in_one_line(options, words, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(command, 'missing_compiler', lambda target: '')
    with pytest.raises(InputError) as error:
        main(options)
    assert '\n' not in str(error.value)
    assert all(word in str(error.value) for word in words)


def test_what_did_not_compile_is_tried_again(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(command, 'missing_compiler', lambda target: '')
    answers = [{'error': 'still compiling after 3600 s'}, {'error': 'exit -9: '}]
    monkeypatch.setattr(command, 'measure', lambda request, schedules: answers.pop(0))
    flags = ['--config=quickstart', '--program=train', f'--output={tmp_path}/compiled.json']
    for _ in range(2):
        with pytest.raises(RunError, match='does not compile: quickstart, train, for 1 x v5e'):
            main(flags)
    assert [record['error'] for record in read_records(tmp_path / 'compiled.json')] == ['exit -9: ']
    assert 'exit -9' in capsys.readouterr().out and not answers


def test_a_failed_attempt_keeps_what_compiled_and_what_another_command_added(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(command, 'missing_compiler', lambda target: '')
    output = tmp_path / 'new' / 'compiled.json'
    flags = ['--config=quickstart', '--program=train', f'--output={output}']
    monkeypatch.setattr(command, 'measure', lambda request, schedules: MEASURED)
    main(flags)
    (first,) = read_records(output)
    monkeypatch.setattr(command, 'measure', lambda request, schedules: {'error': 'killed by SIGKILL'})
    with pytest.raises(RunError, match='killed by SIGKILL'):
        main([*flags, '--schedules'])
    assert read_records(output) == [first]

    def meanwhile(request, schedules):
        write_records(output, [first, first | {'request': first['request'] | {'devices': 4}}])
        return MEASURED

    monkeypatch.setattr(command, 'measure', meanwhile)
    main([*flags, '--target=h100'])
    assert [(r['request']['target'], r['request']['devices']) for r in read_records(output)] == [
        ('v5e', 1), ('v5e', 4), ('h100', 1),
    ]  # fmt: skip


def test_a_killed_compiler_is_told_by_its_signal():
    child = "import os; os.write(2, b'WARNING: All log messages\\nI0000 00:00 a.cc] b'); os.kill(os.getpid(), 9)"
    killed = subprocess.run([sys.executable, '-c', child], capture_output=True, text=True)
    assert reason(killed) == 'killed by SIGKILL'


def test_schedules_are_added_to_the_records_of_tpus_that_have_none(tmp_path, monkeypatch):
    monkeypatch.setattr(command, 'missing_compiler', lambda target: '')
    compiled = []

    def measure(request, schedules):
        compiled.append((request.target, schedules))
        static = {'bundles': 5, 'static_milliseconds': 0.1, 'unknown_loops': 0}
        return MEASURED | static if schedules and request.target == 'v5e' else MEASURED

    monkeypatch.setattr(command, 'measure', measure)
    flags = ['--config=quickstart', '--program=train', f'--output={tmp_path}/compiled.json', '--target=v5e,h100']
    for more in ([], [], ['--schedules'], ['--schedules'], []):
        main(flags + more)
    assert compiled == [('v5e', False), ('h100', False), ('v5e', True)]
    assert ['bundles' in record for record in read_records(tmp_path / 'compiled.json')] == [False, True]


@pytest.mark.parametrize(
    'text',
    ['{"a": 1}', '{}', '[1]', '[{"request": {"target": "v5e", "program": "train", "config": "quickstart"}}]'],
)
def test_output_that_holds_something_else_is_refused_and_kept(text, tmp_path):
    output = tmp_path / 'notes.json'
    output.write_text(text)
    with pytest.raises(InputError, match='is not a list of records'):
        read_records(output)
    assert output.read_text() == text


def test_records_are_read_back_and_shown(tmp_path):
    request = {'target': 'v5e', 'program': 'train', 'config': 'baseline', 'devices': 4, 'batch_size': 0, 'dtype': ''}
    fits = {
        'request': request, 'memory': 2**33, 'memory_there': 2**34, 'loops': 1, 'kernels': 300, 'compile_seconds': 61.2,
        'collectives': {'all-reduce': 3}, 'static_milliseconds': 1.25, 'unknown_loops': 0,
    }  # fmt: skip
    too_large = fits | {'memory': 2**35, 'unknown_loops': 2}
    aborts = {'request': request, 'error': 'exit -6: Check failed'}
    write_records(tmp_path / 'records.json', [fits, too_large, aborts])
    records = read_records(tmp_path / 'records.json')
    assert records == [fits, too_large, aborts]
    first, second, third = table(records).splitlines()[2:]
    assert '| 4 x v5e |' in first and '| 8.00 of 16 |' in first and '| 3 all-reduce | 1.25 | 61 s |' in first
    assert '**32.00 of 16: 16.00 too much**' in second and '| >1.25 |' in second
    assert '**does not compile**: exit -6: Check failed' in third
    assert len({line.count('|') for line in (first, second, third)}) == 1


def test_the_share_of_compute_on_many_chips(capsys):
    assert share_of_compute(Step(1.0, parameters=0, all_reduces=0), chips=256) == 1
    # An all-reduce over 256 chips takes 32 hops. Of 4 bytes a parameter, twice three quarters pass at 100 GB/s.
    assert math.isclose(share_of_compute(Step(32e-6, parameters=0, all_reduces=1), chips=256), 0.5)
    assert math.isclose(share_of_compute(Step(1.0, parameters=50e9 / 3, all_reduces=0), chips=4), 0.5)
    scaling.main([])
    assert capsys.readouterr().out in (pathlib.Path(__file__).parent.parent / 'docs/accelerators.md').read_text()


def test_missing_compilers_are_named(monkeypatch):
    monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None)
    assert [targets.missing_compiler(target) for target in ('v5e', 'h100')] == ['libtpu', 'jax_plugins.xla_cuda12']


def test_bundles_are_multiplied_by_the_trips_of_their_loops():
    schedule = """
     0   :  { %v0 = vmov 0.0 }
   0x1   :  {}
   0x2 LB: > { %s1 = sphi %s0, %s2 }
   0x3   :  {} /* End region 1 */
   0x4 LB: >> { %v1 = vadd.f32 %v0, %v0 }
   0x5   : >> { %p1 = scmp.ge.s32.totalorder %s3, 7 /* loop exit test */ }
   0x6   : > { %p0 = scmp.ge.s32.totalorder %s2, 5 /* loop exit test */ }
   0x7   :  { %s9 = sfence }
"""
    assert count_bundles(schedule) == (2 + 5 * (3 + 7 * 2) + 1, 0)
    assert count_bundles(schedule.replace('%s3, 7', '%s3, %s8')) == (2 + 5 * (3 + 2) + 1, 1)
    assert count_bundles(schedule.replace('0x7   :', '0x7 LB:')) == (2 + 5 * (3 + 7 * 2) + 1, 1)


def test_loops_kernels_and_collectives_are_counted():
    text = """
%fused_computation (p: f32[8]) -> f32[8] {
  ROOT %copy.2 = f32[8]{0} copy(%p)
}
%body (p: f32[8]) -> f32[8] {
  %fusion.1 = f32[8]{0} fusion(%p), kind=kLoop, calls=%fused_computation
  ROOT %all-reduce.1 = f32[8]{0} all-reduce(%fusion.1), to_apply=%add
}
ENTRY %main (p: f32[8]) -> f32[8] {
  %while.1 = f32[8]{0} while(%p), condition=%condition, body=%body
  %start = f32[8]{0} all-reduce-start(%while.1), to_apply=%add
  ROOT %dot.1 = f32[8]{0} dot(%start, %start)
}
"""
    assert count(text) == {'loops': 1, 'kernels': 2, 'collectives': {'all-reduce': 2}}


def test_descriptions_of_gpus_are_committed():
    text = pathlib.Path(targets.__file__).with_name('descriptions').joinpath('h100.txtpb').read_text()
    assert 'cuda_compute_capability { major: 9 }' in text
    assert json.dumps(sorted(targets.TARGETS)) == '["h100", "v4", "v5e", "v5p", "v6e"]'
