"""The command that shows reported against actual accuracy: its figures, its plot, its refusals."""

import json

import numpy as np
import pytest

from experiments import accounting
from experiments.command import exit_code


@pytest.fixture
def workdir(tmp_path):
    correct = np.random.default_rng(0).random((3, 105)) < 0.8
    write_run(tmp_path, correct)
    return tmp_path


def write_run(path, correct, labels=None):
    labels = np.zeros(correct.shape[-1], np.int32) if labels is None else labels
    np.savez(path / 'outcomes.npz', correct=correct, labels=labels, test_digest='0' * 64)
    lines = [
        json.dumps({'epoch': i + 1, 'test_correct': int(epoch.sum()), 'test_count': epoch.size})
        for i, epoch in enumerate(correct)
    ]
    (path / 'metrics.jsonl').write_text('\n'.join(lines) + '\n')


def test_table_and_plot_of_a_run(tmp_path, capsys):
    # 20 examples, batches of 10: the smoothed value is 0.3 * 100 = 30, then 0.7 * 30 + 0.3 * 50 = 36
    write_run(tmp_path, np.array([[True] * 10 + [True, False] * 5]))
    assert exit_code(accounting.main, [f'--workdir={tmp_path}', '--batch_size=10']) == 0
    shown = capsys.readouterr().out
    assert 'Reported by smoothing 36.00%, exactly 75.00% at best: -39.00 points' in ' '.join(shown.split())
    assert (tmp_path / 'accounting.png').read_bytes().startswith(b'\x89PNG')


def test_published_rows_with_the_flooring_undone(capsys):
    assert exit_code(accounting.main, ['--published']) == 0
    shown = capsys.readouterr().out
    for published, inferred in [('85.5', '85.9'), ('72.6', '73.0'), ('82.7', '83.1'), ('91.8', '91.8')]:
        assert any(published in line and inferred in line.partition(published)[2] for line in shown.splitlines())
    assert 'inference' in shown


def refused(capsys, *argv) -> str:
    assert exit_code(accounting.main, argv) == 2
    message = capsys.readouterr().err
    assert message.startswith('error: ') and message.count('\n') == 1
    return message


def test_workdir_without_outcomes_is_refused(tmp_path, capsys):
    assert 'not found' in refused(capsys, f'--workdir={tmp_path}')


def test_outcomes_cut_short_are_refused(workdir, capsys):
    path = workdir / 'outcomes.npz'
    path.write_bytes(path.read_bytes()[:-40])
    assert 'damaged' in refused(capsys, f'--workdir={workdir}')


def test_outcomes_without_labels_are_refused(workdir, capsys):
    np.savez(workdir / 'outcomes.npz', correct=np.ones((1, 4), bool))
    assert 'damaged' in refused(capsys, f'--workdir={workdir}')


def test_outcomes_of_another_size_are_refused(workdir, capsys):
    write_run(workdir, np.ones((2, 40), bool), labels=np.zeros(50, np.int32))
    assert '[2, 40]' in refused(capsys, f'--workdir={workdir}')


def test_outcomes_of_another_run_are_refused(workdir, capsys):
    metrics = (workdir / 'metrics.jsonl').read_text()
    write_run(workdir, np.ones((3, 105), bool))
    (workdir / 'metrics.jsonl').write_text(metrics)
    assert 'metrics.jsonl' in refused(capsys, f'--workdir={workdir}')


def test_batch_without_a_full_one_is_refused(workdir, capsys):
    assert 'no full batch' in refused(capsys, f'--workdir={workdir}', '--batch_size=106')
    assert 'batch_size' in refused(capsys, f'--workdir={workdir}', '--batch_size=0')


def test_plot_of_an_unknown_format_is_refused(workdir, capsys):
    assert 'curve.doc' in refused(capsys, f'--workdir={workdir}', f'--plot={workdir}/curve.doc')
