"""Weights & Biases: `config.log.wandb`. Its own environment variables say where to: WANDB_PROJECT, WANDB_MODE, ..."""

import os
import secrets
from typing import Any

from pnn_jax.run.workdir import flat_fields
from pnn_jax.run.writers.base import FinishedRun, LogWriter, kept_id, numbers_of, plots_of


class WandbWriter(LogWriter):
    """Numbers of every epoch, and at the end the result and the plots, in the project WANDB_PROJECT (or pnn_jax).

    A resumed run is the same run there: its id is kept in the file wandb_id of the workdir.
    """

    switch, library = 'wandb', 'wandb'

    run: Any = None  # begins at the first epoch
    exit_code = 1

    def epoch(self, metrics: dict) -> None:
        if self.run is None:
            self.run = self._begin()
        self.run.log(numbers_of(metrics) | {'epoch': metrics['epoch']}, step=metrics['step'])

    def _begin(self) -> Any:
        import wandb

        return wandb.init(
            project=os.environ.get('WANDB_PROJECT', 'pnn_jax'),
            name=self.workdir.path.name,
            id=kept_id(self.workdir.path / 'wandb_id', lambda: secrets.token_hex(8)),
            resume='allow',
            dir=self.workdir.path,
            config=flat_fields(self.config),
            # It would ask for a key on a terminal, and the run would wait for the answer.
            mode=None if 'WANDB_MODE' in os.environ or _has_key() else 'offline',
            settings=wandb.Settings(console='off', silent=True),
        )

    def finish(self, run: FinishedRun) -> None:
        if self.run is None:  # no epoch was left to be done
            return
        import wandb

        self.run.summary.update({name: value for name, value in run.result.items() if isinstance(value, int | float)})
        self.run.log({path.stem: wandb.Image(str(path)) for path in plots_of(self.workdir)})
        self.exit_code = 0

    def close(self) -> None:
        if self.run is not None:
            self.run.finish(exit_code=self.exit_code)


def _has_key() -> bool:
    """Whether Weights & Biases knows who uses it."""
    import wandb

    return wandb.setup().settings.api_key is not None
