"""The report: its numbers against answers worked out by hand, and what it refuses."""

import numpy as np
import pytest

from experiments.ablation import comparisons, presets
from experiments.ablation.comparisons import Comparison
from experiments.ablation.records import Record, read_record, record_path, settings
from experiments.ablation.rows import ROWS
from experiments.ablation.run_config import unmatched_config
from experiments.command import exit_code
from experiments.report import analysis
from experiments.report.__main__ import main
from experiments.report.study import Study
from pnn_jax.errors import InputError

PRESET = presets.PRESETS['smoke']
# Final accuracies by row and seed, in percent; 100 test examples.
FINAL = {'no_noise': (50, 52), 'shared_masks': (60, 66), 'trained_masks': (60, 60)}


def make(run: presets.Run, final: int, digest: str = 'd', code: str = 'c' * 64) -> Record:
    """A run of two epochs in which the first `final` examples end up correct."""
    correct = np.stack([np.arange(100) < 10, np.arange(100) < final])
    summary = {
        'final_test_accuracy': final / 100,
        'max_test_accuracy': final / 100,
        'parameters': {'trained': 1234, 'masks': 34},
        'dataset': {'digest': digest, 'test_examples': 100},
        'per_class': {'cat': {}, 'dog': {}, 'frog': {}, 'ship': {}},
        'final_test_loss': 0.5,
        'code': {'version': '0.1.0', 'sha256': code, 'commit': None, 'clean': None},
    }
    history = [{'train_accuracy': 0.2}, {'train_accuracy': 0.6}]
    return Record(
        run.row.name, run.seed, settings(unmatched_config(run.row, PRESET, run.seed)), summary, history, correct
    )


@pytest.fixture
def results(tmp_path):
    (tmp_path / 'smoke').mkdir()
    for run in presets.runs_of(PRESET):
        record = make(run, FINAL[run.row.name][run.seed])
        record.write(record_path(tmp_path / 'smoke', run.row.name, run.seed))
    return tmp_path


def study_of(*accuracies: tuple[str, list[int]], code: str = 'c' * 64) -> Study:
    """Rows with the final accuracies of their runs, in percent."""
    rows = {row.name: row for row in ROWS}
    records = {
        run: make(run, final, code=code)
        for name, finals in accuracies
        for seed, final in enumerate(finals)
        for run in [presets.Run(rows[name], seed)]
    }
    return Study('smoke', PRESET, records, [])


def test_collapsed_runs():
    run = presets.runs_of(PRESET)[0]
    healthy = make(run, 50)
    assert not analysis.collapsed(healthy)
    assert analysis.collapsed(make(run, 25))  # four classes: chance is 25%, and training reached 60%
    untrained = make(run, 25)._replace(history=[{'train_accuracy': 0.3}])
    assert not analysis.collapsed(untrained)
    for change in ({'final_test_loss': 9290.4}, {'final_test_loss': float('nan')}, {'nonfinite': 3}):
        assert analysis.collapsed(healthy._replace(summary=healthy.summary | change))


def test_collapsed_runs_are_named_and_have_no_interval(results):
    run = next(run for run in presets.runs_of(PRESET) if run.name == 'no_noise_seed1')
    make(run, 25).write(record_path(results / 'smoke', run.row.name, run.seed))
    assert exit_code(main, ['--preset=smoke', f'--results={results}']) == 0
    text = (results / 'report.md').read_text()
    assert 'Runs that collapsed: `no_noise_seed1` (accuracy 25.0%, training accuracy 60.0%, test loss 0.5)' in text
    assert '1 of 2 collapsed: 50.00, 25.00' in cells_of(text, '`no_noise`')


def test_a_difference_from_collapsed_runs_has_no_interval():
    finding = finding_of([60, 61, 25], [50, 51, 52])
    assert finding.interval_text == '1 of 6 runs collapsed'
    assert finding_of([60, 61, 60], [50, 51, 52]).interval_text.startswith('+')


def cells_of(text: str, first: str) -> list[str]:
    """The cells of the first line of a table that begins with the cell `first`."""
    lines = [
        [cell.strip() for cell in line.strip('|').split('|')] for line in text.splitlines() if line.startswith('|')
    ]
    return next(cells for cells in lines if cells[0] == first)


def test_record_survives_writing(results):
    run = presets.runs_of(PRESET)[0]
    record = read_record(record_path(results / 'smoke', run.row.name, run.seed))
    expected = make(run, FINAL[run.row.name][run.seed])
    np.testing.assert_array_equal(record.correct, expected.correct)
    assert record._replace(correct=None) == expected._replace(correct=None)


def test_weights_do_not_count_masks_that_are_trained():
    weights = {run.row.name: make(run, 50).weights for run in presets.runs_of(PRESET)}
    assert weights == {'no_noise': 1234, 'shared_masks': 1234, 'trained_masks': 1200}


