"""The grid: its configs, its workers, what it refuses. How it resumes after a kill is in test_ablation_kills.py."""

import contextlib
import dataclasses
import json
import multiprocessing
import os
import signal
from pathlib import Path

import numpy as np
import pytest

from experiments.ablation import __main__ as ablation
from experiments.ablation import registration, run_config, runner, runs, shared_data, workers
from experiments.ablation.results import read_results
from experiments.ablation.runner import Outcome, Task
from experiments.command import exit_code
from experiments.report.study import is_collapsed
from pnn_jax import train
from pnn_jax.data import load_dataset
from pnn_jax.errors import DivergedError, InputError, StoppedEarly
from pnn_jax.run.checkpoints import Checkpointer
from pnn_jax.run.result import circumstances
from pnn_jax.run.workdir import Workdir
from pnn_jax.validate import validate_config

SMOKE, AUDIT = registration.read_grid('smoke'), registration.read_grid('audit')


def test_every_grid_is_valid_and_builds_its_configs():
    for name in registration.grid_names():
        grid = registration.read_grid(name)
        for arm in grid.arms:
            config = run_config.unmatched_config(grid, arm)
            run = runs.Run(arm, 2, 1002)
            assert (run_config.with_seeds(config, run).seed, run_config.with_seeds(config, run).mask_seed) == (2, 1002)
            validate_config(config)


def test_matched_arm_has_the_nearest_number_of_weights():
    config = run_config.build_config(AUDIT, AUDIT.arm('baseline_small'), (32, 32, 3), 10)
    assert config.model.num_filters == 21  # 1,206,691 weights
    trained = run_config.unmatched_config(AUDIT, AUDIT.arm('trained_masks'))
    assert run_config.learned_parameters(trained, (32, 32, 3), 10) == 1_220_234  # without the masks
    assert run_config.unmatched_config(AUDIT, AUDIT.arm('baseline')).model.num_filters == 44  # as published


def test_a_width_that_does_not_match_is_refused(monkeypatch):
    weights = {'resnet18': lambda width: 100 * width**2, 'perturb_resnet18': lambda width: 10_000 + 17 * width}
    count = lambda config, *_: weights[config.model.name](config.model.num_filters)
    monkeypatch.setattr(run_config, 'learned_parameters', count)
    narrow = dataclasses.replace(AUDIT, arms=tuple(narrowed(arm) for arm in AUDIT.arms))
    with pytest.raises(InputError) as error:
        run_config.build_config(narrow, narrow.arm('baseline_small'), (32, 32, 3), 10)
    assert str(error.value).endswith(
        'the nearest to the 10,340 weights of shared_masks are 10,000, with 10 filters; they must be within 3%'
    )
    assert run_config.build_config(AUDIT, AUDIT.arm('baseline_small'), (32, 32, 3), 10).model.num_filters == 11


def test_an_arm_with_data_of_its_own_is_refused():
    own = lambda **changes: dataclasses.replace(SMOKE.arms[0], changes={f'data.{k}': v for k, v in changes.items()})
    assert run_config.unmatched_config(SMOKE, own(augment='flip', mean=[0.4])).data.augment == 'flip'
    for changes in ({'train_examples': 500}, {'pad': 20}, {'validation_examples': 9}, {'name': 'mnist'}):
        ((field, value),) = changes.items()
        with pytest.raises(
            InputError, match=rf'arm no_noise: data\.{field} = {value!r}: must be .* as in the whole grid'
        ):
            run_config.unmatched_config(SMOKE, own(**changes))


def narrowed(arm: registration.Arm) -> registration.Arm:
    return dataclasses.replace(arm, num_filters=20) if arm.name == 'shared_masks' else arm


def test_order_is_seed_by_seed_with_late_arms_last():
    planned = runs.runs_of(AUDIT)
    early = [run for run in planned if not run.arm.late]
    assert planned[: len(early)] == early and len(early) < len(planned)
    assert [run.seed for run in early] == sorted(run.seed for run in early)
    assert len({run.arm.name for run in early}) >= 12 and max(run.seed for run in early) == 4
    assert all(run.mask_seed == run.seed for run in planned)
    apart = dataclasses.replace(AUDIT, seed=5, mask_seed=1000)
    assert {(run.seed, run.mask_seed) for run in runs.runs_of(apart)} == {
        (5 + number, 1000 + number) for number in range(5)
    }


