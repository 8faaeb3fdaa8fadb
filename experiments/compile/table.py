"""The records of compiled programs as a Markdown table."""

from collections.abc import Sequence

from experiments.compile.targets import GIB

COLUMNS = (
    'config', 'program', 'target', 'batch', 'type', 'memory (GiB)', 'loops', 'kernels', 'collectives', 'static ms',
    'compiled in',
)  # fmt: skip


def table(records: Sequence[dict]) -> str:
    """One row for each record. A program that does not compile, or does not fit the device's memory, says so."""
    rows = [COLUMNS, ['---'] * len(COLUMNS), *map(row, records)]
    return '\n'.join('| ' + ' | '.join(cells) + ' |' for cells in rows)


def row(record: dict) -> list[str]:
    request = record['request']
    head = [
        request['config'],
        request['program'],
        request['target'] if request['devices'] == 1 else f'{request["devices"]} x {request["target"]}',
        str(request['batch_size'] or 'of config'),
        request['dtype'] or 'of config',
    ]
    if 'error' in record:
        return [*head, f'**does not compile**: {record["error"]}', *[''] * (len(COLUMNS) - len(head) - 1)]
    return [
        *head,
        memory(record),
        str(record['loops']),
        str(record['kernels']),
        ', '.join(f'{count} {kind}' for kind, count in sorted(record['collectives'].items())) or '-',
        milliseconds(record),
        f'{record["compile_seconds"]:.0f} s',
    ]


def memory(record: dict) -> str:
    """Memory needed of memory there, and by how much it does not fit."""
    needed, there = record['memory'] / GIB, record['memory_there'] / GIB
    text = f'{needed:.2f} of {there:.0f}'
    return text if needed <= there else f'**{text}: {needed - there:.2f} too much**'


def milliseconds(record: dict) -> str:
    """Static time of all kernels, each counted once; a lower bound where trip counts are not known."""
    if 'static_milliseconds' not in record:
        return '-'
    return f'{">" if record["unknown_loops"] else ""}{record["static_milliseconds"]:.2f}'
