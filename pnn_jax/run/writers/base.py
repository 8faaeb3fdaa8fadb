"""What every log writer is, and what it is told about a run."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import flax.linen as nn
import jax
import numpy as np

from pnn_jax.evaluate import Evaluation
from pnn_jax.paths import replace_file
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


class FinishedRun(NamedTuple):
    """What is known when a run is done.

    Attributes:
        history: the lines of metrics.jsonl, one per epoch.
        result: what result.json will hold.
        evaluation: of the final network on the test set; outcomes in dataset order.
        class_names: name of each label.
        images: uint8 [n, h, w, c], the test images in dataset order; None where they are not in memory (streams).
        model: the network.
        variables: all of its collections.
        preprocess: images uint8 [b, h, w, c] -> the input of `model`.
    """

    history: list[dict]
    result: dict
    evaluation: Evaluation
    class_names: tuple[str, ...]
    images: np.ndarray | None
    model: nn.Module
    variables: Any
    preprocess: Callable[[np.ndarray], jax.Array]


class LogWriter:
    """One place that a run reports to. A writer overrides the methods that it needs; here they do nothing.

    Nothing may be written into the workdir before the first call of `epoch`: an attempt that stops earlier must leave
    no trace.

    Attributes:
        switch: the field of `config.log` that turns the writer on; '' for one that is always on.
        library: that the writer imports and that no other part of training needs; '' for none.
    """

    switch: ClassVar[str] = ''
    library: ClassVar[str] = ''

    def __init__(self, workdir: Workdir, config):
        self.workdir, self.config = workdir, config

    def begin(self, name: str) -> None:
        """Called once, before anything else. `name` tells the run from others on the same screen; '' if it is alone."""

    def say(self, text: str) -> None:
        """A line of text."""

    def progress(self, progress: Progress) -> None:
        """The position within an epoch."""

    def epoch(self, metrics: dict) -> None:
        """A finished epoch: the line of metrics.jsonl."""

    def finish(self, run: FinishedRun) -> None:
        """The run is done. Its result is written after that, so that a run which is killed here is finished later."""

    def close(self) -> None:
        """Called once, however the run ends."""


def numbers_of(metrics: dict) -> dict[str, float]:
    """The numbers of an epoch that are shown over steps; without those that are not known (None)."""
    return {name: value for name, value in metrics.items() if name not in ('epoch', 'step') and value is not None}


def plots_of(workdir: Workdir) -> list[Path]:
    """The plots in a workdir, PNG files."""
    return [*workdir.path.glob('curves.png'), *sorted((workdir.path / 'plots').glob('*.png'))]


def kept_id(path: Path, make: Callable[[], str]) -> str:
    """The id that a service knows a run by. A new run keeps it in the file `path`, where a resumed one finds it."""
    if not path.exists():
        replace_file(path, make().encode())
    return path.read_text()
