"""Training as a whole: independent of devices and dispatches, resumable, honest about failure."""

import dataclasses
import json
import shutil
from concurrent.futures import Future
from types import SimpleNamespace

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType
from PIL import Image
from tiny_runs import share_programs

from configs import quickstart
from pnn_jax.data import Dataset, Split
from pnn_jax.data.augment import preprocess
from pnn_jax.data.feeds import BATCH_AXIS, DeviceFeed, StreamFeed
from pnn_jax.errors import DivergedError, InputError, RunError, StoppedEarly
from pnn_jax.evaluate_run import evaluate_checkpoint
from pnn_jax.run.checkpoints import tree_digest
from pnn_jax.run.provenance import code_digest
from pnn_jax.run.resume import Saver
from pnn_jax.stats import wilson_interval
from pnn_jax.train import create_trainer, crossed, own_share, train_and_evaluate, train_dispatches
from pnn_jax.train_step import RANDOM_STREAMS, create_train_state, train_step
from pnn_jax.trainer import Trainer


def tiny_config(**changes):
    config = quickstart.get_config()
    config.num_epochs = 2
    config.batch_size = 8
    config.eval_batch_size = 16
    config.model.num_filters = 4
    config.model.num_masks = 2
    config.schedule.milestones = (1,)
    config.log.every_steps = 2
    config.log.tensorboard = config.log.plots = False
    config.update_from_flattened_dict({name.replace('__', '.'): value for name, value in changes.items()})
    return config


@pytest.fixture(scope='module', autouse=True)
def shared_programs():
    with pytest.MonkeyPatch.context() as patch:
        share_programs(patch)
        yield


@pytest.fixture(scope='module')
def dataset():
    rng = np.random.default_rng(0)
    split = lambda n: Split(
        images=rng.integers(0, 256, (n, 8, 8, 1), dtype=np.uint8), labels=rng.integers(0, 3, n).astype(np.int32)
    )
    return Dataset(name='random', train=split(29), test=split(13), class_names=('a', 'b', 'c'), digest='random')


@pytest.fixture(scope='module')
def trainer(dataset):
    return Trainer.create(tiny_config(), dataset)


def train_one_epoch(trainer, feed=None):
    """The state after the first epoch of seed 0."""
    state, fixed = trainer.init(0, 0)
    for batches in (feed or trainer.feed).batches(state.key, epoch=0):
        state = trainer.train_steps(state, fixed, batches)
    return state


def assert_trees_close(left, right, **tolerance):
    for a, b in zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True):
        np.testing.assert_allclose(a, b, **tolerance)


@pytest.fixture(scope='module')
def after_an_epoch(trainer):
    return train_one_epoch(trainer)


def test_every_example_is_trained_on_once(trainer, after_an_epoch):
    assert list(trainer.feed.dispatches(0)) == [(0, 8, 1), (8, 8, 1), (16, 8, 1), (24, 5, 1)]
    assert int(after_an_epoch.step) == trainer.steps_per_epoch == 4
    assert int(after_an_epoch.epoch_metrics.count) == 29


@pytest.fixture(scope='module')
def sgd_trainer(dataset):
    """With augmentation and dropout. Not Adam, which makes full steps of a gradient that is only rounding."""
    options = {'optimizer__name': 'sgd', 'optimizer__learning_rate': 0.02}
    return Trainer.create(tiny_config(**options, data__augment='crop_flip', model__dropout_rate=0.3), dataset)


@pytest.fixture(scope='module')
def after_an_epoch_of_sgd(sgd_trainer):
    return train_one_epoch(sgd_trainer)


def test_several_steps_a_dispatch_equal_single_steps(dataset, sgd_trainer, after_an_epoch_of_sgd):
    feed = DeviceFeed(dataset, sgd_trainer.mesh, batch_size=8, steps_per_dispatch=3)
    assert list(feed.dispatches(0)) == [(0, 8, 3), (24, 5, 1)]
    state = train_one_epoch(sgd_trainer, feed)
    assert_trees_close(state.params, after_an_epoch_of_sgd.params, rtol=0, atol=5e-5)
    assert int(state.epoch_metrics.correct) == int(after_an_epoch_of_sgd.epoch_metrics.correct)


