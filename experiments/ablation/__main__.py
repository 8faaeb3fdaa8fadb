"""Trains a grid: several runs of each of its arms. It can be stopped and resumed at any point.

python -m experiments.ablation --grid=smoke                             a minute, on scikit-learn's digits
python -m experiments.ablation --grid=fashion_mnist --data_path=DIR --plan     what it would train, and how long
python -m experiments.ablation --grid=fashion_mnist --data_path=DIR --jobs=2   a run on each of two cores
python -m experiments.ablation --grid=audit --shard=3/20                part 3 (from 0) of 20, for a Slurm array

A grid is a file in experiments/ablation/grids/, or any other TOML file of that form. Each run has its own workdir,
`OUTPUT/<grid>/<arm>_seed<k>`, which is kept. When a run is done, everything that the report needs is in one file,
`RESULTS/<grid>/<arm>_seed<k>.json`. If this command is killed, run it again: finished runs are kept, and the others
resume from their last checkpoint. A run that fails does not stop the others; the next call tries it again.

Runs that a blinded look adds are trained last, as soon as all runs that it looks at have records. With --shard, that
can take another call after the other shards are done.

Without --jobs, runs are trained one after another with all cores or accelerators. With --jobs=N, N processes train
one run each, with one thread on a core of their own; for small networks that is faster.

Exit codes: 0 all runs are done; 1 some runs failed; 2 wrong input; 75 stopped on request (signal or time budget).
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from rich.console import Console
from rich.live import Live

from experiments.ablation import shared_data
from experiments.ablation.plan import plan_table
from experiments.ablation.progress import Progress
from experiments.ablation.registration import Grid, read_grid
from experiments.ablation.results import Results, read_results
from experiments.ablation.run_config import check_rates_are_chosen
from experiments.ablation.runner import run_here
from experiments.ablation.runs import Run, choose_runs, runs_of
from experiments.ablation.tasks import configs_of, load_data, make_task
from experiments.ablation.workers import Worker, run_in_workers
from experiments.command import Parser, exit_code, make_folder, whole_number, write_file
from pnn_jax.errors import InputError, RunError, os_reason
from pnn_jax.program_cache import use_program_cache
from pnn_jax.run.provenance import provenance
from pnn_jax.runtime import CPU_XLA_FLAGS, quieten_logs, restart_with_huge_pages, stop_conditions

PLAN_WIDTH = 120  # also where the output is no terminal, which counts as 80 wide: nothing is cut short then


def parse(argv: Sequence[str] | None):
    parser = Parser('experiments.ablation', __doc__)
    parser.add_argument('--grid', required=True, help='a name in experiments/ablation/grids/, or a .toml file')
    parser.add_argument('--plan', action='store_true', help='print arms, weights and core-hours; train nothing')
    parser.add_argument('--data_source', help='config.data.source; default: that of the grid')
    parser.add_path('--data_path', help='config.data.path')
    parser.add_path('--output', default='runs/ablation', help='folder for the workdirs')
    parser.add_path('--results', default='experiments/results', help='folder for the records')
    parser.add_argument('--arms', default='', help='only these arms or runs, with commas between')
    parser.add_argument('--shard', default='0/1', help='i/n: every n-th run, starting with the i-th (from 0)')
    parser.add_argument('--jobs', type=whole_number(0), default=0, help='train this many runs at once; see above')
    parser.add_argument('--time_budget', type=float, help='seconds after which to save, stop and exit with 75')
    parser.add_argument('--allow_mixed_code', action='store_true', help='keep records, and resume runs, of other code')
    args = parser.parse_args(argv)
    if args.time_budget is not None and not args.time_budget >= 0:
        raise InputError(f'--time_budget={args.time_budget}: must be 0 or more')
    return args


def check_committed(grid: Grid) -> None:
    """Refuses to train a registration that is not committed: it has to be known before its results are.

    Outside of a checkout, nothing can be checked.

    Raises:
        InputError: the grid's file, or the code, is not as committed.
    """
    code = provenance()
    if not grid.registration or code['commit'] is None:
        return
    git = lambda *command: subprocess.run(
        ['git', '-C', str(grid.path.parent), *command, '--', grid.path.name],
        capture_output=True,
        text=True,
        check=False,
    )
    tracked, changed = git('ls-files', '--error-unmatch'), git('status', '--porcelain')
    if tracked.returncode or changed.returncode or changed.stdout.strip():
        raise InputError(f'--grid={grid.name}: is a registration; commit {grid.path.name} before its first run')
    if not code['clean']:
        raise InputError(f'--grid={grid.name}: is a registration; commit pnn_jax/ and configs/ before its first run')


def keep_grid(grid: Grid, output: Path) -> None:
    """Keeps a copy of the grid's file beside the workdirs, and compares with the copy that is there.

    Raises:
        InputError: the file of a registration has changed after its first run began.
    """
    copy, content = output / 'grid.toml', grid.path.read_bytes()
    try:
        before = copy.read_bytes() if copy.exists() else content
    except OSError as error:
        raise InputError(f'{copy}: cannot be read ({os_reason(error)})') from None
    if before != content and grid.registration:
        raise InputError(
            f'--grid={grid.name}: is a registration, which must not change after its runs began, but {grid.path} '
            f'differs from {copy}; restore it, or name another --output and --results'
        )
    write_file(copy, content)


def main(argv: Sequence[str] | None = None) -> int:
    args = parse(argv)
    grid = read_grid(args.grid)
    choose = lambda runs: choose_runs(grid, runs, args.shard, args.arms)
    choose([])  # raises before anything is made
    should_stop = stop_conditions(args.time_budget)
    os.environ.setdefault('XLA_FLAGS', CPU_XLA_FLAGS)  # read when jax first uses a device
    console = Console(file=sys.stdout)  # named here, because runs redirect sys.stdout
    if args.plan:
        dataset, data = load_data(grid, args.data_source, args.data_path)
        Console(file=sys.stdout, width=PLAN_WIDTH).print(plan_table(grid, configs_of(grid, dataset, data), dataset))
        return 0
    check_rates_are_chosen(grid)
    check_committed(grid)
    output = make_folder(args.output / grid.name, '--output')
    results = make_folder(args.results / grid.name, '--results')
    quieten_logs()
    use_program_cache()
    dataset, data = load_data(grid, args.data_source, args.data_path)
    configs = configs_of(grid, dataset, data)
    keep_grid(grid, output)

    def read() -> Results:
        code = provenance()['sha256']
        return read_results(results, grid, configs=configs, code=code, allow_mixed_code=args.allow_mixed_code)

    def train(runs: Sequence[Run]) -> None:
        tasks = [make_task(grid, run, configs, output, results, mixed_code=args.allow_mixed_code) for run in runs]
        if not args.jobs:
            return run_here(tasks, dataset, should_stop, progress)
        stored = shared_data.store(dataset, output)
        start = lambda number: Worker(number, args.jobs, stored, output)
        return run_in_workers(tasks, args.jobs, start, should_stop, progress)

    progress = Progress(grid, output, console)
    with Live(progress, console=console, refresh_per_second=1):
        train_all(grid, choose, read, train, progress)
    if not console.is_terminal:
        console.line()  # in a file, Live leaves out the end of its last line
    if progress.failed:
        count = len(progress.failed)
        raise RunError(f'{count} {"run" if count == 1 else "runs"} failed: {", ".join(progress.failed)}')
    return 0


def train_all(
    grid: Grid,
    choose: Callable[[Sequence[Run]], list[Run]],
    read: Callable[[], Results],
    train: Callable[[Sequence[Run]], None],
    progress: Progress,
) -> None:
    """Trains the runs of a grid that have no record, and then those that its blinded look adds.

    Args:
        choose: of some runs, those of this shard and of the arms that were asked for.
        read: the records that there are.
        train: trains runs, whether or not each of them succeeds.
    """
    tried: set[str] = set()
    while True:
        found = read()
        runs = [run for run in runs_of(grid, found.look) if run.name not in tried]
        if not runs:
            return
        tried |= {run.name for run in runs}
        chosen = choose(runs)
        progress.add(chosen)
        progress.done |= {run.name for run in chosen if run.name in found.records}
        train([run for run in chosen if run.name not in found.records])


if __name__ == '__main__':
    restart_with_huge_pages('experiments.ablation')
    sys.exit(exit_code(main))