def test_numbers_of_the_report(results):
    assert exit_code(main, ['--preset=smoke', f'--results={results}']) == 0
    text = (results / 'report.md').read_text()
    # mean 63, sd sqrt(18) = 4.24, t(.975, 1) = 12.706: 63 +- 12.706 * 4.2426 / sqrt(2) = 63 +- 38.12, cut at 100
    expected = ['1,234', '34', '2', '63.00', '4.24; 24.88 to 100.00', '63.00', '+12.00', '-3.1']
    assert cells_of(text, '`shared_masks`')[2:] == expected
    # Trained against fixed: 60 - 63, pooled variance 9, error 3, t(.975, 2) = 4.3027. Runs of one seed differ on 0 and
    # 6 of 100 images, of different seeds on 6 and 0; the two runs of a row on 0 and 6.
    assert cells_of(text, 'Trained masks against fixed ones')[1:] == [
        '`trained_masks` - `shared_masks`',
        '2 + 2',
        '-3%',
        '-3.00',
        '-15.91 to +9.91',
        '',
        '',
        'no verdict: 2 runs of a row, 5 are needed',
        '3.0; 3.0 within a row',
    ]
    counted = [line for line in text.splitlines() if line.startswith('| `no_noise`')][-1]
    assert [cell.strip() for cell in counted.split('|')][2:5] == ['16', '51.00', '51.00']


def finding_of(first: list[int], second: list[int], margin: float = 1.0) -> analysis.Finding:
    comparison = Comparison('?', 'one_mask', 'no_noise', margin, 'masks')
    (finding,) = analysis.compare(study_of(('one_mask', first), ('no_noise', second)), [comparison])
    return finding


def test_the_four_verdicts():
    assert finding_of([60, 61, 60, 61, 60], [50, 51, 52, 50, 51]).verdict_text == 'better'
    assert finding_of([50, 51, 52, 50, 51], [60, 61, 60, 61, 60]).verdict_text == 'worse'
    assert finding_of([50, 50, 51, 51, 50, 51], [50, 51, 50, 51, 51, 50]).verdict_text == 'equivalent within 1 point'
    assert finding_of([50, 50, 51, 51, 50, 51], [50, 51, 50, 51, 51, 50], 0.5).verdict_text == 'inconclusive'
    assert finding_of([40, 45, 50, 55, 60], [41, 46, 51, 56, 61], 2.0).verdict_text == 'inconclusive'
    assert finding_of([60, 61, 60, 61], [50, 51, 52, 50, 51]).verdict_text.startswith('no verdict: 4 runs')


def test_intervals_stay_within_what_can_be():
    assert finding_of([99], [1]).interval == (-100, 100)  # one run each: nothing is known
    assert finding_of([99, 20], [1, 80]).interval == (-100, 100)


def test_p_values_are_adjusted_within_their_family_alone():
    study = study_of(('one_mask', [60, 61, 60, 61, 62]), ('no_noise', [58, 59, 60, 58, 59]), ('baseline', [50] * 5))
    first = Comparison('?', 'one_mask', 'no_noise', 1.0, 'masks')
    other = Comparison('?', 'baseline', 'no_noise', 1.0, 'masks')
    (alone,) = analysis.compare(study, [first])
    adjusted = analysis.compare(study, [first, other])
    assert adjusted[0].p_value == pytest.approx(2 * adjusted[1].p_value) or adjusted[0].p_value == alone.p_value
    assert {round(finding.p_value / finding.difference.p_value(), 6) for finding in adjusted} == {1.0, 2.0}
    apart = analysis.compare(study, [first, other._replace(family='other')])
    assert apart[0].p_value == alone.p_value


@pytest.mark.parametrize(
    'change, names',
    [
        (lambda text: text.replace("first = 'one_mask'", "first = 'one_musk'", 1), 'one_musk'),
        (lambda text: text.replace('margin = 1.0', 'margin = 0', 1), 'margin = 0'),
        (lambda text: text.replace('margin = 1.0', 'margin_ = 1.0', 1), 'margin_'),
        (lambda text: text.replace("reference = 'no_noise'", "reference = 'none'"), "'none'"),
        (lambda text: text + text[text.index('[[comparison]]') :], 'compared twice'),
        (lambda text: text[:-20], 'plan'),
        (lambda text: 'x = 1\n' + text, "'x'"),
    ],
)
def test_a_plan_that_is_wrong_is_one_line(change, names, tmp_path):
    path = tmp_path / 'plan.toml'
    path.write_text(change(comparisons.DEFAULT.read_text()))
    with pytest.raises(InputError) as error:
        comparisons.read_plan(path, [row.name for row in ROWS])
    assert names in str(error.value) and '\n' not in str(error.value)


def test_page_is_self_contained(results):
    assert exit_code(main, ['--preset=smoke', f'--results={results}']) == 0
    page = (results / 'report.html').read_text()
    # no sweep and no row 2 in this preset: rows, differences and curves
    assert page.count('src="data:image/png;base64,') == page.count('<img') == 3
    assert '<code>shared_masks</code>' in page and 'http' not in page
    for line in (results / 'report.md').read_text().splitlines():
        if line.startswith('!['):
            assert (results / line.rpartition('(')[2][:-1]).exists()


