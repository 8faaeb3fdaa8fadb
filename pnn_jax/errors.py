"""The errors that a user sees as one line, and how the messages of libraries become one.

`main` prints `error: <message>` for `InputError` and `RunError`, without a traceback. Any other exception is a defect
of this project.
"""


class InputError(ValueError):
    """Wrong usage, config or input: names the field, the value and what is allowed. Exit code 2."""


class RunError(RuntimeError):
    """A run failed although its input was valid (loss not finite, damaged checkpoint, full disk). Exit code 1."""


class DivergedError(RunError):
    """The loss, parameters or batch statistics of a run are not finite.

    Attributes:
        what: what is not finite, and when, without advice.
    """

    def __init__(self, what: str, advice: str = ''):
        super().__init__(f'{what}; {advice}' if advice else what)
        self.what = what


class StoppedEarly(Exception):
    """A run saved its state and stopped (signal or time budget); the same command resumes it. Exit code 75."""


def one_line(error: BaseException, limit: int = 300) -> str:
    """The message of an exception as one line of at most `limit` characters; its type where it has no message.

    Of a longer message the beginning and the end are kept: libraries put what failed first and the cause last.
    """
    message = ' '.join(str(error).split()) or type(error).__name__
    if len(message) <= limit:
        return message
    head = limit // 3
    return f'{message[:head]} ... {message[-(limit - head - 5) :]}'


def os_reason(error: OSError) -> str:
    """Why a file operation failed, as the system says it: 'No space left on device'."""
    return error.strerror or one_line(error)