def test_primary_arms_are_trained_first():
    grid = registration.read_grid('fashion_mnist')
    first = [run.arm.name for run in runs.runs_of(grid)][:30]
    assert sorted(first) == ['conv3x3'] * 6 + ['no_noise'] * 12 + ['one_mask'] * 12
    assert first[:3] == ['no_noise', 'one_mask', 'conv3x3']


def test_shards_are_a_partition():
    planned = runs.runs_of(SMOKE)
    shards = [runs.choose_runs(SMOKE, planned, f'{index}/4', '') for index in range(4)]
    assert sorted(run.name for shard in shards for run in shard) == sorted(run.name for run in planned)


class FakeWorker(workers.Worker):
    """A worker that answers at once, in this process. `answer` is an Outcome, Stopped, or an exit code to die with."""

    def __init__(self, number: int, answers: dict, log: list):
        self.number, self.task, self.answers, self.log = number, None, answers, log
        self.connection, self.far = multiprocessing.Pipe()
        self.process = self
        self.exitcode = None
        log.append(('start', number))

    def give(self, task):
        super().give(task)
        self.log.append((task.name, self.number))
        answer = self.answers.get(task.name, Outcome(task.name, 1, 2))
        if answer is None:
            return  # trains until it is asked to stop
        if isinstance(answer, int):
            self.exitcode = answer
            self.far.close()
        else:
            self.far.send(answer)

    def is_alive(self):
        return self.exitcode is None

    def terminate(self):
        self.log.append(('stop', self.number))
        self.far.send(workers.Stopped('received SIGTERM'))

    def join(self, timeout=None):
        pass

    def kill(self):
        pass


class Listener(list):
    """Keeps how every run ended."""

    def begin(self, name):
        pass

    def end(self, outcome):
        self.append(outcome)


def run_fake(answers: dict, jobs: int, should_stop=lambda: '') -> tuple[list, Listener]:
    log, listener = [], Listener()
    tasks = [Task('row', seed, '', None, None, None) for seed in range(4)]
    try:
        workers.run_in_workers(tasks, jobs, lambda number: FakeWorker(number, answers, log), should_stop, listener)
    except StoppedEarly as reason:
        log.append(str(reason))
    return log, listener


def test_workers_are_used_again_and_every_run_ends_once():
    log, listener = run_fake({}, jobs=2)
    assert sorted(entry for entry in log if entry[0] == 'start') == [('start', 0), ('start', 1)]
    assert sorted(outcome.name for outcome in listener) == [f'row_seed{seed}' for seed in range(4)]
    assert not any(outcome.failure for outcome in listener)


def test_a_worker_that_dies_fails_its_run_alone_and_is_replaced():
    log, listener = run_fake({'row_seed1': -signal.SIGKILL, 'row_seed2': 1}, jobs=1)
    assert log.count(('start', 0)) == 3
    failures = {outcome.name: outcome.failure for outcome in listener if outcome.failure}
    assert set(failures) == {'row_seed1', 'row_seed2'} and len(listener) == 4
    assert 'killed by SIGKILL' in failures['row_seed1'] and 'exit code 1' in failures['row_seed2']


def test_a_worker_that_somebody_else_stops_fails_its_run_alone():
    _, listener = run_fake({'row_seed1': workers.Stopped('received SIGTERM')}, jobs=1)
    assert [outcome.name for outcome in listener if 'stopped from outside' in outcome.failure] == ['row_seed1']
    assert len(listener) == 4


def test_a_reason_to_stop_reaches_every_busy_worker_once():
    asked = []

    def should_stop():
        asked.append(1)
        return 'the time budget of 3 s is spent' if len(asked) > 2 else ''

    log, listener = run_fake({'row_seed0': None, 'row_seed1': None}, jobs=2, should_stop=should_stop)
    assert log.count(('stop', 0)) == log.count(('stop', 1)) == 1
    assert log[-1] == 'the time budget of 3 s is spent' and listener == []


