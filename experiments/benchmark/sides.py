"""One step of this project, and one of the PyTorch twin, each ready to be measured.

jax and torch are imported where they are needed, because importing them costs memory, and memory is measured.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable

import numpy as np

from experiments.benchmark.cases import IMAGE_SIZE, NUM_CLASSES, STEPS_PER_CALL, Case
from pnn_jax.errors import RunError


@dataclasses.dataclass(frozen=True)
class Side:
    """One side of the comparison, ready to be measured.

    Attributes:
        step: does one step and waits until it is finished. On accelerators it does STEPS_PER_CALL steps or batches
            before it waits, as training does.
        images: images per call of `step`.
        machine: what it runs on, in words.
        accelerator_peak: gives the peak number of bytes on the accelerator; None on CPUs, where the memory of the
            process is measured instead.
    """

    step: Callable[[], object]
    images: int
    machine: str
    accelerator_peak: Callable[[], int | None] = lambda: None


def our_side(case: Case) -> Side:
    """The training step of this project, or its evaluation of one batch."""
    if case.devices:
        os.environ['JAX_NUM_CPU_DEVICES'] = str(case.devices)
    import jax

    from pnn_jax.train_step import all_variables

    if case.devices and jax.device_count() != case.devices:
        raise RunError(f'devices={case.devices}: this machine has {jax.device_count()}')

    trainer = make_trainer(case)
    runs = [trainer.init(seed, seed) for seed in range(case.seeds)]
    images = case.batch_size * case.seeds
    if case.mode == 'eval':
        variables = all_variables(*runs[0])
        step = lambda: trainer.evaluate(variables)
        images = trainer.feed.num_examples['test']
    else:
        train = {'loop': train_one_after_another, 'vmap': train_at_once}[case.seed_style]
        step = train(trainer, runs)
        images *= trainer.feed.steps_per_dispatch

    def accelerator_peak() -> int | None:
        stats = jax.local_devices()[0].memory_stats()
        return stats['peak_bytes_in_use'] if stats else None

    device = jax.local_devices()[0]
    machine = f'{device.device_kind}, {os.cpu_count()} cores, jax {jax.__version__}'
    return Side(step, images, machine, accelerator_peak)


def make_trainer(case: Case):
    """A trainer on random images, with its training step compiled where it is the one that is measured."""
    import jax

    from pnn_jax.data import Dataset, Split
    from pnn_jax.trainer import Trainer

    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (case.batch_size, IMAGE_SIZE, IMAGE_SIZE, 3), np.uint8)
    labels = rng.integers(0, NUM_CLASSES, case.batch_size, np.int32)
    if case.mode == 'train' or jax.default_backend() != 'cpu':  # enough images for all steps of one call
        images, labels = np.tile(images, (STEPS_PER_CALL, 1, 1, 1)), np.tile(labels, STEPS_PER_CALL)
    split = Split(images, labels)
    trainer = Trainer.create(case.config(), Dataset('random', split, split, tuple(map(str, range(NUM_CLASSES))), ''))
    if case.mode == 'train' and case.seed_style == 'loop':
        trainer.compile()
    return trainer


def train_one_after_another(trainer, runs: list) -> Callable[[], object]:
    """Trains every (state, fixed collections), each with the trainer's own program."""
    import jax

    batches = next(trainer.feed.batches(runs[0][0].key, epoch=0))
    trainer.wait_for_program(batches)

    def train():
        for i, (state, fixed) in enumerate(runs):
            runs[i] = trainer.train_steps(state, fixed, batches), fixed
        jax.block_until_ready(runs)

    return train


def train_at_once(trainer, runs: list) -> Callable[[], object]:
    """Trains all (state, fixed collections) in one program, as `config.seeds_at_once` does."""
    import jax

    states, fixed = map(tuple, zip(*runs, strict=True))
    runs.clear()  # their states are replaced
    batches = tuple(next(trainer.feed.batches(state.key, epoch=0)) for state in states)
    holder = [states]

    def train():
        holder[0] = jax.block_until_ready(tuple(trainer.train_together(holder[0], fixed, batches)))

    return train


def torch_side(case: Case, *, compiled: bool = False) -> Side:
    """The training step of the PyTorch twin with SGD, or its evaluation of one batch."""
    import torch

    from experiments.verify.torch_twin import make_twin

    device = torch.device('cuda' if torch.cuda.is_available() else 'cpu')
    if device.type == 'cuda':
        # XLA multiplies float32 matrices in TF32 unless it is told otherwise; torch does so in convolutions alone.
        exact = matmul_precision() in ('highest', 'float32')
        torch.set_float32_matmul_precision('highest' if exact else 'high')
        torch.backends.cudnn.allow_tf32 = not exact
        torch.backends.cudnn.benchmark = True  # XLA tries several algorithms, too
    calls = STEPS_PER_CALL if device.type == 'cuda' else 1
    config = case.config()
    network = make_twin(config.model, NUM_CLASSES, IMAGE_SIZE, 3).to(device)
    run = torch.compile(network) if compiled else network
    images = torch.randn(case.batch_size, 3, IMAGE_SIZE, IMAGE_SIZE, device=device)
    labels = torch.randint(NUM_CLASSES, (case.batch_size,), device=device)

    def wait():
        if device.type == 'cuda':
            torch.cuda.synchronize()

    def evaluate():
        with torch.no_grad():
            return sum((run(images).argmax(1) == labels).sum() for _ in range(calls)).item()

    def train():
        for _ in range(calls):
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
    return Side(train if case.mode == 'train' else evaluate, calls * case.batch_size, machine, peak)


def matmul_precision() -> str:
    """What the user asks of products of float32 numbers on accelerators, as jax names it; 'default' for nothing."""
    return os.environ.get('JAX_DEFAULT_MATMUL_PRECISION', 'default').lower()


def make_side(name: str, case: Case) -> Side:
    """The side with a name: 'ours', 'torch' or 'torch_compile'."""
    if name == 'ours':
        return our_side(case)
    return torch_side(case, compiled=name == 'torch_compile')
