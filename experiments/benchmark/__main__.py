"""Speed and memory of the eight rows, beside PyTorch.

python -m experiments.benchmark --peer=torch --json=FILE --plot=FILE       every row, training and evaluation
python -m experiments.benchmark --rows=6,7 --modes=train --steps=10        some of them, ours alone
python -m experiments.benchmark --rows= --scaling=num_masks,batch,seeds    tables over one quantity
python -m experiments.benchmark --rows= --roofline                         the perturbation operation by itself

Ours is the whole training step (augmentation, gradients, update) of `pnn_jax.train`, or the whole exact evaluation of
one batch; the peer's is that of `experiments.verify.torch_twin` on images that are ready on its device: forward,
backward, SGD, or forward and comparison. Each side runs in a process of its own, so that peak memory is its own, and
the two take turns (A B A B ...), so that what else the machine does hits both. Figures are medians over turns.

On CPUs peak memory is the process's resident set, code and compiler included; on accelerators what the framework
allocated there.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import functools
import importlib
import json
import multiprocessing
import os
import pathlib
import resource
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection

import numpy as np

from experiments.command import exit_code, replace_section
from pnn_jax.errors import InputError, RunError
from pnn_jax.runtime import CPU_XLA_FLAGS, HUGE_PAGES

# jax and torch are imported in the processes that need them, because importing them costs memory that is measured.

ROWS = {
    1: 'baseline',
    2: 'original',
    3: 'original_stem3',
    4: 'no_noise',
    5: 'noise_everywhere',
    6: 'noise_masks',
    7: 'shared_masks',
    8: 'trained_masks',
}
MODES = ('train', 'eval')
PEERS = ('none', 'torch', 'torch_compile')
IMAGE_SIZE, NUM_CLASSES = 32, 10

# Quantity -> its values in the scaling tables, all of them for row 7 in training.
SCALING_ROW = 7
SCALING = {
    'num_masks': (1, 4, 16, 64, 256),
    'batch': (16, 64, 256, 1024),
    'seeds': (1, 2, 4, 8),
    'devices': (1, 2, 4),
}
# Ways to train several seeds: one after another, or in one program.
SEED_STYLES = ('loop', 'vmap', 'map')

SECONDS_PER_TURN = 1.0
# Threads of OpenMP, which PyTorch uses, keep a core busy for 0.2 s after their last work.
SECONDS_BETWEEN_TURNS = 0.4

# What the entry point sets where its user has not; the peer runs as PyTorch is installed.
ENTRY_POINT = {'XLA_FLAGS': CPU_XLA_FLAGS, 'GLIBC_TUNABLES': HUGE_PAGES}


@dataclasses.dataclass(frozen=True)
class Case:
    """What one process measures. Zeros mean the config's own value."""

    row: int
    mode: str
    batch_size: int
    num_filters: int = 0
    num_masks: int = 0
    devices: int = 0
    seeds: int = 1
    seed_style: str = 'loop'

    def config(self):
        config = importlib.import_module(f'configs.{ROWS[self.row]}').get_config()
        config.batch_size = config.eval_batch_size = self.batch_size
        if self.num_filters:
            config.model.num_filters = self.num_filters
        if self.num_masks:
            config.model.num_masks = self.num_masks
        return config


@dataclasses.dataclass(frozen=True)
class Side:
    """One side at work.

    Attributes:
        step: does one step and waits for it.
        images: images per step.
        machine: what it runs on.
        accelerator_peak: peak bytes on the accelerator, or None where memory is the process's.
    """

    step: Callable[[], object]
    images: int
    machine: str
    accelerator_peak: Callable[[], int | None] = lambda: None


@dataclasses.dataclass
class Measurement:
    """Medians over turns, per step, of one side; the first step with all that comes before it: imports, compilation."""

    machine: str
    images: int
    first_step_seconds: float
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    peak_memory_mb: float = 0.0

    @property
    def images_per_second(self) -> float:
        return self.images / self.seconds