def test_cores_are_shared_out(monkeypatch):
    monkeypatch.setattr(os, 'sched_getaffinity', lambda process: {0, 2, 3, 7}, raising=False)
    assert [workers.cores_of(number, 2) for number in range(2)] == [[0, 3], [2, 7]]
    assert [workers.cores_of(number, 3) for number in range(3)] == [[0, 7], [2], [3]]
    assert [workers.cores_of(number, 5) for number in (3, 4)] == [[7], [0]]  # more workers than cores


def test_shared_data_are_the_data(tmp_path):
    dataset = load_dataset(run_config.data_config(SMOKE))
    stored = shared_data.store(dataset, tmp_path)
    loaded = shared_data.load(stored)
    assert isinstance(loaded.train.images, np.memmap) and not loaded.train.images.flags.writeable
    for ours, theirs in ((dataset.train, loaded.train), (dataset.test, loaded.test)):
        np.testing.assert_array_equal(ours.images, theirs.images)
        np.testing.assert_array_equal(ours.labels, theirs.labels)
    assert (loaded.digest, loaded.class_names) == (dataset.digest, dataset.class_names)
    before = sorted((path.name, path.stat().st_mtime_ns) for path in tmp_path.iterdir())
    shared_data.store(dataset, tmp_path)
    assert before == sorted((path.name, path.stat().st_mtime_ns) for path in tmp_path.iterdir())


@pytest.fixture
def process_state():
    """Restores what the command changes in its process."""
    kept = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield
    for number, handler in kept.items():
        signal.signal(number, handler)


def test_spent_time_budget_stops_cleanly(tmp_path, capsys, process_state):
    flags = ['--grid=smoke', f'--output={tmp_path}/runs', f'--results={tmp_path}/results', '--time_budget=0']
    for further in ([], ['--jobs=2']):
        assert exit_code(ablation.main, flags + further) == 75
        assert 'run the same command again to resume' in capsys.readouterr().out
    assert not list((tmp_path / 'results/smoke').iterdir())


def test_failed_run_is_shown_and_does_not_stop_the_rest(tmp_path, capsys, monkeypatch, process_state):
    trained = []

    def train(config, workdir, **_):
        trained.append(workdir)
        raise RuntimeError('the sky fell')

    monkeypatch.setattr('pnn_jax.train.train_and_evaluate', train)
    flags = ['--grid=smoke', f'--output={tmp_path}/runs', f'--results={tmp_path}/results']
    assert exit_code(ablation.main, flags) == 1
    shown = capsys.readouterr()
    assert len(trained) == 6
    assert 'no_noise_seed0: failed: the sky fell' in shown.out
    assert shown.err.startswith('error: 6 runs failed') and shown.err.count('\n') == 1
    assert 'the sky fell' in (tmp_path / 'runs/smoke/no_noise_seed0/error.txt').read_text()


@pytest.fixture
def instant_training(monkeypatch):
    """Runs that leave the files of a run of this code at once; returns the workdirs in order."""
    trained = []

    def train(config, workdir, **_):
        trained.append(workdir)
        folder = Path(workdir)
        folder.mkdir(parents=True)
        summary = {'final_test_accuracy': 0.5, 'code': {'sha256': 'a' * 64}, 'command': 'x', 'dataset': {'digest': 'd'}}
        (folder / 'result.json').write_text(json.dumps(summary))
        (folder / 'metrics.jsonl').write_text('{"epoch": 1}\n{"epoch": 2}\n')
        np.savez(folder / 'outcomes.npz', correct=np.array([[True, False], [True, False]]))

    monkeypatch.setattr('pnn_jax.train.train_and_evaluate', train)
    monkeypatch.setattr('experiments.ablation.final.measure_final', lambda workdir, dataset, trainer: {})
    monkeypatch.setattr(ablation, 'provenance', lambda: {'sha256': 'a' * 64})
    return trained


def test_runs_of_an_arm_share_their_programs(tmp_path, monkeypatch, process_state, instant_training):
    made = []
    monkeypatch.setattr('pnn_jax.train.create_trainer', lambda config, dataset: made.append(config) or object())
    flags = ['--grid=smoke', f'--output={tmp_path}/runs', f'--results={tmp_path}/results']
    assert exit_code(ablation.main, flags) == 0
    assert len(instant_training) == 6 and len(made) == 3
    assert len({(config.model.num_masks, config.model.trainable_masks) for config in made}) == 3