def test_table_of_the_readme_is_replaced_between_its_markers(results):
    readme = results / 'README.md'
    begin, end = '<!-- results: begin -->', '<!-- results: end -->'
    readme.write_text(f'before\n{begin}\nold\n{end}\nafter\n')
    flags = ['--preset=smoke', f'--results={results}', f'--readme={readme}']
    assert exit_code(main, flags) == 0
    first = readme.read_text()
    assert first.startswith(f'before\n{begin}\n') and first.endswith(f'{end}\nafter\n')
    assert 'old' not in first and '63.00' in first
    assert exit_code(main, flags) == 0
    assert readme.read_text() == first


def refused(capsys, *flags) -> str:
    assert exit_code(main, ['--preset=smoke', *flags]) == 2
    message = capsys.readouterr().err
    assert message.startswith('error: ') and message.count('\n') == 1
    return message


def test_missing_run_is_named_and_nothing_is_written(results, capsys):
    record_path(results / 'smoke', 'no_noise', 1).unlink()
    assert 'no_noise_seed1' in refused(capsys, f'--results={results}')
    assert not (results / 'report.md').exists()
    assert exit_code(main, ['--preset=smoke', f'--results={results}', '--partial']) == 0
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
    run = next(run for run in presets.runs_of(PRESET) if run.name == 'shared_masks_seed1')
    make(run, 50, digest='other').write(record_path(results / 'smoke', run.row.name, run.seed))
    assert 'another data set' in refused(capsys, f'--results={results}')


def test_result_of_another_grid_is_refused(results, capsys):
    path = record_path(results / 'smoke', 'no_noise', 0)
    record = read_record(path)
    record._replace(config=record.config | {'num_epochs': 7}).write(path)
    assert 'num_epochs: 7 -> 2' in refused(capsys, f'--results={results}')


def test_a_record_under_another_name_is_refused(results, capsys):
    folder = results / 'smoke'
    record_path(folder, 'no_noise', 1).write_bytes(record_path(folder, 'no_noise', 0).read_bytes())
    assert 'is the record of no_noise_seed0' in refused(capsys, f'--results={results}')


def test_records_of_different_code_are_refused_unless_asked_for(results, capsys):
    run = next(run for run in presets.runs_of(PRESET) if run.name == 'shared_masks_seed1')
    make(run, 66, code='d' * 64).write(record_path(results / 'smoke', run.row.name, run.seed))
    message = refused(capsys, f'--results={results}')
    assert 'c' * 12 in message and 'd' * 12 + ': shared_masks_seed1' in message and 'allow_mixed_code' in message
    assert not (results / 'report.md').exists()
    assert exit_code(main, ['--preset=smoke', f'--results={results}', '--allow_mixed_code']) == 0
    assert f'different versions of the code: {"c" * 12}, {"d" * 12}.**' in (results / 'report.md').read_text()


def test_a_commit_that_leaves_the_code_as_it_is_does_not_stop_the_report(results):
    run = presets.runs_of(PRESET)[0]
    record = make(run, FINAL[run.row.name][run.seed])
    record.summary['code'] |= {'commit': 'f' * 40, 'clean': True}
    record.write(record_path(results / 'smoke', run.row.name, run.seed))
    assert exit_code(main, ['--preset=smoke', f'--results={results}']) == 0
    assert 'code' not in (results / 'report.md').read_text().partition('## Rows')[0]


def test_records_without_code_are_of_unknown_code(results, capsys):
    for run in presets.runs_of(PRESET):
        record = make(run, FINAL[run.row.name][run.seed])
        del record.summary['code']
        record.write(record_path(results / 'smoke', run.row.name, run.seed))
    message = refused(capsys, f'--results={results}')
    assert 'unknown: no_noise_seed0, shared_masks_seed0, trained_masks_seed0 and 3 more' in message


def test_a_record_from_before_a_field_existed_is_of_the_grid(results, capsys):
    path = record_path(results / 'smoke', 'no_noise', 0)
    record = read_record(path)
    del record.config['model.dropout_rate'], record.config['data.pad']
    record.write(path)
    assert exit_code(main, ['--preset=smoke', f'--results={results}']) == 0
    del record.config['model.num_filters']  # the preset's is not the default
    record.write(path)
    assert 'model.num_filters' in refused(capsys, f'--results={results}')


def test_no_results_and_no_markers_are_refused(results, tmp_path, capsys):
    assert 'no results' in refused(capsys, f'--results={tmp_path}/none')
    readme = results / 'README.md'
    readme.write_text('<!-- results: begin -->')
    assert 'README.md' in refused(capsys, f'--results={results}', f'--readme={readme}')
    assert not (results / 'report.md').exists()
