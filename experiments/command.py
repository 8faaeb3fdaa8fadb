"""What the command lines of the experiments share: errors as one line and an exit code, tables written into README."""

from __future__ import annotations

import pathlib
import sys
from collections.abc import Callable, Sequence

from pnn_jax.errors import InputError, RunError


def exit_code(main: Callable[[Sequence[str] | None], int | None], argv: Sequence[str] | None = None) -> int:
    """Calls `main(argv)`; returns its result (None: 0), 2 after an InputError and 1 after a RunError."""
    try:
        return main(argv) or 0
    except InputError as error:
        print(f'error: {error}', file=sys.stderr)
        return 2
    except RunError as error:
        print(f'error: {error}', file=sys.stderr)
        return 1


def replace_section(path: pathlib.Path, name: str, new: str) -> str:
    """The text of a file with everything between its lines '<!-- NAME: begin -->' and '<!-- NAME: end -->' replaced.

    Raises:
        InputError: the file cannot be read, or does not have these two lines once each, in this order.
    """
    try:
        text = path.read_text()
    except OSError as error:
        raise InputError(f'{path}: {error.strerror}') from None
    begin, end = f'<!-- {name}: begin -->', f'<!-- {name}: end -->'
    if text.count(begin) != 1 or text.count(end) != 1 or text.index(begin) > text.index(end):
        raise InputError(f'{path}: needs one line {begin!r} and, after it, one line {end!r}')
    before, rest = text.split(begin)
    return f'{before}{begin}\n\n{new}\n\n{end}{rest.split(end)[1]}'
