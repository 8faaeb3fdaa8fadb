"""Golden files: numbers that the PyTorch repositories produced, stored as NAME.npz with NAME.json beside it."""

from __future__ import annotations

import dataclasses
import json
import pathlib
import zipfile
from collections.abc import Mapping, Sequence

import ml_collections
import numpy as np

from configs import default
from experiments.verify.cases import ANSWER, AUDIT, QUANTITIES, Case, within
from experiments.verify.compare import Row, verify
from pnn_jax.errors import InputError, one_line
from pnn_jax.pytorch.constructors import model_fields
from pnn_jax.pytorch.variables import Arrays, TorchTensors

BATCHES = ('x', 'y', 'xs', 'ys')
GOLDEN_FIELDS = frozenset(
    [
        'name',
        'ref',
        'net_type',
        'dataset',
        'seed',
        'K',
        'batch',
        'args',
        'opt',
        'torch',
        'images',
        'aliases',
        'trainable',
        'frozen',
        'n_trainable',
        'n_masks',
        'random_in_train',
        'null_gradient_params',
        'image_seed',
        'conditioning',
        'noise_floor',
        'thinned',
    ]
)
GOLDEN_OPTIMIZERS = {
    'sgd': lambda lr, momentum, weight_decay, nesterov: {
        'learning_rate': lr,
        'momentum': momentum,
        'weight_decay': weight_decay,
    },
    'adam': lambda lr, betas, weight_decay: {
        'learning_rate': lr,
        'beta1': betas[0],
        'beta2': betas[1],
        'weight_decay': weight_decay,
    },
}


@dataclasses.dataclass(frozen=True)
class Golden:
    """A case with what a PyTorch repository computed for it, and how far its own float32 was from that."""

    case: Case
    expected: Arrays
    floors: dict[str, float]


def read_golden(path: pathlib.Path) -> Golden:
    """Reads NAME.npz and the NAME.json beside it.

    Raises:
        InputError: a file is missing or damaged, or a field or key is missing or unknown.
    """
    arrays = _read_npz(path)
    facts_path = path.with_suffix('.json')
    try:
        facts = json.loads(facts_path.read_text())
    except (OSError, ValueError) as error:
        raise InputError(f'{facts_path} cannot be read: {one_line(error)}') from None
    if unknown := sorted(set(facts) - GOLDEN_FIELDS):
        raise InputError(f'{facts_path}: unknown field {unknown[0]!r}')
    try:
        case = _case(facts, arrays, facts_path)
        floors = {name: entry['max_abs_diff'] for name, entry in facts['noise_floor'].items()}
    except KeyError as error:
        key = error.args[0]
        raise InputError(f'{path if key in BATCHES else facts_path}: {key} is missing') from None
    expected = {key: value for key, value in arrays.items() if key.partition('/')[0] in QUANTITIES}
    return Golden(case, expected, floors)


def _case(facts: Mapping, arrays: Arrays, facts_path: pathlib.Path) -> Case:
    origin = facts['ref'].partition('@')[0]
    if origin not in (AUDIT, ANSWER):
        raise InputError(f'{facts_path}: ref={facts["ref"]!r}; known are {AUDIT} and {ANSWER}')
    quantities = frozenset(facts.get('thinned', QUANTITIES))
    model = default.get_config().model
    model.update(model_fields(facts['net_type'], facts['args'], authors_answer=origin == ANSWER))
    has_trajectories = 'sgd' in quantities
    return Case(
        name=facts['name'],
        model=model,
        optimizers={
            name: _optimizer_config(facts_path, name, settings)
            for name, settings in facts['opt'].items()
            if name in quantities
        },
        tensors=TorchTensors(within('sd', arrays), within('mask', arrays)),
        x=arrays['x'],
        y=arrays['y'],
        xs=arrays['xs'] if has_trajectories else arrays['x'][None, :0],
        ys=arrays['ys'] if has_trajectories else arrays['y'][None, :0],
        null_gradients=frozenset(facts['null_gradient_params']),
        evaluation_only=facts['random_in_train'] or quantities == {'eval_logits'},
        quantities=quantities,
    )


def _read_npz(path: pathlib.Path) -> Arrays:
    try:
        with open(path, 'rb') as opened, np.load(opened, allow_pickle=False) as file:
            return {key: file[key] for key in file.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, AttributeError) as error:
        raise InputError(f'{path} is no readable npz file: {one_line(error)}') from None


def _optimizer_config(facts_path: pathlib.Path, name: str, settings: Mapping) -> ml_collections.ConfigDict:
    config = default.get_config().optimizer
    try:
        config.update({'name': name, **GOLDEN_OPTIMIZERS[name](**settings)})
    except (KeyError, TypeError) as error:
        raise InputError(f'{facts_path}: optimizer {name!r} with {dict(settings)}: {error}') from None
    return config


def verify_golden(golden: Golden, *, float32: bool = False) -> list[Row]:
    """Compares everything that the golden file has."""
    return verify(golden.case, golden.expected, golden.floors if float32 else None)


def golden_files(paths: Sequence[str]) -> list[pathlib.Path]:
    """The npz files that are named, and those in the folders that are named."""
    files = []
    for path in map(pathlib.Path, paths):
        found = sorted(path.glob('*.npz')) if path.is_dir() else [path]
        if not found:
            raise InputError(f'{path} holds no npz file')
        files += found
    return files
