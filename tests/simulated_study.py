"""Simulated records of a grid: runs whose true accuracy is known, on images of which some are harder than others."""

import dataclasses

import numpy as np

from experiments.ablation.records import Record
from experiments.ablation.registration import Grid, read_grid
from experiments.probes.position import ReadOut
from experiments.probes.results import DEFAULTS, Count, ProbedRun, Probes
from experiments.report.study import Study
from pnn_jax import accounting

CODE = 'c' * 64
# True accuracies in percent; every arm that is not named has that of the reference.
ACCURACIES = {'no_noise': 88.9, 'flat_mask': 88.9, 'ramp_mask': 89.4, 'shift': 91.5, 'one_random_filter': 91.0}
ACCURACIES |= {'one_mask': 89.5, 'conv3x3': 92.0, 'one_mask_cropped': 88.9, 'no_noise_cropped': 88.7}


def simulated_record(grid: Grid, arm: str, run: int, accuracy: float, *, examples: int, epochs: int) -> Record:
    """A run whose accuracy grows to `accuracy` (percent) in the last epoch."""
    rng = np.random.default_rng([sum(map(ord, arm)), run])
    difficulty = np.random.default_rng(0).standard_normal(examples)  # of the images, the same for all runs
    curve = accuracy - 12 * np.exp(-np.arange(epochs) / 2) * (epochs > 1)
    luck = 0.8 * difficulty + 0.6 * rng.standard_normal((epochs, examples))
    # The easiest images are correct, as many as the accuracy says.
    order = luck.argsort(axis=1).argsort(axis=1)
    correct = order < np.round(curve / 100 * examples)[:, None]
    exact = accounting.exact_accuracy(correct) / 100
    history = [
        {'epoch': epoch + 1, 'train_accuracy': float(value), 'validation_accuracy': float(value)}
        for epoch, value in enumerate(exact)
    ]
    summary = {
        'final_test_accuracy': float(exact[-1]),
        'final_test_correct': int(correct[-1].sum()),
        'final_test_count': examples,
        'final_test_loss': 0.4,
        'nonfinite': 0,
        'train_mode_accuracy': float(exact[-1]) + 0.002,
        'recalibrated_accuracy': float(exact[-1]) + 0.001,
        'weights_sha256': 'w' * 64,
        'parameters': {'trained': 56_000 + 100 * ('3x3' in arm), 'masks': 30_000 * ('mask' in arm)},
        'dataset': {'digest': 'd' * 64, 'test_examples': examples},
        'per_class': {},
        'code': {'version': '0.1.0', 'sha256': CODE, 'commit': None, 'clean': None},
    }
    config = {'model.trainable_masks': False, 'data.source': 'idx', 'seed': run}
    config['optimizer.learning_rate'] = grid.arm(arm).learning_rate
    return Record(arm, run, grid.sha256, config, summary, history, correct)


def simulated_study(
    name: str = 'fashion_mnist', *, deviation: float = 0.4, examples: int = 400, epochs: int = 3, draws: int = 100
) -> Study:
    """All runs of a grid, with `deviation` points between the runs of an arm."""
    grid = read_grid(name)
    grid = dataclasses.replace(grid, analysis=dataclasses.replace(grid.analysis, bootstrap_draws=draws))
    arms = {}
    for arm in grid.arms:
        rng = np.random.default_rng(sum(map(ord, arm.name)))
        truth = ACCURACIES.get(arm.name, ACCURACIES['one_mask'])
        values = truth + deviation * rng.standard_normal(arm.runs)
        arms[arm.name] = [
            simulated_record(grid, arm.name, run, value, examples=examples, epochs=epochs)
            for run, value in enumerate(values)
        ]
    return Study(grid, arms)


# What each change costs, in points: with masks that matter, and without masks.
LOSSES = {'other masks': (30, None), 'masks zeroed': (35, None), 'tiles permuted': (28, 0), 'moved by 1 pixel': (3, 1)}
LOSSES |= {'moved by 4 pixels': (20, 9), 'moved by 8 pixels': (29, 0)}


def simulated_probes(study: Study) -> Probes:
    """Probes of all runs of the arms that are not exploratory."""
    runs = {}
    for name in study.grid.pooled_arms:
        for record in study.arms.get(name, ()):
            rng = np.random.default_rng(record.seed)
            masks = 'mask' in name
            trained, examples = record.summary['final_test_correct'], record.summary['final_test_count']
            counts = [Count('as trained', 0, norm, trained, examples) for norm in ('stored', 'recalibrated')]
            for change, losses in LOSSES.items():
                if (loss := losses[not masks]) is None:
                    continue
                for norm, share in (('stored', 1.0), ('recalibrated', 0.6)):
                    for draw in range(2):
                        lost = (share * loss + 0.2 * rng.standard_normal()) * examples / 100
                        counts.append(Count(change, draw, norm, trained - round(lost), examples))
            position = [
                ReadOut(map_name, int(1600 * (0.2 + 0.1 * index + 0.3 * masks)), 1600, 16)
                for index, map_name in enumerate(
                    ('stem', 'stage1_block2', 'stage2_block2', 'stage3_block2', 'stage4_block2')
                )
            ]
            runs[f'{name}_seed{record.seed}'] = ProbedRun('d' * 64, 'w' * 64, counts, position)
    return Probes({'sha256': CODE}, dict(DEFAULTS), runs)
