"""Log writers: what a run prints, and the files that it writes for people to read (train.log, TensorBoard, curves.png).

To add a log writer, write a class with the methods of `LogWriter` and add a line to `WRITERS`. A writer that fails is
dropped with a note; it never fails the run.
"""

import os
import time
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import rich.progress

from pnn_jax.errors import one_line
from pnn_jax.run.console import make_console
from pnn_jax.run.result import describe_epoch
from pnn_jax.run.workdir import Workdir


class Progress(NamedTuple):
    """Where a run stands between two steps.

    Attributes:
        step: steps done.
        total_steps: of the whole run.
        loss: mean over the epoch so far, in nats.
        accuracy: in training mode, over the epoch so far, a fraction.
        images_per_second: since the epoch began or was resumed.
    """

    step: int
    total_steps: int
    loss: float
    accuracy: float
    images_per_second: float


class LogWriter(Protocol):
    """One place that a run reports to. Nothing may be written into the workdir before the first `epoch`."""

    def say(self, text: str) -> None:
        """A line of text."""

    def progress(self, progress: Progress) -> None:
        """The position within an epoch."""

    def epoch(self, metrics: dict) -> None:
        """A finished epoch: the line of metrics.jsonl."""

    def finish(self, history: list[dict]) -> None:
        """The run is done; `history` holds the lines of all epochs."""

    def close(self) -> None:
        """Called once, however the run ends."""


class Silent:
    """A writer that ignores everything; the base of those that need only some of the calls."""

    def say(self, text: str) -> None:
        pass

    def progress(self, progress: Progress) -> None:
        pass

    def epoch(self, metrics: dict) -> None:
        pass

    def finish(self, history: list[dict]) -> None:
        pass

    def close(self) -> None:
        pass


class ConsoleWriter(Silent):
    """Lines on standard output, and on a terminal a progress line with loss, accuracy, speed and the time left."""

    def __init__(self, workdir: Workdir, config):
        del workdir
        self.num_epochs = config.num_epochs
        self.console = make_console()
        self.bar = rich.progress.Progress(
            rich.progress.TextColumn('{task.description}'),
            rich.progress.BarColumn(),
            rich.progress.TimeRemainingColumn(),
            console=self.console,
            disable=not self.console.is_terminal,
            transient=True,
        )
        self.bar.start()
        self.task = self.bar.add_task('starting', total=None)

    def say(self, text: str) -> None:
        self.console.print(text)

    def progress(self, progress: Progress) -> None:
        self.bar.update(
            self.task,
            completed=progress.step,
            total=progress.total_steps,
            description=f'loss {progress.loss:.3f}  accuracy {100 * progress.accuracy:.1f}%  '
            f'{progress.images_per_second:,.0f} images/s',
        )

    def epoch(self, metrics: dict) -> None:
        self.say(describe_epoch(metrics, self.num_epochs))

    def close(self) -> None:
        self.bar.stop()


class TextWriter(Silent):
    """train.log: the lines of the console with the time of day."""

    def __init__(self, workdir: Workdir, config):
        self.path, self.num_epochs = workdir.path / 'train.log', config.num_epochs
        self.waiting: list[str] = []  # lines of an attempt that has done nothing yet

    def say(self, text: str) -> None:
        self.waiting.append(f'{time.strftime("%Y-%m-%d %H:%M:%S")} {text}\n')

    def epoch(self, metrics: dict) -> None:
        self.say(describe_epoch(metrics, self.num_epochs))
        with open(self.path, 'a', encoding='utf-8') as file:
            file.writelines(self.waiting)
        self.waiting = []


class TensorBoardWriter(Silent):
    """Scalars of every epoch, as TensorBoard events."""

    def __init__(self, workdir: Workdir, config):
        self.path, self.enabled = workdir.path, config.log.tensorboard
        self.done = workdir.history[-1]['step'] if workdir.history else 0
        self.writer: Any = None  # made at the first epoch

    def epoch(self, metrics: dict) -> None:
        if not self.enabled:
            return
        if self.writer is None:
            import tensorboardX  # here, because it imports torch where that is installed

            self.writer = tensorboardX.SummaryWriter(self.path, purge_step=self.done + 1, write_to_disk=True)
        for name, value in metrics.items():
            if name not in ('epoch', 'step'):
                self.writer.add_scalar(name, value, metrics['step'])
        self.writer.flush()

    def close(self) -> None:
        if self.writer is not None:
            self.writer.close()


class CurvesWriter(Silent):
    """curves.png: loss, accuracy and learning rate over the epochs."""

    def __init__(self, workdir: Workdir, config):
        self.path, self.title = workdir.path / 'curves.png', config.model.name

    def finish(self, history: list[dict]) -> None:
        from pnn_jax.run.curves import plot_curves  # here, because matplotlib takes long to import

        plot_curves(history, os.fspath(self.path), title=self.title)


WRITERS: tuple[Callable[[Workdir, object], LogWriter], ...] = (
    ConsoleWriter,
    TextWriter,
    TensorBoardWriter,
    CurvesWriter,
)


class RunLog:
    """All log writers of a run as one; silent on every host but the first."""

    def __init__(self, workdir: Workdir, config, *, primary: bool):
        self.writers = [make(workdir, config) for make in WRITERS] if primary else []

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

    def finish(self, history: list[dict]) -> None:
        self._tell('finish', history)

    def _tell(self, call: str, *arguments) -> None:
        for writer in list(self.writers):
            try:
                getattr(writer, call)(*arguments)
            except Exception as error:  # noqa: BLE001  (a plot, a disk or a library: none of them may stop a run)
                self.writers.remove(writer)
                self.say(
                    f'note: {type(writer).__name__} failed and is not used for the rest of the run ({one_line(error)})'
                )