def test_four_devices_equal_one(dataset, sgd_trainer, after_an_epoch_of_sgd):
    """Same batches, augmentation and dropout, global batch statistics; the sums differ in order only."""
    expected = after_an_epoch_of_sgd
    assert sgd_trainer.mesh.size == 4
    mesh = jax.make_mesh((1,), (BATCH_AXIS,), axis_types=(AxisType.Auto,), devices=jax.devices()[:1])
    feed = DeviceFeed(dataset, mesh, batch_size=8, steps_per_dispatch=1)
    state = train_one_epoch(dataclasses.replace(sgd_trainer, mesh=mesh, feed=feed))
    # Measured: 1.5e-5, in weights between batch norms of few values.
    assert_trees_close(state.params, expected.params, rtol=0, atol=5e-5)
    assert_trees_close(state.batch_stats, expected.batch_stats, rtol=1e-4, atol=5e-5)
    assert state.epoch_metrics.compute()['correct'] == expected.epoch_metrics.compute()['correct']


def test_fixed_masks_do_not_change(trainer, after_an_epoch):
    state, fixed = trainer.init(0, 0)
    digest, params = tree_digest(fixed), tree_digest(state.params)
    for batches in trainer.feed.batches(state.key, epoch=0):
        state = trainer.train_steps(state, fixed, batches)
    assert tree_digest(fixed) == digest
    assert tree_digest(state.params) == tree_digest(after_an_epoch.params) != params


def read_run(workdir):
    lines = [json.loads(line) for line in (workdir / 'metrics.jsonl').read_text().splitlines()]
    for line in lines:
        del line['images_per_second'], line['seconds']
    with np.load(workdir / 'outcomes.npz') as stored:
        outcomes = stored['correct']
    return lines, outcomes


@pytest.fixture(scope='module')
def finished(tmp_path_factory, dataset):
    workdir = tmp_path_factory.mktemp('run')
    result = train_and_evaluate(tiny_config(), str(workdir), dataset=dataset)
    return workdir, result


def test_a_run_leaves_what_it_promises(finished):
    workdir, result = finished
    for name in ('config.json', 'metrics.jsonl', 'result.json', 'outcomes.npz', 'curves.png', 'train.log'):
        assert (workdir / name).stat().st_size > 0
    lines, outcomes = read_run(workdir)
    assert [line['epoch'] for line in lines] == [1, 2]
    assert [line['step'] for line in lines] == [4, 8]
    assert outcomes.shape == (2, 13)
    assert [line['test_correct'] for line in lines] == outcomes.sum(1).tolist()
    assert result == json.loads((workdir / 'result.json').read_text())
    assert result['final_test_correct'] == outcomes[-1].sum()
    assert result['final_test_count'] == 13
    assert result['max_test_accuracy'] == outcomes.mean(1).max()
    assert result['max_test_epoch'] == outcomes.sum(1).argmax() + 1
    assert result['final_test_interval_95'] == list(wilson_interval(int(outcomes[-1].sum()), 13, 0.95))
    assert 'final_test_top5_accuracy' not in result  # with three classes
    assert sum(row['count'] for row in result['per_class'].values()) == 13
    assert result['parameters'] == {'trained': 1427, 'masks': 288, 'frozen': 0}


def test_learning_rate_changes_at_the_milestone(finished):
    lines, _ = read_run(finished[0])
    np.testing.assert_allclose([line['learning_rate'] for line in lines], [2e-3, 4e-4])


def test_a_finished_run_is_not_trained_again(finished, dataset):
    workdir, result = finished
    before = (workdir / 'metrics.jsonl').read_bytes()
    assert train_and_evaluate(tiny_config(), str(workdir), dataset=dataset) == result
    assert (workdir / 'metrics.jsonl').read_bytes() == before


