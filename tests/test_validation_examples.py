"""Runs with validation examples: epochs are evaluated on them, and the test set is read once."""

import dataclasses
import json

import numpy as np
import pytest
from test_train import dataset, tiny_config  # noqa: F401  (a fixture)

from pnn_jax.data import Split
from pnn_jax.errors import InputError
from pnn_jax.run.export import export_run
from pnn_jax.run.load import load_run
from pnn_jax.run.result import describe_epoch
from pnn_jax.run.workdir import Workdir
from pnn_jax.train import train_and_evaluate
from pnn_jax.trainer import Trainer


@pytest.fixture(scope='module')
def with_validation(dataset):  # noqa: F811
    rng = np.random.default_rng(1)
    validation = Split(rng.integers(0, 256, (11, 8, 8, 1), np.uint8), rng.integers(0, 3, 11).astype(np.int32))
    return dataclasses.replace(dataset, validation=validation, digest='with validation')


@pytest.fixture(scope='module')
def finished(tmp_path_factory, with_validation):
    """A finished run: workdir, result, and the splits that it evaluated in order."""
    workdir, splits, evaluate = tmp_path_factory.mktemp('run'), [], Trainer.evaluate

    def spied(trainer, variables, *arguments, split='test'):
        splits.append(split)
        return evaluate(trainer, variables, *arguments, split=split)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, 'evaluate', spied)
        result = train_and_evaluate(tiny_config(), workdir, dataset=with_validation)
        assert (
            train_and_evaluate(tiny_config(), workdir, dataset=with_validation) == result
        )  # finished: nothing is read
    return workdir, result, splits


def test_epochs_are_evaluated_on_validation_examples_and_the_test_set_is_read_once(finished):
    workdir, result, splits = finished
    assert splits == ['validation', 'validation', 'test']
    history = [json.loads(line) for line in (workdir / 'metrics.jsonl').read_text().splitlines()]
    assert [line['validation_count'] for line in history] == [11, 11]
    assert not any(name.startswith('test') for line in history for name in line)
    assert 'validation' in describe_epoch(history[0], 2) and 'test' not in describe_epoch(history[0], 2)
    assert result['final_validation_accuracy'] == history[-1]['validation_accuracy']
    assert result['max_validation_accuracy'] == max(line['validation_accuracy'] for line in history)
    assert not any(name.startswith('max_test') for name in result)
    assert (result['dataset']['validation_examples'], result['dataset']['test_examples']) == (11, 13)
    assert load_run(workdir).accuracy == history[-1]['validation_accuracy']


def test_an_export_names_the_examples_that_its_accuracy_is_of(finished, tmp_path):
    """The data set was given; its config asks for no validation examples."""
    workdir, result, _ = finished
    export_run(workdir, tmp_path / 'exported')
    description = json.loads((tmp_path / 'exported/export.json').read_text())
    assert description['validation_accuracy'] == result['final_validation_accuracy']
    assert 'test_accuracy' not in description


def test_outcomes_of_both_sets_are_kept(finished, with_validation):
    workdir, result, _ = finished
    with np.load(workdir / 'outcomes.npz') as epochs, np.load(workdir / 'test_outcomes.npz') as test:
        assert epochs['correct'].shape == (2, 11)
        np.testing.assert_array_equal(epochs['labels'], with_validation.validation.labels)
        assert test['correct'].sum() == result['final_test_correct']
        np.testing.assert_array_equal(test['labels'], with_validation.test.labels)


def test_validation_examples_do_not_change_what_is_trained(finished, dataset, tmp_path):  # noqa: F811
    plain = train_and_evaluate(tiny_config(), tmp_path, dataset=dataset)
    assert finished[1]['per_class'] == plain['per_class']
    assert finished[1]['final_test_loss'] == plain['final_test_loss']


def test_a_result_that_was_not_written_is_made_from_the_last_checkpoint(finished, with_validation):
    workdir, result, _ = finished
    (workdir / 'result.json').unlink()
    (workdir / 'test_outcomes.npz').unlink()
    again = train_and_evaluate(tiny_config(), workdir, dataset=with_validation)
    assert again['per_class'] == result['per_class'] and (workdir / 'test_outcomes.npz').exists()


def test_epochs_that_were_evaluated_on_other_examples_are_refused(finished, with_validation, dataset):  # noqa: F811
    plain = dataclasses.replace(dataset, digest=with_validation.digest)
    with pytest.raises(InputError, match='evaluated its epochs on other examples than test examples'):
        train_and_evaluate(tiny_config(), finished[0], dataset=plain)


def test_a_cosine_schedule_binds_the_number_of_epochs(tmp_path):
    for name, refused in (('cosine', True), ('milestones', False)):
        config = tiny_config(schedule__name=name)
        with Workdir.open(tmp_path / name, config) as workdir:
            workdir.set_examples(np.arange(3), 'digest')
            workdir.append_epoch({'epoch': 1}, np.ones(3, bool))
        config.num_epochs = 3
        if refused:
            with pytest.raises(InputError, match=r'num_epochs: 2 -> 3 \(the schedule depends on it\)'):
                Workdir.open(tmp_path / name, config)
        else:
            Workdir.open(tmp_path / name, config).close()
