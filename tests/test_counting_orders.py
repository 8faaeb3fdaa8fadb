"""The orders in which the test images of a run are counted, and what is expected over random ones."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from experiments.ablation.records import Record
from experiments.command import exit_code
from experiments.counting import curves, orders
from experiments.counting.__main__ import main
from experiments.counting.outcomes import read_outcomes
from pnn_jax import accounting
from pnn_jax.errors import InputError

# Ten images of three classes, stored class by class, of a data set whose own order was mixed.
ORIGINAL = np.array([2, 0, 1, 0, 2, 1, 1, 0, 2, 2])
STORED = np.sort(ORIGINAL)


def write_labels(folder, labels=ORIGINAL):
    np.savez(folder / 'labels.npz', all_test_labels=labels)
    return str(folder / 'labels.npz')


@given(st.lists(st.integers(0, 4), min_size=1, max_size=40))
def test_sorting_by_class_is_undone(labels):
    original = np.array(labels)
    by_class = np.argsort(original, kind='stable')  # how a folder of images stores them
    order = orders.original_order(original[by_class], original, 'x.npz')
    assert (by_class[order] == np.arange(len(original))).all()


def test_orders_by_name(tmp_path):
    find = lambda name, labels=STORED, seed=0: orders.find_order(name, labels, 10, seed)
    assert (find('stored') == np.arange(10)).all()
    assert (STORED[find(write_labels(tmp_path))] == ORIGINAL).all()
    assert (ORIGINAL[find('class', ORIGINAL)] == STORED).all()
    assert sorted(find('random')) == list(range(10))
    assert (find('random', seed=1) != find('random', seed=2)).any() and (find('random') == find('random', None)).all()


@pytest.mark.parametrize(
    'name, labels, names',
    [
        ('backwards', STORED, 'backwards'),
        ('class', None, 'needs the labels'),
        ('missing.npz', STORED, 'cannot be read'),
        ('s3://bucket/labels.npz', STORED, 'URLs'),
    ],
)
def test_an_order_that_cannot_be_found_is_one_line(name, labels, names):
    with pytest.raises(InputError) as error:
        orders.find_order(name, labels, 10, 0)
    assert names in str(error.value) and '\n' not in str(error.value)


def test_labels_of_another_data_set_are_refused(tmp_path):
    for labels in (ORIGINAL[:9], np.where(ORIGINAL == 2, 0, ORIGINAL), ORIGINAL / 2):
        with pytest.raises(InputError, match='labels.npz'):
            orders.find_order(write_labels(tmp_path, labels), STORED, 10, 0)
    np.savez(tmp_path / 'labels.npz', labels=ORIGINAL)
    with pytest.raises(InputError, match='all_test_labels'):
        orders.find_order(str(tmp_path / 'labels.npz'), STORED, 10, 0)


def test_expected_reports_are_those_of_random_orders():
    """One image a batch and one epoch: all weight is on the last few images, so orders differ widely."""
    correct = np.random.default_rng(0).random((3, 200)) < 0.8
    expected = curves.expected_reports(correct, 10, orders=30)
    exact = accounting.exact_accuracy(correct).max()
    assert expected['exact_accuracy'] == (pytest.approx(exact), 0.0, pytest.approx(0.0))
    assert expected['mean_batch_accuracy'].bias == pytest.approx(0)  # 10 divides 200
    reports = [accounting.reported_accuracy(correct[:, orders.random_order(200, seed)], 10) for seed in range(1, 31)]
    assert expected['smoothed_accuracy'] == (np.mean(reports), np.std(reports), np.mean(reports) - exact)


def test_the_maximum_of_many_smoothed_epochs_is_too_high():
    """The audit's finding on a model whose accuracy never changes: 85.9% exactly, more than 90% reported."""
    rng = np.random.default_rng(0)
    correct = accounting.simulate_outcomes(rng, 85.9, epochs=100, examples=1000, correlation=0.95)
    expected = curves.expected_reports(correct, 10, orders=10)
    assert expected['smoothed_accuracy'].bias > 3
    assert expected['smoothed_accuracy'].mean > 90 > expected['exact_accuracy'].mean


def write_run(folder, correct, labels):
    np.savez(folder / 'outcomes.npz', correct=correct, labels=labels, test_digest='0' * 64)


def reported(shown: str) -> str:
    return ' '.join(shown.split()).partition('Reported by smoothing ')[2].partition('%')[0]


def test_the_command_counts_in_the_order_that_is_named(tmp_path, capsys):
    # Batches of 5: an order decides which of the two images that are wrong are in the last batch.
    correct = np.ones((1, 10), bool)
    correct[0, [2, 9]] = False  # the last image of class 0 and of class 2
    write_run(tmp_path, correct, STORED)
    found = {}
    for order in ('stored', 'class', 'random', write_labels(tmp_path), ''):
        flags = [str(tmp_path), '--batch_size=5', *([f'--order={order}'] if order else [])]
        assert exit_code(main, flags) == 0
        shown = capsys.readouterr().out
        found[order[-4:]] = reported(shown)
        assert ('stored class by class' in shown) == (order == '')
        assert 'expected bias' in shown
    # 0.7 * 0.3 * 80 + 0.3 * 80; in the original order both wrong images (positions 7 and 9) are in the last batch
    assert found['ored'] == found['lass'] == '40.80'
    assert found['.npz'] == f'{0.7 * 0.3 * 100 + 0.3 * 60:.2f}'
    assert found[''] == found['ndom']


def test_a_record_is_counted_as_its_run(tmp_path, capsys):
    correct = np.random.default_rng(0).random((3, 40)) < 0.7
    labels = np.repeat([0, 1], [30, 10])
    write_run(tmp_path, correct, labels)
    summary = {'per_class': {'cat': {'correct': 0, 'count': 30}, 'dog': {'correct': 0, 'count': 10}}}
    for source, known in (('folder', True), ('idx', False)):
        path = tmp_path / f'{source}.json'
        Record('arm', 0, 'f' * 64, {'data.source': source}, summary, [], correct).write(path)
        outcomes = read_outcomes(path)
        np.testing.assert_array_equal(outcomes.correct, correct)
        assert outcomes.name == 'arm_seed0' and (outcomes.labels is not None) == known
    np.testing.assert_array_equal(read_outcomes(tmp_path / 'folder.json').labels, labels)
    shown = []
    for run in (tmp_path, tmp_path / 'folder.json'):
        assert exit_code(main, [str(run), f'--plot={tmp_path}/plot.png']) == 0
        shown.append(reported(capsys.readouterr().out))
    assert shown[0] == shown[1] != ''
    path.write_text(json.dumps({}))
    assert exit_code(main, [str(path)]) == 2