def test_a_run_killed_while_it_makes_plots_is_finished_by_the_next_call(finished, dataset, tmp_path, monkeypatch):
    workdir, expected = finished

    def killed(self, run):
        raise KeyboardInterrupt

    monkeypatch.setattr('pnn_jax.run.log.RunLog.finish', killed)
    with pytest.raises(KeyboardInterrupt):
        train_and_evaluate(tiny_config(), str(tmp_path), dataset=dataset)
    monkeypatch.undo()
    result = train_and_evaluate(tiny_config(), str(tmp_path), dataset=dataset)
    assert result['final_test_correct'] == expected['final_test_correct']
    assert sorted(path.name for path in workdir.rglob('*.png')) == sorted(path.name for path in tmp_path.rglob('*.png'))


def test_evaluation_of_a_checkpoint_gives_the_count_of_the_run(finished, dataset):
    workdir, result = finished
    latest = evaluate_checkpoint(tiny_config(), str(workdir), which='latest', dataset=dataset)
    best = evaluate_checkpoint(tiny_config(), str(workdir), which='best', dataset=dataset)
    assert latest['final_test_correct'] == result['final_test_correct']
    assert best['final_test_accuracy'] == result['max_test_accuracy']
    with pytest.raises(StoppedEarly, match='enough'):
        evaluate_checkpoint(tiny_config(), str(workdir), dataset=dataset, should_stop=lambda: 'enough')
    with pytest.raises(InputError, match="model.activation: 'relu' -> 'tanh'"):
        evaluate_checkpoint(tiny_config(model__activation='tanh'), str(workdir), dataset=dataset)


def test_a_run_stopped_anywhere_continues_bit_for_bit(finished, dataset, tmp_path):
    """Stopped after every single dispatch, mid-epoch and between epochs."""
    stops = 0
    while True:
        asked = iter([''] + ['enough'] * 100)
        try:
            result = train_and_evaluate(tiny_config(), str(tmp_path), should_stop=lambda: next(asked), dataset=dataset)  # noqa: B023
            break
        except StoppedEarly:
            stops += 1
            assert stops < 20
    assert stops >= 3
    workdir, expected = finished
    lines, outcomes = read_run(tmp_path)
    expected_lines, expected_outcomes = read_run(workdir)
    assert lines == expected_lines
    np.testing.assert_array_equal(outcomes, expected_outcomes)
    assert result['final_test_correct'] == expected['final_test_correct']


def test_a_result_names_all_code_and_versions_that_trained_the_run(dataset, tmp_path, monkeypatch):
    asked = iter([''] + ['enough'] * 100)
    other = {'code': 'e' * 64, 'device': '1 x cpu', 'versions': {'jax': '0.0'}}
    monkeypatch.setattr('pnn_jax.run.resume.circumstances', lambda: other)
    with pytest.raises(StoppedEarly):
        train_and_evaluate(tiny_config(), str(tmp_path), should_stop=lambda: next(asked), dataset=dataset)
    monkeypatch.undo()
    result = train_and_evaluate(tiny_config(), str(tmp_path), dataset=dataset)
    assert result['resumed_from'] == [other] and result['code']['sha256'] == code_digest()


def test_a_workdir_of_another_run_is_refused(finished, dataset):
    workdir, _ = finished
    with pytest.raises(InputError, match='num_filters'):
        train_and_evaluate(tiny_config(model__num_filters=6), str(workdir), dataset=dataset)


def test_other_images_are_refused(finished, dataset):
    workdir, _ = finished
    other = Dataset(dataset.name, dataset.train, dataset.test, dataset.class_names, digest='another')
    with pytest.raises(InputError, match='data'):
        train_and_evaluate(tiny_config(num_epochs=3), str(workdir), dataset=other)


def test_other_class_names_are_refused(finished, dataset):
    workdir, result = finished
    renamed = dataclasses.replace(dataset, class_names=('a', 'c', 'b'))
    with pytest.raises(InputError, match='the classes a, b, c, and config.data has a, c, b'):
        train_and_evaluate(tiny_config(), str(workdir), dataset=renamed)
    assert train_and_evaluate(tiny_config(), str(workdir), dataset=dataset) == result


def test_a_loss_that_is_not_finite_names_its_step(dataset, tmp_path):
    config = tiny_config(optimizer__name='sgd', optimizer__learning_rate=1e30, log__every_steps=4)
    with pytest.raises(RunError, match='not finite at step 2;'):  # the first one, after the first update
        train_and_evaluate(config, str(tmp_path), dataset=dataset)


