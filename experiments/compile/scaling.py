"""How a training step scales to many chips, on paper: compute from compiled programs, transfers from assumptions.

python -m experiments.compile.scaling                          prints the table of docs/accelerators.md

Compute is the static time of a step on one v5e, a lower bound, so that the true shares are larger; that of `imagenet`,
whose schedule was not counted, is assumed. The number of images a chip stays the same. Nothing overlaps. One all-reduce
carries all gradients; the others carry little and cost only their hops.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from experiments.command import Parser, exit_code
from experiments.compile.__main__ import read_records

RECORDS = Path(__file__).parent.parent / 'results' / 'compile' / 'compiled.json'
CHIPS = (4, 16, 64, 256)

BYTES_PER_SECOND = 100e9  # of a chip's links, each way; gradients pass twice
SECONDS_PER_HOP = 1e-6  # n chips form a square torus, where an all-reduce takes 2 sqrt(n) hops
BFLOAT16_FLOPS, UTILISATION = 197e12, 0.3  # for imagenet, whose schedule was not counted


class Step(NamedTuple):
    """A training step on one chip: seconds of compute, trained parameters, and all-reduces besides the gradients'."""

    seconds: float
    parameters: int
    all_reduces: float


def share_of_compute(step: Step, chips: int) -> float:
    """The part of a step's time in which the chips compute."""
    gradients = 2 * 4 * step.parameters * (chips - 1) / chips / BYTES_PER_SECOND
    statistics = step.all_reduces * 2 * math.sqrt(chips) * SECONDS_PER_HOP
    return step.seconds / (step.seconds + gradients + statistics)


def steps() -> dict[tuple[str, int], Step]:
    """(config, images a chip) -> its step."""
    static, all_reduces = {}, {}
    for record in read_records(RECORDS):
        request = record['request']
        if (request['target'], request['program'], request['batch_size']) == ('v5e', 'train', 0):
            if 'static_milliseconds' in record and request['devices'] == 1:
                static[request['config']] = record['static_milliseconds'] / 1e3
            elif record['collectives']:
                all_reduces[request['config']] = record['collectives']['all-reduce'] - 1
    found = {
        (config, images): Step(static[config] * images / 16, parameters, all_reduces[config])
        for config, parameters in (('no_noise', 5_611_146), ('shared_masks', 1_220_234))
        for images in (16, 128)
    }
    # 5.2 GFLOP an image forward, three times that with gradients.
    seconds = 3 * 5.18e9 * 64 / (UTILISATION * BFLOAT16_FLOPS)
    return found | {('imagenet', 64): Step(seconds, 15_508_584, all_reduces['imagenet'])}


def main(argv: Sequence[str] | None = None) -> None:
    Parser('experiments.compile.scaling', __doc__).parse_args(argv)
    print('| | images a chip | ' + ' | '.join(f'{chips} chips' for chips in CHIPS) + ' |')
    print('|---|---' + '|---' * len(CHIPS) + '|')
    for (config, images), step in steps().items():
        shares = ' | '.join(f'{share_of_compute(step, chips):.0%}' for chips in CHIPS)
        print(f'| `{config}` | {images} | {shares} |')


if __name__ == '__main__':
    sys.exit(exit_code(main))
