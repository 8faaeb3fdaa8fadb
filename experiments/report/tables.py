"""The tables of the report, as pandas frames of text."""

from __future__ import annotations

import numpy as np
import pandas as pd

from experiments.ablation.records import Record
from experiments.counting.curves import expected_reports, label_of, recount
from experiments.probes.results import BATCH_NORMS, TRAINED, Probes
from experiments.published import AUDIT_ROWS, REPLICATIONS
from experiments.report.analysis import Finding, accuracies, collapsed_arms, signed, spread_for, values_of
from experiments.report.study import Study, is_collapsed
from pnn_jax.stats import ACCURACY, contrast, format_p_value, t_interval

AUDIT = {row.number: row for row in AUDIT_ROWS}


def arms_table(study: Study) -> pd.DataFrame:
    """Every arm: its size and its accuracy over runs."""
    lines = []
    for name, records in study.arms.items():
        arm = study.grid.arm(name)
        lines.append(
            {
                'arm': label_of_arm(study, name),
                'what': arm.what,
                'weights': f'{records[0].weights:,}',
                'stored mask values': f'{records[0].masks:,}',
                'rate': f'{records[0].config["optimizer.learning_rate"]:g}',
                'runs': str(len(records)),
                'accuracy (%)': f'{np.mean(accuracies(records)):.2f}',
                'sd and 95% CI, or each run': _spread(study, records),
            }
        )
    return pd.DataFrame(lines)


def label_of_arm(study: Study, name: str) -> str:
    """The name of an arm, marked where no hypothesis is about it."""
    return f'`{name}`' + (' (exploratory)' if study.grid.arm(name).exploratory else '')


def _spread(study: Study, records: list[Record]) -> str:
    """Standard deviation and t interval; every single value where a run collapsed, because no interval fits then."""
    values = accuracies(records)
    each = ', '.join(f'{value:.2f}' for value in values)
    if count := sum(is_collapsed(record, study.grid.collapse) for record in records):
        return f'{count} of {len(records)} collapsed: {each}'
    if len(values) < 3:
        return each
    low, high = t_interval(values, study.grid.analysis.confidence, bounds=ACCURACY)
    return f'{np.std(values, ddof=1):.2f}; {low:.2f} to {high:.2f}'


def comparisons_table(found: list[Finding]) -> pd.DataFrame:
    """Differences between arms, with their verdicts."""
    return pd.DataFrame(
        {
            'question': finding.comparison.question,
            'arms': _arms_of(finding),
            'runs': ' + '.join(str(len(records)) for records in finding.arms),
            'weights': f'{signed(100 * _weights_ratio(finding), 1)}%',
            'points': signed(finding.estimate),
            '95% CI': finding.interval_text,
            'p (Holm)': _p_value(finding, finding.judgement.p_value),
            'p of the margin (Holm)': _p_value(finding, finding.judgement.margin_p_value),
            'verdict': finding.judgement.verdict_text,
        }
        for finding in found
    )


def robustness_table(found: list[Finding]) -> pd.DataFrame:
    """How the differences look in other ways of looking at them."""
    return pd.DataFrame(
        {
            'arms': _arms_of(finding),
            'points': signed(finding.estimate),
            'bootstrap of runs and images, 95%': f'{signed(finding.bootstrap[0])} to {signed(finding.bootstrap[1])}',
            'batch norm recalibrated': _sensitivity(finding),
            'images that differ between arms (%)': f'{finding.between:.1f}',
            'within an arm (%)': f'{finding.within:.1f}',
        }
        for finding in found
    )


def _arms_of(finding: Finding) -> str:
    first, second, *versus = (f'`{name}`' for name in finding.comparison.arms)
    return f'({first} - {second}) - ({versus[0]} - {versus[1]})' if versus else f'{first} - {second}'


def _sensitivity(finding: Finding) -> str:
    if finding.sensitivity is None:
        return 'not recorded'
    return f'{signed(finding.sensitivity.difference.estimate)}; {finding.sensitivity.verdict_text}'


def _p_value(finding: Finding, value: float) -> str:
    """Nothing where there is no verdict, so that nobody reads one into it."""
    return '' if finding.judgement.verdict is None else format_p_value(value)


def _weights_ratio(finding: Finding) -> float:
    """How many more weights the first arm has, as a fraction of those of the second."""
    return finding.arms[0][0].weights / finding.arms[1][0].weights - 1


def readme_table(found: list[Finding], most: int = 8) -> pd.DataFrame:
    """The comparisons in short, primary ones first."""
    ordered = sorted(found, key=lambda finding: not finding.comparison.primary)[:most]
    return comparisons_table(ordered)[['question', 'runs', 'points', '95% CI', 'verdict']]