def test_records_of_other_code_stop_the_grid_unless_asked_for(
    tmp_path, capsys, monkeypatch, process_state, instant_training
):
    flags = ['--grid=smoke', f'--output={tmp_path}/runs', f'--results={tmp_path}/results']
    assert exit_code(ablation.main, [*flags, '--arms=no_noise']) == 0
    assert exit_code(ablation.main, [*flags, '--arms=no_noise,shared_masks']) == 0  # same code: the records are kept
    assert len(instant_training) == 4
    monkeypatch.setattr(ablation, 'provenance', lambda: {'sha256': 'b' * 64})
    capsys.readouterr()
    assert exit_code(ablation.main, flags) == 2
    message = capsys.readouterr().err
    assert message.count('\n') == 1 and 'a' * 12 in message and 'b' * 12 in message and 'no_noise_seed0' in message
    assert len(instant_training) == 4
    assert exit_code(ablation.main, [*flags, '--allow_mixed_code']) == 0
    assert len(instant_training) == 6


def test_a_workdir_that_other_code_has_begun_is_refused_before_it_is_trained(tmp_path):
    state = {'weights': np.zeros(3, np.float32)}
    for code, same in ((circumstances()['code'], True), ('b' * 64, False)):
        workdir = tmp_path / code[:3]
        runner.check_begun_by_this_code(workdir)  # there is nothing yet
        with Checkpointer(workdir / 'checkpoints') as checkpointer:
            checkpointer.save_masks({})
            checkpointer.save(1, state, {'computed_by': [circumstances() | {'code': code}]}, accuracy=None)
        with (
            contextlib.nullcontext() if same else pytest.raises(InputError, match='by other code, versions or devices')
        ):
            runner.check_begun_by_this_code(workdir)
        (workdir / 'result.json').write_text(json.dumps({'code': {'sha256': code}, 'resumed_from': []}))
        with contextlib.nullcontext() if same else pytest.raises(InputError, match='move it away'):
            runner.check_begun_by_this_code(workdir)
    (workdir / 'result.json').write_text(
        json.dumps({'code': {'sha256': circumstances()['code']}, 'resumed_from': [{'code': 'b' * 64}]})
    )
    with pytest.raises(InputError, match='allow_mixed_code'):
        runner.check_begun_by_this_code(workdir)


def test_a_finished_run_without_a_record_gets_none_from_other_code(
    tmp_path, capsys, monkeypatch, process_state, instant_training
):
    flags = ['--grid=smoke', f'--output={tmp_path}/runs', f'--results={tmp_path}/results', '--arms=no_noise_seed0']
    assert exit_code(ablation.main, flags) == 0  # says that it is of code a...
    record = tmp_path / 'results/smoke/no_noise_seed0.json'
    record.unlink()
    assert exit_code(ablation.main, flags) == 1
    assert 'no_noise_seed0: was trained by other code' in capsys.readouterr().out.replace(f'{tmp_path}/runs/smoke/', '')
    assert not record.exists()
    monkeypatch.setattr('pnn_jax.train.train_and_evaluate', lambda *_, **__: None)
    assert exit_code(ablation.main, [*flags, '--allow_mixed_code']) == 0 and record.exists()


