"""Reads from a TOML file which rows are compared, and with what margin; `comparisons.toml` says what its keys mean."""

from __future__ import annotations

import tomllib
from collections.abc import Collection
from pathlib import Path
from typing import NamedTuple

from pnn_jax.errors import InputError, one_line, os_reason

DEFAULT = Path(__file__).with_name('comparisons.toml')


class Comparison(NamedTuple):
    """One comparison of two rows: `first` minus `second`."""

    question: str
    first: str
    second: str
    margin: float
    family: str
    sentence: str = ''


class Plan(NamedTuple):
    """What a report compares.

    Attributes:
        reference: name of the row that every other row is measured against in the table of rows.
        comparisons: in the order of the report.
    """

    reference: str
    comparisons: list[Comparison]


def read_plan(path: Path, rows: Collection[str]) -> Plan:
    """The plan in a file.

    Args:
        rows: names of all rows that there are.

    Raises:
        InputError: the file cannot be read, has unknown or missing keys, names an unknown row, or compares two rows
            twice.
    """
    try:
        content = tomllib.loads(path.read_text(encoding='utf-8'))
        plan = Plan(content.pop('reference'), [Comparison(**entry) for entry in content.pop('comparison')])
        if content:
            raise KeyError(*content)
    except OSError as error:
        raise InputError(f'{path}: cannot be read ({os_reason(error)})') from None
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f'{path}: is not a plan of comparisons ({one_line(error)})') from None
    if plan.reference not in rows:
        raise InputError(f'{path}: reference = {plan.reference!r} is not one of {", ".join(rows)}')
    seen = set()
    for number, comparison in enumerate(plan.comparisons, start=1):
        where = f'{path}: comparison {number}'
        for row in (comparison.first, comparison.second):
            if row not in rows:
                raise InputError(f'{where}: {row!r} is not one of {", ".join(rows)}')
        if not isinstance(comparison.margin, int | float) or not comparison.margin > 0:
            raise InputError(f'{where}: margin = {comparison.margin!r} must be a number above 0')
        pair = frozenset((comparison.first, comparison.second))
        if len(pair) < 2 or pair in seen:
            raise InputError(f'{where}: {comparison.first} and {comparison.second} are the same or compared twice')
        seen.add(pair)
    return plan