def our_side(case: Case) -> Side:
    """The project's own training step, or its evaluation of one batch."""
    if case.devices:
        os.environ['JAX_NUM_CPU_DEVICES'] = str(case.devices)
    import jax
    import jax.numpy as jnp

    from pnn_jax.data import Dataset, Split
    from pnn_jax.data.feeds import LoadedBatch
    from pnn_jax.train_step import all_variables, train_steps
    from pnn_jax.trainer import Trainer

    config = case.config()
    draw = np.random.default_rng(0)
    images = draw.integers(0, 256, (case.batch_size, IMAGE_SIZE, IMAGE_SIZE, 3), np.uint8)
    labels = draw.integers(0, NUM_CLASSES, case.batch_size, np.int32)
    if case.mode == 'train':  # enough for all steps of one dispatch
        images, labels = np.tile(images, (20, 1, 1, 1)), np.tile(labels, 20)
    split = Split(images, labels)
    trainer = Trainer.create(config, Dataset('random', split, split, tuple(map(str, range(NUM_CLASSES))), ''))
    if case.mode == 'train' and case.seed_style == 'loop':
        trainer.compile()
    states, fixed = map(list, zip(*(trainer.init(seed, seed) for seed in range(case.seeds)), strict=True))
    batches = next(trainer.feed.batches(states[0].key, epoch=0))

    def train_one_after_another():
        for i, state in enumerate(states):
            states[i] = trainer.train_steps(state, fixed[i], batches)
        jax.block_until_ready(states)

    def train_together(style: str) -> Callable[[], object]:
        parts = {'model': trainer.model, 'optimizer': trainer.optimizer, 'preprocess': trainer.preprocess}
        update = functools.partial(train_steps, **parts)
        stack = lambda trees: jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)
        holder, all_fixed = [stack(states)], stack(fixed)
        states.clear()
        together = {
            'vmap': jax.vmap(update, in_axes=(0, 0, None)),
            'map': lambda state, fixed, batch: jax.lax.map(lambda run: update(*run, batch), (state, fixed)),
        }
        step = jax.jit(together[style], donate_argnums=0)
        batch = LoadedBatch(batches.images[: case.batch_size], batches.labels[: case.batch_size])

        def train():
            holder[0] = jax.block_until_ready(step(holder[0], all_fixed, batch))

        return train

    def accelerator_peak() -> int | None:
        stats = jax.local_devices()[0].memory_stats()
        return stats['peak_bytes_in_use'] if stats else None

    steps_per_call = batches.num_steps if case.seed_style == 'loop' and case.mode == 'train' else 1
    if case.mode == 'eval':
        step = lambda: trainer.evaluate(all_variables(states[0], fixed[0]))
    elif case.seed_style == 'loop':
        step = train_one_after_another
    else:
        step = train_together(case.seed_style)
    device = jax.local_devices()[0]
    machine = f'{device.device_kind}, {os.cpu_count()} cores, jax {jax.__version__}'
    return Side(step, case.batch_size * case.seeds * steps_per_call, machine, accelerator_peak)


