"""The report: its numbers against answers worked out by hand, and what it refuses."""

import base64
import dataclasses
import re

import numpy as np
import pytest
import simulated_study as simulation
from simulated_study import simulated_probes, simulated_study

from experiments.ablation.records import Record, read_record, record_path, settings
from experiments.ablation.registration import Analysis, Arm, Collapse, Comparison, Grid, read_grid
from experiments.ablation.run_config import unmatched_config, with_seeds
from experiments.ablation.runs import LookResult, runs_of
from experiments.command import exit_code
from experiments.report import __main__ as command
from experiments.report import analysis, charts, counted, mechanism, render, tables
from experiments.report.__main__ import main
from experiments.report.study import Study, is_collapsed
from pnn_jax import accounting
from pnn_jax.errors import InputError

GRID = read_grid('smoke')
RUNS = {run.name: run for run in runs_of(GRID)}
# Final accuracies by arm and seed, in percent; 100 test examples.
RATE = '0.05'  # the learning rate of its records
FINAL = {'no_noise': (50, 52), 'shared_masks': (60, 66), 'trained_masks': (60, 60)}


@pytest.fixture(autouse=True, scope='module')
def without_javascript():
    """Vega's JavaScript and the PNG files take seconds; tests/test_report_page.py opens a page that has them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(render, '_library', lambda: '/* vega */')
        patch.setattr(charts, 'png', lambda chart: b'\x89PNG')
        yield


def make(run, final: int, digest: str = 'd', code: str = 'c' * 64) -> Record:
    """A run of two epochs in which the first `final` examples end up correct."""
    correct = np.stack([np.arange(100) < 10, np.arange(100) < final])
    summary = {
        'final_test_accuracy': final / 100,
        'final_test_count': 100,
        'max_test_accuracy': final / 100,
        'parameters': {'trained': 1234, 'masks': 34},
        'dataset': {'digest': digest, 'test_examples': 100},
        'per_class': {'cat': {}, 'dog': {}, 'frog': {}, 'ship': {}},
        'final_test_loss': 0.5,
        'train_mode_accuracy': final / 100 + 0.01,
        'recalibrated_accuracy': final / 100 + 0.02,
        'code': {'version': '0.1.0', 'sha256': code, 'commit': None, 'clean': None},
    }
    history = [{'train_accuracy': 0.2, 'test_accuracy': 0.1}, {'train_accuracy': 0.6, 'test_accuracy': final / 100}]
    config = settings(with_seeds(unmatched_config(GRID, run.arm), run))
    return Record(run.arm.name, run.seed, GRID.sha256, config, summary, history, correct)


def write_all(results) -> None:
    (results / 'smoke').mkdir()
    for run in RUNS.values():
        write(results, make(run, FINAL[run.arm.name][run.seed]))


@pytest.fixture
def results(tmp_path):
    """A folder of results without a report."""
    write_all(tmp_path)
    return tmp_path


@pytest.fixture(scope='module')
def reported(tmp_path_factory, without_javascript):
    """The folder of the report on the records as they are."""
    results = tmp_path_factory.mktemp('results')
    write_all(results)
    report(results)
    return results / 'smoke' / 'report'


def write(results, record: Record) -> None:
    record.write(record_path(results / 'smoke', record.name))


def report(results, *flags) -> str:
    """The Markdown of the report on these results."""
    assert exit_code(main, ['--grid=smoke', f'--results={results}', *flags]) == 0
    return (results / 'smoke' / 'report' / 'report.md').read_text()


def study_of(comparisons, **finals: list[int]) -> Study:
    """Arms with the final accuracies of their runs, in percent; `comparisons` are of these arms."""
    arms = tuple(Arm(row='no_noise', runs=len(values), name=name) for name, values in finals.items())
    grid = Grid('digits, small', next(iter(finals)), arms, tuple(comparisons), analysis=Analysis(bootstrap_draws=50))
    some = next(iter(RUNS.values()))
    record = lambda name, seed, final: make(some, final)._replace(arm=name, seed=seed)
    records = {
        name: [record(name, seed, final) for seed, final in enumerate(values)] for name, values in finals.items()
    }
    return Study(grid, records)


def finding_of(first: list[int], second: list[int], margin: float = 1.0, kind: str = 'difference') -> analysis.Finding:
    comparison = Comparison('?', 'one', 'other', margin, 'masks', kind=kind)
    (finding,) = analysis.findings(study_of([comparison], one=first, other=second))
    return finding


# --- verdicts and intervals -------------------------------------------------------------------------------------------


def test_the_four_verdicts():
    words = lambda *args, **kwargs: finding_of(*args, **kwargs).judgement.verdict_text
    assert words([60, 61, 60, 61, 60], [50, 51, 52, 50, 51]) == 'better'
    assert words([50, 51, 52, 50, 51], [60, 61, 60, 61, 60]) == 'worse'
    assert words([50, 51, 52, 50, 51], [60, 61, 60, 61, 60], 20.0) == 'worse, by less than 20 points'
    assert words([50, 50, 51, 51, 50, 51], [50, 51, 50, 51, 51, 50]) == 'equivalent within 1 point'
    assert words([50, 50, 51, 51, 50, 51], [50, 51, 50, 51, 51, 50], 0.5) == 'inconclusive'
    assert words([40, 45, 50, 55, 60], [41, 46, 51, 56, 61], 2.0) == 'inconclusive'
    assert words([60, 61, 60, 61], [50, 51, 52, 50, 51]) == 'no verdict: below 5 runs'


def test_verdicts_of_non_inferiority():
    words = lambda first, second, margin=1.0: (
        finding_of(first, second, margin, kind='non_inferiority').judgement.verdict_text
    )
    assert words([60, 61, 60, 61, 60], [50, 51, 52, 50, 51]) == 'not worse by 1 point or more'
    assert words([50, 50, 51, 51, 50, 51], [50, 51, 50, 51, 51, 50]) == 'not worse by 1 point or more'
    assert words([50, 51, 52, 50, 51], [60, 61, 60, 61, 60], 2.0) == 'worse by 2 points or more'
    assert words([50, 51, 52, 50, 51], [51, 52, 53, 51, 52]) == 'inconclusive whether worse by 1 point or more'
    assert words([50, 51, 50, 51, 50], [51, 52, 51, 52, 51]) == 'worse; whether by 1 point or more is inconclusive'
    assert words([60, 61, 60, 61], [50, 51, 52, 50, 51]) == 'no verdict: below 5 runs'


def test_an_interaction_is_a_difference_of_differences():
    comparison = Comparison('?', 'a', 'b', 1.0, 'masks', kind='interaction', versus=('c', 'd'))
    spread = [0, 1, 0, 1, 0]
    arms = {name: [base + value for value in spread] for name, base in {'a': 70, 'b': 60, 'c': 52, 'd': 50}.items()}
    (finding,) = analysis.findings(study_of([comparison], **arms))
    assert finding.estimate == pytest.approx(10 - 2)
    assert finding.judgement.difference.error == pytest.approx((0.3 * 4 / 5) ** 0.5)
    assert finding.judgement.verdict_text == 'the first is more positive'
    assert finding.bootstrap[0] < 8 < finding.bootstrap[1]


def test_an_unfinished_family_is_adjusted_as_if_it_were_complete():
    comparisons = [Comparison('?', name, 'a', 1.0, 'masks') for name in ('b', 'c', 'd')]
    study = study_of(comparisons, a=[50, 51, 52, 50, 51], b=[51, 52, 53, 51, 53], c=[52] * 5, d=[53] * 5)
    values = {name: analysis.accuracies(arm) for name, arm in study.arms.items()}
    (alone,) = analysis.judge_all(study.grid, {name: values[name] for name in 'ab'})
    assert alone.p_value == pytest.approx(3 * alone.difference.p_value())
    assert alone.margin_p_value == min(1, 3 * alone.difference.equivalence_p_value(1.0))


def test_intervals_stay_within_what_can_be():
    assert finding_of([99], [1]).interval == (-100, 100)  # one run each: nothing is known
    assert finding_of([99, 20], [1, 80]).interval == (-100, 100)


def test_the_spread_is_that_of_all_arms_or_of_the_pair():
    comparison = Comparison('?', 'one', 'other', 1.0, 'masks')
    study = study_of([comparison], one=[60, 62], other=[50, 52], third=[40, 50])
    grid = study.grid
    (pooled,) = analysis.judge_all(grid, {name: analysis.accuracies(arm) for name, arm in study.arms.items()})
    assert (pooled.difference.degrees, pooled.difference.error) == (3, pytest.approx(((2 + 2 + 50) / 3) ** 0.5))
    pair = dataclasses.replace(grid, analysis=Analysis(spread='pair'))
    (own,) = analysis.judge_all(pair, {name: analysis.accuracies(arm) for name, arm in study.arms.items()})
    assert (own.difference.degrees, own.difference.error) == (2, pytest.approx(2**0.5))
    # Exploratory arms have no part in it.
    arms = (*grid.arms[:2], dataclasses.replace(grid.arms[2], exploratory=True))
    (without,) = analysis.judge_all(
        dataclasses.replace(grid, arms=arms), {name: analysis.accuracies(arm) for name, arm in study.arms.items()}
    )
    assert without.difference == own.difference


def test_p_values_are_adjusted_within_their_family_alone():
    arms = {'one': [60, 61, 60, 61, 62], 'other': [58, 59, 60, 58, 59], 'third': [50, 51, 50, 51, 50]}
    first = Comparison('?', 'one', 'other', 1.0, 'masks')
    second = Comparison('?', 'third', 'other', 1.0, 'masks')
    judge = lambda *comparisons: analysis.judge_all(study_of(comparisons, **arms).grid, arms)
    (alone,) = judge(first)
    adjusted = judge(first, second)
    assert {round(one.p_value / one.difference.p_value(), 6) for one in adjusted} == {1.0, 2.0}
    assert adjusted[0].p_value == alone.p_value  # the larger of the two keeps its value
    apart = judge(first, dataclasses.replace(second, family='other'))
    assert apart[0].p_value == alone.p_value and apart[1].p_value == pytest.approx(adjusted[1].p_value / 2)


def test_a_difference_that_rounds_to_zero_has_no_minus():
    assert [analysis.signed(value) for value in (-0.004, 0.004, -0.006, 1.0)] == ['+0.00', '+0.00', '-0.01', '+1.00']


# --- collapsed runs ---------------------------------------------------------------------------------------------------


def test_collapsed_runs():
    healthy, rule = make(RUNS['no_noise_seed0'], 50), Collapse(train_minus_eval=10.0, loss=10.0)
    changed = lambda **summary: healthy._replace(summary=healthy.summary | summary)
    assert not is_collapsed(healthy, rule)
    assert is_collapsed(changed(train_mode_accuracy=0.61), rule)
    assert not is_collapsed(changed(train_mode_accuracy=0.59), rule)
    for change in ({'final_test_loss': 9290.4}, {'final_test_loss': float('nan')}, {'nonfinite': 3}):
        assert is_collapsed(changed(**change), rule)
    assert is_collapsed(changed(final_test_loss=3.0), Collapse(loss=2.0))


def collapse(record: Record) -> Record:
    return record._replace(summary=record.summary | {'train_mode_accuracy': record.accuracy + 0.3})


def test_collapsed_runs_are_named_and_have_no_interval(results):
    write(results, collapse(make(RUNS['no_noise_seed1'], 25)))
    diverged = make(RUNS['shared_masks_seed1'], 0)
    summary = diverged.summary | {'nonfinite': 100, 'diverged': 'the loss is not finite at step 9'}
    history = [diverged.history[0], {'test_accuracy': 0.0}]  # as experiments/ablation/diverged.py writes it
    write(results, diverged._replace(summary=summary, history=history))
    text = report(results)
    assert 'Runs that collapsed: `no_noise_seed1` (accuracy 25.0%, training accuracy 60.0%, test loss 0.5)' in text
    assert '`shared_masks_seed1` (the loss is not finite at step 9)' in text
    assert '1 of 2 collapsed: 50.00, 25.00' in cells_of(text, '`no_noise`')


def test_a_difference_from_collapsed_runs_has_no_interval_and_hides_no_other():
    comparisons = [Comparison('?', 'one', 'other', 1.0, 'a'), Comparison('?', 'third', 'other', 1.0, 'b')]
    study = study_of(comparisons, one=[60, 61, 60, 61, 25], other=[50, 51, 52, 50, 51], third=[60, 61, 60, 61, 60])
    study.arms['one'][4] = collapse(study.arms['one'][4])
    broken, healthy = analysis.findings(study)
    assert (broken.interval, broken.interval_text) == (None, '1 of 10 runs collapsed')
    assert broken.judgement.verdict == 'inconclusive'  # all runs are kept
    assert healthy.interval_text.startswith('+') and healthy.judgement.verdict == 'better'
    # Recalibrated, the collapsed run is one of many: the sensitivity analysis says what it would be.
    fixed = study.arms['one'][4]
    study.arms['one'][4] = fixed._replace(summary=fixed.summary | {'recalibrated_accuracy': 0.62})
    assert analysis.findings(study)[0].sensitivity.verdict == 'better'
    # One that diverged stays at zero, and must not hide the other difference there either.
    lost = {'recalibrated_accuracy': 0.0, 'diverged': 'the loss is not finite at step 9'}
    study.arms['one'][4] = fixed._replace(summary=fixed.summary | lost)
    assert [one.sensitivity.verdict for one in analysis.findings(study)] == ['inconclusive', 'better']
    study.arms['one'][4] = fixed
    excluding = dataclasses.replace(
        study, grid=dataclasses.replace(study.grid, analysis=Analysis(exclude_collapsed=True, bootstrap_draws=50))
    )
    assert len(analysis.findings(excluding)[0].arms[0]) == 4
    del study.arms['other'][0].summary['recalibrated_accuracy']
    assert analysis.findings(study)[0].sensitivity is None


# --- the report of a grid ---------------------------------------------------------------------------------------------


def cells_of(text: str, first: str) -> list[str]:
    """The cells of the first line of a table that begins with the cell `first`."""
    lines = [
        [cell.strip() for cell in line.strip('|').split('|')] for line in text.splitlines() if line.startswith('|')
    ]
    return next(cells for cells in lines if cells[0] == first)


def test_record_survives_writing(results):
    run = RUNS['no_noise_seed0']
    record = read_record(record_path(results / 'smoke', run.name))
    expected = make(run, FINAL['no_noise'][0])
    np.testing.assert_array_equal(record.correct, expected.correct)
    assert record._replace(correct=None) == expected._replace(correct=None)


def test_weights_do_not_count_masks_that_are_trained():
    weights = {run.arm.name: make(run, 50).weights for run in RUNS.values()}
    assert weights == {'no_noise': 1234, 'shared_masks': 1234, 'trained_masks': 1200}


def test_numbers_of_the_report(reported):
    text = (reported / 'report.md').read_text()
    assert cells_of(text, '`no_noise`')[2:] == ['1,234', '34', RATE, '2', '51.00', '50.00, 52.00']
    # 60, 60 minus 60, 66, with the spread of all three arms: sqrt((2 + 18 + 0) / 3); t(.975, 3) = 3.182446
    half_width = 3.182446 * (20 / 3) ** 0.5
    assert cells_of(text, 'Trained masks against fixed ones')[1:] == [
        '`trained_masks` - `shared_masks`',
        '2 + 2',
        '-2.8%',
        '-3.00',
        f'{-3 - half_width:+.2f} to {-3 + half_width:+.2f}',
        '',
        '',
        'no verdict: below 5 runs',
    ]
    assert cells_of(text, '`trained_masks` - `shared_masks`')[3:] == ['-3.00; no verdict: below 5 runs', '3.0', '3.0']
    assert cells_of(text, 'exact') == ['exact', '50.00', '50.00', '50.00 +- 0.00', '+0.00']
    # Ten batches of ten, the first five all correct: 100 * 0.3 * sum of 0.7^k for k = 5..9, and before it an epoch with
    # one such batch.
    smoothed = 100 * (0.7**5 - 0.7**10) + 30 * 0.7**19
    assert cells_of(text, 'smoothed')[1:3] == [f'{smoothed:.2f}'] * 2
    assert '2.8e' not in text and ' 0 |' not in text.replace('-3.00 |', '')


def test_every_table_is_a_download_of_its_numbers(reported):
    text, page = ((reported / name).read_text() for name in ('report.md', 'report.html'))
    names = re.findall(r'\[Download (\w+\.csv)\]', text)
    assert names == ['comparisons.csv', 'robustness.csv', 'arms.csv', 'gaps.csv', 'counting.csv', 'published.csv']
    links = dict(re.findall(r'download="(\w+\.csv)" href="data:text/csv;charset=utf-8;base64,([^"]+)"', page))
    assert list(links) == names
    for name, content in links.items():
        assert base64.b64decode(content) == (reported / name).read_bytes()
    assert (
        f'\nno_noise,1x1 convolutions,"1,234",34,{RATE},2,51.00,"50.00, 52.00"\n' in (reported / 'arms.csv').read_text()
    )


def test_the_page_needs_nothing_else(reported):
    text, page = ((reported / name).read_text() for name in ('report.md', 'report.html'))
    assert not re.findall(r'(?:src|href)="(?!data:)', page) and '<img' not in page
    drawn = re.findall(r'id="chart-(\w+)"', page)
    assert drawn == ['forest', 'gaps', 'counting', 'learning']  # no probes yet
    for name in drawn:
        assert f']({name}.png)' in text and (reported / f'{name}.png').exists()
    assert 'No trained network has been probed yet' in text


def test_text_inside_a_script_cannot_end_it():
    assert render._inside_script('a</script>b</SCRIPT>') == 'a<\\/script>b<\\/SCRIPT>'
    assert render._inside_script('/<\\/g </b>') == '/<\\/g </b>'


def test_the_section_of_the_readme_is_replaced_between_its_markers(results):
    readme = results / 'README.md'
    begin, end = '<!-- results: begin -->', '<!-- results: end -->'
    readme.write_text(f'before\n{begin}\nold\n{end}\nafter\n')
    report(results, f'--readme={readme}')
    first = readme.read_text()
    assert first.startswith(f'before\n{begin}\n') and first.endswith(f'{end}\nafter\n')
    assert 'old' not in first and '-3.00' in first
    for link in re.findall(r'\]\(([^)]+)\)', first):
        assert (results / link).exists()
    report(results, f'--readme={readme}')
    assert readme.read_text() == first


def test_a_readme_without_comparisons_has_the_arms(tmp_path):
    (tmp_path / 'smoke').mkdir()
    for run in RUNS.values():
        if run.arm.name == 'no_noise':
            write(tmp_path, make(run, FINAL['no_noise'][run.seed]))
    readme = tmp_path / 'README.md'
    readme.write_text('<!-- results: begin -->\n<!-- results: end -->\n')
    report(tmp_path, '--partial', f'--readme={readme}')
    assert 'The arms that answer the question are missing.' in readme.read_text()


def test_the_readme_has_eight_lines_at_most_and_primary_comparisons_first():
    found = [finding_of([60, 61], [50, 51])] * 9
    primary = dataclasses.replace(found[0].comparison, question='H1', primary=True)
    found.append(found[0]._replace(judgement=found[0].judgement._replace(comparison=primary)))
    table = tables.readme_table(found)
    assert len(table) == 8 and table['question'][0] == 'H1'


# --- what is refused -------------------------------------------------------------------------------------------------


def refused(capsys, *flags) -> str:
    assert exit_code(main, ['--grid=smoke', *flags]) == 2
    message = capsys.readouterr().err
    assert message.startswith('error: ') and message.count('\n') == 1
    return message


def test_missing_run_is_named_and_nothing_is_written(results, capsys):
    record_path(results / 'smoke', 'no_noise_seed1').unlink()
    assert 'no_noise_seed1' in refused(capsys, f'--results={results}')
    assert not (results / 'smoke' / 'report').exists()
    assert '**Incomplete: 1 of 6 runs are missing: 1 of no_noise.**' in report(results, '--partial')


def test_result_cut_short_is_refused(results, capsys):
    path = record_path(results / 'smoke', 'no_noise_seed1')
    path.write_text(path.read_text()[:-30])
    assert 'no_noise_seed1.json: cut short' in refused(capsys, f'--results={results}', '--partial')


def test_result_changed_by_hand_is_refused(results, capsys):
    path = record_path(results / 'smoke', 'no_noise_seed1')
    path.write_text(path.read_text().replace('"final_test_accuracy": 0.52', '"final_test_accuracy": 0.92'))
    assert 'sha256' in refused(capsys, f'--results={results}')


def test_models_tested_on_different_images_are_refused(results, capsys):
    write(results, make(RUNS['shared_masks_seed1'], 50, digest='other'))
    assert 'another data set' in refused(capsys, f'--results={results}')


def test_result_of_another_grid_is_refused(results, capsys):
    record = make(RUNS['no_noise_seed0'], 50)
    write(results, record._replace(config=record.config | {'num_epochs': 7}))
    assert 'num_epochs: 7 -> 2' in refused(capsys, f'--results={results}')


def test_result_of_another_length_is_refused(results, capsys):
    record = make(RUNS['no_noise_seed0'], 50)
    write(results, record._replace(history=record.history[:1]))
    assert 'another length' in refused(capsys, f'--results={results}')


def test_a_record_under_another_name_is_refused(results, capsys):
    folder = results / 'smoke'
    record_path(folder, 'no_noise_seed1').write_bytes(record_path(folder, 'no_noise_seed0').read_bytes())
    assert 'is the record of no_noise_seed0' in refused(capsys, f'--results={results}')


def test_records_of_different_code_are_refused_unless_asked_for(results, capsys):
    write(results, make(RUNS['shared_masks_seed1'], 66, code='d' * 64))
    message = refused(capsys, f'--results={results}')
    assert 'c' * 12 in message and 'd' * 12 + ': shared_masks_seed1' in message and 'allow_mixed_code' in message
    assert not (results / 'smoke' / 'report').exists()
    text = report(results, '--allow_mixed_code')
    assert f'different versions of the code: {"c" * 12}, {"d" * 12}.**' in text


def test_records_of_another_registration_are_refused(results, capsys, tmp_path):
    """A file that says `registration = true` must be the one that the records name; a comment is enough to tell."""
    text = GRID.path.read_text().replace('runs = 2', 'runs = 5').replace("family = '", "primary = true\nfamily = '")
    grid = tmp_path / 'registered.toml'
    grid.write_text('registration = true\nhypotheses = ["H1"]\n' + text)
    (results / 'smoke').rename(results / 'registered')
    assert exit_code(main, [f'--grid={grid}', f'--results={results}', '--partial']) == 2
    message = capsys.readouterr().err
    assert 'must not change after its runs began' in message and message.count('\n') == 1


def test_a_commit_that_leaves_the_code_as_it_is_does_not_stop_the_report(results):
    record = make(RUNS['no_noise_seed0'], FINAL['no_noise'][0])
    record.summary['code'] |= {'commit': 'f' * 40, 'clean': True}
    write(results, record)
    assert 'code' not in report(results).partition('## The arms')[0]


def test_devices_are_named_where_there_are_several(results):
    def trained_on(name: str, device: str, **machine) -> None:
        run = RUNS[name]
        record = make(run, FINAL[run.arm.name][run.seed])
        record.summary.update(device=device, machine=machine)
        write(results, record)

    for name in RUNS:
        trained_on(name, '1 x cpu', processor='One', cores=1)
    assert 'kind of device' not in report(results)
    trained_on('shared_masks_seed1', '1 x H100', processor='Other')
    trained_on('trained_masks_seed0', '1 x cpu', processor='Other')
    trained_on('trained_masks_seed1', '1 x cpu', processor='Other')
    lines = [
        '- One: 2 of no_noise, 1 of shared_masks',
        '- Other: 2 of trained_masks',
        '- 1 x H100: 1 of shared_masks',
    ]
    assert '\n'.join(lines) in report(results)


def test_a_run_that_several_versions_trained_is_of_unknown_code(results, capsys):
    record = make(RUNS['no_noise_seed0'], FINAL['no_noise'][0])
    record.summary['resumed_from'] = [{'code': 'e' * 64}]
    write(results, record)
    assert 'unknown: no_noise_seed0' in refused(capsys, f'--results={results}')


def test_records_without_code_are_of_unknown_code(results, capsys):
    for run in RUNS.values():
        record = make(run, FINAL[run.arm.name][run.seed])
        del record.summary['code']
        write(results, record)
    message = refused(capsys, f'--results={results}')
    assert 'unknown: no_noise_seed0, shared_masks_seed0, trained_masks_seed0 and 3 more' in message


def test_a_record_from_before_a_field_existed_is_of_the_grid(results, capsys):
    record = make(RUNS['no_noise_seed0'], FINAL['no_noise'][0])
    del record.config['model.dropout_rate'], record.config['data.pad']
    write(results, record)
    report(results)
    del record.config['model.num_filters']  # the grid's is not the default
    write(results, record)
    assert 'model.num_filters' in refused(capsys, f'--results={results}')


def test_no_results_and_no_markers_are_refused(results, tmp_path, capsys):
    assert 'no results' in refused(capsys, f'--results={tmp_path}/none')
    readme = results / 'README.md'
    readme.write_text('<!-- results: begin -->')
    assert 'README.md' in refused(capsys, f'--results={results}', f'--readme={readme}')
    assert not (results / 'smoke' / 'report').exists()


# --- a registered study, simulated ------------------------------------------------------------------------------------


@pytest.fixture(scope='module')
def study():
    return simulated_study()


@pytest.fixture(scope='module')
def registered(study, tmp_path_factory, without_javascript):
    """The text of the report on a complete registered study with probes."""
    results = tmp_path_factory.mktemp('registered')
    folder = results / study.grid.name / 'report'
    folder.mkdir(parents=True)
    simulated_probes(study).write(folder / 'probes.json')
    looked = dataclasses.replace(study, look=LookResult(0.414, 0))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(command, 'read_study', lambda *args, **kwargs: looked)
        assert exit_code(main, [f'--grid={study.grid.name}', f'--results={results}']) == 0
    return (folder / 'report.md').read_text()


def test_the_headline_says_what_was_asked_and_found(study, registered):
    headline = next(line for line in registered.splitlines() if line.startswith('> '))
    primary = analysis.findings(study)[0]
    assert headline.startswith(f'> On Fashion-MNIST ({study.grid.what.partition(", ")[2]}; `no_noise` is ')
    assert (
        f'one fixed mask per channel changes accuracy by **{primary.estimate:+.2f} points** against `no_noise` (95% CI '
        f'{primary.interval[0]:+.2f} to {primary.interval[1]:+.2f}; 12 + 12 runs, pre-registered): '
        f'**{primary.judgement.verdict_text}**.'
    ) in headline
    for sentence in (one.sentence for one in study.grid.comparisons if one.sentence and not one.primary):
        assert sentence in headline


@pytest.mark.parametrize(('name', 'blind'), [('conv3x3_seed2', True), ('shift_seed0', False)])
def test_a_registration_is_blind_until_its_primary_runs_are_done(study, tmp_path, capsys, monkeypatch, name, blind):
    missing = [run for run in runs_of(study.grid) if run.name == name]
    arms = {arm: [one for one in records if one.name != name] for arm, records in study.arms.items()}
    cut = dataclasses.replace(study, arms=arms, missing=missing)
    monkeypatch.setattr(command, 'read_study', lambda *args, **kwargs: cut)
    code = exit_code(main, [f'--grid={study.grid.name}', f'--results={tmp_path}', '--partial'])
    assert code == (2 if blind else 0)
    if blind:
        assert name in capsys.readouterr().err and not list(tmp_path.iterdir())
    compared = {arm for finding in analysis.findings(cut) for arm in finding.comparison.arms}
    assert name.partition('_seed')[0] not in compared and {'one_mask', 'no_noise'} <= compared


def test_probes_are_means_over_runs(study, registered):
    probes = simulated_probes(study)
    lost = tables.losses_of(study, probes, 'one_mask', 'other masks')['stored']
    runs = [probes.runs[f'one_mask_seed{record.seed}'] for record in study.arms['one_mask']]
    counts = [[one.correct for one in run.counts if one[:3:2] == ('other masks', 'stored')] for run in runs]
    trained = [record.summary['final_test_correct'] for record in study.arms['one_mask']]
    expected = [(one - np.mean(pair)) / 4 for one, pair in zip(trained, counts, strict=True)]  # of 400 images
    assert lost == pytest.approx(expected)
    header = next(line for line in registered.splitlines() if 'tiles permuted' in line and line.startswith('|'))
    columns = [cell.strip() for cell in header.strip('|').split('|')]
    assert columns[1:4] == ['runs', 'other masks', 'masks zeroed']
    rows = [line for line in registered.splitlines() if line.startswith('| `no_noise`') and ' / ' in line]
    cells = [cell.strip() for cell in rows[0].strip('|').split('|')]
    assert cells[1:4] == ['12', '', ''] and cells[4].startswith('0.')  # no masks; tiles cost nothing
    assert [
        cell.strip() for cell in registered.partition('How often a linear')[0].split('| `one_mask` ')[-1].split('|')
    ][1:4] == ['12', '6.2', '50.0 +- 0.0']


def test_the_evidence_on_masks_is_in_sentences(registered):
    """The numbers that the simulated probes were made with: 30 * 0.6 and 28 * 0.6 points, 90% and 60%."""
    section = registered.partition('## What is a mask')[2]
    assert re.search(r'With other masks, a trained `one_mask` loses 1[78]\.\d points.* weights depend on', section)
    assert re.search(
        r'tiles permuted, it loses 1[67]\.\d points, which is 9\d% of that.*`no_noise` loses 0\.\d', section
    )
    assert 'in 90.0% with masks and in 60.0% without (chance: 6.2%)' in section
    assert 'Against `flat_mask`, which has no position, a mask changes accuracy by +' in section


def test_what_a_mask_is_stays_open_where_masks_hardly_matter(monkeypatch):
    monkeypatch.setitem(simulation.LOSSES, 'other masks', (0, None))
    study = simulated_study()
    (*_, last) = mechanism.evidence(study, simulated_probes(study), analysis.findings(study))
    assert '**it is open what a mask is**' in last


def test_what_a_mask_is_needs_the_probes_of_all_runs(study):
    probes = simulated_probes(study)
    last = lambda probes: list(mechanism.evidence(study, probes, analysis.findings(study)))[-1]
    fewer = dataclasses.replace(probes, settings=probes.settings | {'draws': 1})
    assert 'nothing is concluded: probes with the default settings would be needed' in last(fewer)
    del probes.runs['one_mask_seed3']
    assert 'nothing is concluded: the probes of all runs of `one_mask` would be needed' in last(probes)


@pytest.mark.parametrize(
    ('tiles', 'ramp', 'words'),
    [
        (28, 89.4, 'a mask is a code of the position and nothing else'),  # 28 of 30 points: 93%
        (28, 87.0, 'it is open whether'),  # better than a ramp, but perhaps as a richer code of the position
        (12, 89.4, 'a mask is more than a code of the position'),  # 40%
        (20, 89.4, 'it is open whether'),  # 67%
    ],
)
def test_what_a_mask_is_follows_from_the_registered_rule(monkeypatch, tiles, ramp, words):
    monkeypatch.setitem(simulation.LOSSES, 'tiles permuted', (tiles, 0))
    monkeypatch.setitem(simulation.ACCURACIES, 'ramp_mask', ramp)
    study = simulated_study()
    (*_, last) = mechanism.evidence(study, simulated_probes(study), analysis.findings(study))
    share = int(re.search(r'cost (\d+)% of', last).group(1))
    assert f'**{words}' in last and share == pytest.approx(100 * tiles / 30, abs=1.5)


def test_probes_of_other_networks_are_refused(study):
    probes = simulated_probes(study)
    name, run = next(iter(probes.runs.items()))
    wrong = run.counts[0]._replace(correct=run.counts[0].correct - 5)
    for runs, words in (
        ({'one_mask_seed99': run}, 'one_mask_seed99 has no record'),
        ({name: run._replace(data='e' * 64)}, 'another data set'),
        ({name: run._replace(weights='v' * 64)}, 'other weights'),
        ({name: run._replace(counts=[wrong, *run.counts[1:]])}, 'another network'),
    ):
        with pytest.raises(InputError, match=words):
            mechanism.check_probes(study, dataclasses.replace(probes, runs=runs))
    mechanism.check_probes(study, probes)


def test_probes_may_be_of_runs_that_were_trained_again(study):
    probes, name = simulated_probes(study), 'one_mask_seed3'
    run, (record,) = probes.runs[name], [one for one in study.records if one.name == name]
    trained = run.counts[0]
    probes.runs[name] = run._replace(
        weights='v' * 64, counts=[trained._replace(correct=trained.correct - 20), *run.counts[1:]]
    )
    again = record._replace(
        summary=record.summary
        | {
            'weights_sha256': 'v' * 64,
            'final_test_correct': trained.correct - 20,
            'final_test_accuracy': (trained.correct - 20) / 400,
            'device': '1 x Other',
        }
    )
    with pytest.raises(InputError, match=f'{name} was probed with other weights'):
        mechanism.check_probes(study, probes)
    study = dataclasses.replace(study, again={name: again})
    mechanism.check_probes(study, probes)
    (sentence, *_) = mechanism.evidence(study, probes, analysis.findings(study))
    first, second = 100 * trained.correct / 400, 100 * (trained.correct - 20) / 400
    assert sentence.startswith(f'1 of the {len(probes.runs)} probed networks') and '(on 1 x Other)' in sentence
    assert f'accuracy is {second:.2f}%, and was {first:.2f}%' in sentence


def test_published_gaps_stand_beside_ours_and_no_raw_accuracy_does(study):
    table = tables.gaps_table(study).set_index('row of the audit')
    ours = 'ours: minus `no_noise`'
    assert table['audit: minus its row without noise']['1: 3x3 convolutions'] == '+6.3'  # 91.8 - 85.5
    difference = np.mean(analysis.accuracies(study.arms['conv3x3'])) - np.mean(
        analysis.accuracies(study.arms['no_noise'])
    )
    assert table[ours]['1: 3x3 convolutions'].startswith(f'{difference:+.2f} (')
    assert list(table.index) == ['1: 3x3 convolutions']  # of the other rows there is no arm here
    assert not re.search(r'\b[89]\d\.\d', table.to_csv())


def test_the_blinded_look_is_reported(registered):
    assert 'standard deviation of 0.41 points; so the numbers of runs stayed' in registered


def test_the_page_shows_what_experiments_counting_counts(study):
    correct = study.arms['no_noise'][0].correct
    found = counted.count_all('run', correct)
    assert found.batch_sizes == [5, 10, 16, 20, 25, 32, 50, 64, 100, 128, 250] and found.first == 1
    assert found.orders[:2] == ['as stored', 'random 0']
    assert found.curves[2][0]['smoothed'] == pytest.approx(accounting.smoothed_accuracy(correct, 16), abs=1e-4)
    shuffled = correct[:, np.random.default_rng(3).permutation(correct.shape[1])]
    assert found.best[2][4]['floored batch'] == f'{accounting.floored_batch_accuracy(shuffled, 16).max():.2f}'
    values = found.values(2, 0)
    assert values[-1] == {'counted': 'exact', 'epoch': 3, 'accuracy': found.curves[2][0]['exact'][2]}
    assert counted.count_all('small', correct[:, :12]).batch_sizes == [5, 10]
