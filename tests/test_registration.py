"""Grids: what a file may say, the runs that follow from it, and the blinded look."""

import dataclasses
import hashlib
import re

import numpy as np
import pytest

from experiments.ablation import registration, runs
from experiments.ablation.records import Record
from experiments.ablation.registration import GRIDS, Look, read_grid
from pnn_jax.errors import InputError
from pnn_jax.stats import MIN_RUNS

FASHION = (GRIDS / 'fashion_mnist.toml').read_text()


def read(text: str, tmp_path):
    path = tmp_path / 'grid.toml'
    path.write_text(text)
    return read_grid(path)


def test_the_digest_is_that_of_the_bytes_of_the_file(tmp_path):
    grid = read(FASHION, tmp_path)
    assert grid.sha256 == hashlib.sha256(FASHION.encode()).hexdigest() == read_grid('fashion_mnist').sha256
    assert grid.name == 'grid' and grid.path == tmp_path / 'grid.toml'
    assert read(FASHION + '# a remark\n', tmp_path).sha256 != grid.sha256


def test_what_a_grid_says_is_read():
    grid = read_grid('fashion_mnist')
    sizes = {arm.name: arm.runs for arm in grid.arms}
    assert (sizes['no_noise'], sizes['one_mask'], sizes['flat_mask'], sizes['conv3x3']) == (12, 12, 6, 6)
    assert grid.changes['data.mean'] == [0.2190] and grid.changes['data.pad'] == 32
    assert grid.arm('level_2').changes == {'model.noise_level': 2.0}
    primary = [(item.first, item.second, item.kind, item.margin) for item in grid.comparisons if item.primary]
    assert primary == [('one_mask', 'no_noise', 'difference', 1.0), ('one_mask', 'conv3x3', 'non_inferiority', 1.0)]
    assert grid.look == Look(6, 0.55, 16, ('no_noise', 'one_mask'))
    assert (grid.collapse.train_minus_eval, grid.collapse.loss, grid.analysis.confidence) == (10.0, 10.0, 0.95)
    assert 'level_2' not in grid.pooled_arms and 'shift' in grid.pooled_arms
    assert grid.blind and read_grid('fashion_mnist_rates').blind and not read_grid('smoke').blind


def test_every_arm_that_is_compared_in_a_registration_has_enough_runs_for_a_verdict():
    registrations = [grid for grid in map(read_grid, registration.grid_names()) if grid.registration]
    assert {grid.name for grid in registrations} == {'fashion_mnist', 'cifar10_jpeg', 'cifar10_gpu'}
    for grid in registrations:
        for comparison in grid.comparisons:
            assert all(grid.arm(name).runs >= MIN_RUNS for name in comparison.arms)


def test_a_rate_search_has_an_arm_for_each_rate():
    grid = read_grid('cifar10_gpu_rates')
    of_mask = [arm for arm in grid.arms if arm.searched == 'one_mask']
    assert [(arm.name, arm.learning_rate) for arm in of_mask] == [
        ('one_mask_rate0.05', 0.05),
        ('one_mask_rate0.1', 0.1),
        ('one_mask_rate0.2', 0.2),
        ('one_mask_rate0.4', 0.4),
    ]


@pytest.mark.parametrize('name', [name for name in registration.grid_names() if name.endswith('_rates')])
def test_a_rate_search_trains_the_networks_of_its_registration(name):
    """In all fields but the length of the run; and every arm of the registration has a search."""
    search, grid = read_grid(name), read_grid(name.removesuffix('_rates'))
    assert grid.rates_from == name
    free = {'num_epochs', 'schedule.warmup_epochs'}
    pick = lambda changes: {field: value for field, value in changes.items() if field not in free}
    assert pick(search.changes) == pick(grid.changes)
    seeds = lambda grid: {seed for run in runs.runs_of(grid) for seed in (run.seed, run.mask_seed)}
    assert not seeds(search) & seeds(grid)
    searched = {(arm.searched, arm.row) for arm in search.arms}
    for arm in grid.arms:
        assert (arm.name, arm.row) in searched or (arm.row, arm.row) in searched


