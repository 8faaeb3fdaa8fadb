"""One epoch in both frameworks, from the same weights over the same batches: are the loss curves the same?

python -m experiments.verify.curve_match --data=cifar10-exact-subset.npz --out=experiments/results/verify_torch

Trains `no_noise` and `shared_masks` (8 filters, 4 masks) with this project's training step and with our PyTorch
implementation (torch_twin.py), in float32 and without augmentation. Then counts the test images that each classifies
correctly. Writes curve_match.png and curve_match.json.
"""

import argparse
import json
import pathlib
import sys
import time
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np

from configs import no_noise, shared_masks
from experiments.command import exit_code
from pnn_jax.data import Dataset, load_dataset
from pnn_jax.data.batches import epoch_order
from pnn_jax.data.feeds import LoadedBatch
from pnn_jax.extras import imports_of_command
from pnn_jax.pytorch.variables import to_torch
from pnn_jax.train_step import TrainState, Variables, all_variables
from pnn_jax.trainer import Trainer

with imports_of_command('experiments.verify.curve_match', 'verify'):
    import torch

    from experiments.verify.quantities_torch import TORCH_OPTIMIZERS
    from experiments.verify.torch_twin import build_twin

matplotlib.use('Agg')
import matplotlib.pyplot as plt

RUNS = {'no_noise': no_noise, 'shared_masks': shared_masks}
NUM_FILTERS, NUM_MASKS = 8, 4


def small_config(module, data: str):
    config = module.get_config()
    config.num_epochs = 1
    config.model.num_filters, config.model.num_masks = NUM_FILTERS, NUM_MASKS
    config.data.source, config.data.path, config.data.augment = 'npz', data, 'none'
    return config


def train_jax(
    trainer: Trainer, state: TrainState, fixed: Variables, dataset: Dataset, order: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Losses [steps] and outcomes on the test set, bool [n]."""
    losses = []
    for start in range(0, len(order), trainer.config.batch_size):
        batch = order[start : start + trainer.config.batch_size]
        state = state.replace(epoch_metrics=jax.tree.map(jnp.zeros_like, state.epoch_metrics))
        loaded = LoadedBatch(jnp.asarray(dataset.train.images[batch]), jnp.asarray(dataset.train.labels[batch]))
        state = trainer.train_steps(state, fixed, loaded)
        losses.append(state.epoch_metrics.compute()['loss'])
    return np.array(losses), trainer.evaluate(all_variables(state, fixed)).correct


def train_torch(config, variables: Variables, dataset: Dataset, order: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """As `train_jax`, in PyTorch and from the same weights and masks."""
    size, channels = dataset.train.images.shape[2:]
    network = build_twin(config.model, len(dataset.class_names), size, channels)
    tensors = to_torch(variables, config.model, num_steps=0).state_dict
    network.load_state_dict({key: torch.tensor(value) for key, value in tensors.items()})
    optimizer = TORCH_OPTIMIZERS[config.optimizer.name](
        torch.optim, [p for p in network.parameters() if p.requires_grad], config.optimizer
    )
    mean, std = (torch.tensor(value).reshape(1, -1, 1, 1) for value in (config.data.mean, config.data.std))

    def images(split, index):
        return (torch.tensor(split.images[index].transpose(0, 3, 1, 2)) / 255 - mean) / std

    losses = []
    for start in range(0, len(order), config.batch_size):
        batch = order[start : start + config.batch_size]
        optimizer.zero_grad()
        labels = torch.tensor(dataset.train.labels[batch]).long()
        loss = torch.nn.functional.cross_entropy(network(images(dataset.train, batch)), labels)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    network.eval()
    with torch.no_grad():
        chunks = np.array_split(np.arange(len(dataset.test.labels)), 10)
        predicted = np.concatenate([network(images(dataset.test, chunk)).argmax(1).numpy() for chunk in chunks])
    return np.array(losses), predicted == dataset.test.labels


def match(name: str, data: str) -> dict:
    config = small_config(RUNS[name], data)
    dataset = load_dataset(config.data)
    trainer = Trainer.create(config, dataset)
    state, fixed = trainer.init(config.seed, config.mask_seed)
    order = np.asarray(epoch_order(state.key, 0, len(dataset.train.labels)))
    began = time.monotonic()
    variables = jax.device_get(all_variables(state, fixed))  # training donates the state
    ours, our_outcomes = train_jax(trainer, state, fixed, dataset, order)
    theirs, their_outcomes = train_torch(config, variables, dataset, order)
    return {
        'test_count': len(our_outcomes),
        'test_correct_jax': int(our_outcomes.sum()),
        'test_correct_torch': int(their_outcomes.sum()),
        'test_outcomes_that_differ': int((our_outcomes != their_outcomes).sum()),
        'steps': len(ours),
        'largest_loss_difference': float(np.abs(ours - theirs).max()),
        'largest_loss_difference_of_the_first_50_steps': float(np.abs(ours - theirs)[:50].max()),
        'seconds': round(time.monotonic() - began, 1),
        'losses_jax': [round(float(loss), 7) for loss in ours],
        'losses_torch': [round(float(loss), 7) for loss in theirs],
    }


def plot(results: dict, path: pathlib.Path) -> None:
    figure, axes = plt.subplots(2, len(results), figsize=(11, 6), sharex=True, height_ratios=(2, 1), squeeze=False)
    for (name, result), (upper, lower) in zip(results.items(), axes.T, strict=True):
        ours, theirs = np.array(result['losses_jax']), np.array(result['losses_torch'])
        upper.plot(theirs, color='tab:orange', linewidth=3, label='PyTorch')
        upper.plot(ours, color='black', linewidth=0.8, label='JAX')
        upper.set_title(
            f'{name}: {result["test_correct_jax"]} (JAX) and {result["test_correct_torch"]} (PyTorch) '
            f'of {result["test_count"]} test images'
        )
        upper.set_ylabel('training loss of the batch')
        upper.legend()
        lower.semilogy(np.maximum(np.abs(ours - theirs), 1e-8), color='black', linewidth=0.8)
        lower.set_ylabel('difference')
        lower.set_xlabel('step')
    figure.tight_layout()
    figure.savefig(path, dpi=120)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog='python -m experiments.verify.curve_match', description=__doc__.splitlines()[0]
    )
    parser.add_argument(
        '--data', required=True, help='npz file with train_images, train_labels, test_images, test_labels'
    )
    parser.add_argument('--out', required=True, type=pathlib.Path, help='folder for the plot and the numbers')
    args = parser.parse_args(argv)
    results = {}
    for name in RUNS:
        results[name] = match(name, args.data)
        print(name, {key: value for key, value in results[name].items() if not key.startswith('losses')}, flush=True)
    args.out.mkdir(parents=True, exist_ok=True)
    plot(results, args.out / 'curve_match.png')
    (args.out / 'curve_match.json').write_text(json.dumps(results) + '\n')


if __name__ == '__main__':
    sys.exit(exit_code(main))
