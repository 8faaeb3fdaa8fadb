"""Intervals and tests against published values, scipy's own tests, and simulations with a known truth."""

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from pnn_jax import stats
from pnn_jax.errors import InputError

EXPERIMENTS = 2000  # simulated; the chance of each assertion to fail by bad luck is below 1e-4


def test_wilson_interval_against_published_values():
    # Newcombe (1998), Statistics in Medicine 17:857-872, table I, method 3
    for correct, count, low, high in [
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ]:
        assert stats.wilson_interval(correct, count) == pytest.approx((low, high), abs=5e-5)


@given(st.integers(1, 10_000), st.data(), st.sampled_from([0.9, 0.95, 0.99]))
def test_wilson_interval_solves_its_equation(count, data, confidence):
    """The limits are the p at which (correct / count - p)^2 = z^2 p (1 - p) / count."""
    correct = data.draw(st.integers(0, count))
    z = scipy.stats.norm.ppf((1 + confidence) / 2)
    low, high = stats.wilson_interval(correct, count, confidence)
    assert 0 <= low <= correct / count <= high <= 1
    for limit in (low, high):
        assert (correct / count - limit) ** 2 == pytest.approx(z**2 * limit * (1 - limit) / count, abs=1e-9)


def test_t_interval():
    # mean 2, standard deviation 1, t(.975, 2) = 4.302653
    assert stats.t_interval([1, 2, 3]) == pytest.approx((2 - 4.302653 / 3**0.5, 2 + 4.302653 / 3**0.5))
    assert np.isnan(stats.t_interval([1.0])).all()
    values = [41.2, 43.9, 40.1, 42.0]
    expected = scipy.stats.t.interval(0.9, 3, np.mean(values), scipy.stats.sem(values))
    assert stats.t_interval(values, 0.9) == pytest.approx(expected)


def test_t_interval_stays_within_what_can_be():
    values = [35.0, 10.0, 36.3]  # one collapsed run: uncut, the interval starts below 0
    low, high = stats.t_interval(values)
    assert low < 0 < high
    assert stats.t_interval(values, bounds=stats.ACCURACY) == (0, high)
    assert stats.t_interval([99.9, 99.0, 99.99], bounds=stats.ACCURACY)[1] == 100


@given(st.integers(2, 12), st.integers(2, 12), st.integers(0, 2**32 - 1))
def test_differences_are_those_of_scipy(n_first, n_second, seed):
    rng = np.random.default_rng(seed)
    first, second = rng.normal(90.3, 0.4, n_first), rng.normal(90.0, 1.1, n_second)
    for equal_variances in (True, False):
        ours = stats.difference(first, second, equal_variances=equal_variances)
        theirs = scipy.stats.ttest_ind(first, second, equal_var=equal_variances)
        assert ours.p_value() == pytest.approx(theirs.pvalue)
        assert ours.degrees == pytest.approx(theirs.df)
        assert ours.interval(0.9) == pytest.approx(tuple(theirs.confidence_interval(0.9)))
        one_sided = scipy.stats.ttest_ind(first + 1, second, equal_var=equal_variances, alternative='greater')
        assert ours.noninferiority_p_value(1.0) == pytest.approx(one_sided.pvalue)


def test_spread_pooled_over_further_arms():
    arms = [[1.0, 3.0], [10.0, 12.0, 14.0], [5.0]]
    spread = stats.pooled_spread(arms)
    assert spread == (pytest.approx(((1 + 1 + 4 + 4) / 3) ** 0.5), 3)
    value = stats.difference(arms[1], arms[0], spread=spread)
    assert (value.estimate, value.degrees) == (10, 3)
    assert value.error == pytest.approx(spread.deviation * (1 / 3 + 1 / 2) ** 0.5)
    assert (
        stats.difference(arms[0], arms[1]).interval()
        == stats.difference(arms[0], arms[1], spread=stats.pooled_spread(arms[:2])).interval()
    )


@given(st.floats(-3, 3), st.floats(0.01, 2), st.floats(1, 40), st.floats(0.1, 2))
def test_equivalence_holds_exactly_where_the_90_percent_interval_is_within_the_margin(estimate, error, degrees, margin):
    value = stats.Difference(estimate, error, degrees)
    low, high = value.interval(0.9)
    if min(abs(low + margin), abs(high - margin)) > 1e-6:
        assert (value.equivalence_p_value(margin) < 0.05) == (-margin < low and high < margin)
    assert value.noninferiority_p_value(margin) <= value.equivalence_p_value(margin)


def test_runs_without_any_spread():
    value = stats.difference([50.0, 50.0], [50.0, 50.0])
    assert (value.p_value(), value.equivalence_p_value(1.0), value.interval()) == (1.0, 0.0, (0.0, 0.0))
    assert stats.difference([50.0, 50.0], [51.0, 51.0], equal_variances=False).p_value() == 0.0


