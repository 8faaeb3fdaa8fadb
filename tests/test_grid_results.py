"""Records of a grid: which are refused, what a finished network's measurements add, and the choice of rates."""

import dataclasses
import io
import json
import subprocess
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from experiments.ablation import __main__ as ablation
from experiments.ablation import plan, rates, records, repeat, run_config, runs
from experiments.ablation.progress import Progress
from experiments.ablation.records import Record, record_path, settings
from experiments.ablation.registration import GRIDS, Grid, read_grid
from experiments.ablation.results import read_results
from experiments.command import exit_code
from pnn_jax.errors import InputError

# A registration and a rate search in little, on the digits.
CHANGES = """
[changes]
num_epochs = 2
model.name = 'lenet'
model.num_filters = 4
data.source = 'digits'
data.train_examples = 300
data.validation_examples = 50
data.mean = [0.5]
data.std = [0.5]
"""
REGISTRATION = f"""
registration = true
what = 'digits'
hypotheses = ['H1: a mask helps']
reference = 'no_noise'
mask_seed = 1000
rates_from = 'search'
{CHANGES}
[[arms]]
row = 'no_noise'
runs = 5
learning_rate = 0.1

[[arms]]
row = 'one_mask'
runs = 5
learning_rate = 0.1

[[comparisons]]
question = 'H1'
first = 'one_mask'
second = 'no_noise'
margin = 1.0
family = 'primary'
primary = true

[look]
after = 2
pooled_sd_above = 2.0
runs = 6
arms = ['no_noise', 'one_mask']
"""
SEARCH = f"""
what = 'digits, rates'
reference = 'no_noise_rate0.1'
seed = 900
{CHANGES}
[[arms]]
row = 'no_noise'
runs = 1
rates = [0.05, 0.1, 0.2]

[[arms]]
row = 'one_mask'
runs = 1
rates = [0.05, 0.1, 0.2]
"""


def grid_of(folder: Path, text: str, name: str = 'study') -> Grid:
    path = folder / f'{name}.toml'
    path.write_text(text)
    return read_grid(path)


def record_of(grid: Grid, run: runs.Run, accuracy: float, validation: float = 0.5, **summary) -> Record:
    """A finished run whose test accuracy is `accuracy`."""
    config = run_config.with_seeds(run_config.unmatched_config(grid, run.arm), run)
    content = {
        'final_test_accuracy': accuracy,
        'final_validation_accuracy': validation,
        'dataset': {'digest': 'd'},
        'code': {'sha256': 'c' * 64},
    }
    correct = np.arange(100)[None] < 100 * accuracy
    history = [{'validation_accuracy': 0.2}, {'validation_accuracy': validation}]
    return Record(run.arm.name, run.seed, grid.sha256, settings(config), content | summary, history, correct)


@pytest.fixture
def study(tmp_path):
    """A grid, and a folder with the records of all of its runs, whose spread is below the bound of its look."""
    grid, folder = grid_of(tmp_path, REGISTRATION), tmp_path / 'results' / 'study'
    folder.mkdir(parents=True)
    for run in runs.runs_of(grid):
        record_of(grid, run, 0.5 + run.seed % 2 / 100).write(record_path(folder, run.name))
    return grid, folder


def rewrite(folder: Path, name: str, **changes) -> None:
    """Changes a record and writes it as if it had been so from the beginning."""
    path = record_path(folder, name)
    records.read_record(path)._replace(**changes).write(path)


def test_a_whole_grid_is_read(study):
    grid, folder = study
    found = read_results(folder, grid)
    assert list(found.records) == [run.name for run in runs.runs_of(grid)] and found.missing == []
    assert found.look.runs == 0 and [record.seed for record in found.of_arm('one_mask')] == [0, 1, 2, 3, 4]
    record_path(folder, 'no_noise_seed1').unlink()
    found = read_results(folder, grid)
    assert [run.name for run in found.missing] == ['no_noise_seed1'] and found.look is None


