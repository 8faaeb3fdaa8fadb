"""Every historical estimator against answers worked out by hand; the simulations against independent figures."""

import numpy as np
import pytest

from pnn_jax import accounting
from pnn_jax.errors import InputError


def outcomes_of(*batches: tuple[int, int]) -> np.ndarray:
    """Outcomes of consecutive batches, each given as (correct, size), the wrong ones first."""
    return np.concatenate([np.arange(size) >= size - correct for correct, size in batches])


def test_exact_accuracy_counts_every_example_once():
    assert accounting.exact_accuracy(outcomes_of((16, 16), (0, 4))) == 80.0
    np.testing.assert_array_equal(accounting.exact_accuracy(np.array([[True, False], [True, True]])), [50, 100])


def test_floored_batch_accuracy_truncates_each_batch():
    assert accounting.floored_batch_accuracy(outcomes_of((15, 16)), 16) == 93
    assert accounting.floored_batch_accuracy(outcomes_of((13, 16)), 16) == 81
    # main.py of the audit on PyTorch 1.0.0, 40 examples, batches of 16: printed 10.00 where 5 of 40 is 12.5
    batches = outcomes_of((1, 16), (2, 16), (2, 8))
    assert accounting.floored_batch_accuracy(batches, 16) == 10
    assert accounting.mean_batch_accuracy(batches, 16) == pytest.approx(500 / 48)
    assert accounting.exact_accuracy(batches) == 12.5


@pytest.mark.parametrize('batch_size', [10, 20, 100])
def test_flooring_costs_nothing_where_the_batch_size_divides_100(batch_size):
    outcomes = np.random.default_rng(0).random(1000) < 0.859
    assert accounting.floored_batch_accuracy(outcomes, batch_size) == pytest.approx(accounting.exact_accuracy(outcomes))


def test_mean_batch_accuracy_of_a_perfect_model():
    perfect = np.ones(10_000, bool)
    assert accounting.mean_batch_accuracy(perfect, 64) == pytest.approx(100 * 10_000 / (64 * 157))
    assert round(float(accounting.mean_batch_accuracy(perfect, 64)), 2) == 99.52
    assert round(float(accounting.mean_batch_accuracy(perfect, 128)), 2) == 98.89
    assert accounting.mean_batch_accuracy(perfect, 16) == 100


def test_smoothed_accuracy_by_hand():
    # 0 -> 0.3*100 = 30 -> 0.7*30 + 0.3*50 = 36; the partial batch of 3 is skipped
    epoch = outcomes_of((4, 4), (2, 4), (3, 3))
    assert accounting.smoothed_accuracy(epoch, 4) == pytest.approx(36)
    # The second epoch starts from 36: 0.7*36 + 0 = 25.2 -> 0.7*25.2 + 30 = 47.64
    second = outcomes_of((0, 4), (4, 4), (0, 3))
    both = np.stack([epoch, second])
    np.testing.assert_allclose(accounting.smoothed_accuracy(both, 4), [36, 47.64])
    assert accounting.reported_accuracy(both, 4) == pytest.approx(47.64)
    assert accounting.reported_accuracy(both[::-1], 4) == pytest.approx(0.49 * 30 + 0.7 * 30 + 15)


def test_smoothed_accuracy_equals_the_loop_that_it_stands_for():
    outcomes = np.random.default_rng(1).random((2, 3, 107)) < 0.7
    for run in range(2):
        value, expected = 0.0, []
        for epoch in outcomes[run]:
            for start in range(0, 100, 10):
                value = 0.7 * value + 0.3 * 10 * epoch[start : start + 10].sum()
            expected.append(value)
        np.testing.assert_allclose(accounting.smoothed_accuracy(outcomes, 10)[run], expected)
        assert accounting.reported_accuracy(outcomes, 10)[run] == pytest.approx(max(expected))


def test_smoothed_accuracy_depends_on_the_order_of_the_examples():
    good_end = outcomes_of((0, 50), (50, 50))
    assert accounting.smoothed_accuracy(good_end, 10) > 80
    assert accounting.smoothed_accuracy(good_end[::-1], 10) < 20


def test_flooring_undone():
    assert accounting.flooring_bias(85.5, 16) == pytest.approx(-0.41, abs=0.005)
    assert accounting.flooring_bias(72.6, 16) == pytest.approx(-0.37, abs=0.005)
    assert accounting.flooring_bias(85.9, 10) == pytest.approx(0, abs=1e-9)
    assert accounting.undo_flooring(85.5, 16) == pytest.approx(85.91, abs=0.01)
    outcomes = np.random.default_rng(0).random((200, 10_000)) < 0.859117
    assert accounting.floored_batch_accuracy(outcomes, 16).mean() == pytest.approx(85.5, abs=0.1)


@pytest.mark.parametrize('correlation, churn', [(0, 24.3), (0.8, 11.2), (0.95, 5.6), (0.99, 2.6), (1, 0)])
def test_simulated_outcomes_flip_as_often_as_the_reference_simulation(correlation, churn):
    outcomes = accounting.simulate_outcomes(np.random.default_rng(0), 85.9, 2, 200_000, correlation)
    assert 100 * (outcomes[0] != outcomes[1]).mean() == pytest.approx(churn, abs=0.25)
    assert 100 * outcomes.mean() == pytest.approx(85.9, abs=0.3)


@pytest.mark.parametrize(
    'correlation, epochs, batch_size, mean, deviation',
    [
        (0.95, 1, 10, 85.9, 4.62),
        (0.95, 50, 10, 90.4, None),
        (0.95, 150, 10, 91.2, 3.6),
        (0.8, 150, 10, 93.3, 2.8),
        (0.0, 150, 10, 96.1, 1.0),
        (0.95, 150, 20, 89.8, None),
        (0.95, 150, 100, 87.7, None),
    ],
)
def test_simulated_reports_agree_with_the_reference_simulation(correlation, epochs, batch_size, mean, deviation):
    runs = 400
    reports = accounting.simulate_reports(85.9, batch_size, epochs, correlation, runs=runs, examples=40 * batch_size)[
        'smoothed_accuracy'
    ][:, -1]
    standard_error = reports.std() / runs**0.5
    assert reports.mean() == pytest.approx(mean, abs=3.5 * standard_error + 0.1)  # the figures have one decimal
    if deviation is not None:
        assert reports.std() == pytest.approx(deviation, rel=0.15)


def test_simulated_estimators_that_use_every_example_are_nearly_unbiased():
    reports = accounting.simulate_reports(85.9, 16, 1, 0.95, runs=50)
    assert reports['exact_accuracy'].mean() == pytest.approx(85.9, abs=0.2)
    assert (reports['floored_batch_accuracy'] - reports['exact_accuracy']).mean() == pytest.approx(-0.41, abs=0.02)


@pytest.mark.parametrize(
    'call, names',
    [
        (lambda: accounting.exact_accuracy(np.array([1, 0])), 'bool'),
        (lambda: accounting.exact_accuracy(np.zeros((2, 0), bool)), 'outcomes'),
        (lambda: accounting.mean_batch_accuracy(np.ones(4, bool), 0), 'batch_size'),
        (lambda: accounting.smoothed_accuracy(np.ones(4, bool), 5), 'no full batch'),
    ],
)
def test_bad_input_is_one_line_that_names_it(call, names):
    with pytest.raises(InputError) as error:
        call()
    assert names in str(error.value) and '\n' not in str(error.value)
