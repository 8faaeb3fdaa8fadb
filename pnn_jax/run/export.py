"""A finished run as files that other programs read. `pnn-export` is the command line.

    model.safetensors   weights, batch norm statistics and masks: 'params.linear.kernel', ...; all float32
    model.stablehlo     the network as a program, written by `jax.export`
    config.json         every field of the run
    export.json         what the files are: checkpoint, its step and exact accuracy, class names, shape of the images,
                        code, versions; of a network from PyTorch, accuracy and class names are null

The program needs jax to evaluate, and nothing of this package:

    weights = safetensors.numpy.load_file('model.safetensors')
    network = jax.export.deserialize(open('model.stablehlo', 'rb').read())
    logits = network.call(weights, images)

Images are uint8 [n, h, w, c], for any n; the program normalises them. Logits are float32 [n, classes]. It runs on CPUs,
NVIDIA GPUs and TPUs. JAX promises to read such a file for six months after the version that wrote it.
"""

import importlib.util
import json
import os
import shutil
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from pnn_jax.data import Stream
from pnn_jax.errors import InputError, os_reason
from pnn_jax.extras import missing_library
from pnn_jax.paths import replace_file
from pnn_jax.run.load import Run, flat, load_run, nested
from pnn_jax.run.provenance import provenance
from pnn_jax.run.result import evaluated_split, versions
from pnn_jax.run.workdir import read_json

PLATFORMS = ('cpu', 'cuda', 'tpu')


def export_run(workdir: Path, target: Path, checkpoint: str = 'latest') -> list[Path]:
    """Writes the network of a finished run, or one from PyTorch, with everything that is needed to evaluate it.

    Args:
        workdir: of a finished run, or of a converted network; of several seeds, the folder of one of them.
        target: a new folder.
        checkpoint: 'latest' or 'best'.

    Returns:
        The files in `target`.

    Raises:
        InputError: a library is missing, there is no finished run, or `target` exists or cannot be written. Nothing has
            been written then.
        RunError: the files of the run are damaged.
    """
    for library in ('safetensors', 'flatbuffers'):
        if importlib.util.find_spec(library) is None:
            raise missing_library('exporting a network', library, 'export')  # flatbuffers: for jax.export
    if target.exists():
        raise InputError(f'{target} exists already; name another folder')
    run = load_run(workdir, checkpoint)
    image_shape, class_names = _images_and_classes(run)
    contents = {
        'model.safetensors': safetensors_bytes(run),
        'model.stablehlo': stablehlo_bytes(run, image_shape),
        'config.json': _json(json.loads(run.config.to_json_best_effort())),
        'export.json': _json(_description(run, image_shape, class_names, checkpoint)),
    }
    return _write_folder(target, contents)


def safetensors_bytes(run: Run) -> bytes:
    """All variables of a run, by name."""
    import safetensors.numpy

    return safetensors.numpy.save(flat(run.variables))


def stablehlo_bytes(run: Run, image_shape: tuple[int, ...]) -> bytes:
    """The serialised program (weights, images) -> logits; weights as in the safetensors file."""

    def logits(weights: dict[str, jax.Array], images: jax.Array) -> jax.Array:
        return run.predict(nested(weights), images).astype(jnp.float32)

    (n,) = jax.export.symbolic_shape('n')
    weights = jax.tree.map(lambda array: jax.ShapeDtypeStruct(array.shape, array.dtype), flat(run.variables))
    images = jax.ShapeDtypeStruct((n, *image_shape), jnp.uint8)
    return bytes(jax.export.export(jax.jit(logits), platforms=PLATFORMS)(weights, images).serialize())


def _images_and_classes(run: Run) -> tuple[tuple[int, ...], list[str] | None]:
    """[h, w, c] of the images that the network takes, and the names of its classes. A PyTorch file has no names.

    Raises:
        InputError: the run is not finished, or an older version converted the network and did not note these.
    """
    if 'image_shape' in run.meta:
        return tuple(run.meta['image_shape']), None
    if not (run.path / 'result.json').exists():
        if 'converted_from' in run.meta:
            source = run.meta['converted_from']
            raise InputError(f'{run.path}: an older version converted it; convert {source} again with pnn-convert')
        raise InputError(f'{run.path}: its run is not finished; the command that started it resumes it')
    result = read_json(run.path / 'result.json')
    class_names = list(result['per_class'])
    if 'image_shape' in result['dataset']:
        return tuple(result['dataset']['image_shape']), class_names
    data = run.load_data()  # the run is older than that field
    return tuple(data.image_shape if isinstance(data, Stream) else data.test.images.shape[1:]), class_names


def _description(
    run: Run, image_shape: tuple[int, ...], class_names: list[str] | None, checkpoint: str
) -> dict[str, Any]:
    lines = run.path / 'metrics.jsonl'  # which a converted network does not have
    split = evaluated_split(json.loads(lines.read_text().splitlines()[-1])) if lines.exists() else 'test'
    return {
        'checkpoint': checkpoint,
        'step': run.step,
        f'{split}_accuracy': run.accuracy,
        'class_names': class_names,
        'image_shape': image_shape,
        'platforms': PLATFORMS,
        'code': provenance(),
        'versions': versions(),
    }


def _json(content: dict) -> bytes:
    return (json.dumps(content, indent=2) + '\n').encode()


def _write_folder(target: Path, contents: dict[str, bytes]) -> list[Path]:
    """Writes a new folder, all of it at once."""
    temporary = target.with_name(f'.{target.name}.{os.getpid()}.tmp')
    try:
        temporary.mkdir(parents=True)
        for name, content in contents.items():
            replace_file(temporary / name, content)
        temporary.rename(target)
    except OSError as error:
        raise InputError(f'{target} cannot be written: {os_reason(error)}') from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return [target / name for name in contents]
