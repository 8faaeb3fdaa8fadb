"""Standard output: lines, and on a terminal a progress line."""

import rich.progress

from pnn_jax.run.console import make_console
from pnn_jax.run.result import describe_epoch
from pnn_jax.run.workdir import Workdir
from pnn_jax.run.writers.base import LogWriter, Progress


class ConsoleWriter(LogWriter):
    """Lines on standard output, and on a terminal a progress line with loss, accuracy, speed and the time left."""

    def __init__(self, workdir: Workdir, config):
        super().__init__(workdir, config)
        self.console = make_console()
        self.shared = config.seeds_at_once > 1  # with other runs: lines name the seed, and there is no progress line
        self.bar = rich.progress.Progress(
            rich.progress.TextColumn('{task.description}'),
            rich.progress.BarColumn(),
            rich.progress.TimeRemainingColumn(),
            console=self.console,
            disable=self.shared or not self.console.is_terminal,
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
        seed = f'seed {self.config.seed}: ' if self.shared else ''
        self.say(seed + describe_epoch(metrics, self.config.num_epochs))

    def close(self) -> None:
        self.bar.stop()
