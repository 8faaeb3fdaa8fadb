"""What the command lines of the experiments share: an error is one line and an exit code, not a traceback."""

from __future__ import annotations

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
