"""Trains the grid: every row of `experiments/grid.py`, several seeds each, resumable at any point.

python -m experiments.ablation --preset=reduced --data_path=DIR   go on with the grid, or begin it
python -m experiments.ablation --preset=smoke                     a few seconds, scikit-learn's digits
python -m experiments.ablation --preset=full --shard=3/20         the fourth of 20 parts, for a Slurm array

Every run has a workdir of its own, `OUTPUT/<preset>/<row>_seed<k>`, and leaves one file with all that the report needs
(config, counts, history, the outcome of every test example in every epoch), `RESULTS/<preset>/<row>_seed<k>.json`.
Whatever kills this program, the same command goes on where it stopped. A run that fails is shown and does not stop the
others; the next call tries it again.

Exit codes: 0 all runs are there; 1 some failed; 2 wrong input; 75 stopped early on request.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import os
import pathlib
import sys
import time
import traceback
from collections.abc import Callable, Sequence

from rich.console import Console
from rich.live import Live
from rich.table import Table

from experiments.command import exit_code
from experiments.grid import PRESETS, Preset, Run, build_config, data_config, preset_rows, runs_of
from experiments.records import make_record, read_record, record_path
from pnn_jax.errors import InputError, RunError, StoppedEarly
from pnn_jax.main import CPU_XLA_FLAGS, STOPPED_EARLY, quieten_logs, stop_conditions
from pnn_jax.runtime import restart_with_huge_pages


class Grid:
    """The runs of a preset, where each stands, and the table that shows it."""

    def __init__(self, preset: Preset, runs: Sequence[Run], output: pathlib.Path, console: Console):
        self.preset, self.runs, self.output, self.console = preset, runs, output, console
        self.done: dict[Run, float] = {}  # final accuracy, a fraction
        self.failed: dict[Run, str] = {}  # one line that says why
        self.running: Run | None = None

    def workdir(self, run: Run) -> pathlib.Path:
        return self.output / run.name

    def __rich__(self) -> Table:
        """Rows against seeds: final accuracy, epochs so far, or what is wrong."""
        table = Table(title=f'{self.preset.what}: {len(self.done)} of {len(self.runs)} runs done')
        table.add_column('row', no_wrap=True)
        for seed in range(self.preset.seeds):
            table.add_column(f'seed {seed}', justify='right', no_wrap=True)
        mine = set(self.runs)
        for row in preset_rows(self.preset):
            cells = [self._cell(run) if (run := Run(row, seed)) in mine else '' for seed in range(self.preset.seeds)]
            if any(cells):
                table.add_row(row.name, *cells)
        return table

    def _cell(self, run: Run) -> str:
        if run in self.done:
            return f'{100 * self.done[run]:.2f}%'
        if run in self.failed:
            return '[red]failed[/red]'
        if run == self.running:
            return f'[yellow]{epochs_done(self.workdir(run))} epochs[/yellow]'
        return '.'


def epochs_done(workdir: pathlib.Path) -> int:
    """Epochs in the log of a run that is in progress."""
    with contextlib.suppress(OSError):
        return (workdir / 'metrics.jsonl').read_bytes().count(b'\n')
    return 0


def train_grid(
    grid: Grid,
    configs: dict[Run, object],
    dataset,
    results: pathlib.Path,
    should_stop: Callable[[], str],
) -> None:
    """Trains all runs that have no result yet, in order. Raises StoppedEarly when asked to stop."""
    import jax

    from pnn_jax.train import train_and_evaluate

    for run in grid.runs:
        path = record_path(results, run.row.name, run.seed)
        if path.exists():
            grid.done[run] = read_record(path, configs[run]).accuracy
    for run in grid.runs:
        if run in grid.done:
            continue
        if reason := should_stop():
            raise StoppedEarly(reason)
        grid.running = run
        workdir = grid.workdir(run)
        began = time.monotonic()
        try:
            # A run reports to its own workdir; the screen belongs to the table.
            with open(os.devnull, 'w') as nowhere, contextlib.redirect_stdout(nowhere):
                train_and_evaluate(configs[run], str(workdir), should_stop=should_stop, dataset=dataset)
            record = make_record(run.row.name, run.seed, configs[run], workdir)
            record.write(record_path(results, run.row.name, run.seed))
        except StoppedEarly:
            raise
        except Exception as error:  # any failure is this run's alone
            grid.failed[run] = ' '.join(str(error).split()) or type(error).__name__
            with contextlib.suppress(OSError):
                workdir.mkdir(parents=True, exist_ok=True)
                (workdir / 'error.txt').write_text(traceback.format_exc())
            grid.console.print(f'{run.name}: failed: {grid.failed[run]}', highlight=False, soft_wrap=True)
        else:
            (workdir / 'error.txt').unlink(missing_ok=True)
            grid.done[run] = record.accuracy
            grid.console.print(
                f'{run.name}: {record.correct[-1].sum()} of {record.correct.shape[1]} correct, '
                f'{time.monotonic() - began:.0f} s ({len(grid.done)} of {len(grid.runs)})',
                highlight=False,
                soft_wrap=True,
            )
        grid.running = None
        # The next row runs other programs; those of this one are only memory.
        jax.clear_caches()
        gc.collect()


def parse_shard(text: str) -> tuple[int, int]:
    """'i/n' -> (i, n), with 0 <= i < n."""
    index, slash, count = text.partition('/')
    if not (slash and index.isdecimal() and count.isdecimal() and int(index) < int(count)):
        raise InputError(f'--shard={text}: must be i/n with 0 <= i < n, such as 0/4')
    return int(index), int(count)


def choose_runs(preset: Preset, shard: str, rows: str) -> list[Run]:
    """The runs of a shard, in order; `rows` are names with commas between, '' for all."""
    runs = runs_of(preset)
    if rows:
        known = [row.name for row in preset_rows(preset)]
        for name in rows.split(','):
            if name not in known:
                raise InputError(f'--rows: {name!r} is not one of {", ".join(known)}')
        runs = [run for run in runs if run.row.name in rows.split(',')]
    index, count = parse_shard(shard)
    return runs[index::count]


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog='python -m experiments.ablation', description=__doc__.splitlines()[0])
    parser.add_argument('--preset', required=True, choices=PRESETS)
    parser.add_argument('--data_source', help="config.data.source; the preset's if not given")
    parser.add_argument('--data_path', default='', help='config.data.path')
    parser.add_argument('--output', type=pathlib.Path, default=pathlib.Path('runs/ablation'), help='workdirs')
    parser.add_argument('--results', type=pathlib.Path, default=pathlib.Path('experiments/results'))
    parser.add_argument('--rows', default='', help='only these rows, with commas between')
    parser.add_argument('--shard', default='0/1', help='i/n: only every n-th run, from the i-th')
    parser.add_argument('--time_budget', type=float, help='seconds after which to save, stop and exit with 75')
    args = parser.parse_args(argv)
    if args.time_budget is not None and not args.time_budget >= 0:
        raise InputError(f'--time_budget={args.time_budget}: must be at least 0')
    preset = PRESETS[args.preset]
    runs = choose_runs(preset, args.shard, args.rows)
    should_stop = stop_conditions(args.time_budget)

    os.environ.setdefault('XLA_FLAGS', CPU_XLA_FLAGS)  # before jax is imported
    quieten_logs()
    import jax

    from pnn_jax.data import load_dataset

    output, results = args.output / args.preset, args.results / args.preset
    for folder in (output, results):
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f'{folder}: cannot be made ({error.strerror})') from None
    # The seeds of a row, and this program when it is started again, run the same programs.
    jax.config.update('jax_compilation_cache_dir', os.path.abspath(output / 'compiled'))
    jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.0)

    console = Console(file=sys.stdout)  # named, because runs redirect sys.stdout
    if not runs:
        console.print('no runs in this shard')
        return 0
    data = data_config(preset)
    data.path, data.source = args.data_path, args.data_source or data.source
    dataset = load_dataset(data)
    image_shape, num_classes = dataset.train.images.shape[1:], len(dataset.class_names)
    configs = {run: build_config(run.row, preset, run.seed, image_shape, num_classes) for run in runs}
    for config in configs.values():
        config.data.path, config.data.source = data.path, data.source
    grid = Grid(preset, runs, output, console)
    try:
        with Live(grid, console=console, refresh_per_second=1):
            train_grid(grid, configs, dataset, results, should_stop)
    except StoppedEarly as reason:
        console.print(f'stopped: {reason}; the same command goes on')
        return STOPPED_EARLY
    if grid.failed:
        raise RunError(f'{len(grid.failed)} of {len(runs)} runs failed: {", ".join(run.name for run in grid.failed)}')
    return 0


if __name__ == '__main__':
    restart_with_huge_pages()
    sys.exit(exit_code(main))
