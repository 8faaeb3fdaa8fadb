"""Checkpoints of PyTorch to workdirs and back, as functions; `python -m pnn_jax.convert` is their command line."""

import importlib.util
import io
import os
import shutil
from collections import OrderedDict
from collections.abc import Collection
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from pnn_jax.errors import InputError, one_line, os_reason
from pnn_jax.optim import create_optimizer
from pnn_jax.paths import replace_file
from pnn_jax.pytorch.architecture import Architecture, unseen
from pnn_jax.pytorch.checkpoints import noise_file, read_checkpoint
from pnn_jax.pytorch.variables import Arrays, from_torch, to_torch, variable_shapes
from pnn_jax.run.checkpoints import Checkpointer, tree_digest
from pnn_jax.run.load import load_run
from pnn_jax.run.resume import saved_part
from pnn_jax.run.workdir import Workdir
from pnn_jax.train_step import Variables, create_train_state, fixed_collections
from pnn_jax.validate import validate_config


class Converted(NamedTuple):
    """The config of a converted workdir, and notes for the user on what the conversion changed."""

    config: ml_collections.ConfigDict
    notes: tuple[str, ...]


def to_workdir(
    source: Path, workdir: Path, config: ml_collections.ConfigDict, *, given: Collection[str] | None = None
) -> Converted:
    """Writes the network of a PyTorch file as a workdir with one checkpoint, which `--mode=eval` evaluates.

    Args:
        source: a state_dict or a whole model in a .pth or .safetensors file. The noise of `noise_resnet` is read from
            the file beside it (`noise_file`).
        workdir: a new or empty folder.
        config: of the run to be; fields of `config.model` that the file tells are replaced by those of the file.
        given: the fields of `config.model` whose values are known to be right, without 'model.'; None for all. Where
            the file tells such a field, the two must agree; what it does not tell must be given.

    Raises:
        InputError: the file cannot be converted, a field is not known, or the workdir is not empty. Nothing has been
            written then.
    """
    _check_is_new(workdir)
    checkpoint = read_checkpoint(source)
    config = merged(checkpoint.architecture, config, given)
    architecture = checkpoint.architecture
    channels = architecture.channels or len(config.data.mean)
    if channels != len(config.data.mean) or channels != len(config.data.std):
        raise InputError(
            f'{source}: is of a network for images with {channels} channel(s), but config.data.mean='
            f'{config.data.mean}, config.data.std={config.data.std}; give --config=FILE of such images, or these fields'
        )
    shapes = variable_shapes(config.model, architecture.num_classes, architecture.image_size, channels)
    try:
        variables, num_steps = from_torch(checkpoint.tensors, config.model, shapes)
    except InputError as error:
        raise InputError(f'{source}: {one_line(error)}') from None
    temporary = workdir.with_name(f'.{workdir.name}.{os.getpid()}.tmp')
    origin = {
        'converted_from': source.name,  # training refuses to resume it: PyTorch's optimizer has a state of its own
        'image_shape': [architecture.image_size, architecture.image_size, channels],
    }
    try:
        temporary.mkdir(parents=True)
        _write_run(temporary, config, variables, num_steps or 0, origin)
        temporary.rename(workdir)  # all of it at once
    except BaseException as error:
        shutil.rmtree(temporary, ignore_errors=True)
        if isinstance(error, OSError):
            raise InputError(f'{workdir} cannot be written: {os_reason(error)}') from None
        raise
    return Converted(config, checkpoint.notes)


def _check_is_new(workdir: Path) -> None:
    if not workdir.exists():
        return
    if not workdir.is_dir():
        raise InputError(f'{workdir} exists already and is no folder; name another one')
    if any((workdir / name).exists() for name in ('checkpoints', 'config.json')):
        raise InputError(f'{workdir} holds a run already; name another folder')
    if any(workdir.iterdir()):
        raise InputError(f'{workdir} is not empty; name another folder')


