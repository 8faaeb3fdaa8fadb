"""Results as JSON objects, lines of a table, the table of the README, and a plot."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from experiments.benchmark.cases import MODES, ROWS, Case
from experiments.benchmark.sides import matmul_precision
from experiments.benchmark.turns import Measurement
from experiments.plots import plt


def describe(case: Case, ours: Measurement, name: str = '', peer: Measurement | None = None) -> dict:
    """One object of the JSON file, from the measurements of a case, beside those of a peer of this name."""
    result = {
        'row': case.row,
        'config': ROWS[case.row],
        'mode': case.mode,
        'batch_size': case.batch_size,
        'images_per_second': ours.images_per_second,
        'peak_memory_mb': ours.peak_memory_mb,
        'seconds_per_step': ours.seconds,
        'cpu_seconds_per_step': ours.cpu_seconds,
        'first_step_seconds': ours.first_step_seconds,
        'machine': ours.machine,
        'matmul_precision': matmul_precision(),
    }
    if peer:
        result |= {
            'peer': name,
            'peer_images_per_second': peer.images_per_second,
            'ratio': ours.images_per_second / peer.images_per_second,
            'peer_peak_memory_mb': peer.peak_memory_mb,
            'peer_cpu_seconds_per_step': peer.cpu_seconds,
            'peer_machine': peer.machine,
        }
    return result


def line_of(result: dict) -> str:
    """A result as a line of a Markdown table."""
    if 'roofline' in result:
        shape = 'x'.join(map(str, result['shape']))
        sharing = 'shared' if result['share_masks'] else 'unique'
        return (
            f'| {result["roofline"]} | {shape} | {result["num_masks"]} {sharing} | {result["outputs"]} '
            f'| {result["milliseconds"]:.2f} ms | {result["share"]:.0%} |'
        )
    name = f'{result["row"]} {result["config"]}'
    if result.get('peer') == 'torch_compile':
        name += ', torch.compile'
    if 'scaling' in result:
        name += f', {result["scaling"]} {result["value"]}' + (
            f' ({style})' if (style := result.get('seed_style')) else ''
        )
    cells = [
        name,
        result['mode'],
        str(result['batch_size']),
        f'{result["images_per_second"]:.3g}',
        f'{result["peak_memory_mb"]:.0f}',
        f'{result["first_step_seconds"]:.0f}',
    ]
    if 'ratio' in result:
        peer = result['peer_images_per_second']
        cells += [f'{peer:.3g}', f'{result["ratio"]:.2f}', f'{result["peer_peak_memory_mb"]:.0f}']
    return f'| {" | ".join(cells)} |'


def readme_table(results: Sequence[dict]) -> str:
    """The rows that were measured beside a peer, as a Markdown table below the name of the machine."""
    machines = f'{results[0]["machine"]}; {results[0]["peer_machine"]}'
    lines = [header('row, mode, batch, ours images/s, PyTorch, ratio, ours peak MB, PyTorch, ratio')]
    for result in results:
        ours, peer = result['peak_memory_mb'], result['peer_peak_memory_mb']
        lines.append(
            f'| {result["row"]} `{result["config"]}` | {result["mode"]} | {result["batch_size"]} '
            f'| {result["images_per_second"]:.3g} | {result["peer_images_per_second"]:.3g} '
            f'| **{result["ratio"]:.2f}** | {ours:.0f} | {peer:.0f} | {ours / peer:.2f} |'
        )
    return f'{machines}:\n\n' + '\n'.join(lines)


def header(columns: str) -> str:
    """The first two lines of a Markdown table; `columns` have commas between."""
    names = columns.split(', ')
    return f'| {" | ".join(names)} |\n|{"---|" * len(names)}'


def plot_of(results: Sequence[dict]) -> plt.Figure:
    """Images per second of all rows, ours and the peer's, on a logarithmic scale."""
    modes = [mode for mode in MODES if any(result['mode'] == mode for result in results)]
    figure, axes = plt.subplots(1, len(modes), figsize=(5.5 * len(modes), 3.6), squeeze=False, layout='constrained')
    for axis, mode in zip(axes[0], modes, strict=True):
        lines = [result for result in results if result['mode'] == mode]
        where = np.arange(len(lines))
        for offset, key, label, colour in (
            (-0.2, 'images_per_second', 'ours', 'tab:blue'),
            (0.2, 'peer_images_per_second', 'peer', 'tab:orange'),
        ):
            if all(key in line for line in lines):
                bars = axis.bar(where + offset, [line[key] for line in lines], 0.4, label=label, color=colour)
                axis.bar_label(bars, fmt='{:.3g}', fontsize=7)
        axis.set_yscale('log')
        axis.set_xticks(where, [str(line['row']) for line in lines])
        axis.set(xlabel='row', ylabel='images per second', title=f'{mode}, batch {lines[0]["batch_size"]}')
        axis.legend()
    return figure