@pytest.mark.filterwarnings('ignore:overflow encountered in cast:RuntimeWarning')  # of the rate itself
def test_parameters_that_are_not_finite_are_never_saved(dataset, tmp_path):
    """The loss of the only step of the epoch is finite, what its update leaves is not."""
    config = tiny_config(optimizer__name='sgd', optimizer__learning_rate=1e39, batch_size=29)
    with pytest.raises(RunError, match='parameters or batch statistics are not finite after step 1;'):
        train_and_evaluate(config, str(tmp_path), dataset=dataset)
    assert not list((tmp_path / 'checkpoints').glob('0*'))
    assert not (tmp_path / 'metrics.jsonl').exists()


def test_lost_checkpoints_do_not_erase_a_run(finished, dataset, tmp_path):
    shutil.copytree(finished[0], tmp_path, dirs_exist_ok=True)
    shutil.rmtree(tmp_path / 'checkpoints')
    lines = (tmp_path / 'metrics.jsonl').read_bytes()
    with pytest.raises(RunError, match='has 2 epochs, but there is no checkpoint'):
        train_and_evaluate(tiny_config(num_epochs=3), str(tmp_path), dataset=dataset)
    assert (tmp_path / 'metrics.jsonl').read_bytes() == lines


def test_several_seeds_equal_single_runs(finished, dataset, tmp_path):
    summary = train_and_evaluate(tiny_config(num_seeds=2), str(tmp_path), dataset=dataset)
    _, single = finished
    first, second = summary['seeds']
    assert first['final_test_correct'] == single['final_test_correct']
    assert (second['seed'], second['mask_seed']) == (1, 1)
    accuracies = [first['final_test_accuracy'], second['final_test_accuracy']]
    assert summary['mean_final_test_accuracy'] == pytest.approx(np.mean(accuracies))
    assert summary['sd_final_test_accuracy'] == pytest.approx(np.std(accuracies, ddof=1))
    with pytest.raises(InputError, match='num_seeds: 2 -> 1'):
        train_and_evaluate(tiny_config(), str(tmp_path), dataset=dataset)
    stop = lambda: 'enough' if (tmp_path / 'seed_2/metrics.jsonl').exists() else ''
    with pytest.raises(StoppedEarly):
        train_and_evaluate(tiny_config(num_seeds=3), str(tmp_path), dataset=dataset, should_stop=stop)
    assert not (tmp_path / 'result.json').exists()  # the mean of two seeds is not that of three


@pytest.fixture(scope='module')
def one_after_another(dataset, tmp_path_factory):
    """Three seeds that are trained by themselves: (folder, summary)."""
    folder = tmp_path_factory.mktemp('seeds')
    return folder, train_and_evaluate(three_seeds(), folder, dataset=dataset)


def three_seeds(**changes):
    options = {'optimizer__name': 'sgd', 'optimizer__learning_rate': 0.02, 'model__dropout_rate': 0.3}
    return tiny_config(num_seeds=3, **options, data__augment='crop_flip', **changes)


def assert_equal_but_for_rounding(folder, expected):
    for seed in range(3):
        lines, outcomes = read_run(folder / f'seed_{seed}')
        expected_lines, expected_outcomes = read_run(expected / f'seed_{seed}')
        assert (outcomes == expected_outcomes).all()
        for line, one in zip(lines, expected_lines, strict=True):
            # Measured: no difference on an Intel Xeon. Another processor may sum in another order.
            assert line == pytest.approx(one, rel=1e-5)


def test_seeds_in_one_program_equal_those_in_programs_of_their_own(one_after_another, dataset, tmp_path, capsys):
    """Three seeds, two of them at once: masks, weights, order and dropout of each are its own."""
    summary = train_and_evaluate(three_seeds(seeds_at_once=2), tmp_path, dataset=dataset)
    expected_folder, expected = one_after_another
    assert_equal_but_for_rounding(tmp_path, expected_folder)
    assert summary['mean_final_test_accuracy'] == expected['mean_final_test_accuracy']
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(' epoch ')[0] for line in lines if ' epoch ' in line] == ['seed 0:', 'seed 1:'] * 2
    assert sum(line.startswith('epoch ') for line in lines) == 2  # of the third seed, which is alone
    assert train_and_evaluate(three_seeds(seeds_at_once=3), tmp_path, dataset=dataset) == summary


