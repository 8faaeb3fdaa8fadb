"""train.log: the lines of the console with the time of day."""

import time

from pnn_jax.run.result import describe_epoch
from pnn_jax.run.workdir import Workdir
from pnn_jax.run.writers.base import FinishedRun, LogWriter


class TextWriter(LogWriter):
    """Appends to train.log. Lines wait in memory until the attempt has finished an epoch."""

    def __init__(self, workdir: Workdir, config):
        super().__init__(workdir, config)
        self.waiting: list[str] = []

    def say(self, text: str) -> None:
        self.waiting.append(f'{time.strftime("%Y-%m-%d %H:%M:%S")} {text}\n')

    def epoch(self, metrics: dict) -> None:
        self.say(describe_epoch(metrics, self.config.num_epochs))
        self._write()

    def finish(self, run: FinishedRun) -> None:
        self._write()

    def _write(self) -> None:
        with open(self.workdir.path / 'train.log', 'a', encoding='utf-8') as file:
            file.writelines(self.waiting)
        self.waiting = []
