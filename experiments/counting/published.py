"""The accuracies that the audit published, with the truncation of its integer tensors undone."""

from __future__ import annotations

from rich.table import Table

from experiments.published import AUDIT_ROWS

NOTE = (
    'An inference, not a measurement: it assumes that PyTorch 0.4 truncated as version 1.0.0 was seen to do, and that '
    'the images of a batch are independent.'
)


def table() -> Table:
    result = Table(title='Audit: published accuracy (%) and, inferred, what exact counting would have given')
    for heading in ('row', 'what', 'batch size', 'published', 'inferred'):
        result.add_column(heading, justify='left' if heading == 'what' else 'right')
    for row in AUDIT_ROWS:
        result.add_row(str(row.number), row.what, str(row.batch_size), f'{row.accuracy:.1f}', f'{row.inferred:.1f}')
    return result
