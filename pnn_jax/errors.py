"""The two errors that a user sees as one line.

`main` prints `error: <message>` for either, without a traceback; anything else is a defect of this project.
"""


class InputError(ValueError):
    """Wrong usage, config or input: names the field, the value and what is allowed. Exit code 2."""


class RunError(RuntimeError):
    """A run failed although its input was valid (loss not finite, damaged checkpoints, disk full). Exit code 1."""


class StoppedEarly(Exception):
    """A run saved its state and stopped on request (signal or time budget); the same command goes on. Exit code 75."""