def test_seeds_in_one_program_are_all_saved_when_they_are_stopped(one_after_another, dataset, tmp_path, monkeypatch):
    """One of them is asked to stop, once, in the second epoch; the others stop with it. One then has to catch up."""
    config = three_seeds(seeds_at_once=3)
    asked = []

    def after_a_while():
        asked.append(None)
        return 'enough' if len(asked) == 17 else ''

    with pytest.raises(StoppedEarly, match='enough'):
        train_and_evaluate(config, tmp_path, dataset=dataset, should_stop=after_a_while)
    saved = {max(path.name for path in (tmp_path / f'seed_{seed}/checkpoints').glob('0*')) for seed in range(3)}
    assert saved == {'000002_step_5'}
    shutil.rmtree(tmp_path / 'seed_1/checkpoints/000002_step_5')
    trained = []
    monkeypatch.setattr(
        'pnn_jax.train.train_dispatches', lambda *args: trained.append(len(args[1])) or train_dispatches(*args)
    )
    train_and_evaluate(config, tmp_path, dataset=dataset)
    assert trained == [1, 3, 3, 3]
    assert_equal_but_for_rounding(tmp_path, one_after_another[0])


def test_a_seed_that_others_do_not_share_a_program_with_has_its_own_time(one_after_another, dataset, tmp_path):
    shutil.copytree(one_after_another[0], tmp_path, dirs_exist_ok=True)
    config = three_seeds(seeds_at_once=4)
    config.num_seeds = 4
    train_and_evaluate(config, tmp_path, dataset=dataset)
    lines = [json.loads(line) for line in (tmp_path / 'seed_3/metrics.jsonl').read_text().splitlines()]
    assert all(line['images_per_second'] > 0 for line in lines)
    assert own_share([2, 2, 1, 1]) == 0.75 and own_share([]) == own_share([1]) == 1


def test_data_that_are_given_are_checked_and_known_again(dataset, tmp_path):
    """The digest, which tells data apart, is computed where a data set has none."""
    images = dataset.train.images
    given = dataclasses.replace(dataset, digest='')
    train_and_evaluate(tiny_config(num_epochs=1), tmp_path, dataset=given)
    changed = dataclasses.replace(given, train=Split(images ^ 1, dataset.train.labels))
    with pytest.raises(InputError, match='trained on other data'):
        train_and_evaluate(tiny_config(num_epochs=2), tmp_path, dataset=changed)
    for changes, split, message in (
        (
            {},
            Split((images / 255).astype(np.float32), dataset.train.labels),
            'random, training set: images are float32',
        ),
        ({}, Split(images, dataset.train.labels + 1), 'random, training set: label 3 of image'),
        (
            {'data__validation_examples': 5},
            dataset.train,
            'validation_examples=5: the data set that was given has none',
        ),
        ({'data__augment': 'resized_crop_flip'}, dataset.train, 'only for streamed sources'),
    ):
        with pytest.raises(InputError, match=message):
            create_trainer(tiny_config(**changes), dataclasses.replace(given, train=split))


def test_a_stream_that_is_given_must_be_that_of_the_config():
    config = tiny_config(data__image_size=8, data__augment='none', data__validation_examples=5)
    for stream, message in (
        ({'augment': 'crop_flip'}, r"augment='none': the stream that was given has 'crop_flip'"),
        ({'image_size': 9}, 'image_size=8: the stream that was given has 9'),
        ({'validation': None}, 'validation_examples=5: the data set that was given has none'),
    ):
        given = SimpleNamespace(**{'augment': 'none', 'image_size': 8, 'validation': object()} | stream)
        with pytest.raises(InputError, match=message):
            create_trainer(config, given)


