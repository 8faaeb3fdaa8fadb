"""The tables of the report, as pandas frames of text."""

from __future__ import annotations

import numpy as np
import pandas as pd

from experiments.ablation.records import Record
from experiments.counting.curves import label_of, recount
from experiments.counting.outcomes import shuffled
from experiments.published import AUDIT_ROWS, REPLICATIONS
from experiments.report.analysis import Finding, accuracies, collapsed
from experiments.report.study import Study
from pnn_jax.stats import ACCURACY, format_p_value, t_interval

AUDIT = {row.number: row for row in AUDIT_ROWS}
TEST_ORDERS = 20  # random orders of the test images; the historical ways of counting depend on the order


def rows_table(study: Study, reference: str) -> pd.DataFrame:
    """Every row: its size, its accuracy over runs, and its distance from the reference row, ours and the published."""
    ours = accuracies(study.of_row(reference))
    numbers = {row.name: row.audit_row for row in study.rows()}
    published = AUDIT.get(numbers.get(reference))
    lines = []
    for row, records in study.rows().items():
        values = np.array(accuracies(records))
        audit = AUDIT.get(row.audit_row)
        lines.append(
            {
                'row': f'`{row.name}`',
                'what': (f'{row.audit_row}: ' if audit else '') + row.what,
                'weights': f'{records[0].weights:,}',
                'mask values': f'{records[0].masks:,}',
                'runs': str(len(records)),
                'accuracy (%)': f'{values.mean():.2f}',
                'sd and 95% CI, or each run': _spread(records),
                'best epoch (%)': f'{np.mean([100 * record.summary["max_test_accuracy"] for record in records]):.2f}',
                f'minus `{reference}`': f'{values.mean() - np.mean(ours):+.2f}' if ours else '',
                'the same, published': f'{audit.accuracy - published.accuracy:+.1f}' if audit and published else '',
            }
        )
    return pd.DataFrame(lines)


def _spread(records: list[Record]) -> str:
    """Standard deviation and t interval; every single value where a run collapsed, because no interval fits then."""
    values = accuracies(records)
    if count := sum(map(collapsed, records)):
        return f'{count} of {len(records)} collapsed: ' + ', '.join(f'{value:.2f}' for value in values)
    if len(values) < 2:
        return 'one run'
    low, high = t_interval(values, bounds=ACCURACY)
    return f'{np.std(values, ddof=1):.2f}; {low:.2f} to {high:.2f}'


def comparisons_table(findings: list[Finding]) -> pd.DataFrame:
    """Differences between rows, with their verdicts, and on how many images their runs disagree."""
    return pd.DataFrame(
        {
            'question': finding.comparison.question,
            'rows': f'`{finding.comparison.first}` - `{finding.comparison.second}`',
            'runs': f'{len(finding.first)} + {len(finding.second)}',
            'weights': f'{_weights_ratio(finding):+.0%}',
            'points': f'{finding.difference.estimate:+.2f}',
            '95% CI': finding.interval_text,
            'p (Holm)': _p_value(finding, finding.p_value),
            'p of a difference above the margin': _p_value(finding, finding.equivalence_p_value),
            'verdict': finding.verdict_text,
            'images that differ (%)': f'{finding.between:.1f}; {finding.within:.1f} within a row',
        }
        for finding in findings
    )


def _p_value(finding: Finding, value: float) -> str:
    """Nothing where there is no verdict, so that nobody reads one into it."""
    return '' if finding.verdict is None else format_p_value(value)


def _weights_ratio(finding: Finding) -> float:
    """How many more weights the first row has, as a fraction of those of the second."""
    return finding.first[0].weights / finding.second[0].weights - 1


def counting_table(study: Study) -> pd.DataFrame:
    """What each way of counting reports for the same predictions, at the batch sizes of the audit."""
    lines = []
    for row, records in study.rows().items():
        if row.audit_row is None:
            continue
        batch_size = AUDIT[row.audit_row].batch_size
        # estimator -> best epoch of [orders, runs]
        best = pd.DataFrame(
            {name: curve.max() for name, curve in recount(shuffled(record.correct, order), batch_size).items()}
            for order in range(TEST_ORDERS)
            for record in records
        )
        exact = best.pop('exact_accuracy')
        line = {
            'row': f'`{row.name}`',
            'batch size': str(batch_size),
            'exact, last epoch': f'{np.mean(accuracies(records)):.2f}',
            'exact, best epoch': f'{exact.mean():.2f}',
        }
        for name, values in best.items():
            bias = values - exact
            line[f'{label_of(name)}, best epoch'] = (
                f'{values.mean():.2f} ({bias.mean():+.2f} +- {bias.std(ddof=0):.2f})'
            )
        lines.append(line)
    return pd.DataFrame(lines)


def published_table() -> pd.DataFrame:
    """What others published for CIFAR-10."""
    lines = []
    for row in AUDIT_ROWS:
        differs = round(row.inferred, 1) != row.accuracy
        accuracy = f'{row.accuracy:.1f}' + (f'; integer division undone about {row.inferred:.1f}' if differs else '')
        lines.append((f'row {row.number}: {row.what}', accuracy, 'audit README', f'150 epochs, batch {row.batch_size}'))
    lines += [(item.what, item.accuracy, item.where, item.how_it_differs) for item in REPLICATIONS]
    return pd.DataFrame(lines, columns=['what', 'accuracy (%)', 'where', 'how it was obtained'])
