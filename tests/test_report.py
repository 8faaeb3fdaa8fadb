"""The report: its figures against answers worked out by hand, and what it refuses."""

import numpy as np
import pytest

from experiments import grid, report
from experiments.command import exit_code
from experiments.records import Record, read_record, record_path, settings

PRESET = grid.PRESETS['smoke']
# Final accuracies by row and seed, in percent; 100 test examples.
FINAL = {'no_noise': (50, 52), 'shared_masks': (60, 66), 'trained_masks': (60, 60)}


def make(run: grid.Run, final: int, digest: str = 'd') -> Record:
    """A run of two epochs in which the first `final` examples end up correct."""
    correct = np.stack([np.arange(100) < 10, np.arange(100) < final])
    summary = {
        'final_test_accuracy': final / 100,
        'max_test_accuracy': final / 100,
        'parameters': {'trained': 1234, 'masks': 34},
        'dataset': {'digest': digest, 'test_examples': 100},
        'per_class': {'cat': {}, 'dog': {}, 'frog': {}, 'ship': {}},
        'final_test_loss': 9290.4,
    }
    history = [{'train_accuracy': 0.2}, {'train_accuracy': 0.6}]
    return Record(
        run.row.name, run.seed, settings(grid.unmatched_config(run.row, PRESET, run.seed)), summary, history, correct
    )


@pytest.fixture
def results(tmp_path):
    (tmp_path / 'smoke').mkdir()
    for run in grid.runs_of(PRESET):
        record = make(run, FINAL[run.row.name][run.seed])
        record.write(record_path(tmp_path / 'smoke', run.row.name, run.seed))
    return tmp_path


def test_runs_at_chance_are_named(results):
    runs = grid.runs_of(PRESET)[:2]
    assert report.at_chance({runs[0]: make(runs[0], 50)}) == []
    (paragraph,) = report.at_chance({runs[0]: make(runs[0], 50), runs[1]: make(runs[1], 25)})
    assert f'`{runs[1].name}` (training accuracy 60.0%, test loss 9.29e+03)' in paragraph.text
    assert runs[0].name not in paragraph.text


def test_record_survives_writing(results):
    run = grid.runs_of(PRESET)[0]
    record = read_record(record_path(results / 'smoke', run.row.name, run.seed))
    expected = make(run, FINAL[run.row.name][run.seed])
    np.testing.assert_array_equal(record.correct, expected.correct)
    assert record._replace(correct=None) == expected._replace(correct=None)


def test_weights_do_not_count_masks_that_are_trained():
    weights = {run.row.name: make(run, 50).weights for run in grid.runs_of(PRESET)}
    assert weights == {'no_noise': 1234, 'shared_masks': 1234, 'trained_masks': 1200}


def test_figures_of_the_report(results):
    assert exit_code(report.main, ['--preset=smoke', f'--results={results}']) == 0
    lines = (results / 'report.md').read_text().splitlines()
    row = next(line for line in lines if line.startswith('| `shared_masks` | 7:'))
    # mean 63, sd sqrt(18) = 4.24, t(.975, 1) = 12.706: 63 +- 12.706 * 4.2426 / sqrt(2) = 63 +- 38.12
    assert row.split(' | ')[2:] == ['1,234', '34', '2', '63.00', '4.24', '24.88 to 101.12', '63.00', '82.4 |']
    # Trained against fixed masks: differences 0 and -6, mean -3 +- 38.12; seed 1: 6 discordant, p = 2 / 2**6
    pair = next(line for line in lines if '`trained_masks` - `shared_masks`' in line)
    assert pair.split(' | ')[2:] == ['-3.00', '-41.12 to +35.12', 'no difference shown', '0:0 p=1; 0:6 p=0.031 |']
    assert any(line.startswith('| `no_noise` | 16 | 51.00 | ') for line in lines)


def test_verdicts():
    assert report.verdict(report.estimate([1.0, 1.1, 1.2])) == 'better'
    assert report.verdict(report.estimate([-1.0, -1.1, -1.2])) == 'worse'
    assert report.verdict(report.estimate([-1.0, 1.1, 0.2])) == 'no difference shown'
    assert report.verdict(report.estimate([3.0])) == 'one seed, no interval'


def test_page_is_self_contained(results):
    assert exit_code(report.main, ['--preset=smoke', f'--results={results}']) == 0
    page = (results / 'report.html').read_text()
    assert page.count('src="data:image/png;base64,') == page.count('<img') == 2  # no sweep and no row 2 in this preset
    assert '<code>shared_masks</code>' in page and 'http' not in page
    for line in (results / 'report.md').read_text().splitlines():
        if line.startswith('!['):
            assert (results / line.rpartition('(')[2][:-1]).exists()


def test_table_of_the_readme_is_replaced_between_its_markers(results):
    readme = results / 'README.md'
    begin, end = '<!-- results: begin -->', '<!-- results: end -->'
    readme.write_text(f'before\n{begin}\nold\n{end}\nafter\n')
    flags = ['--preset=smoke', f'--results={results}', f'--readme={readme}']
    assert exit_code(report.main, flags) == 0
    first = readme.read_text()
    assert first.startswith(f'before\n{begin}\n') and first.endswith(f'{end}\nafter\n')
    assert 'old' not in first and '63.00' in first
    assert exit_code(report.main, flags) == 0
    assert readme.read_text() == first


def refused(capsys, *flags) -> str:
    assert exit_code(report.main, ['--preset=smoke', *flags]) == 2
    message = capsys.readouterr().err
    assert message.startswith('error: ') and message.count('\n') == 1
    return message


def test_missing_run_is_named_and_nothing_is_written(results, capsys):
    record_path(results / 'smoke', 'no_noise', 1).unlink()
    assert 'no_noise_seed1' in refused(capsys, f'--results={results}')
    assert not (results / 'report.md').exists()
    assert exit_code(report.main, ['--preset=smoke', f'--results={results}', '--partial']) == 0
    assert '**Incomplete: 1 of 6 runs are missing: no_noise_seed1.**' in (results / 'report.md').read_text()


def test_result_cut_short_is_refused(results, capsys):
    path = record_path(results / 'smoke', 'no_noise', 1)
    path.write_text(path.read_text()[:-30])
    assert 'no_noise_seed1.json: cut short' in refused(capsys, f'--results={results}', '--partial')


def test_result_changed_by_hand_is_refused(results, capsys):
    path = record_path(results / 'smoke', 'no_noise', 1)
    path.write_text(path.read_text().replace('"final_test_accuracy": 0.52', '"final_test_accuracy": 0.92'))
    assert 'sha256' in refused(capsys, f'--results={results}')


def test_models_tested_on_different_images_are_refused(results, capsys):
    run = next(run for run in grid.runs_of(PRESET) if run.name == 'shared_masks_seed1')
    make(run, 50, digest='other').write(record_path(results / 'smoke', run.row.name, run.seed))
    assert 'another data set' in refused(capsys, f'--results={results}')


def test_result_of_another_grid_is_refused(results, capsys):
    path = record_path(results / 'smoke', 'no_noise', 0)
    record = read_record(path)
    record._replace(config=record.config | {'num_epochs': 7}).write(path)
    assert 'num_epochs: 7 -> 2' in refused(capsys, f'--results={results}')


def test_no_results_and_no_markers_are_refused(results, tmp_path, capsys):
    assert 'no results' in refused(capsys, f'--results={tmp_path}/none')
    readme = results / 'README.md'
    readme.write_text('<!-- results: begin -->')
    assert 'README.md' in refused(capsys, f'--results={results}', f'--readme={readme}')
    assert not (results / 'report.md').exists()
