"""Starting a process with an environment of its own, for commands that measure or train in several processes."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
from collections.abc import Callable, Iterator, Mapping
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess


def start_process(target: Callable, *arguments, environment: Mapping[str, str]) -> tuple[BaseProcess, Connection]:
    """Runs `target(connection, *arguments)` in a fresh interpreter.

    Args:
        target: a function at the top of a module.
        arguments: what can be pickled.
        environment: variables of the process. They are there from its start, as XLA and glibc need them.

    Returns:
        The process, and the other end of its connection. Receiving raises EOFError once the process has ended.
    """
    context = multiprocessing.get_context('spawn')
    ours, theirs = context.Pipe()
    process = context.Process(target=target, args=(theirs, *arguments), daemon=True)
    with _environment(environment):
        process.start()
    theirs.close()
    return process, ours


@contextlib.contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    """Sets variables for as long as the block runs."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
