"""The plots of the report."""

from __future__ import annotations

import numpy as np

from experiments.ablation.records import Record
from experiments.ablation.rows import SWEEPS
from experiments.counting import curves
from experiments.counting.outcomes import shuffled
from experiments.plots import plt
from experiments.report.analysis import Finding, accuracies, collapsed
from experiments.report.study import Study
from pnn_jax.stats import ACCURACY, t_interval

SMOOTHED_BATCH_SIZE = 10  # of the run whose smoothed accuracy the audit compares with the exact one


def accuracy(study: Study) -> plt.Figure:
    """Every row: each run, and mean and interval unless a run collapsed."""
    rows = dict(reversed(study.rows().items()))
    figure, axes = plt.subplots(figsize=(8, 0.36 * len(rows) + 1.2), layout='constrained')
    for position, (row, records) in enumerate(rows.items()):
        values = accuracies(records)
        axes.plot(values, [position] * len(values), '|', color='black', alpha=0.6)
        if len(values) > 1 and not any(map(collapsed, records)):
            low, high = t_interval(values, bounds=ACCURACY)
            mean = np.mean(values)
            colour = 'tab:blue' if row.audit_row else 'tab:green'
            axes.errorbar(mean, position, xerr=[[mean - low], [high - mean]], fmt='o', color=colour, capsize=3)
    axes.set_yticks(range(len(rows)), [row.name for row in rows])
    axes.set(xlabel='test accuracy (%): every run (|), mean and 95% CI')
    axes.grid(axis='x', alpha=0.3)
    return figure


def differences(findings: list[Finding]) -> plt.Figure:
    """Forest plot: every difference with its interval, its runs, and the band of differences that do not matter."""
    figure, axes = plt.subplots(figsize=(8, 0.42 * len(findings) + 1.2), layout='constrained')
    for position, finding in enumerate(reversed(findings)):
        low, high = finding.interval
        estimate, margin = finding.difference.estimate, finding.comparison.margin
        axes.barh(position, 2 * margin, left=-margin, height=0.9, color='tab:green', alpha=0.15)
        runs = np.array(accuracies(finding.first)) - np.mean(accuracies(finding.second))
        axes.plot(runs, [position] * len(runs), '|', color='black', alpha=0.5)
        no_interval = any(map(collapsed, finding.first + finding.second))
        spread = None if no_interval else [[estimate - low], [high - estimate]]
        axes.errorbar(estimate, position, xerr=spread, fmt='o', color='tab:blue', capsize=3)
    axes.axvline(0, color='black', linewidth=0.8)
    names = [f'{finding.comparison.first}\n- {finding.comparison.second}' for finding in reversed(findings)]
    axes.set_yticks(range(len(findings)), names, fontsize='x-small')
    axes.set(xlabel='difference in points, 95% CI; |: runs of the first row; green: too small to matter')
    estimates = [abs(finding.difference.estimate) for finding in findings]
    limit = 1.5 * max(5.0, *estimates)  # the interval of very few runs would flatten all others
    axes.set_xlim(-limit, limit)
    axes.grid(axis='x', alpha=0.3)
    return figure


def learning(study: Study) -> plt.Figure:
    """Exact accuracy of the audit's rows, epoch by epoch."""
    figure, axes = plt.subplots(figsize=(8, 5), layout='constrained')
    rows = {row: records for row, records in study.rows().items() if row.audit_row}
    for colour, (row, records) in zip(plt.cm.tab10.colors, rows.items(), strict=False):
        values = 100 * np.stack([record.correct.mean(axis=1) for record in records])
        epochs = np.arange(1, values.shape[1] + 1)
        axes.plot(epochs, values.mean(axis=0), color=colour, label=row.name)
        axes.fill_between(epochs, values.min(axis=0), values.max(axis=0), color=colour, alpha=0.2)
    axes.set(xlabel='epoch', ylabel='test accuracy (%), mean and range over runs')
    axes.legend(fontsize='small')
    axes.grid(alpha=0.3)
    return figure


def counting(record: Record) -> plt.Figure:
    """One run in every way of counting."""
    counted = curves.recount(shuffled(record.correct), SMOOTHED_BATCH_SIZE)
    return curves.plot_of(counted, SMOOTHED_BATCH_SIZE, f'{record.row}, seed {record.seed}')


def sweeps(study: Study) -> plt.Figure:
    """Accuracy against the noise level and the number of masks, of networks that are otherwise row 7."""
    figure, panels = plt.subplots(1, 2, figsize=(10, 4.2), layout='constrained', sharey=True)
    swept = {
        'model.noise_level': ('grouped_no_noise', 'shared_masks', 'level_'),
        'model.num_masks': ('one_mask', 'shared_masks', 'masks_'),
    }
    for axes, (field, (end, row_7, prefix)) in zip(panels, swept.items(), strict=True):
        points: dict[float, list[float]] = {}
        for record in study.records.values():
            if record.row in (end, row_7) or record.row.startswith(prefix):
                points.setdefault(record.config[field], []).append(100 * record.accuracy)
        at = sorted(points)
        means = np.array([np.mean(points[value]) for value in at])
        intervals = np.array([t_interval(points[value], bounds=ACCURACY) for value in at])
        spread = np.nan_to_num(np.abs(intervals.T - means))
        axes.errorbar(at, means, yerr=spread, marker='o', capsize=3)
        axes.set(xlabel=field.removeprefix('model.').replace('_', ' '))
        axes.grid(alpha=0.3)
    panels[0].set_ylabel('test accuracy (%), mean and 95% CI')
    panels[1].set_xscale('log', base=2)
    panels[1].set_title('a single mask is combined over all channels', fontsize='small')
    return figure


def all_figures(study: Study, findings: list[Finding]) -> dict[str, plt.Figure]:
    """Name -> figure, for what the records allow to draw."""
    figures = {'accuracy': accuracy(study)}
    if findings:
        figures['differences'] = differences(findings)
    if original := study.of_row('original'):
        figures['reported_actual'] = counting(original[0])
    figures['curves'] = learning(study)
    if any(record.row in SWEEPS for record in study.records.values()):
        figures['sweeps'] = sweeps(study)
    return figures
