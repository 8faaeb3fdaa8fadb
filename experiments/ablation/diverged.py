"""The record of a run whose loss or weights did not stay finite.

Such a run has a result like any other: left out, it would make its arm look better than it is. Its network has no
finite logits, and exact evaluation counts those as wrong (`pnn_jax/evaluate.py`). So from the epoch in which it
diverged on, no image is classified correctly. The accuracies with other batch norm statistics are not measured; they
are recorded as 0 too.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np

from experiments.ablation.final import machine
from experiments.ablation.records import Record, settings
from experiments.ablation.runner import Task
from pnn_jax.errors import DivergedError
from pnn_jax.evaluate import Evaluation
from pnn_jax.models.registry import count_variables
from pnn_jax.run.checkpoints import Checkpointer
from pnn_jax.run.result import circumstances, run_result
from pnn_jax.run.workdir import Workdir
from pnn_jax.train_step import all_variables
from pnn_jax.trainer import Trainer


def diverged_record(task: Task, trainer: Trainer, labels: np.ndarray, error: DivergedError) -> Record:
    """The record of a run that diverged; its summary says so in `diverged`.

    Args:
        trainer: that trained it.
        labels: int32 [n], of the test set.
    """
    with Workdir.open(task.workdir, task.config, lock=False) as workdir:
        finished, outcomes = workdir.history, workdir.outcomes
    epochs, split = task.config.num_epochs, trainer.epoch_split
    lost = {
        f'{split}_correct': 0,
        f'{split}_count': trainer.feed.num_examples[split],
        f'{split}_accuracy': 0.0,
        'nonfinite': trainer.feed.num_examples[split],
        'seconds': 0.0,
    }
    history = finished + [{'epoch': epoch} | lost for epoch in range(len(finished) + 1, epochs + 1)]
    correct = np.zeros((epochs if split == 'test' else 1, len(labels)), bool)
    if split == 'test' and finished:
        correct[: len(finished)] = outcomes
    summary = run_result(
        _nothing_right(labels),
        trainer.data,
        task.config,
        count_variables(all_variables(*trainer.shapes)),
        history,
        _begun_elsewhere(task.workdir / 'checkpoints'),
    )
    del summary['command']  # contains folder names of the machine
    measured = {
        'train_mode_accuracy': 0.0,
        'train_mode_loss': math.nan,
        'recalibrated_accuracy': 0.0,
        'recalibrated_loss': math.nan,
        'machine': machine(),
        'diverged': error.what,
    }
    return Record(task.arm, task.seed, task.registration, settings(task.config), summary | measured, history, correct)


def _nothing_right(labels: np.ndarray) -> Evaluation:
    count = len(labels)
    wrong = np.zeros(count, bool)
    return Evaluation(
        correct=wrong,
        top5=wrong,
        labels=labels,
        loss=math.nan,
        nonfinite=count,
        predicted=np.full(count, -1, np.int32),
        confidence=np.full(count, math.nan, np.float32),
    )


def _begun_elsewhere(folder: Path) -> list[dict]:
    """What trained the run up to its latest checkpoint, where that is not this process."""
    if not folder.exists():
        return []
    with Checkpointer(folder, keep=0) as checkpointer:
        meta = checkpointer.latest_meta() or {}
    return [one for one in meta.get('computed_by', []) if one != circumstances()]
