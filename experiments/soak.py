"""Do memory, file handles and threads stay flat in a long run, and do its records stay consistent?

python -m experiments.soak [--epochs=200] [--out=runs/soak]

Trains a tiny network for many epochs with checkpoints, TensorBoard and evaluation as usual, and measures between
dispatches what the process holds. Prints a table; exit code 1 if anything grew after the first fifth of the run (memory
by more than 20 MB) or a record is missing.
"""

import argparse
import json
import os
import shutil
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
from experiments.command import exit_code
from experiments.kill_test import CHANGES
from pnn_jax.train import train_and_evaluate

ALLOWED_GROWTH_MB = 20.0


class Sample(NamedTuple):
    """What the process holds at one moment: resident memory in MB, open files, threads."""

    megabytes: float
    files: int
    threads: int


def measure() -> Sample:
    pages = int(Path('/proc/self/statm').read_text().split()[1])
    return Sample(pages * os.sysconf('SC_PAGE_SIZE') / 1e6, len(os.listdir('/proc/self/fd')), threading.active_count())


def tensorboard_steps(workdir: Path, tag: str) -> list[int]:
    """Steps at which a scalar was recorded."""
    steps = []
    for path in sorted(workdir.glob('events.out.tfevents*')):
        data, offset = path.read_bytes(), 0
        while offset < len(data):  # length, its checksum, event, its checksum
            (size,) = struct.unpack_from('<Q', data, offset)
            event = Event.FromString(data[offset + 12 : offset + 12 + size])
            steps += [event.step for value in event.summary.value if value.tag == tag]
            offset += size + 16
    return steps


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--epochs', type=int, default=200)
    parser.add_argument('--out', type=Path, default=Path('runs/soak'), help='emptied first')
    options = parser.parse_args(argv)
    if options.epochs < 10:
        parser.error('--epochs must be at least 10')
    shutil.rmtree(options.out, ignore_errors=True)
    config = quickstart.get_config()
    config.update_from_flattened_dict(CHANGES)
    config.num_epochs = options.epochs
    config.data.train_examples = 192  # 3 steps an epoch
    config.checkpoint.every_steps = 2
    config.checkpoint.keep = 2
    config.log.tensorboard = True

    samples: list[Sample] = []

    def sample_and_go_on() -> str:
        samples.append(measure())
        return ''

    train_and_evaluate(config, str(options.out), should_stop=sample_and_go_on)

    table = Table('share of the run', 'resident MB', 'open files', 'threads')
    tenth = len(samples) / 10
    periods = [samples[int(i * tenth) : int((i + 1) * tenth)] for i in range(10)]
    highest = [Sample(*map(max, zip(*period, strict=True))) for period in periods]
    for i, period in enumerate(highest):
        table.add_row(f'{10 * i}-{10 * i + 10}%', f'{period.megabytes:.1f}', str(period.files), str(period.threads))
    Console().print(table)
    lines = [json.loads(line) for line in (options.out / 'metrics.jsonl').read_text().splitlines()]
    steps = [line['step'] for line in lines]
    problems = []
    if highest[-1].megabytes > highest[2].megabytes + ALLOWED_GROWTH_MB:
        problems.append('memory grew')
    if highest[-1].files > highest[2].files or highest[-1].threads > highest[2].threads:
        problems.append('files or threads grew')
    if [line['epoch'] for line in lines] != list(range(1, options.epochs + 1)):
        problems.append('metrics.jsonl does not have a line per epoch')
    if tensorboard_steps(options.out, 'test_accuracy') != steps:
        problems.append('TensorBoard does not have the steps of metrics.jsonl')
    print(f'{len(samples)} samples in {options.epochs} epochs; {"; ".join(problems) or "everything flat and complete"}')
    return 1 if problems else 0


if __name__ == '__main__':
    sys.exit(exit_code(main))