def test_holm_by_hand():
    # sorted .01 .02 .03 .04: 4 * .01, max(.04, 3 * .02), max(.06, 2 * .03), max(.06, .04)
    assert stats.holm([0.04, 0.01, 0.03, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert stats.holm([0.6, 0.9]) == [1.0, 1.0] and stats.holm([]) == []


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8), st.floats(0.001, 0.2))
def test_holm_rejects_what_its_stepwise_description_rejects(p_values, level):
    rejected = set()
    for rank, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        if p_values[index] >= level / (len(p_values) - rank):
            break
        rejected.add(index)
    adjusted = stats.holm(p_values)
    if all(abs(value - level) > 1e-9 for value in adjusted):
        assert {index for index, value in enumerate(adjusted) if value < level} == rejected


def test_verdicts():
    assert stats.verdict(0.4, 0.01, 0.01, 12) == 'better'
    assert stats.verdict(-0.4, 0.01, 0.01, 12) == 'worse'
    assert stats.verdict(0.1, 0.3, 0.01, 12) == 'equivalent'
    assert stats.verdict(13.2, 0.26, 0.9, 5) == 'inconclusive'
    assert stats.verdict(13.2, 0.001, 0.9, 4) is None


def simulated_verdicts(effects, runs=12, deviation=0.4, margin=1.0, seed=0):
    """Verdicts [experiments][hypotheses] where the arms' means truly differ by `effects`; Holm over the hypotheses."""
    rng = np.random.default_rng(seed)
    values = rng.normal(size=(EXPERIMENTS, len(effects), 2, runs)) * deviation
    means = values.mean(axis=-1)
    estimates = means[..., 0] - means[..., 1] + np.array(effects)
    errors = np.sqrt(values.var(axis=-1, ddof=1).sum(axis=-1) / runs)
    found = []
    for of_experiment in np.stack([estimates, errors], axis=-1):
        differences = [stats.Difference(estimate, error, 2 * runs - 2) for estimate, error in of_experiment.tolist()]
        p_values = stats.holm([value.p_value() for value in differences])
        equivalence = stats.holm([value.equivalence_p_value(margin) for value in differences])
        columns = zip(differences, p_values, equivalence, strict=True)
        found.append([stats.verdict(value.estimate, p, tost, runs) for value, p, tost in columns])
    return np.array(found)


def test_false_alarms_of_a_family_stay_below_five_percent():
    verdicts = simulated_verdicts([0.0, 0.0])
    false_alarms = np.isin(verdicts, ['better', 'worse']).any(axis=1).mean()
    assert 0.02 < false_alarms < 0.07  # expected .05, three standard errors are .015
    assert (verdicts == 'equivalent').mean() > 0.9


def test_power_at_the_effect_that_twelve_runs_can_detect():
    # Standard deviation .4, 12 + 12 runs: .48 points are found in 80% of experiments.
    power = (simulated_verdicts([0.48]) == 'better').mean()
    assert power == pytest.approx(0.8, abs=0.035)


def test_equivalence_is_rarely_claimed_at_the_margin():
    for effect in (1.0, -1.0):
        value = simulated_verdicts([effect])
        assert (value == 'equivalent').mean() < 0.05
        assert (value == ('better' if effect > 0 else 'worse')).mean() > 0.99
    # A wide spread hides a difference; it must not be called equivalent.
    assert (simulated_verdicts([1.0], runs=5, deviation=2.0) == 'equivalent').mean() < 0.07


def test_intervals_cover_the_truth():
    rng = np.random.default_rng(1)
    covered = 0
    for _ in range(EXPERIMENTS):
        low, high = stats.difference(rng.normal(90.5, 0.4, 5), rng.normal(90, 0.4, 8)).interval()
        covered += low < 0.5 < high
    assert covered / EXPERIMENTS == pytest.approx(0.95, abs=0.02)


def test_disagreement_counts_examples_that_one_model_gets_right():
    first = np.array([True] * 60 + [True] * 15 + [False] * 5 + [False] * 20)
    second = np.array([True] * 60 + [False] * 15 + [True] * 5 + [False] * 20)
    assert stats.disagreement(first, second) == pytest.approx(20.0)
    assert stats.disagreement(first, first) == 0.0


def test_p_values_are_never_shown_as_0():
    assert stats.format_p_value(0.03125) == '0.031'
    assert stats.format_p_value(2.34e-13) == '2.3e-13'
    assert stats.format_p_value(0.0) == '< 1e-300'


@pytest.mark.parametrize(
    'call, names',
    [
        (lambda: stats.wilson_interval(3, 2), 'correct'),
        (lambda: stats.wilson_interval(0, 0), 'count'),
        (lambda: stats.wilson_interval(1, 2, 95), 'confidence'),
        (lambda: stats.t_interval([1.0, 2.0], 95), 'confidence'),
        (lambda: stats.difference([], [1.0]), '0 and 1'),
        (lambda: stats.difference([1.0], [1.0]), '1, 1'),
        (lambda: stats.difference([1.0], [1.0, 2.0], equal_variances=False), '1 and 2'),
        (lambda: stats.Difference(0.0, 1.0, 3).equivalence_p_value(0.0), 'margin'),
        (lambda: stats.Difference(0.0, 1.0, 3).noninferiority_p_value(-1.0), 'margin'),
        (lambda: stats.disagreement(np.ones(3, bool), np.ones(4, bool)), '[3]'),
    ],
)
def test_bad_input_is_one_line_that_names_it(call, names):
    with pytest.raises(InputError) as error:
        call()
    assert names in str(error.value) and '\n' not in str(error.value)