def test_runs_that_the_look_asks_for_are_missing_until_they_are_there(study):
    grid, folder = study
    run = runs.runs_of(grid)[0]
    record_of(grid, run, 0.45).write(record_path(folder, run.name))
    found = read_results(folder, grid)
    assert [run.name for run in found.missing] == ['no_noise_seed5', 'one_mask_seed5'] and found.look.runs == 6
    for run in found.missing:
        record_of(grid, run, 0.5).write(record_path(folder, run.name))
    assert read_results(folder, grid).missing == []


def refused(folder: Path, grid: Grid, **options) -> str:
    with pytest.raises(InputError) as error:
        read_results(folder, grid, **options)
    assert '\n' not in str(error.value)
    return str(error.value)


def test_records_of_another_text_of_a_registration_are_refused(study, tmp_path):
    grid, folder = study
    changed = grid_of(tmp_path, REGISTRATION.replace('margin = 1.0', 'margin = 2.0'))
    message = refused(folder, changed)
    assert 'is a registration, which must not change after its runs began' in message
    assert grid.sha256[:12] in message and changed.sha256[:12] in message and 'no_noise_seed0' in message
    explored = grid_of(tmp_path, REGISTRATION.replace('registration = true', 'registration = false'))
    assert read_results(folder, explored).missing == []  # other grids may change, as long as the configs agree


def test_records_of_another_config_length_data_or_code_are_refused(study):
    grid, folder = study
    name, path = 'one_mask_seed3', record_path(folder, 'one_mask_seed3')
    original = path.read_bytes()
    record = records.read_record(path)
    for changes, message in (
        ({'config': record.config | {'mask_seed': 3}}, 'mask_seed: 3 -> 1003'),
        ({'config': record.config | {'num_epochs': 7}}, 'num_epochs: 7 -> 2'),
        ({'config': record.config | {'optimizer.learning_rate': 0.2}}, 'optimizer.learning_rate: 0.2 -> 0.1'),
        ({'history': record.history[:1]}, 'another length than the grid says'),
        ({'correct': record.correct[:, :99]}, 'another length than the grid says'),
        ({'summary': record.summary | {'dataset': {'digest': 'e'}}}, 'another data set than no_noise_seed0'),
        ({'summary': record.summary | {'code': {'sha256': 'f' * 64}}}, 'ffffffffffff: one_mask_seed3'),
        ({'seed': 4}, 'is the record of one_mask_seed4'),
    ):
        rewrite(folder, name, **changes)
        assert message in refused(folder, grid)
        path.write_bytes(original)
    assert 'c' * 12 in refused(folder, grid, code='a' * 64)
    assert read_results(folder, grid, code='c' * 64).missing == []


def test_a_record_that_no_run_of_the_grid_has_is_refused(study):
    """Further runs of one arm, made after the results were known, would otherwise be easy to slip in."""
    grid, folder = study
    extra = runs.Run(grid.arm('one_mask'), 5, 1005)
    record_of(grid, extra, 0.9).write(record_path(folder, extra.name))
    assert 'one_mask_seed5.json: is no run of the grid study' in refused(folder, grid)


# --- what the runner refuses ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    'spread, failing, extended', [(0.1, '', True), (0.01, '', False), (0.1, 'one_mask_seed1', False)]
)
def test_the_runner_trains_what_the_look_adds_and_nothing_twice(tmp_path, spread, failing, extended):
    grid, trained = grid_of(tmp_path, REGISTRATION), []
    planned = [run.name for run in runs.runs_of(grid)]

    def train(batch):
        for run in batch:
            trained.append(run.name)
            if run.name != failing:
                record_of(grid, run, 0.5 + spread * (run.seed % 2)).write(record_path(tmp_path, run.name))

    def train_all():
        progress = Progress(grid, tmp_path, Console(file=io.StringIO()))
        ablation.train_all(grid, list, lambda: read_results(tmp_path, grid), train, progress)
        return len(progress.done)

    train_all()
    assert trained == planned + extended * ['no_noise_seed5', 'one_mask_seed5']
    trained.clear()
    assert train_all() == 10 + 2 * extended - bool(failing)  # those that were done before
    assert trained == ([failing] if failing else [])


