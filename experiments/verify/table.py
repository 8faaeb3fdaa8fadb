"""Tables of errors, printed and as JSON."""

from __future__ import annotations

import dataclasses
import json
import pathlib
from collections.abc import Mapping, Sequence
from importlib import metadata

from rich.console import Console
from rich.table import Table

from experiments.verify.compare import Row
from pnn_jax.errors import InputError, os_reason
from pnn_jax.paths import replace_file


def print_table(name: str, rows: Sequence[Row]) -> None:
    table = Table(
        'quantity', 'values', 'left out', 'max abs error', 'max rel error', 'tolerance', 'verdict', title=name
    )
    for row in rows:
        table.add_row(
            row.quantity,
            str(row.values),
            str(row.left_out),
            f'{row.max_abs_error:.1e}',
            f'{row.max_rel_error:.1e}',
            f'{row.tolerance:.1e} {row.tolerance_of}',
            f'FAILS at {row.where}' if not row.passed else f'holds in rerun {row.rerun}' if row.rerun else 'holds',
        )
    Console(width=120).print(table)


def write_json(path: pathlib.Path, float32: bool, results: Mapping[str, Sequence[Row]]) -> None:
    content = {
        'precision': 'float32' if float32 else 'float64',
        'versions': {name: metadata.version(name) for name in ('jax', 'flax', 'optax', 'torch', 'numpy')},
        'cases': {name: [dataclasses.asdict(row) for row in rows] for name, rows in results.items()},
    }
    try:
        replace_file(path, (json.dumps(content, indent=1) + '\n').encode())
    except OSError as error:
        raise InputError(f'--json={path} cannot be written: {os_reason(error)}') from None
