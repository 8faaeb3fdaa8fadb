"""All places that a run reports to, as one. Each is a file in `writers/`.

To add a log writer, write a subclass of `LogWriter` in a file of its own and add it to `WRITERS`. If it can be switched
on or off, its `switch` names a field of `config.log`.
"""

import contextlib
import importlib.util

from pnn_jax.errors import one_line
from pnn_jax.extras import missing_library
from pnn_jax.run.workdir import Workdir
from pnn_jax.run.writers.base import FinishedRun, LogWriter, Progress
from pnn_jax.run.writers.console import ConsoleWriter
from pnn_jax.run.writers.mlflow import MlflowWriter
from pnn_jax.run.writers.plots import CurvesWriter, PlotsWriter
from pnn_jax.run.writers.tensorboard import TensorBoardWriter
from pnn_jax.run.writers.text import TextWriter
from pnn_jax.run.writers.wandb import WandbWriter

# In this order, so that the plots are in the workdir when the writers after them show them.
WRITERS: tuple[type[LogWriter], ...] = (
    ConsoleWriter,
    TextWriter,
    CurvesWriter,
    PlotsWriter,
    TensorBoardWriter,
    WandbWriter,
    MlflowWriter,
)

# config.log's switches, with their values in configs that were written before the field existed. A switch that is not
# named here has always been there.
ADDED_SWITCHES = {'plots': False, 'wandb': False, 'mlflow': False}


def is_on(writer: type[LogWriter], config) -> bool:
    """Whether `config.log` asks for a writer."""
    return not writer.switch or config.log.get(writer.switch, ADDED_SWITCHES.get(writer.switch))


def check_writers(config) -> None:
    """Raises InputError where `config.log` asks for a writer whose library is not installed."""
    for writer in WRITERS:
        if writer.library and is_on(writer, config) and not _is_installed(writer.library):
            raise missing_library(f'config.log.{writer.switch}=True', writer.library, writer.library)


def _is_installed(library: str) -> bool:
    spec = importlib.util.find_spec(library)
    # Without an origin it is a plain folder, such as the one in which Weights & Biases keeps its runs.
    return spec is not None and spec.origin is not None


class RunLog:
    """All log writers of a run; silent on every host but the first.

    A writer that fails is dropped with a note. It never fails the run.

    Args:
        name: of the run, where others report to the same screen; else ''.
    """

    def __init__(self, workdir: Workdir, config, *, primary: bool, name: str = ''):
        self.writers = [writer(workdir, config) for writer in WRITERS if primary and is_on(writer, config)]
        self._tell('begin', name)

    def __enter__(self) -> 'RunLog':
        return self

    def __exit__(self, *exception) -> None:
        self._tell('close')

    def say(self, text: str) -> None:
        self._tell('say', text)

    def progress(self, progress: Progress) -> None:
        self._tell('progress', progress)

    def epoch(self, metrics: dict) -> None:
        self._tell('epoch', metrics)

    def finish(self, run: FinishedRun) -> None:
        self._tell('finish', run)

    def _tell(self, call: str, *arguments) -> None:
        for writer in list(self.writers):
            try:
                getattr(writer, call)(*arguments)
            except Exception as error:  # noqa: BLE001  (a plot, a disk or a library: none of them may stop a run)
                self.writers.remove(writer)
                if call != 'close':
                    with contextlib.suppress(Exception):  # it failed already
                        writer.close()
                self.say(
                    f'note: {type(writer).__name__} failed and is not used for the rest of the run ({one_line(error)})'
                )
