"""Standard output: lines, and on a terminal a progress line."""

import rich.progress

from pnn_jax.run.console import make_console
from pnn_jax.run.result import describe_epoch
from pnn_jax.run.workdir import Workdir
from pnn_jax.run.writers.base import LogWriter, Progress


class ConsoleWriter(LogWriter):
    """Lines on standard output, and on a terminal a progress line with loss, accuracy, speed and the time left.

    Where several runs share the screen, every line begins with the name of its run, and there is no progress line.
    """

    def __init__(self, workdir: Workdir, config):
        super().__init__(workdir, config)
        self.console = make_console()
        self.prefix = ''
        self.bar = rich.progress.Progress(
            rich.progress.TextColumn('{task.description}'),
            rich.progress.BarColumn(),
            rich.progress.TimeRemainingColumn(),
            console=self.console,
            disable=not self.console.is_terminal,
            transient=True,
        )
        self.task = self.bar.add_task('starting', total=None)

    def begin(self, name: str) -> None:
        if name:
            self.prefix = f'{name}: '
        else:
            self.bar.start()

    def say(self, text: str) -> None:
        self.console.print(self.prefix + text)

    def progress(self, progress: Progress) -> None:
        self.bar.update(
            self.task,
            completed=progress.step,
            total=progress.total_steps,
            description=f'loss {progress.loss:.3f}  accuracy {100 * progress.accuracy:.1f}%  '
            f'{progress.images_per_second:,.0f} images/s',
        )

    def epoch(self, metrics: dict) -> None:
        self.say(describe_epoch(metrics, self.config.num_epochs))

    def close(self) -> None:
        self.bar.stop()