def torch_side(case: Case, *, compiled: bool = False) -> Side:
    """The twin's training step with SGD, or its forward pass in evaluation."""
    import torch

    from experiments.verify.torch_twin import build_twin

    device = torch.device('cuda' if torch.cuda.is_available() else 'cpu')
    config = case.config()
    network = build_twin(config.model, NUM_CLASSES, IMAGE_SIZE, 3).to(device)
    run = torch.compile(network) if compiled else network
    images = torch.randn(case.batch_size, 3, IMAGE_SIZE, IMAGE_SIZE, device=device)
    labels = torch.randint(NUM_CLASSES, (case.batch_size,), device=device)

    def wait():
        if device.type == 'cuda':
            torch.cuda.synchronize()

    def evaluate():
        with torch.no_grad():
            return (run(images).argmax(1) == labels).sum().item()

    def train():
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(run(images), labels).backward()
        optimizer.step()
        wait()

    parameters = [parameter for parameter in network.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(parameters, config.optimizer.learning_rate, 0.9, nesterov=True, weight_decay=1e-4)
    network.train(case.mode == 'train')
    peak = torch.cuda.max_memory_allocated if device.type == 'cuda' else lambda: None
    kind = torch.cuda.get_device_name() if device.type == 'cuda' else f'cpu, {torch.get_num_threads()} threads'
    machine = f'{kind}, torch {torch.__version__}'
    return Side(train if case.mode == 'train' else evaluate, case.batch_size, machine, peak)


def make_side(name: str, case: Case) -> Side:
    if name == 'ours':
        return our_side(case)
    return torch_side(case, compiled=name == 'torch_compile')


def serve(connection: Connection, name: str, case: Case) -> None:
    """The life of a process that measures: builds its side, then takes turns of as many steps as it is told."""
    began = time.perf_counter()
    side = make_side(name, case)
    side.step()
    connection.send((side.machine, side.images, time.perf_counter() - began))
    while steps := connection.recv():
        time.sleep(SECONDS_BETWEEN_TURNS)
        wall, cpu = time.perf_counter(), time.process_time()
        for _ in range(steps):
            side.step()
        connection.send(((time.perf_counter() - wall) / steps, (time.process_time() - cpu) / steps))
    on_accelerator = side.accelerator_peak()
    scale = 1 if sys.platform == 'darwin' else 1024  # ru_maxrss is in bytes there, in KiB elsewhere
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale
    connection.send((resident if on_accelerator is None else on_accelerator) / 2**20)


@contextlib.contextmanager
def environment(defaults: dict[str, str]):
    """Sets those of the variables that are not set, for processes that are started meanwhile."""
    added = defaults.keys() - os.environ.keys()
    os.environ.update({name: defaults[name] for name in added})
    try:
        yield
    finally:
        for name in added:
            del os.environ[name]


class Process:
    """A process that measures one side of a case."""

    def __init__(self, name: str, case: Case):
        context = multiprocessing.get_context('spawn')
        self.connection, theirs = context.Pipe()
        self.what = f'{name}, {case}'
        self.process = context.Process(target=serve, args=(theirs, name, case), daemon=True)
        with environment(ENTRY_POINT if name == 'ours' else {}):
            self.process.start()
        theirs.close()
        self.measurement = Measurement(*self.receive())
        self.turns: list[tuple[float, float]] = []

    def receive(self):
        try:
            return self.connection.recv()
        except EOFError as error:
            self.process.join()
            raise RunError(f'{self.what}: its process ended with exit code {self.process.exitcode}') from error

    def turn(self, steps: int) -> float:
        """Runs `steps` steps; returns the seconds of one."""
        self.connection.send(steps)
        self.turns.append(self.receive())
        return self.turns[-1][0]

    def finish(self) -> Measurement:
        self.connection.send(0)
        result = self.measurement
        result.seconds, result.cpu_seconds = map(statistics.median, zip(*self.turns, strict=True))
        result.peak_memory_mb = self.receive()
        self.process.join()
        return result


def measure(names: Sequence[str], case: Case, turns: int) -> list[Measurement]:
    """Measures all sides of a case in turn; the first turn of each warms up and says how many steps a turn takes."""
    processes = [Process(name, case) for name in names]
    steps = [max(1, int(SECONDS_PER_TURN / process.turn(1))) for process in processes]
    for process in processes:
        process.turns.clear()
    for _ in range(turns):
        for process, count in zip(processes, steps, strict=True):
            process.turn(count)
    return [process.finish() for process in processes]


def describe(case: Case, ours: Measurement, peer: Measurement | None) -> dict:
    """One object of the JSON file."""
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
    }
    if peer:
        result |= {
            'peer_images_per_second': peer.images_per_second,
            'ratio': ours.images_per_second / peer.images_per_second,
            'peer_peak_memory_mb': peer.peak_memory_mb,
            'peer_cpu_seconds_per_step': peer.cpu_seconds,
            'peer_machine': peer.machine,
        }
    return result


def benchmark_rows(options, report: Callable[[dict], None]) -> None:
    names = ['ours'] if options.peer == 'none' else ['ours', options.peer]
    for row in options.rows:
        for mode in options.modes:
            batch_size = options.batch_size if mode == 'train' else options.eval_batch_size
            case = Case(row, mode, batch_size, num_filters=options.num_filters)
            ours, *peers = measure(names, case, options.steps)
            report(describe(case, ours, peers[0] if peers else None))


def scaling_cases(quantity: str, options) -> list[tuple[int, Case]]:
    """(value, case) of every line of a table."""
    base = Case(SCALING_ROW, 'train', options.batch_size, num_filters=options.num_filters)
    field = 'batch_size' if quantity == 'batch' else quantity
    values = SCALING[quantity]
    cases = [(value, dataclasses.replace(base, **{field: value})) for value in values]
    if quantity != 'seeds':
        return cases
    return [(value, dataclasses.replace(case, seed_style=style)) for value, case in cases for style in SEED_STYLES]


