"""Where every run of a grid stands, as a table that a terminal keeps up to date."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from experiments.ablation.registration import Grid
from experiments.ablation.runner import Outcome
from experiments.ablation.runs import Run


class Progress:
    """The runs of a grid: finished, failed, in progress or still to come.

    No accuracy is shown where the grid is blind.

    Attributes:
        done: names of the finished runs.
        failed: run name -> one line that says why.
        running: names of the runs in progress.
    """

    def __init__(self, grid: Grid, workdirs: Path, console: Console):
        self._grid, self._workdirs, self._console = grid, workdirs, console
        self._runs: list[Run] = []
        self.done: set[str] = set()
        self.failed: dict[str, str] = {}
        self.running: set[str] = set()

    def add(self, runs: Sequence[Run]) -> None:
        """Adds runs that are to be trained, or are done already."""
        self._runs += runs

    def begin(self, name: str) -> None:
        self.running.add(name)

    def end(self, outcome: Outcome) -> None:
        """Notes how a run ended, and prints a line about it."""
        self.running.discard(outcome.name)
        if outcome.failure:
            self.failed[outcome.name] = outcome.failure
            line = f'{outcome.name}: failed: {outcome.failure}'
        else:
            self.done.add(outcome.name)
            correct = '' if self._grid.blind else f'{outcome.correct} of {outcome.count} correct, '
            line = f'{outcome.name}: {correct}{outcome.seconds:.0f} s ({len(self.done)} of {len(self._runs)} runs done)'
            if outcome.diverged:
                line += f'; it diverged, so all of its predictions count as wrong: {outcome.diverged}'
        self._console.print(line, highlight=False, markup=False, soft_wrap=True)

    def __rich__(self) -> Table:
        """A line for each arm: how many runs are done, which are in progress, which failed."""
        table = Table(title=f'{self._grid.what}: {len(self.done)} of {len(self._runs)} runs done')
        for column in ('arm', 'done', 'in progress', 'failed'):
            table.add_column(column, no_wrap=column == 'arm')
        for arm in self._grid.arms:
            of_arm = [run for run in self._runs if run.arm.name == arm.name]
            if not of_arm:
                continue
            done = sum(run.name in self.done for run in of_arm)
            running = [
                f'[yellow]seed {run.seed}: {_epochs_done(self._workdirs / run.name)} epochs[/yellow]'
                for run in of_arm
                if run.name in self.running
            ]
            failed = [f'[red]seed {run.seed}[/red]' for run in of_arm if run.name in self.failed]
            table.add_row(arm.name, f'{done} of {len(of_arm)}', ', '.join(running), ', '.join(failed))
        return table


def _epochs_done(workdir: Path) -> int:
    with contextlib.suppress(OSError):
        return (workdir / 'metrics.jsonl').read_bytes().count(b'\n')
    return 0
