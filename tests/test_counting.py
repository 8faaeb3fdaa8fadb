"""The command that recounts a run in the historical ways: its numbers, its plot, what it refuses."""

import json

import numpy as np
import pytest

from experiments.command import exit_code
from experiments.counting.__main__ import main


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
    assert exit_code(main, [str(tmp_path), '--batch_size=10']) == 0
    shown = capsys.readouterr().out
    assert 'Reported by smoothing 36.00%, exactly 75.00% at best: -39.00 points' in ' '.join(shown.split())
    assert (tmp_path / 'counting.png').read_bytes().startswith(b'\x89PNG')


def test_published_rows_with_the_flooring_undone(capsys):
    assert exit_code(main, ['--published']) == 0
    shown = capsys.readouterr().out
    for published, inferred in [('85.5', '85.9'), ('72.6', '73.0'), ('82.7', '83.1'), ('91.8', '91.8')]:
        assert any(published in line and inferred in line.partition(published)[2] for line in shown.splitlines())
    assert 'inference' in shown


def refused(capsys, *argv) -> str:
    assert exit_code(main, argv) == 2
    message = capsys.readouterr().err
    assert message.startswith('error: ') and message.count('\n') == 1
    return message


def test_workdir_without_outcomes_is_refused(tmp_path, capsys):
    assert 'not found' in refused(capsys, str(tmp_path))


def test_outcomes_cut_short_are_refused(workdir, capsys):
    path = workdir / 'outcomes.npz'
    path.write_bytes(path.read_bytes()[:-40])
    assert 'damaged' in refused(capsys, str(workdir))


def test_outcomes_without_labels_are_refused(workdir, capsys):
    np.savez(workdir / 'outcomes.npz', correct=np.ones((1, 4), bool))
    assert 'damaged' in refused(capsys, str(workdir))


def test_outcomes_of_another_size_are_refused(workdir, capsys):
    write_run(workdir, np.ones((2, 40), bool), labels=np.zeros(50, np.int32))
    assert '[2, 40]' in refused(capsys, str(workdir))


def test_outcomes_of_another_run_are_refused(workdir, capsys):
    metrics = (workdir / 'metrics.jsonl').read_text()
    write_run(workdir, np.ones((3, 105), bool))
    (workdir / 'metrics.jsonl').write_text(metrics)
    assert 'metrics.jsonl' in refused(capsys, str(workdir))


def test_batch_without_a_full_one_is_refused(workdir, capsys):
    assert 'no full batch' in refused(capsys, str(workdir), '--batch_size=106')
    assert 'batch_size' in refused(capsys, str(workdir), '--batch_size=0')


def test_one_question_at_a_time(workdir, capsys):
    assert 'name one of' in refused(capsys)
    assert 'name one of' in refused(capsys, str(workdir), '--simulate')


def test_simulated_bias(tmp_path, capsys):
    assert exit_code(main, ['--simulate', '--runs=1', f'--plot={tmp_path}/bias.svg']) == 0
    shown = capsys.readouterr().out
    assert shown.count('batch size 10') >= 2 and shown.count('correlation 0.95') >= 1
    assert (tmp_path / 'bias.svg').read_text().count('<svg') == 1


def test_plot_of_an_unknown_format_is_refused(workdir, capsys):
    assert 'curve.doc' in refused(capsys, str(workdir), f'--plot={workdir}/curve.doc')
