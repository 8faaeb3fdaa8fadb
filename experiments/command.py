"""What all commands of the experiments share: options, files, exit codes, and output that cannot fail a command.

def main(argv=None) -> int | None:
    parser = Parser('experiments.counting', __doc__)
    parser.add_path('--plot', help='image file')
    args = parser.parse_args(argv)
    ...

if __name__ == '__main__':
    sys.exit(exit_code(main))
"""

from __future__ import annotations

import argparse
import contextlib
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from pnn_jax.errors import InputError, RunError, StoppedEarly, os_reason
from pnn_jax.paths import local_path, replace_file
from pnn_jax.runtime import STOPPED_EARLY, SafeStream

# Written into folders that a command empties before it starts, so that it never empties anything else.
OWNED = '.emptied_by_experiments'


def exit_code(main: Callable[[Sequence[str] | None], int | None], argv: Sequence[str] | None = None) -> int:
    """Calls `main(argv)` and turns what it raises into one line and an exit code.

    Returns:
        What main returns (None: 0); 2 after an InputError, 1 after a RunError, 75 after StoppedEarly.
    """
    with (
        contextlib.redirect_stdout(SafeStream(sys.stdout, owned=True)),
        contextlib.redirect_stderr(SafeStream(sys.stderr, owned=True)),
    ):
        try:
            code = main(argv) or 0
        except InputError as error:
            print(f'error: {error}', file=sys.stderr)
            code = 2
        except RunError as error:
            print(f'error: {error}', file=sys.stderr)
            code = 1
        except StoppedEarly as reason:
            print(f'stopped: {reason}; run the same command again to resume')
            code = STOPPED_EARLY
        sys.stdout.flush()
        sys.stderr.flush()
    return code


class Parser(argparse.ArgumentParser):
    """argparse, with every error as an InputError of one line, and paths as users write them."""

    def __init__(self, module: str, description: str):
        formatter = argparse.RawDescriptionHelpFormatter
        super().__init__(f'python -m {module}', description=description, formatter_class=formatter, allow_abbrev=False)
        self._paths: dict[str, str] = {}  # attribute -> option

    def add_path(self, name: str, **kwargs) -> None:
        """Adds an option (or a positional argument) whose value goes through `local_path`."""
        action = self.add_argument(name, **kwargs)
        self._paths[action.dest] = name

    def parse_args(self, args=None, namespace=None):
        options = super().parse_args(args, namespace)
        for attribute, option in self._paths.items():
            value = getattr(options, attribute)
            if isinstance(value, list):
                setattr(options, attribute, [local_path(path, option) for path in value])
            elif value is not None:
                setattr(options, attribute, local_path(value, option))
        return options

    def error(self, message: str):
        raise InputError(' '.join(message.removeprefix('argument ').split()))


def whole_number(least: int = 1) -> Callable[[str], int]:
    """For `type=` of an option: a whole number, `least` or more."""

    def parse(text: str) -> int:
        if not (text.isascii() and text.isdecimal() and int(text) >= least):
            raise argparse.ArgumentTypeError(f'{text!r} is not a whole number of {least} or more')
        return int(text)

    return parse


def some_of(allowed: Sequence) -> Callable[[str], list]:
    """For `type=` of an option: some of `allowed`, with commas between; '' for none of them."""
    by_name = {str(value): value for value in allowed}

    def parse(text: str) -> list:
        names = [name for name in text.split(',') if name]
        if unknown := [name for name in names if name not in by_name]:
            raise argparse.ArgumentTypeError(f'{unknown[0]!r} in {text!r} is not one of {",".join(by_name)}')
        return [by_name[name] for name in names]

    return parse


def make_folder(path: Path, field: str) -> Path:
    """Makes a folder for results.

    Raises:
        InputError: it cannot be made or is not a folder.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f'{field}={path}: cannot be made ({os_reason(error)})') from None
    return path


def empty_folder(path: Path, field: str) -> Path:
    """Makes a folder, or empties one that this function made before.

    Raises:
        InputError: the folder has other content, which would be lost, or it cannot be made.
    """
    make_folder(path, field)
    try:
        if any(path.iterdir()) and not (path / OWNED).exists():
            raise InputError(f'{field}={path}: has content that this command did not make; name a new or empty folder')
        shutil.rmtree(path)
        path.mkdir()
        (path / OWNED).touch()
    except OSError as error:
        raise InputError(f'{field}={path}: cannot be emptied ({os_reason(error)})') from None
    return path


def write_file(path: Path, content: str | bytes) -> None:
    """Writes a file as a whole: at any time the old or the new content is there.

    Raises:
        RunError: it cannot be written.
    """
    try:
        replace_file(path, content if isinstance(content, bytes) else content.encode())
    except OSError as error:
        raise RunError(f'{path}: cannot be written ({os_reason(error)})') from None


def replace_section(path: Path, name: str, new: str) -> str:
    """The text of a file with everything between '<!-- NAME: begin -->' and '<!-- NAME: end -->' replaced.

    Raises:
        InputError: the file cannot be read, or does not have these two lines once each, in this order.
    """
    try:
        text = path.read_text(encoding='utf-8')
    except OSError as error:
        raise InputError(f'{path}: cannot be read ({os_reason(error)})') from None
    except UnicodeDecodeError:
        raise InputError(f'{path}: is not a text file') from None
    begin, end = f'<!-- {name}: begin -->', f'<!-- {name}: end -->'
    if text.count(begin) != 1 or text.count(end) != 1 or text.index(begin) > text.index(end):
        raise InputError(f'{path}: needs one line {begin!r} and, after it, one line {end!r}')
    before, rest = text.split(begin)
    return f'{before}{begin}\n\n{new}\n\n{end}{rest.split(end)[1]}'