def test_evaluation_refuses_classes_in_another_order(finished, dataset, tmp_path, capsys):
    folder = finished[0]
    with pytest.raises(InputError, match=r"class 'b' had label 1 in the training data, and has 0 in config\.data"):
        evaluate_checkpoint(tiny_config(), folder, dataset=dataclasses.replace(dataset, class_names=('b', 'a', 'c')))
    named_otherwise = dataclasses.replace(dataset, class_names=('A', 'B', 'C'))
    result = evaluate_checkpoint(tiny_config(), folder, dataset=named_otherwise)
    assert result['final_test_correct'] == finished[1]['final_test_correct']
    assert 'note: the classes were named a, b, c in training, and are A, B, C in these data' in capsys.readouterr().out


def test_data_that_stay_on_disk_take_one_seed_at_a_time(tmp_path, monkeypatch):
    config = tiny_config(num_seeds=2, seeds_at_once=2, data__source='stream_folder')
    monkeypatch.setattr(Trainer, 'create', lambda *_: SimpleNamespace(feed=object.__new__(StreamFeed)))
    with pytest.raises(InputError, match=r'config.seeds_at_once=2: must be 1 for data that stay on disk'):
        train_and_evaluate(config, tmp_path)


def test_runs_that_share_a_trainer_equal_runs_of_their_own(finished, dataset, tmp_path):
    shared = create_trainer(tiny_config(seed=5), dataset)
    for seed in (5, 0):
        train_and_evaluate(tiny_config(seed=seed), tmp_path / f'{seed}', trainer=shared)
    (lines, outcomes), (expected, expected_outcomes) = read_run(tmp_path / '0'), read_run(finished[0])
    assert lines == expected and (outcomes == expected_outcomes).all()
    assert read_run(tmp_path / '5')[0] != expected
    with pytest.raises(ValueError, match='more than its seeds'):
        train_and_evaluate(tiny_config(num_epochs=3), tmp_path / 'longer', trainer=shared)


def test_what_is_not_compiled_yet_is_given_up_when_a_run_stops(trainer):
    """Two programs wait behind one that is being compiled."""
    made, running, *waiting = dataclasses.replace(trainer), Future(), Future(), Future()
    running.set_running_or_notify_cancel()
    made._programs.update({(8, steps): future for steps, future in enumerate([running, *waiting])})
    with pytest.raises(StoppedEarly), made.ending_compilation():
        raise StoppedEarly('enough')
    assert made._programs == {(8, 0): running} and all(future.cancelled() for future in waiting)


def test_the_first_step_waits_for_its_own_program_alone(trainer):
    waited_for = []

    class Program(Future):
        def result(self, timeout=None):
            waited_for.append(self)
            return super().result(timeout=0)

    made, own, other = dataclasses.replace(trainer), Program(), Program()
    made._programs.update({(8, 1): own, (5, 1): other})
    batches = SimpleNamespace(batch_size=8, num_steps=1)
    own.set_result(None)
    made.wait_for_program(batches)
    assert waited_for == [own]
    made._programs[8, 1] = Program()
    made._programs[8, 1].set_exception(RuntimeError('it does not compile'))
    with pytest.raises(RuntimeError, match='it does not compile'):
        made.wait_for_program(batches)


@pytest.mark.parametrize('at_once', [1, 2])
def test_a_seed_that_diverges_does_not_keep_the_others_from_training(at_once, finished, dataset, tmp_path, monkeypatch):
    check = Saver.check_finite

    def first_seed_diverges(self, state):
        if self.workdir.path.name == 'seed_0':
            raise DivergedError('the loss is not finite')
        check(self, state)

    monkeypatch.setattr(Saver, 'check_finite', first_seed_diverges)
    with pytest.raises(RunError, match='seed 0: the loss is not finite'):
        train_and_evaluate(tiny_config(num_seeds=2, seeds_at_once=at_once), str(tmp_path), dataset=dataset)
    monkeypatch.undo()
    assert json.loads((tmp_path / 'seed_1/result.json').read_text())['epochs'] == 2
    summary = train_and_evaluate(tiny_config(num_seeds=2, seeds_at_once=at_once), str(tmp_path), dataset=dataset)
    assert summary['seeds'][0]['final_test_correct'] == finished[1]['final_test_correct']


