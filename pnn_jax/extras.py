"""Libraries that only an extra of the package installs, and the line that a user sees where one is missing."""

import contextlib
import sys
from collections.abc import Iterator

from pnn_jax.errors import InputError


def missing_library(what: str, library: str | None, extra: str) -> InputError:
    """The error for a library that is not installed: 'reading it needs safetensors: pip install ...'.

    The command is the same for an installed wheel and for a checkout: pip finds that `pnn-jax` is installed, and adds
    only the libraries of the extra.

    Args:
        what: is not possible without it: a command, a config field, the kind of a file.
        library: the missing one.
        extra: of pyproject.toml, which installs it.
    """
    return InputError(f"{what} needs {library}: pip install 'pnn-jax[{extra}]'")


@contextlib.contextmanager
def imports_of_command(command: str, extra: str = 'train') -> Iterator[None]:
    """A context for the imports of a command. Where a library is missing, it prints one line and exits with code 2."""
    try:
        yield
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split('.')[0] == 'pnn_jax':  # a defect of this package
            raise
        print(f'error: {missing_library(command, error.name, extra)}', file=sys.stderr)
        sys.exit(2)