def benchmark_scaling(options, report: Callable[[dict], None]) -> None:
    for quantity in options.scaling:
        for value, case in scaling_cases(quantity, options):
            (ours,) = measure(['ours'], case, options.steps)
            line = describe(case, ours, None) | {'scaling': quantity, 'value': value}
            report(line | {'seed_style': case.seed_style} if quantity == 'seeds' else line)


def operation_costs(
    shape: tuple[int, int, int, int], num_masks: int, outputs: int, *, share_masks: bool
) -> dict[str, tuple[int, int]]:
    """Least operations and bytes of the perturbation operation on x [b, h, w, g] in float32.

    Per perturbed value, forward: add and compare, and for every output a multiplication and an addition. Backward: add
    and compare anew; for the gradient of x select and add, and 2 operations an output to sum the outputs' cotangents;
    for that of the weights 2 operations an output. Bytes: every array read or written once.

    Returns:
        pass -> (operations, bytes), for 'forward' and 'gradients' (of x and weights, without the forward pass).
    """
    batch, height, width, channels = shape
    values = batch * height * width * channels
    masks = height * width * (1 if share_masks else channels) * num_masks
    weights = channels * num_masks * outputs
    return {
        'forward': (values * num_masks * (2 + 2 * outputs), 4 * (values + masks + weights + values * outputs)),
        'gradients': (
            values * num_masks * (4 + 4 * outputs),
            4 * (2 * values + masks + 2 * weights + values * outputs),
        ),
    }


def machine_limits() -> tuple[float, float]:
    """(operations, bytes) per second of this machine, as XLA reaches them: a matrix product, and x + 1."""
    import jax
    import jax.numpy as jnp

    matrix, vector = jnp.ones((2048, 2048)), jnp.ones(2**26)
    product, increment = jax.jit(lambda a: a @ a), jax.jit(lambda a: a + 1)
    return 2 * 2048**3 / fastest(product, matrix), 2 * vector.nbytes / fastest(increment, vector)


def fastest(function: Callable, *arguments, repeats: int = 10) -> float:
    """Seconds of the fastest call, the first one aside."""
    import jax

    jax.block_until_ready(function(*arguments))
    seconds = []
    for _ in range(repeats):
        began = time.perf_counter()
        jax.block_until_ready(function(*arguments))
        seconds.append(time.perf_counter() - began)
    return min(seconds)


def benchmark_roofline(options, report: Callable[[dict], None]) -> None:
    """The operation in the shapes of rows 6 (unique masks) and 7 (shared): share of the time that is unavoidable."""
    os.environ.setdefault('XLA_FLAGS', CPU_XLA_FLAGS)
    import jax
    import jax.numpy as jnp

    from pnn_jax.ops import perturb_combine

    def forward(x, masks, weights, y_bar):
        return perturb_combine(x, masks, weights, noise_level=0.5, activation='relu')

    def gradients(x, masks, weights, y_bar):
        apply = lambda x, weights: forward(x, masks, weights, None)
        return jax.vjp(apply, x, weights)[1](y_bar)

    operations_per_second, bytes_per_second = machine_limits()
    draw = np.random.default_rng(0)
    array = lambda *shape: jnp.asarray(draw.normal(size=shape), jnp.float32)
    width, num_masks = options.num_filters or 128, 64
    for size, channels in ((32, width), (16, 2 * width), (8, 4 * width), (4, 8 * width)):
        for outputs, share_masks in ((1, False), (1, True), (2, True)):
            shape = options.batch_size, size, size, channels
            masks = array(size, size, 1 if share_masks else channels, num_masks)
            arguments = array(*shape), masks, array(channels, num_masks, outputs), array(*shape, outputs)
            costs = operation_costs(shape, num_masks, outputs, share_masks=share_masks)
            for function in (forward, gradients):
                operations, size_in_bytes = costs[function.__name__]
                seconds = fastest(jax.jit(function), *arguments)
                least = max(operations / operations_per_second, size_in_bytes / bytes_per_second)
                report(
                    {
                        'roofline': function.__name__,
                        'shape': shape,
                        'num_masks': num_masks,
                        'outputs': outputs,
                        'share_masks': share_masks,
                        'milliseconds': 1e3 * seconds,
                        'operations': operations,
                        'bytes': size_in_bytes,
                        'share': least / seconds,
                        'machine': f'{jax.local_devices()[0].device_kind}, {os.cpu_count()} cores, '
                        f'{operations_per_second / 1e9:.0f} Gop/s, {bytes_per_second / 1e9:.0f} GB/s',
                    }
                )


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
    """The rows measured beside a peer as a Markdown table, with the machine above it."""
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
    names = columns.split(', ')
    return f'| {" | ".join(names)} |\n|{"---|" * len(names)}'