@pytest.mark.parametrize(
    'change, names',
    [
        (("first = 'one_mask'", "first = 'one_musk'"), "'one_musk' is not one of no_noise, one_mask"),
        (('margin = 1.0', 'margin = 0'), 'margin = 0.0 must be a number above 0'),
        (('margin = 1.0', 'margin = "1"'), "margin = '1': must be a number"),
        (('margin = 1.0', 'margins = 1.0'), "'margins' is not one of question, first, second"),
        (("row = 'shift'", "row = 'shuft'"), "row = 'shuft' is not one of baseline"),
        (("row = 'shift'", "name = 'shift'"), "'row' is missing"),
        (("'flat_mask'\nruns = 6", "'flat_mask'\nruns = 8.5"), 'runs = 8.5: must be a whole number'),
        (("'flat_mask'\nruns = 6", "'flat_mask'\nruns = true"), 'runs = True: must be a whole number'),
        (("'flat_mask'\nruns = 6", "'flat_mask'\nruns = 0"), 'arm flat_mask: runs = 0 must be 1 or more'),
        (
            ("'flat_mask'\nruns = 6", "'flat_mask'\nruns = 4"),
            'arm flat_mask must not be exploratory, and needs 5 runs or more; it has 4',
        ),
        (("reference = 'no_noise'", "reference = 'none'"), "reference: 'none' is not one of"),
        (("match = 'no_noise'", "match = 'conv3x3'"), "match: 'conv3x3' is not one of no_noise, one_mask"),
        (("kind = 'non_inferiority'", "kind = 'better'"), "kind = 'better' is not one of difference"),
        (
            ("versus = ['one_mask_cropped', 'no_noise_cropped']\n", ''),
            'versus = [] must be two arms for an interaction',
        ),
        (('learning_rate = 0.2', "learning_rate = 'high'"), "learning_rate = 'high' must be a number"),
        (('learning_rate = 0.2', 'learning_rate = -1'), 'learning_rate = -1.0 must be a number above 0'),
        (('after = 6', 'after = 13'), 'look: arm no_noise has 12 runs; it must be from after = 13 to runs = 16'),
        (('confidence = 0.95', 'confidence = 0.9'), 'confidence = 0.9 must be 0.95'),
        (('level = 0.05', 'level = 5'), 'level = 5.0 must be above 0'),
        (('bootstrap_draws = 10000', 'bootstrap_draws = 0'), 'bootstrap_draws = 0 must be 1 or more'),
        (('bootstrap_seed = 0', 'bootstrap_seed = -1'), 'bootstrap_seed = -1 must be 0 or more'),
        (('loss = 10.0', 'loss = nan'), 'collapse: loss = nan must be a number above 0'),
        (('pooled_sd_above = 0.55', 'pooled_sd_above = nan'), 'pooled_sd_above = nan must be a number above 0'),
        (
            ("'one_mask_cropped', 'no_noise_cropped'", "'one_mask_cropped', 'no_noise'"),
            'no_noise is compared with itself',
        ),
        (("spread = 'pooled'", "spread = 'all'"), "spread = 'all' must be 'pooled' or 'pair'"),
        (("name = 'level_1'", "name = 'level_2'"), "two arms have the name 'level_2'"),
        (("name = 'level_1'", "name = '../level_1'"), 'a name has only letters'),
        (('hypotheses = [', 'x = ['), "'x' is not one of what, reference"),
        (('registration = true', 'registration = true\nsha256 = "0"'), "'sha256' is not one of"),
        (('registration = true', 'registration true'), 'is not a TOML file'),
        (('primary = true', 'primary = false'), 'needs a comparison with primary = true'),
    ],
)
def test_a_grid_that_is_wrong_is_one_line(change, names, tmp_path):
    before, after = change
    assert before in FASHION
    changed = FASHION.replace(before, after) if before == 'primary = true' else FASHION.replace(before, after, 1)
    with pytest.raises(InputError) as error:
        read(changed, tmp_path)
    assert names in str(error.value) and 'grid.toml' in str(error.value) and '\n' not in str(error.value)


def test_two_equal_comparisons_are_refused(tmp_path):
    block = re.search(r'\[\[comparisons\]\]\nquestion = .S1.*?\n\n', FASHION, re.DOTALL).group()
    with pytest.raises(InputError, match='one_mask and flat_mask are compared twice'):
        read(FASHION.replace(block, block * 2), tmp_path)


def test_a_grid_that_is_not_there_is_one_line(tmp_path):
    for name, what in (('fashion', 'must be one of audit'), (tmp_path / 'no.toml', 'No such file'), ('/', 'must be')):
        with pytest.raises(InputError, match=what):
            read_grid(name)


# --- the blinded look -------------------------------------------------------------------------------------------------


def make_records(grid, accuracies: dict[str, list[float]]) -> dict[str, Record]:
    """Records with these accuracies in percent, by run."""
    return {
        f'{name}_seed{seed}': Record(name, seed, grid.sha256, {}, {'final_test_accuracy': value / 100}, [], None)
        for name, values in accuracies.items()
        for seed, value in enumerate(values)
    }


def test_the_look_sees_the_spread_of_the_first_runs_alone():
    grid = read_grid('fashion_mnist')
    quiet, loud = [89, 90, 89, 90, 89, 90], [88, 90, 88, 90, 88, 90]
    look = runs.take_look(grid, make_records(grid, {'no_noise': quiet, 'one_mask': quiet}))
    assert look.runs == 0
    np.testing.assert_allclose(look.deviation, np.sqrt(0.3))  # 6 * 0.25 / 5
    for shift in (0, 30):  # the difference between the arms does not matter
        shifted = [value - shift for value in loud]
        look = runs.take_look(grid, make_records(grid, {'no_noise': loud, 'one_mask': shifted}))
        assert look.runs == 16
        np.testing.assert_allclose(look.deviation, np.sqrt(1.2))
    with_more = make_records(grid, {'no_noise': [*quiet, 0, 100], 'one_mask': quiet, 'shift': [1, 99]})
    assert runs.take_look(grid, with_more).runs == 0
    assert runs.take_look(grid, make_records(grid, {'no_noise': loud, 'one_mask': loud[:5]})) is None
    assert runs.take_look(dataclasses.replace(grid, look=None), with_more) is None


def test_the_look_adds_runs_at_the_end():
    grid = read_grid('fashion_mnist')
    planned = runs.runs_of(grid)
    assert runs.runs_of(grid, runs.LookResult(0.4, 0)) == planned and len(planned) == sum(a.runs for a in grid.arms)
    more = runs.runs_of(grid, runs.LookResult(0.6, 16))
    assert more[: len(planned)] == planned
    assert [run.name for run in more[len(planned) :]] == [
        f'{arm}_seed{seed}' for arm in ('no_noise', 'one_mask') for seed in (12, 13, 14, 15)
    ]
    assert {run.mask_seed - run.seed for run in more} == {1000}
