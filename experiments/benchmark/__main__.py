"""Speed and memory of the eight rows of the audit, beside PyTorch.

python -m experiments.benchmark --peer=torch --json=FILE --plot=FILE       every row, training and evaluation
python -m experiments.benchmark --rows=6,7 --modes=train --steps=10        some of them, without PyTorch
python -m experiments.benchmark --rows= --scaling=num_masks,batch,seeds    tables over one quantity
python -m experiments.benchmark --rows= --roofline                         the perturbation operation alone

Ours is the complete training step of `pnn_jax.train` (augmentation, gradients, update), or the complete exact
evaluation of one batch. The peer is `experiments.verify.torch_twin` on images that are already on its device:
forward, backward and SGD, or forward and comparison. Each side has a process of its own, so that peak memory is its
own, and at most one GPU. The two take turns (A B A B ...), so that other load on the machine affects both. All times
are medians over turns.

On CPUs peak memory is the resident set of the process, with code and compiler; on accelerators it is what the
framework allocated there, at XLA with what it takes to choose among algorithms when it compiles. On accelerators both
sides do 20 steps or batches between two waits, and both multiply in TF32 unless JAX_DEFAULT_MATMUL_PRECISION says
'highest'.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence

from experiments.benchmark.cases import MODES, PEERS, ROWS, SCALING, Case, scaling_cases
from experiments.benchmark.roofline import roofline
from experiments.benchmark.show import describe, header, line_of, plot_of, readme_table
from experiments.benchmark.turns import Measurement, measure
from experiments.command import Parser, exit_code, replace_section, some_of, whole_number, write_file
from experiments.plots import check_plot, save_plot
from pnn_jax.errors import InputError, RunError


def benchmark_rows(options, report: Callable[[dict], None]) -> list[str]:
    """Every row and mode, ours beside the peers. Returns a line for everything that failed."""
    failures = []
    for row in options.rows:
        for mode in options.modes:
            batch_size = options.batch_size if mode == 'train' else options.eval_batch_size
            case = Case(row, mode, batch_size, num_filters=options.num_filters)
            found, failed = measure(['ours', *options.peer], case, options.steps)
            failures += failed
            if (ours := found.pop('ours', None)) is None:
                continue
            for name, peer in found.items():
                if is_cpu(ours) == is_cpu(peer):
                    report(describe(case, ours, name, peer))
                else:
                    failures.append(f'{name}, {case}: ran on {peer.machine}, and ours on {ours.machine}')
            if not found:
                report(describe(case, ours))
    return failures


def is_cpu(measurement: Measurement) -> bool:
    """Whether a side ran without an accelerator."""
    return measurement.machine.startswith('cpu')


def benchmark_scaling(options, report: Callable[[dict], None]) -> list[str]:
    """The tables over one quantity, ours alone. Returns a line for everything that failed."""
    failures = []
    for quantity in options.scaling:
        for value, case in scaling_cases(quantity, options):
            found, failed = measure(['ours'], case, options.steps)
            failures += failed
            for ours in found.values():
                line = describe(case, ours) | {'scaling': quantity, 'value': value}
                report(line | {'seed_style': case.seed_style} if quantity == 'seeds' else line)
    return failures


def parse(argv: Sequence[str] | None = None):
    parser = Parser('experiments.benchmark', __doc__)
    parser.add_argument('--rows', type=some_of(list(ROWS)), default=list(ROWS), help='rows of the audit, by number')
    parser.add_argument('--modes', type=some_of(MODES), default=list(MODES))
    parser.add_argument('--peer', type=some_of(PEERS), default=[], help=f'some of {",".join(PEERS)}')
    parser.add_argument('--steps', type=whole_number(), default=7, help='turns of each side; a turn takes about 1 s')
    parser.add_argument('--batch_size', type=whole_number(), default=16, help='of training')
    parser.add_argument('--eval_batch_size', type=whole_number(), default=100)
    parser.add_argument('--num_filters', type=whole_number(), default=0, help='default: that of each config')
    parser.add_argument('--scaling', type=some_of(list(SCALING)), default=[], help=f'some of {",".join(SCALING)}')
    parser.add_argument('--roofline', action='store_true', help='the operation, against the limits of the machine')
    parser.add_path('--json', help='file for all results')
    parser.add_path('--plot', help='image file for the rows')
    parser.add_path('--readme', help='file whose table of rows is replaced')
    options = parser.parse_args(argv)
    if options.json and not options.json.parent.is_dir():
        raise InputError(f'--json={options.json}: its folder does not exist')
    if options.plot:
        check_plot(options.plot, '--plot')
    if options.readme:
        if len(options.peer) != 1 or not options.rows:
            raise InputError('--readme: needs rows and one peer, such as --peer=torch')
        replace_section(options.readme, 'speed', '')  # a file without the markers is refused now, not after an hour
    return options


def main(argv: Sequence[str] | None = None) -> None:
    options = parse(argv)
    results: list[dict] = []

    def report(result: dict) -> None:
        results.append(result)
        print(line_of(result), flush=True)
        if options.json:
            write_file(options.json, json.dumps(results, indent=1) + '\n')

    columns = 'row, mode, batch, images/s, peak MB, first step s'
    peer_columns = ', peer images/s, ratio, peer MB' if options.peer else ''
    if options.rows or options.scaling:
        print(header(columns + peer_columns))
    failures = benchmark_rows(options, report)
    if options.plot and results:
        save_plot(plot_of(results), options.plot)
    if options.readme and not failures:
        write_file(options.readme, replace_section(options.readme, 'speed', readme_table(results)))
    failures += benchmark_scaling(options, report)
    if options.roofline:
        print(header('pass, x, masks, outputs, time, share of the limit'))
        roofline(options, report)
    if failures:
        raise RunError('; '.join(failures))


if __name__ == '__main__':
    sys.exit(exit_code(main))