def plot(results: list[dict], path: str) -> None:
    """Images per second of all rows, ours and the peer's, on a logarithmic scale."""
    import matplotlib

    matplotlib.use('Agg')
    import matplotlib.pyplot as plt

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
    figure.savefig(path, dpi=120)


def numbers(allowed: Sequence[int]) -> Callable[[str], list[int]]:
    def parse(text: str) -> list[int]:
        parts = [part for part in text.split(',') if part]
        if any(part not in map(str, allowed) for part in parts):
            raise argparse.ArgumentTypeError(f'{text!r}: must be some of {",".join(map(str, allowed))}')
        return [int(part) for part in parts]

    return parse


def words(allowed: Sequence[str]) -> Callable[[str], list[str]]:
    def parse(text: str) -> list[str]:
        parts = [part for part in text.split(',') if part]
        if any(part not in allowed for part in parts):
            raise argparse.ArgumentTypeError(f'{text!r}: must be some of {",".join(allowed)}')
        return parts

    return parse


def positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f'{text!r}: must be a whole number from 1')
    return int(text)


def parser() -> argparse.ArgumentParser:
    result = argparse.ArgumentParser(
        prog='python -m experiments.benchmark', description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    result.add_argument('--rows', type=numbers(list(ROWS)), default=list(ROWS), help='rows of the audit, by number')
    result.add_argument('--modes', type=words(MODES), default=list(MODES))
    result.add_argument('--peer', choices=PEERS, default='none')
    result.add_argument('--steps', type=positive, default=7, help='turns of each side, of a second or one step')
    result.add_argument('--batch_size', type=positive, default=16, help='of training')
    result.add_argument('--eval_batch_size', type=positive, default=100)
    result.add_argument('--num_filters', type=positive, default=0, help="default: each config's own")
    result.add_argument('--scaling', type=words(list(SCALING)), default=[], help=f'some of {",".join(SCALING)}')
    result.add_argument(
        '--roofline', action='store_true', help='the operation alone, against the limits of the machine'
    )
    result.add_argument('--json', help='file for all results')
    result.add_argument('--plot', help='image file for the rows')
    result.add_argument('--readme', type=pathlib.Path, help='file whose table of rows is replaced')
    return result


def main(argv: Sequence[str] | None = None) -> None:
    options = parser().parse_args(argv)
    for name in ('json', 'plot'):
        path = getattr(options, name)
        if path and not pathlib.Path(path).resolve().parent.is_dir():
            raise InputError(f'--{name}={path}: its folder does not exist')
    if options.readme:
        if options.peer == 'none' or not options.rows:
            raise InputError('--readme: needs rows and a peer, such as --peer=torch')
        replace_section(options.readme, 'speed', '')  # refused now, not after an hour
    results: list[dict] = []

    def report(result: dict) -> None:
        results.append(result)
        print(line_of(result), flush=True)
        if options.json:
            pathlib.Path(options.json).write_text(json.dumps(results, indent=1) + '\n')

    columns = 'row, mode, batch, images/s, peak MB, first step s'
    peer_columns = '' if options.peer == 'none' else ', peer images/s, ratio, peer MB'
    if options.rows or options.scaling:
        print(header(columns + peer_columns))
    benchmark_rows(options, report)
    if options.plot and results:
        plot(results, options.plot)
    if options.readme:
        options.readme.write_text(replace_section(options.readme, 'speed', readme_table(results)))
    benchmark_scaling(options, report)
    if options.roofline:
        print(header('pass, x, masks, outputs, time, share of the limit'))
        benchmark_roofline(options, report)


if __name__ == '__main__':
    sys.exit(exit_code(main))
