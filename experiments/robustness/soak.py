"""Do memory, open files and threads stay flat in a long run, and are its logs complete?

python -m experiments.robustness.soak [--epochs=200] [--out=runs/soak]

Trains a tiny network for many epochs, with checkpoints, TensorBoard and evaluation as usual, and measures what the
process holds between steps. Prints a table. Exit code 1 if anything grew after the first fifth of the run (memory by
more than 20 MB), or if an epoch is missing from the logs. Linux only.
"""

from __future__ import annotations

import json
import os
import struct
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from rich.console import Console
from rich.table import Table
from tensorboardX.proto.event_pb2 import Event

from configs import quickstart
from experiments.command import Parser, empty_folder, exit_code, whole_number
from experiments.robustness.kill_test import CHANGES
from pnn_jax.train import train_and_evaluate

ALLOWED_GROWTH_MB = 20.0


class Sample(NamedTuple):
    """What the process holds at one moment.

    Attributes:
        megabytes: of resident memory.
        files: that are open.
        threads: of Python.
    """

    megabytes: float
    files: int
    threads: int


def measure() -> Sample:
    pages = int(Path('/proc/self/statm').read_text().split()[1])
    return Sample(pages * os.sysconf('SC_PAGE_SIZE') / 1e6, len(os.listdir('/proc/self/fd')), threading.active_count())


def tensorboard_steps(workdir: Path, tag: str) -> list[int]:
    """The steps at which TensorBoard's files have a value of a scalar."""
    steps = []
    for path in sorted(workdir.glob('events.out.tfevents*')):
        data, offset = path.read_bytes(), 0
        while offset < len(data):  # 8 bytes length, 4 bytes checksum, the event, 4 bytes checksum
            (size,) = struct.unpack_from('<Q', data, offset)
            event = Event.FromString(data[offset + 12 : offset + 12 + size])
            steps += [event.step for value in event.summary.value if value.tag == tag]
            offset += size + 16
    return steps


def config_of(epochs: int):
    """A tiny network with frequent checkpoints."""
    config = quickstart.get_config()
    config.update_from_flattened_dict(CHANGES)
    config.num_epochs = epochs
    config.data.train_examples = 192  # 3 steps per epoch
    config.checkpoint.every_steps = 2
    config.checkpoint.keep = 2
    config.log.tensorboard = True
    return config


def tenths(samples: Sequence[Sample]) -> list[Sample]:
    """The maximum of each tenth of the run."""
    length = len(samples) / 10
    periods = [samples[int(i * length) : int((i + 1) * length)] for i in range(10)]
    return [Sample(*map(max, zip(*period, strict=True))) for period in periods]


def problems_of(highest: Sequence[Sample], workdir: Path, epochs: int) -> list[str]:
    """What grew after the first fifth of the run, and what is missing from its logs."""
    lines = [json.loads(line) for line in (workdir / 'metrics.jsonl').read_text().splitlines()]
    problems = []
    if highest[-1].megabytes > highest[2].megabytes + ALLOWED_GROWTH_MB:
        problems.append('memory grew')
    if highest[-1].files > highest[2].files or highest[-1].threads > highest[2].threads:
        problems.append('files or threads grew')
    if [line['epoch'] for line in lines] != list(range(1, epochs + 1)):
        problems.append('metrics.jsonl does not have a line per epoch')
    if tensorboard_steps(workdir, 'test_accuracy') != [line['step'] for line in lines]:
        problems.append('TensorBoard does not have the steps of metrics.jsonl')
    return problems


def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser('experiments.robustness.soak', __doc__)
    parser.add_argument('--epochs', type=whole_number(10), default=200)
    parser.add_path('--out', default='runs/soak', help='folder for the run; one of an earlier test is emptied')
    options = parser.parse_args(argv)
    out = empty_folder(options.out, '--out')
    workdir = out / 'run'

    samples: list[Sample] = []

    def sample() -> str:
        samples.append(measure())
        return ''

    train_and_evaluate(config_of(options.epochs), str(workdir), should_stop=sample)

    table = Table('share of the run', 'resident MB', 'open files', 'threads')
    highest = tenths(samples)
    for i, period in enumerate(highest):
        table.add_row(f'{10 * i}-{10 * i + 10}%', f'{period.megabytes:.1f}', str(period.files), str(period.threads))
    Console().print(table)
    problems = problems_of(highest, workdir, options.epochs)
    print(f'{len(samples)} samples in {options.epochs} epochs; {"; ".join(problems) or "everything flat and complete"}')
    return 1 if problems else 0


if __name__ == '__main__':
    sys.exit(exit_code(main))