def merged(
    architecture: Architecture, config: ml_collections.ConfigDict, given: Collection[str] | None
) -> ml_collections.ConfigDict:
    """`config` with the fields that the file tells; `given` as in `to_workdir`.

    Raises:
        InputError: file and user disagree on a field, or neither says what it is.
    """
    config = config.copy_and_resolve_references()
    for field, value in architecture.fields.items():
        if (given is None or field in given) and config.model[field] != value:
            raise InputError(
                f'config.model.{field}={config.model[field]!r}, but the file is of a network with {value!r}'
            )
    missing = [field for field in unseen(architecture) if given is not None and field not in given]
    if missing:
        asked = ' '.join(f'--config.model.{field}=...' for field in missing)
        raise InputError(f'the file does not tell {", ".join(missing)}: give --config=FILE, or {asked}')
    try:
        config.model.update(architecture.fields)
        validate_config(config)
    except (TypeError, ValueError) as error:  # a saved model may hold anything; InputError is a ValueError
        raise InputError(f'the network of the file cannot be built: {one_line(error)}') from None
    return config


def from_workdir(workdir: Path, target: Path, checkpoint: str = 'latest') -> list[Path]:
    """Writes a run's checkpoint as a state_dict. The data set is not needed.

    Args:
        workdir: of a run that has a checkpoint.
        target: a new .pth file.
        checkpoint: 'latest' or 'best'.

    Returns:
        The files written: `target`, and for `noise_resnet` the noise masks beside it (`noise_file`), because PyTorch
        keeps them out of the state_dict.

    Raises:
        InputError: there is no run or no checkpoint, PyTorch has no such network, or a file exists or cannot be
            written. Nothing has been written then.
        RunError: the checkpoints are damaged.
    """
    if importlib.util.find_spec('torch') is None:
        raise InputError("writing a .pth file needs PyTorch: pip install 'pnn-jax[verify]'")
    for path in (target, noise_file(target)):
        if path.exists():
            raise InputError(f'{path} exists already; name another file')
    run = load_run(workdir, checkpoint)
    tensors = to_torch(run.variables, run.config.model, num_steps=run.step)
    tensors_of = {noise_file(target): tensors.noise_masks, target: tensors.state_dict}
    contents = {path: _torch_bytes(arrays) for path, arrays in tensors_of.items() if arrays}
    try:
        for path, content in contents.items():
            replace_file(path, content)
    except OSError as error:
        for path in contents:  # none of them existed before
            path.unlink(missing_ok=True)
        raise InputError(f'{target} cannot be written: {os_reason(error)}') from None
    return list(contents)[::-1]


def _torch_bytes(arrays: Arrays) -> bytes:
    import torch

    buffer = io.BytesIO()
    torch.save(OrderedDict((key, torch.from_numpy(np.array(array))) for key, array in arrays.items()), buffer)
    return buffer.getvalue()


def _write_run(
    folder: Path, config: ml_collections.ConfigDict, variables: Variables, num_steps: int, origin: dict[str, Any]
) -> None:
    """Writes a workdir with a single checkpoint of these variables. The folder is ours alone, so it needs no lock."""
    optimizer = create_optimizer(config.optimizer, lambda step: config.optimizer.learning_rate)
    variables = jax.tree.map(jnp.asarray, variables)
    state, fixed = create_train_state(variables, optimizer, jax.random.key(config.seed)), fixed_collections(variables)
    state = state.replace(step=jnp.asarray(num_steps, jnp.int32))
    with Workdir.open(folder, config, lock=False) as workdir, Checkpointer(workdir.checkpoints_dir) as checkpointer:
        workdir.begin()
        checkpointer.save_masks(fixed)
        meta = {'fixed_digest': tree_digest(fixed), 'data_digest': '', **origin}
        checkpointer.save(num_steps, saved_part(state), meta, accuracy=None)
