"""The grid: its configs, its resumption after a kill, its refusals."""

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from experiments import ablation, grid, records
from experiments.command import exit_code

SMOKE = grid.PRESETS['smoke']
ROW = 'no_noise'


def test_every_row_builds_its_config_and_names_are_unique():
    names = [row.name for row in grid.ROWS]
    assert len(set(names)) == len(names)
    for preset in grid.PRESETS.values():
        for row in grid.preset_rows(preset):
            assert grid.unmatched_config(row, preset, 2).seed == 2
    for _, first, second in grid.PAIRS:
        assert first in names and second in names and first != second


def test_matched_row_has_the_nearest_number_of_parameters():
    full = grid.PRESETS['full']
    rows = {row.name: row for row in grid.preset_rows(full)}
    config = grid.build_config(rows['baseline_small'], full, 0, (32, 32, 3), 10)
    assert config.model.num_filters == 21  # 1,206,691 weights
    trained = grid.unmatched_config(rows['trained_masks'], full, 0)
    assert grid.learned_parameters(trained, (32, 32, 3), 10) == 1_220_234  # without the masks
    assert grid.unmatched_config(rows['baseline'], full, 0).model.num_filters == 44  # as published
    assert not grid.is_matched(rows['baseline'], full) and grid.is_matched(rows['baseline'], SMOKE)


def test_order_is_seed_by_seed_with_late_rows_last():
    runs = grid.runs_of(grid.PRESETS['full'])
    early = [run for run in runs if not run.row.late]
    assert runs[: len(early)] == early and len(early) < len(runs)
    assert [run.seed for run in early] == sorted(run.seed for run in early)
    assert len({run.row for run in early}) >= 12 and max(run.seed for run in early) == 2


def test_milestones_keep_their_place_in_the_run():
    twenty = dataclasses.replace(grid.PRESETS['reduced'], num_epochs=20)
    assert grid.unmatched_config(grid.ROWS[0], twenty, 0).schedule.milestones == (8, 12, 16)
    assert grid.unmatched_config(grid.ROWS[0], grid.PRESETS['full'], 0).schedule.milestones == (59, 89, 119)


def test_shards_are_a_partition():
    runs = grid.runs_of(SMOKE)
    shards = [ablation.choose_runs(SMOKE, f'{index}/4', '') for index in range(4)]
    assert sorted(run.name for shard in shards for run in shard) == sorted(run.name for run in runs)


def start(folder, *flags) -> subprocess.Popen:
    command = [sys.executable, '-m', 'experiments.ablation', '--preset=smoke', f'--rows={ROW}', *flags]
    return subprocess.Popen(
        [*command, f'--output={folder}/runs', f'--results={folder}/results'],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ | {'JAX_PLATFORMS': 'cpu'},
    )


def reproducible(path) -> dict:
    """A record without its timings."""
    content = json.loads(path.read_text())
    content.pop('sha256')
    content['summary'].pop('seconds')
    for line in content['history']:
        del line['seconds'], line['images_per_second']
    return content


def test_killed_grid_goes_on_to_the_same_results(tmp_path):
    whole, killed = tmp_path / 'whole', tmp_path / 'killed'
    process = start(whole)
    shown, _ = process.communicate()
    assert process.returncode == 0, shown
    assert ROW in shown and '2 of 2 runs done' in ' '.join(shown.split())
    names = sorted(path.name for path in (whole / 'results/smoke').iterdir())
    assert names == [f'{ROW}_seed{seed}.json' for seed in (0, 1)]

    shutil.copytree(whole / 'runs/smoke/compiled', killed / 'runs/smoke/compiled')
    process = start(killed)
    first_epoch = killed / f'runs/smoke/{ROW}_seed0/metrics.jsonl'
    while not first_epoch.exists() and process.poll() is None:
        time.sleep(0.05)
    time.sleep(np.random.default_rng().uniform(0, 2))
    process.send_signal(signal.SIGKILL)
    process.communicate()
    process = start(killed)
    shown, _ = process.communicate()
    assert process.returncode == 0, shown
    for name in names:
        assert reproducible(killed / 'results/smoke' / name) == reproducible(whole / 'results/smoke' / name)

    record = records.read_record(whole / f'results/smoke/{ROW}_seed0.json')
    assert [int(epoch.sum()) for epoch in record.correct] == [line['test_correct'] for line in record.history]
    assert str(tmp_path) not in (whole / f'results/smoke/{ROW}_seed0.json').read_text()


@pytest.fixture
def signal_handlers():
    """Puts back what the command installs."""
    kept = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield
    for number, handler in kept.items():
        signal.signal(number, handler)


def test_spent_time_budget_stops_cleanly(tmp_path, capsys, signal_handlers):
    flags = ['--preset=smoke', f'--output={tmp_path}/runs', f'--results={tmp_path}/results', '--time_budget=0']
    assert exit_code(ablation.main, flags) == 75
    assert 'the same command goes on' in capsys.readouterr().out
    assert not list((tmp_path / 'results/smoke').iterdir())


def test_failed_run_is_shown_and_does_not_stop_the_rest(tmp_path, capsys, monkeypatch, signal_handlers):
    trained = []

    def train(config, workdir, **_):
        trained.append(workdir)
        raise RuntimeError('the sky fell')

    monkeypatch.setattr('pnn_jax.train.train_and_evaluate', train)
    flags = ['--preset=smoke', f'--output={tmp_path}/runs', f'--results={tmp_path}/results']
    assert exit_code(ablation.main, flags) == 1
    shown = capsys.readouterr()
    assert len(trained) == 6
    assert 'no_noise_seed0: failed: the sky fell' in shown.out
    assert shown.err.startswith('error: 6 of 6 runs failed') and shown.err.count('\n') == 1
    assert 'the sky fell' in (tmp_path / 'runs/smoke/no_noise_seed0/error.txt').read_text()


@pytest.mark.parametrize(
    'flags, names',
    [
        (['--shard=4/4'], '--shard=4/4'),
        (['--shard=1'], '--shard=1'),
        (['--rows=no_nose'], 'no_nose'),
        (['--time_budget=-1'], '--time_budget'),
        (['--data_source=folder'], 'config.data.path'),
        (['--output=/dev/null/x'], '/dev/null/x'),
    ],
)
def test_bad_flags_are_one_line(flags, names, tmp_path, capsys, signal_handlers):
    assert exit_code(ablation.main, ['--preset=smoke', f'--results={tmp_path}', *flags]) == 2
    message = capsys.readouterr().err
    assert message.startswith('error: ') and names in message and message.count('\n') == 1
