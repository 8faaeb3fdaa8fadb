"""TensorBoard: numbers of every epoch, and the plots at the end."""

from typing import Any

import numpy as np

from pnn_jax.run.workdir import Workdir
from pnn_jax.run.writers.base import FinishedRun, LogWriter, numbers_of, plots_of


class TensorBoardWriter(LogWriter):
    """Event files in the workdir; show them with `tensorboard --logdir=runs`."""

    switch = 'tensorboard'

    def __init__(self, workdir: Workdir, config):
        super().__init__(workdir, config)
        self.done = workdir.history[-1]['step'] if workdir.history else 0
        self.events: Any = None  # opened at the first epoch

    def epoch(self, metrics: dict) -> None:
        if self.events is None:
            import tensorboardX  # here, because it imports torch where that is installed

            # Events of steps that a resumed run repeats are not shown twice.
            self.events = tensorboardX.SummaryWriter(self.workdir.path, purge_step=self.done + 1, write_to_disk=True)
        for name, value in numbers_of(metrics).items():
            self.events.add_scalar(name, value, metrics['step'])
        self.events.flush()

    def finish(self, run: FinishedRun) -> None:
        if self.events is None:  # no epoch was left to be done
            return
        from PIL import Image

        for path in plots_of(self.workdir):
            with Image.open(path) as image:
                pixels = np.asarray(image.convert('RGB'))
            self.events.add_image(path.stem, pixels, run.history[-1]['step'], dataformats='HWC')

    def close(self) -> None:
        if self.events is not None:
            self.events.close()