def gaps_table(study: Study) -> pd.DataFrame:
    """The distance of the audit's rows from its row without noise, beside ours from our own reference.

    Raw accuracies are of different data and networks, so they are never set beside each other.
    """
    rows = audit_arms(study)
    reference_row = study.grid.arm(study.grid.reference).network.audit_row
    lines = []
    for row in AUDIT_ROWS:
        if row.number not in rows:
            continue
        published = row.accuracy - AUDIT[reference_row].accuracy
        name = rows[row.number]
        arms, values = (name, study.grid.reference), values_of(study)
        collapsed = collapsed_arms(study)
        spread = spread_for(study.grid, values, collapsed, arms)
        difference = contrast([values[arm] for arm in arms], [1, -1], spread=spread)
        low, high = difference.interval(study.grid.analysis.confidence, bounds=(-100, 100))
        interval = f'{signed(low)} to {signed(high)}' if collapsed.isdisjoint(arms) else 'runs collapsed'
        ours = f'{signed(difference.estimate)} ({interval})'
        lines.append((f'{row.number}: {row.what}', f'{published:+.1f}', f'`{name}`', ours))
    return pd.DataFrame(
        lines,
        columns=[
            'row of the audit',
            'audit: minus its row without noise',
            'our arm',
            f'ours: minus `{study.grid.reference}`',
        ],
    )


def audit_arms(study: Study) -> dict[int, str]:
    """Number of a row of the audit -> our arm with its network, for all but the reference.

    Of several arms of one network it is the first. Empty where the reference is not compared or is no row of the audit.
    """
    reference = study.grid.arm(study.grid.reference).network.audit_row
    if study.grid.reference not in study.compared or reference not in AUDIT:
        return {}
    found: dict[int, str] = {}
    for name in study.compared:
        number = study.grid.arm(name).network.audit_row
        if number and number != reference:
            found.setdefault(number, name)
    return found


def counting_table(correct: np.ndarray, batch_size: int, orders: int) -> pd.DataFrame:
    """What every way of counting reports for the same predictions: in the stored order, and over random orders."""
    expected = expected_reports(correct, batch_size, orders)
    return pd.DataFrame(
        {
            'counted': label_of(estimator),
            'last epoch (%)': f'{curve[-1]:.2f}',
            'best epoch (%)': f'{curve.max():.2f}',
            'expected best epoch (%)': f'{expected[estimator].mean:.2f} +- {expected[estimator].deviation:.2f}',
            'expected bias (points)': signed(expected[estimator].bias),
        }
        for estimator, curve in recount(correct, batch_size).items()
    )


def probes_table(study: Study, probes: Probes) -> pd.DataFrame:
    """Points of accuracy that every change costs, mean over runs: batch norm as stored / recalibrated."""
    lines = []
    for name in probed_arms(study, probes):
        line = {'arm': label_of_arm(study, name), 'runs': str(len(probes.of_arm(name)))}
        for change in probes.changes:
            losses = losses_of(study, probes, name, change)
            line[change] = ' / '.join(_mean_and_half_width(losses[norm]) for norm in BATCH_NORMS if losses[norm])
        lines.append(line)
    return pd.DataFrame(lines)


def position_table(study: Study, probes: Probes) -> pd.DataFrame:
    """How often the tile is named correctly from the features at one position, in percent."""
    lines = []
    for name in probed_arms(study, probes):
        runs = probes.of_arm(name)
        line = {
            'arm': label_of_arm(study, name),
            'runs': str(len(runs)),
            'chance': f'{100 / runs[0].position[0].tiles:.1f}',
        }
        for index, one in enumerate(runs[0].position):
            values = [100 * run.position[index].correct / run.position[index].count for run in runs]
            line[one.map.partition('_')[0]] = _mean_and_half_width(values)
        lines.append(line)
    return pd.DataFrame(lines)


def probed_arms(study: Study, probes: Probes) -> list[str]:
    """Names of the arms with probed runs, in the order of the grid."""
    return [name for name in study.arms if probes.of_arm(name)]


def losses_of(study: Study, probes: Probes, arm: str, change: str) -> dict[str, list[float]]:
    """Batch norm -> points of accuracy that every run of an arm loses by a change; none where it was not probed.

    With recalibrated batch norms, the unchanged network is recalibrated too.
    """
    runs = probes.of_arm(arm)
    lost = {norm: [run.accuracy(TRAINED, norm) - run.accuracy(change, norm) for run in runs] for norm in BATCH_NORMS}
    return {norm: [value for value in values if not np.isnan(value)] for norm, values in lost.items()}


def _mean_and_half_width(values: list[float]) -> str:
    """'30.1 +- 0.4', the mean and the half-width of its 95% interval; of one run, its value."""
    mean = f'{round(float(np.mean(values)), 1) + 0.0:.1f}'
    if len(values) < 2:
        return mean
    low, high = t_interval(values)
    return f'{mean} +- {(high - low) / 2:.1f}'


def published_table() -> pd.DataFrame:
    """What others published for CIFAR-10."""
    lines = []
    for row in AUDIT_ROWS:
        differs = round(row.inferred, 1) != row.accuracy
        accuracy = f'{row.accuracy:.1f}' + (f'; integer division undone about {row.inferred:.1f}' if differs else '')
        lines.append((f'row {row.number}: {row.what}', accuracy, 'audit README', f'150 epochs, batch {row.batch_size}'))
    lines += [(item.what, item.accuracy, item.where, item.how_it_differs) for item in REPLICATIONS]
    return pd.DataFrame(lines, columns=['what', 'accuracy (%)', 'where', 'how it was obtained'])