@pytest.fixture
def no_training(monkeypatch):
    """Makes the runner end before it trains, and forget that jax was configured."""
    monkeypatch.setattr(ablation, 'stop_conditions', lambda budget: lambda: '')
    monkeypatch.setattr(ablation, 'train_all', lambda *arguments: arguments[2]())
    monkeypatch.setattr(ablation, 'provenance', lambda: {'sha256': 'c' * 64, 'commit': None, 'clean': None})


def test_a_registration_that_changed_after_its_runs_began_is_refused(tmp_path, capsys, no_training):
    path = tmp_path / 'study.toml'
    path.write_text(REGISTRATION)
    flags = [f'--grid={path}', f'--output={tmp_path}/runs', f'--results={tmp_path}/results']
    assert exit_code(ablation.main, flags) == 0
    assert (tmp_path / 'runs/study/grid.toml').read_text() == REGISTRATION
    path.write_text(REGISTRATION.replace('runs = 5', 'runs = 6', 1))
    capsys.readouterr()
    assert exit_code(ablation.main, flags) == 2
    message = capsys.readouterr().err
    assert 'must not change after its runs began' in message and message.count('\n') == 1
    assert (tmp_path / 'runs/study/grid.toml').read_text() == REGISTRATION


def test_a_registration_is_trained_only_as_it_was_committed(capsys, no_training, monkeypatch, tmp_path):
    monkeypatch.setattr(ablation, 'provenance', lambda: {'sha256': 'c' * 64, 'commit': 'a' * 40, 'clean': False})
    path = tmp_path / 'study.toml'
    path.write_text(REGISTRATION)
    (tmp_path / '.gitignore').write_text('*.toml\n')

    def refused() -> str:
        assert exit_code(ablation.main, [f'--grid={path}']) == 2
        return capsys.readouterr().err

    git = lambda *command: subprocess.run(['git', '-C', str(tmp_path), *command], check=True, capture_output=True)
    assert 'commit study.toml before its first run' in refused()  # outside of a repository
    git('init')
    assert 'commit study.toml before its first run' in refused()  # ignored
    git('add', '--force', 'study.toml')
    assert 'commit study.toml before its first run' in refused()
    git('-c', 'user.name=a', '-c', 'user.email=a@b', 'commit', '--message=study')
    assert 'commit pnn_jax/ and configs/ before its first run' in refused()


def test_rates_that_are_still_to_be_chosen_are_refused(capsys, no_training, tmp_path):
    path = tmp_path / 'study.toml'
    path.write_text(REGISTRATION.replace('learning_rate = 0.1', "learning_rate = 'search'"))
    assert exit_code(ablation.main, [f'--grid={path}']) == 2
    message = capsys.readouterr().err
    assert 'arm no_noise: learning_rate' in message and '--grid=search' in message and message.count('\n') == 1


def test_the_plan_names_weights_and_hours(capsys, no_training, monkeypatch, tmp_path):
    weights = {'resnet18': lambda width: 400 * width**2, 'perturb_resnet18': lambda width: 51 * width**2}
    count = lambda config, *_: weights[config.model.name](config.model.num_filters)
    for module in (run_config, plan):
        monkeypatch.setattr(module, 'learned_parameters', count)
    matched = "\n[[arms]]\nrow = 'baseline'\nmatch = 'no_noise'\nruns = 1\nimages_per_second = 10\n"
    text = REGISTRATION.replace("model.name = 'lenet'\n", '').replace('model.num_filters = 4', 'model.num_filters = 14')
    path = tmp_path / 'study.toml'
    path.write_text(text.replace('\n[[comparisons]]', matched + '\n[[comparisons]]'))
    assert exit_code(ablation.main, [f'--grid={path}', '--plan']) == 0
    shown = capsys.readouterr().out
    (line,) = [line for line in shown.splitlines() if 'baseline' in line]
    cells = [cell.strip() for cell in line.strip('│').split('│')]
    assert cells[:5] == ['baseline', '1', '5', '10,000', '+0.0% no_noise']
    assert cells[-1] == '0.0'  # 2 * 300 images at 10 a second: a minute


