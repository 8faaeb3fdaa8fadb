"""The stages of `python -m experiments.accelerator`: what to run on a GPU or TPU, in which order."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

ROWS = range(1, 9)

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


def stages(folder: Path, golden: Path, grid: str, data_path: Path | None) -> list[Stage]:
    """All stages, in order.

    Args:
        folder: for the files that they write.
        golden: a golden file of PyTorch, or a folder of them.
        grid: the grid to train at the end.
        data_path: where its data are; without it, nothing is trained.
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
    found += _speeds(folder)
    if data_path:
        options = [f'--grid={grid}', f'--data_path={data_path}', f'--output={folder / "runs"}']
        arguments = ['experiments.ablation', *options, f'--results={folder / "records"}']
        found.append(Stage('grid', f'the grid {grid}, as far as it gets', arguments, minutes=2, resumes=True))
    return found


def _speeds(folder: Path) -> Iterator[Stage]:
    """Rows of the audit against PyTorch, one stage a row; the operation alone; throughput against batch size."""

    def benchmark(name: str, what: str, minutes: float, *options: str) -> Stage:
        return Stage(name, what, ['experiments.benchmark', *options, f'--json={folder / name}.json'], minutes)

    def rows(peer: str, title: str, minutes: float) -> Iterator[Stage]:
        for row in ROWS:
            name, what = f'row{row}_{peer}', f'row {row} against {title}: training, evaluation, peak memory'
            yield benchmark(name, what, minutes, f'--rows={row}', f'--peer={peer}', '--steps=3')

    yield from rows('torch', 'PyTorch', 1.5)
    yield benchmark('roofline', 'the operation against the limits of the device', 1.5, '--rows=', '--roofline')
    yield benchmark('batch', 'throughput against batch size', 4, '--rows=', '--scaling=batch', '--steps=3')
    yield from rows('torch_compile', 'torch.compile', 2.5)


def calls(stages: Sequence[Stage], minutes: float) -> list[list[Stage]]:
    """The stages of each call, if every stage takes its `minutes` and a call has that many."""
    planned: list[list[Stage]] = []
    left = 0.0
    for stage in stages:
        if stage.minutes > left:
            planned.append([])
            left = minutes
        planned[-1].append(stage)
        left -= stage.minutes
    return planned