def test_same_seed_same_bits(trainer, after_an_epoch):
    again = train_one_epoch(trainer)
    assert tree_digest(again.params) == tree_digest(after_an_epoch.params)
    (state, fixed), (same, other_fixed) = trainer.init(0, 0), trainer.init(0, 1)
    assert tree_digest(state.params) == tree_digest(same.params)
    assert tree_digest(fixed) != tree_digest(other_fixed)


@pytest.mark.usefixtures('quick_compilation')
def test_a_stream_trains_as_the_same_images_in_memory(tmp_path):
    """Decoded on the fly, in the same order, to the same counts; also if it is stopped within an epoch and resumed."""
    rng = np.random.default_rng(1)
    for split, count in (('train', 9), ('test', 5)):
        for name in ('a', 'b'):
            (tmp_path / 'images' / split / name).mkdir(parents=True)
            for i in range(count):
                pixels = rng.integers(0, 256, (8, 8), dtype=np.uint8)
                Image.fromarray(pixels).save(tmp_path / 'images' / split / name / f'{i}.png')
    common = {'data__path': str(tmp_path / 'images'), 'data__image_size': 8, 'data__cache_dir': str(tmp_path / 'cache')}
    memory = train_and_evaluate(tiny_config(**common, data__source='folder'), str(tmp_path / 'memory'))

    config = tiny_config(**common, data__source='stream_folder')
    asked = iter(['', 'enough'])
    with pytest.raises(StoppedEarly):
        train_and_evaluate(config, str(tmp_path / 'stream'), should_stop=lambda: next(asked))
    stream = train_and_evaluate(config, str(tmp_path / 'stream'))
    assert stream['final_test_count'] == memory['final_test_count'] == 10
    assert stream['per_class'] == memory['per_class']
    np.testing.assert_allclose(stream['final_test_loss'], memory['final_test_loss'], rtol=1e-4)


def test_an_epoch_is_recorded_after_the_checkpoint_before_it_is_on_disk():
    """Otherwise a run that is killed between the two looks as if it had lost its checkpoints."""
    calls = []

    class Recorder:
        def __getattr__(self, name):
            return lambda *arguments, **options: calls.append(name)

    evaluation = SimpleNamespace(labels=np.zeros(1, np.int32), correct=np.ones(1, bool), accuracy=1.0)
    state = SimpleNamespace(step=3, params={}, batch_stats={}, opt_state=(), epoch_metrics=None)
    saver = Saver(Recorder(), Recorder(), {}, {'data_digest': ''}, restored=1)
    saver.after_epoch(state, {}, evaluation)
    assert calls == ['wait', 'set_examples', 'append_epoch', 'begin', 'save']


# --- what config, seed, epoch and step decide -------------------------------------------------------------------------


def test_training_sees_images_as_the_config_says(dataset):
    trainer = Trainer.create(tiny_config(data__augment='crop_flip', model__dtype='bfloat16'), dataset)
    images, key, data = dataset.train.images, jax.random.key(3), trainer.config.data
    expected = preprocess(images, data.mean, data.std, augment='crop_flip', key=key, dtype=jnp.bfloat16)
    seen = trainer.preprocess(key, images)
    assert seen.dtype == jnp.bfloat16 and (seen == expected).all()
    assert not (seen == trainer.preprocess(None, images, augment='none')).all()


class Recorder(nn.Module):
    """Keeps its input and the key of each random stream where batch norms keep their statistics."""

    @nn.compact
    def __call__(self, x, train=True):
        streams = RANDOM_STREAMS[1:]  # `preprocess` gets the first
        seen = {'input': x} | {name: jax.random.key_data(self.make_rng(name)) for name in streams}
        for name, value in seen.items():
            self.variable('batch_stats', name, lambda value=value: value).value = value
        return x.reshape(len(x), -1)[:, :3] * self.param('scale', nn.initializers.ones, (1, 1))