# --- runs that were trained again -------------------------------------------------------------------------------------


def test_a_repeated_run_is_compared_bit_for_bit(study, tmp_path, capsys):
    grid, folder = study
    again = tmp_path / 'again' / 'study'
    again.mkdir(parents=True)
    flags = [f'--grid={grid.path}', f'--results={tmp_path}/results', f'--again={tmp_path}/again']
    assert exit_code(repeat.main, flags) == 2 and 'there is no record' in capsys.readouterr().err
    record = records.read_record(record_path(folder, 'one_mask_seed3'))
    timed = [line | {'seconds': 5.0} for line in record.history]
    record._replace(history=timed).write(record_path(again, record.name))
    assert exit_code(repeat.main, flags) == 0
    assert 'one_mask_seed3: the same bit for bit' in capsys.readouterr().out

    other = [record.history[0] | {'validation_accuracy': 0.3}, record.history[1]]
    outcomes = record.correct.copy()
    outcomes[0, :2] ^= True
    summary = record.summary | {'device': '1 x other'}
    record._replace(history=other, correct=outcomes, summary=summary).write(record_path(again, record.name))
    assert exit_code(repeat.main, flags) == 1
    shown = capsys.readouterr()
    assert 'one_mask_seed3: 2 outcomes; epoch 1: validation_accuracy 0.2 -> 0.3\n' in shown.out
    assert 'device null -> "1 x other"' in shown.out and '1 of 1 runs are not the same' in shown.err

    summary = record.summary | {'dataset': record.summary['dataset'] | {'digest': 'another'}}
    record._replace(correct=outcomes[:, 1:], summary=summary).write(record_path(again, record.name))
    assert exit_code(repeat.main, flags) == 2
    assert 'one_mask_seed3 was trained on another data set than its record' in capsys.readouterr().err


def test_single_runs_can_be_chosen(study):
    grid, _ = study
    chosen = runs.choose_runs(grid, runs.runs_of(grid), '0/1', 'no_noise_seed3,one_mask')
    assert [run.name for run in chosen if run.arm.name == 'no_noise'] == ['no_noise_seed3'] and len(chosen) == 6
    for name in ('no_nose_seed3', 'no_noise_seed6'):
        with pytest.raises(
            InputError, match=f"'{name}' is not one of no_noise, one_mask, nor a run of the grid, such as"
        ):
            runs.choose_runs(grid, [], '0/1', name)
    assert runs.choose_runs(grid, runs.runs_of(grid), '0/1', 'no_noise_seed5') == []  # only if the look asks for it


# --- the choice of rates ----------------------------------------------------------------------------------------------

VALIDATION = {  # arm -> validation accuracy by rate; the test accuracy is highest where this is lowest
    'no_noise': {0.05: 0.70, 0.1: 0.72, 0.2: 0.71},
    'one_mask': {0.05: 0.60, 0.1: 0.70, 0.2: 0.70},
}


@pytest.fixture
def search(tmp_path):
    grid, folder = grid_of(tmp_path, SEARCH, 'search'), tmp_path / 'results' / 'search'
    folder.mkdir(parents=True)
    for run in runs.runs_of(grid):
        validation = VALIDATION[run.arm.searched][run.arm.learning_rate]
        record_of(grid, run, 1 - validation, validation).write(record_path(folder, run.name))
    return grid, folder


def test_rates_are_chosen_by_validation_accuracy_and_the_smaller_of_equal_ones(search):
    grid, folder = search
    choices = rates.choose_rates(grid, read_results(folder, grid))
    assert {name: (choice.rate, choice.at_the_edge) for name, choice in choices.items()} == {
        'no_noise': (0.1, False),
        'one_mask': (0.1, False),
    }
    assert choices['no_noise'].accuracies == VALIDATION['no_noise']


