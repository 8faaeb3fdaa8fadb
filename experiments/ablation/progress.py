"""Where every run of a grid stands, as a table that a terminal keeps up to date."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from experiments.ablation.presets import Preset, Run, preset_rows
from experiments.ablation.runner import Outcome


class Progress:
    """The runs of a grid: finished, failed, in progress or still to come.

    Attributes:
        done: run name -> accuracy after the last epoch, as a fraction.
        failed: run name -> one line that says why.
        running: names of the runs in progress.
    """

    def __init__(self, preset: Preset, runs: Sequence[Run], workdirs: Path, console: Console):
        self._preset, self._runs, self._workdirs, self._console = preset, runs, workdirs, console
        self.done: dict[str, float] = {}
        self.failed: dict[str, str] = {}
        self.running: set[str] = set()

    def begin(self, name: str) -> None:
        self.running.add(name)

    def end(self, outcome: Outcome) -> None:
        """Notes how a run ended, and prints a line about it."""
        self.running.discard(outcome.name)
        if outcome.failure:
            self.failed[outcome.name] = outcome.failure
            line = f'{outcome.name}: failed: {outcome.failure}'
        else:
            self.done[outcome.name] = outcome.correct / outcome.count
            line = (
                f'{outcome.name}: {outcome.correct} of {outcome.count} correct, {outcome.seconds:.0f} s '
                f'({len(self.done)} of {len(self._runs)} runs done)'
            )
        self._console.print(line, highlight=False, markup=False, soft_wrap=True)

    def __rich__(self) -> Table:
        """Rows by seeds: the accuracy, the number of epochs so far, or 'failed'."""
        table = Table(title=f'{self._preset.what}: {len(self.done)} of {len(self._runs)} runs done')
        table.add_column('row', no_wrap=True)
        for seed in range(self._preset.seeds):
            table.add_column(f'seed {seed}', justify='right', no_wrap=True)
        names = {run.name for run in self._runs}
        for row in preset_rows(self._preset):
            of_row = [Run(row, seed).name for seed in range(self._preset.seeds)]
            cells = [self._cell(name) if name in names else '' for name in of_row]
            if any(cells):
                table.add_row(row.name, *cells)
        return table

    def _cell(self, name: str) -> str:
        if name in self.done:
            return f'{100 * self.done[name]:.2f}%'
        if name in self.failed:
            return '[red]failed[/red]'
        if name in self.running:
            return f'[yellow]{_epochs_done(self._workdirs / name)} epochs[/yellow]'
        return '.'


def _epochs_done(workdir: Path) -> int:
    with contextlib.suppress(OSError):
        return (workdir / 'metrics.jsonl').read_bytes().count(b'\n')
    return 0
