"""Lines for people on standard output, which cannot fail a run."""

import sys
from typing import IO, cast

import jax
import rich.console

from pnn_jax.runtime import SafeStream


def make_console(*, quiet: bool = False) -> rich.console.Console:
    """A console on the standard output of this moment, safe in programs whose streams are not."""
    stream = sys.stdout if isinstance(sys.stdout, SafeStream) else SafeStream(sys.stdout)
    return rich.console.Console(file=cast(IO[str], stream), quiet=quiet, highlight=False, soft_wrap=True, markup=False)


def say(text: str) -> None:
    """Prints a line, on the first host only."""
    make_console(quiet=jax.process_index() != 0).print(text)