def test_the_command_prints_the_choice_and_checks_a_grid(search, tmp_path, capsys):
    grid, _ = search
    study = grid_of(tmp_path, REGISTRATION)
    flags = [f'--grid={grid.path}', f'--results={tmp_path}/results', f'--check={study.path}']
    assert exit_code(rates.main, flags) == 0
    shown = capsys.readouterr().out
    assert '72.00' in shown and '28.00' not in shown and 'its rates are the chosen ones' in shown
    study.path.write_text(REGISTRATION.replace('learning_rate = 0.1', 'learning_rate = 0.2', 1))
    assert exit_code(rates.main, flags) == 2
    assert 'arm no_noise: learning_rate = 0.2, but 0.1 was chosen' in capsys.readouterr().err
    study.path.write_text(REGISTRATION + "[[arms]]\nrow = 'flat_mask'\nruns = 5\nlearning_rate = 0.1\n")
    assert exit_code(rates.main, flags) == 2
    assert 'arm flat_mask: neither it nor its row flat_mask was searched' in capsys.readouterr().err


def test_a_rate_at_the_edge_of_the_search_is_refused(study):
    grid, _ = study
    choices = {arm.row: rates.Choice(0.1, {0.05: 0.6, 0.1: 0.7}) for arm in grid.arms}
    with pytest.raises(InputError, match=r'arm \w+: 0.1 is the smallest or largest rate that was tried'):
        rates.check_rates(grid, choices)


def test_a_search_that_is_half_done_or_none_is_refused(search, study):
    grid, folder = search
    record_path(folder, 'one_mask_rate0.2_seed900').unlink()
    with pytest.raises(InputError, match='1 runs are missing: one_mask_rate0.2_seed900'):
        rates.choose_rates(grid, read_results(folder, grid))
    with pytest.raises(InputError, match='is no rate search'):
        rates.choose_rates(study[0], read_results(study[1], study[0]))


# --- committed records ------------------------------------------------------------------------------------------------

RESULTS = Path('experiments/results')


@pytest.mark.parametrize('name', sorted(path.stem for path in GRIDS.glob('*.toml')))
def test_committed_records_are_of_the_committed_grids_and_rates(name):
    """Every record of a grid that there is, is readable and of this registration; chosen rates follow from records."""
    grid = read_grid(name)
    folder = RESULTS / name
    if folder.is_dir():
        read_results(folder, grid)
    searched = [arm for arm in grid.arms if arm.learning_rate and not arm.searched]
    if grid.rates_from and all(arm.learning_rate != 'search' for arm in searched):
        search = read_grid(grid.rates_from)
        rates.check_rates(grid, rates.choose_rates(search, read_results(RESULTS / search.name, search)))
    else:
        assert not folder.is_dir() or not grid.registration  # nothing was trained before its rates were chosen


def test_a_record_from_before_grids_were_files_is_readable(study, tmp_path):
    _, folder = study
    content = json.loads(record_path(folder, 'no_noise_seed2').read_text())
    del content['sha256'], content['registration']
    old = {'row': content.pop('arm'), **content}
    path = tmp_path / 'old.json'
    path.write_text(json.dumps({'sha256': records._digest(old)} | old, indent=1))
    record = records.read_record(path)
    assert (record.name, record.registration, record.accuracy) == ('no_noise_seed2', '', 0.5)


def test_a_record_survives_writing(study):
    grid, folder = study
    run = runs.runs_of(grid)[3]
    expected = record_of(grid, run, 0.51)
    found = records.read_record(record_path(folder, run.name))
    np.testing.assert_array_equal(found.correct, expected.correct)
    assert found._replace(correct=None) == expected._replace(correct=None)
    assert json.loads(record_path(folder, run.name).read_text())['registration'] == grid.sha256
    assert dataclasses.replace(grid, sha256='').sha256 != found.registration