def test_every_step_and_seed_has_random_numbers_of_its_own():
    model, optimizer, images = Recorder(), optax.sgd(0.1), np.zeros((4, 2, 2, 1), np.uint8)
    shift = lambda key, images: images + jax.random.uniform(key, images.shape)
    found = []
    for seed in (0, 1):
        key = jax.random.key(seed)
        variables = model.init(dict.fromkeys(('params', *RANDOM_STREAMS), key), jnp.zeros((4, 2, 2, 1)))
        state = create_train_state(variables, optimizer, key)
        for _ in range(2):
            parts = {'model': model, 'optimizer': optimizer, 'preprocess': shift}
            state = train_step(state, {}, images, np.zeros(4, np.int32), **parts)
            found.append(jax.device_get(state.batch_stats))
    keys = [tuple(step[name]) for step in found for name in RANDOM_STREAMS[1:]]
    assert len(set(keys)) == len(keys) == 4 * 3
    assert len({step['input'].tobytes() for step in found}) == 4


def test_every_epoch_and_seed_has_an_order_of_its_own(dataset, tmp_path, monkeypatch):
    asked, batches = [], DeviceFeed.batches

    def spy(self, key, epoch, first_step=0):
        asked.append((tuple(jax.random.key_data(key).tolist()), epoch))
        return batches(self, key, epoch, first_step)

    monkeypatch.setattr(DeviceFeed, 'batches', spy)
    train_and_evaluate(tiny_config(num_seeds=2), tmp_path, dataset=dataset)
    keys, epochs = zip(*asked, strict=True)
    assert epochs == (0, 1, 0, 1) and keys[0] == keys[1] != keys[2] == keys[3]


def stopped_run(dataset, folder, **changes):
    """Trains the first step of a run."""
    asked = iter([''])
    with pytest.raises(StoppedEarly):
        train_and_evaluate(tiny_config(**changes), folder, dataset=dataset, should_stop=lambda: next(asked, 'enough'))


def test_a_resumed_run_has_the_masks_that_it_began_with(finished, dataset, tmp_path, monkeypatch):
    """Also where a library has come to draw other ones."""
    stopped_run(dataset, tmp_path)
    init = Trainer.init
    monkeypatch.setattr(Trainer, 'init', lambda self, seed, mask_seed: init(self, seed, mask_seed + 1))
    train_and_evaluate(tiny_config(), tmp_path, dataset=dataset)
    (lines, outcomes), (expected, expected_outcomes) = read_run(tmp_path), read_run(finished[0])
    assert lines == expected and (outcomes == expected_outcomes).all()


def test_a_finished_run_with_masks_of_another_is_refused(finished, dataset, tmp_path):
    shutil.copytree(finished[0], tmp_path / 'run')
    stopped_run(dataset, tmp_path / 'same')
    masks = tmp_path / 'run/checkpoints/masks'
    shutil.rmtree(masks)
    shutil.copytree(tmp_path / 'same/checkpoints/masks', masks)
    train_and_evaluate(tiny_config(), tmp_path / 'run', dataset=dataset)  # masks of the same seed are the same
    stopped_run(dataset, tmp_path / 'other', mask_seed=1)
    shutil.rmtree(masks)
    shutil.copytree(tmp_path / 'other/checkpoints/masks', masks)
    with pytest.raises(RunError, match='noise masks'):
        train_and_evaluate(tiny_config(), tmp_path / 'run', dataset=dataset)


def test_checkpoints_within_an_epoch(dataset, tmp_path):
    config = tiny_config(checkpoint__every_steps=2, checkpoint__keep=9)
    train_and_evaluate(config, tmp_path, dataset=dataset)
    names = [path.name for path in (tmp_path / 'checkpoints').glob('0*')]
    assert sorted(int(name.rpartition('_')[2]) for name in names) == [2, 4, 6, 8]  # an epoch has 4 steps


@pytest.mark.parametrize(
    ('interval', 'before', 'after', 'expected'),
    [(5, 4, 9, True), (5, 5, 9, False), (5, 9, 10, True), (5, 4, 5, True), (5, 0, 20, True), (0, 0, 9, False)],
)
def test_an_interval_is_crossed_where_a_multiple_of_it_lies_between(interval, before, after, expected):
    assert crossed(interval, before, after) is expected
