"""Trains a grid of networks, several runs of each. It can be stopped and resumed at any point.

python -m experiments.ablation --preset=reduced --data_path=DIR   start a grid, or resume it
python -m experiments.ablation --preset=reduced --data_path=DIR --jobs=2     two runs at a time, one core each
python -m experiments.ablation --preset=smoke                     a few seconds, on scikit-learn's digits
python -m experiments.ablation --preset=full --shard=3/20         part 3 (from 0) of 20, for a Slurm array

Each run has its own workdir, `OUTPUT/<preset>/<row>_seed<k>`. When it is done, everything that the report needs is in
one file, `RESULTS/<preset>/<row>_seed<k>.json`. If this command is killed, run it again: finished runs are kept, and
the others resume from their last checkpoint. A run that fails does not stop the others; the next call tries it again.

Without --jobs, runs are trained one after another with all cores or accelerators. With --jobs=N, N processes train
one run each, with one thread on a core of their own; for small networks that is faster.

Exit codes: 0 all runs are done; 1 some runs failed; 2 wrong input; 75 stopped on request (signal or time budget).
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.live import Live

from experiments.ablation import shared_data
from experiments.ablation.presets import PRESETS, Preset, Run, choose_runs
from experiments.ablation.progress import Progress
from experiments.ablation.records import check_code, read_record, record_path
from experiments.ablation.run_config import build_config, data_config
from experiments.ablation.runner import Task, run_here
from experiments.ablation.workers import Worker, run_in_workers, use_compilation_cache
from experiments.command import Parser, exit_code, make_folder, whole_number
from pnn_jax.errors import InputError, RunError
from pnn_jax.run.provenance import provenance
from pnn_jax.runtime import CPU_XLA_FLAGS, restart_with_huge_pages, stop_conditions


def parse(argv: Sequence[str] | None):
    parser = Parser('experiments.ablation', __doc__)
    parser.add_argument('--preset', required=True, choices=PRESETS)
    parser.add_argument('--data_source', help='config.data.source; default: that of the preset')
    parser.add_path('--data_path', help='config.data.path')
    parser.add_path('--output', default='runs/ablation', help='folder for the workdirs')
    parser.add_path('--results', default='experiments/results', help='folder for the records')
    parser.add_argument('--rows', default='', help='only these rows, with commas between')
    parser.add_argument('--shard', default='0/1', help='i/n: every n-th run, starting with the i-th (from 0)')
    parser.add_argument('--jobs', type=whole_number(0), default=0, help='train this many runs at once; see above')
    parser.add_argument('--time_budget', type=float, help='seconds after which to save, stop and exit with 75')
    parser.add_argument('--allow_mixed_code', action='store_true', help='keep records that other code computed')
    args = parser.parse_args(argv)
    if args.time_budget is not None and not args.time_budget >= 0:
        raise InputError(f'--time_budget={args.time_budget}: must be 0 or more')
    return args


def load_data(preset: Preset, args):
    """The data set of a grid, and the `config.data` that says where it is."""
    from pnn_jax.data import load_dataset

    data = data_config(preset)
    data.path = str(args.data_path or '')
    data.source = args.data_source or data.source
    return load_dataset(data), data


def make_tasks(preset: Preset, runs: Sequence[Run], dataset, data, workdirs: Path, results: Path) -> list[Task]:
    """What each run needs to be trained."""
    tasks = []
    for run in runs:
        shape, num_classes = dataset.train.images.shape[1:], len(dataset.class_names)
        config = build_config(run.row, preset, run.seed, shape, num_classes)
        config.data.path, config.data.source = data.path, data.source
        record = record_path(results, run.row.name, run.seed)
        tasks.append(Task(run.row.name, run.seed, config, workdirs / run.name, record))
    return tasks


def main(argv: Sequence[str] | None = None) -> int:
    args = parse(argv)
    preset = PRESETS[args.preset]
    runs = choose_runs(preset, args.shard, args.rows)
    should_stop = stop_conditions(args.time_budget)
    os.environ.setdefault('XLA_FLAGS', CPU_XLA_FLAGS)  # read when jax first uses a device
    output = make_folder(args.output / args.preset, '--output')
    results = make_folder(args.results / args.preset, '--results')
    use_compilation_cache(output)
    console = Console(file=sys.stdout)  # named here, because runs redirect sys.stdout
    if not runs:
        console.print('no runs in this shard')
        return 0

    dataset, data = load_data(preset, args)
    tasks = make_tasks(preset, runs, dataset, data, output, results)
    records = {task.name: read_record(task.record, task.config) for task in tasks if task.record.exists()}
    if not args.allow_mixed_code:
        check_code(records.values(), provenance()['sha256'])
    progress = Progress(preset, runs, output, console)
    progress.done |= {name: record.accuracy for name, record in records.items()}
    waiting = [task for task in tasks if task.name not in records]
    with Live(progress, console=console, refresh_per_second=1):
        if args.jobs:
            stored = shared_data.store(dataset, output)
            start = lambda number: Worker(number, args.jobs, stored, output)
            run_in_workers(waiting, args.jobs, start, should_stop, progress)
        else:
            run_here(waiting, dataset, should_stop, progress)
    if progress.failed:
        raise RunError(f'{len(progress.failed)} of {len(runs)} runs failed: {", ".join(progress.failed)}')
    return 0


if __name__ == '__main__':
    restart_with_huge_pages('experiments.ablation')
    sys.exit(exit_code(main))
