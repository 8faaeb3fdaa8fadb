"""The crossed bootstrap of runs and images against the variance that it must have."""

import numpy as np
import pytest

from pnn_jax import stats
from pnn_jax.errors import InputError


def outcomes_of(rng, runs, images, run_spread, image_spread):
    """Outcomes bool [runs, images] whose chance to be correct differs between runs and between images."""
    chance = 0.7 + run_spread * rng.normal(size=(runs, 1)) + image_spread * rng.normal(size=(1, images))
    return rng.random((runs, images)) < chance


def resampled_variance(outcomes):
    """Variance over draws of the mean of outcomes [runs, images]: of runs, of images, and of what is left.

    With outcomes = mean + a[run] + b[image] + c[run, image], resampling both adds
    mean(a^2) / runs + mean(b^2) / images + mean(c^2) / (runs * images).
    """
    runs, images = outcomes.shape
    of_runs = outcomes.mean(axis=1) - outcomes.mean()
    left = outcomes - outcomes.mean() - of_runs[:, None]
    of_images = left.mean(axis=0)
    left = left - of_images
    return np.mean(of_runs**2) / runs, of_images, np.mean(left**2) / (runs * images)


@pytest.mark.parametrize('run_spread, image_spread', [(0.05, 0.0), (0.002, 0.3)])
def test_the_width_is_that_of_the_variance_decomposition(run_spread, image_spread):
    """In the first case runs matter more, in the second images; both arms see the same drawn images."""
    rng = np.random.default_rng(0)
    both = outcomes_of(rng, 14, 900, run_spread, image_spread)
    first, second = both[:8], both[8:]
    runs_1, images_1, left_1 = resampled_variance(first)
    runs_2, images_2, left_2 = resampled_variance(second)
    variance = runs_1 + runs_2 + left_1 + left_2 + np.mean((images_1 - images_2) ** 2) / 900
    low, high = stats.crossed_bootstrap([first, second], draws=6000)
    # A quantile of 6000 draws is known to about 2%.
    assert high - low == pytest.approx(2 * 1.96 * 100 * variance**0.5, rel=0.06)
    assert (low + high) / 2 == pytest.approx(100 * (first.mean() - second.mean()), abs=0.1 * (high - low))


def test_a_difference_of_differences_is_a_contrast():
    """With one common spread: variance = spread^2 * sum of weight^2 / runs, here worked out by hand."""
    arms = [[3.0, 5.0], [1.0, 1.0], [10.0, 14.0, 12.0], [7.0]]
    value = stats.contrast(arms, [1, -1, -1, 1])
    assert value.estimate == (4 - 1) - (12 - 7)
    assert value.degrees == 4 and value.error == pytest.approx(((2 + 0 + 8) / 4 * (1 / 2 + 1 / 2 + 1 / 3 + 1)) ** 0.5)
    with pytest.raises(InputError, match='3 weights'):
        stats.contrast(arms, [1, -1, 1])
    constant = [np.full((2, 9), value) for value in (True, False, False, True)]
    assert stats.crossed_bootstrap(constant, [1, -1, -1, 1], draws=5) == (200.0, 200.0)


def test_runs_that_agree_on_every_image_have_no_difference():
    one = np.random.default_rng(1).random((1, 50)) < 0.5
    assert stats.crossed_bootstrap([np.repeat(one, 3, axis=0), one]) == (0.0, 0.0)


def test_a_constant_difference_has_no_width():
    assert stats.crossed_bootstrap([np.ones((2, 30), bool), np.zeros((3, 30), bool)], draws=50) == (100.0, 100.0)


def test_the_same_seed_gives_the_same_interval():
    rng = np.random.default_rng(2)
    first, second = rng.random((4, 60)) < 0.6, rng.random((5, 60)) < 0.5
    assert stats.crossed_bootstrap([first, second], seed=3) == stats.crossed_bootstrap([first, second], seed=3)
    narrow, wide = (stats.crossed_bootstrap([first, second], confidence=level) for level in (0.5, 0.99))
    assert wide[0] < narrow[0] < narrow[1] < wide[1]


@pytest.mark.parametrize(
    'first, second, options, names',
    [
        (np.ones((2, 3), bool), np.ones((2, 4), bool), {}, '[2, 4]'),
        (np.ones((2, 3)), np.ones((2, 3), bool), {}, 'float64'),
        (np.ones((0, 3), bool), np.ones((2, 3), bool), {}, '[0, 3]'),
        (np.ones((2, 3), bool), np.ones((2, 3), bool), {'weights': [1]}, '1 weights'),
        (np.ones((2, 3), bool), np.ones((2, 3), bool), {'draws': 0}, 'draws: 0'),
        (np.ones((2, 3), bool), np.ones((2, 3), bool), {'confidence': 1.0}, 'confidence'),
    ],
)
def test_bad_input_is_one_line_that_names_it(first, second, options, names):
    with pytest.raises(InputError) as error:
        stats.crossed_bootstrap([first, second], **options)
    assert names in str(error.value) and '\n' not in str(error.value)
