"""The stages of `python -m experiments.accelerator`: what to run on a GPU or TPU, in which order."""

from __future__ import annotations

import dataclasses
import itertools
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

FIRST_ROWS, OTHER_ROWS = (7, 4, 1, 6), (8, 5, 2, 3)  # of the audit
MODES = {'train': 'training', 'eval': 'evaluation'}

# Matrix products and convolutions of float32 in full precision: without TF32 on GPUs, and not in bfloat16 on TPUs.
FULL_PRECISION = {'JAX_DEFAULT_MATMUL_PRECISION': 'highest'}


@dataclasses.dataclass(frozen=True)
class Stage:
    """One command.

    Attributes:
        name: also that of its files.
        what: for the plan.
        arguments: of `python -m`.
        minutes: how long it usually takes at most. It is not started when less is left of a call.
        resumes: it saves when it gets SIGTERM, and continues in the next call.
        environment: variables that it needs.
    """

    name: str
    what: str
    arguments: Sequence[str]
    minutes: float
    resumes: bool = False
    environment: dict[str, str] = dataclasses.field(default_factory=dict)

    @property
    def command(self) -> list[str]:
        return [sys.executable, '-m', *self.arguments]


def stages(folder: Path, golden: Path, grid: str, data_path: Path | None, *, torch: bool = True) -> list[Stage]:
    """All stages, in order: what is wanted most comes first, because time on a device can end at any point.

    Args:
        folder: for the files that they write.
        golden: a golden file of PyTorch, or a folder of them.
        grid: the grid to train at the end.
        data_path: where its data are; without it, nothing is trained.
        torch: whether PyTorch can use the device; on TPUs it cannot.
    """
    found = [
        Stage(
            'operation',
            'the operation and its gradients against float64: every activation, own, shared and trained masks',
            ['experiments.accelerator.operation'],
            minutes=2,
            environment=FULL_PRECISION,
        ),
        Stage(
            'golden',
            'golden numbers of PyTorch in float32',
            ['experiments.verify', '--golden', str(golden), '--float32', f'--json={folder / "golden.json"}'],
            minutes=3,
            environment=FULL_PRECISION,
        ),
    ]
    found += _speeds(folder, torch)
    if data_path:
        options = [f'--grid={grid}', f'--data_path={data_path}', f'--output={folder / "runs"}']
        arguments = ['experiments.ablation', *options, f'--results={folder / "records"}']
        what = f'the grid {grid}, as far as it gets'
        found.append(Stage('grid', what, arguments, minutes=2, resumes=True, environment=FULL_PRECISION))
    return found


def _speeds(folder: Path, torch: bool) -> Iterator[Stage]:
    """Rows of the audit, in training and in evaluation; the operation alone; throughput against batch size."""
    against, peers = (' against PyTorch and torch.compile', ['--peer=torch,torch_compile']) if torch else ('', [])

    def benchmark(name: str, what: str, minutes: float, *options: str) -> Stage:
        return Stage(name, what, ['experiments.benchmark', *options, f'--json={folder / name}.json'], minutes)

    def of_row(row: int, mode: str, *options: str, name: str = '', text: str = '') -> Stage:
        what = f'{MODES[mode]} of row {row}{against}{text}, with peak memory'
        arguments = f'--rows={row}', f'--modes={mode}', *peers, '--steps=3', *options
        return benchmark(f'row{row}_{mode}{name}', what, 2.5, *arguments)

    yield from (of_row(row, 'train') for row in FIRST_ROWS)
    # With 512 images: with 16, a launch would take as long as the operation.
    roofline = 'the operation against the limits of the device'
    yield benchmark('roofline', roofline, 1.5, '--rows=', '--roofline', '--batch_size=512')
    for row in FIRST_ROWS[:2]:
        yield of_row(row, 'train', '--batch_size=128', name='_batch128', text=' with batches of 128')
    yield benchmark('batch', 'throughput against batch size', 7, '--rows=', '--scaling=batch', '--steps=3')
    seeds = 'several seeds in one program, with 16 filters'
    yield benchmark('seeds', seeds, 7, '--rows=', '--scaling=seeds', '--num_filters=16', '--steps=3')
    yield from (of_row(row, 'eval') for row in FIRST_ROWS)
    yield from (of_row(row, mode) for row, mode in itertools.product(OTHER_ROWS, MODES))


def calls(stages: Sequence[Stage], minutes: float) -> list[list[Stage]]:
    """The stages of each call, if every stage takes its `minutes` and a call has that many."""
    planned: list[list[Stage]] = []
    waiting = list(stages)
    while waiting:
        call: list[Stage] = []
        for stage in waiting:
            if not call or sum(one.minutes for one in call) + stage.minutes <= minutes:
                call.append(stage)
        planned.append(call)
        waiting = [stage for stage in waiting if stage not in call]
    return planned