def test_a_run_that_diverges_has_a_record_without_a_correct_image(tmp_path, capsys, monkeypatch, process_state):
    """In its second epoch: the first one keeps its counts. The grid is done, and does not try the run again."""
    trained = []

    def diverge(config, workdir, **_):
        trained.append(workdir)
        line = {'epoch': 1, 'test_correct': 7, 'test_count': 360, 'test_accuracy': 7 / 360, 'seconds': 3.0}
        with Workdir.open(workdir, config) as opened:
            opened.begin()
            opened.set_examples(np.zeros(360, np.int32), 'digest')
            opened.append_epoch(line, np.arange(360) < 7)
        with (Path(workdir) / 'metrics.jsonl').open('a') as file:
            file.write('{"epoch": 2, "test')  # was killed while it wrote its second epoch, which diverges this time
        raise DivergedError('the loss is not finite at step 9', 'try a lower learning rate')

    monkeypatch.setattr(train, 'train_and_evaluate', diverge)
    flags = ['--grid=smoke', f'--output={tmp_path}/runs', f'--results={tmp_path}/results']
    assert exit_code(ablation.main, [*flags, '--arms=no_noise_seed0']) == 0
    assert 'no_noise_seed0: 0 of 360 correct' in (shown := capsys.readouterr().out)
    assert shown.splitlines()[0].endswith('count as wrong: the loss is not finite at step 9')
    assert exit_code(ablation.main, [*flags, '--arms=no_noise_seed0']) == 0 and len(trained) == 1
    (record,) = read_results(tmp_path / 'results/smoke', SMOKE).records.values()
    assert list(record.correct.sum(1)) == [7, 0] and [line['test_correct'] for line in record.history] == [7, 0]
    assert record.accuracy == 0 and record.summary['final_test_count'] == record.summary['nonfinite'] == 360
    assert record.summary['max_test_epoch'] == 1 and record.weights > 0 and record.summary['seconds'] == 3.0
    assert is_collapsed(record, SMOKE.collapse)


def test_a_run_that_diverges_at_once(tmp_path, monkeypatch, process_state):
    """On validation examples, so that the test set would have been read once."""

    def diverge(*_, **__):
        raise DivergedError('the loss is not finite at step 1')

    monkeypatch.setattr(train, 'train_and_evaluate', diverge)
    grid = tmp_path / 'tiny.toml'
    text = (registration.GRIDS / 'smoke.toml').read_text()
    grid.write_text(text.replace('[changes]', '[changes]\ndata.validation_examples = 60'))
    flags = [f'--grid={grid}', '--arms=no_noise_seed0', f'--output={tmp_path}/runs', f'--results={tmp_path}/results']
    assert exit_code(ablation.main, flags) == 0
    (record,) = read_results(tmp_path / 'results/tiny', registration.read_grid(str(grid))).records.values()
    assert record.correct.shape == (1, 360) and not record.correct.any()
    assert [line['validation_count'] for line in record.history] == [60, 60]
    assert record.summary['final_validation_accuracy'] == 0


@pytest.mark.parametrize('damaged', ['result.json', 'metrics.jsonl', 'outcomes.npz'])
def test_damaged_files_of_a_run_are_one_line(damaged, tmp_path, capsys, monkeypatch, process_state, instant_training):
    instant = train.train_and_evaluate

    def cut(config, workdir, **keywords):
        instant(config, workdir, **keywords)
        file = Path(workdir) / damaged
        file.write_bytes(file.read_bytes()[:-7])

    monkeypatch.setattr(train, 'train_and_evaluate', cut)
    flags = ['--grid=smoke', '--arms=no_noise', f'--output={tmp_path}/runs', f'--results={tmp_path}/results']
    assert exit_code(ablation.main, flags) == 1
    shown = capsys.readouterr().out
    assert 'no_noise_seed0: failed: ' in shown and 'is damaged' in shown


@pytest.mark.parametrize(
    'flags, names',
    [
        (['--shard=4/4'], '--shard=4/4'),
        (['--shard=1'], '--shard=1'),
        (['--arms=no_nose'], 'no_nose'),
        (['--time_budget=-1'], '--time_budget'),
        (['--data_source=folder'], 'config.data.path'),
        (['--output=/dev/null/x'], '/dev/null/x'),
        (['--output=s3://bucket/x'], '--output=s3://bucket/x'),
        (['--data_path=gs://bucket/x'], '--data_path=gs://bucket/x'),
        (['--jobs=-1'], "'-1'"),
        (['--jobs=two'], "'two'"),
        (['--grid=small'], '--grid=small: must be one of audit'),
    ],
)
def test_bad_flags_are_one_line(flags, names, tmp_path, capsys, process_state):
    assert exit_code(ablation.main, ['--grid=smoke', f'--results={tmp_path}', *flags]) == 2
    message = capsys.readouterr().err
    assert message.startswith('error: ') and names in message and message.count('\n') == 1
