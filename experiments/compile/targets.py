"""The accelerators that programs are compiled for without having one, and their sizes.

The compilers come with Python packages: libtpu (`pip install 'jax[tpu]'`) for TPUs, jax-cuda12-plugin and
jax-cuda12-pjrt for GPUs, each in the version of the installed jax.
"""

import dataclasses
import importlib.util
import os
import pathlib

import jax
from jax.experimental import topologies

from pnn_jax.errors import InputError

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Target:
    """One kind of device.

    Attributes:
        platform: 'tpu' or 'cuda'.
        memory: bytes of HBM of one device.
        slices: number of devices -> shape of the slice, as libtpu names it; the smallest slice also serves fewer
            devices, of which the first ones are then used. None for GPUs.
        clock_hz: cycles per second, which turn the bundles of a TPU's schedule into seconds; 0 where unknown.
    """

    platform: str
    memory: int
    slices: dict[int, str] | None = None
    clock_hz: float = 0


TARGETS = {
    'v4': Target('tpu', 32 * GIB, {4: '2x2x1', 16: '2x2x4'}, 1.05e9),
    'v5e': Target('tpu', 16 * GIB, {4: '2x2', 16: '4x4', 256: '16x16'}, 1.5e9),
    'v5p': Target('tpu', 95 * GIB, {4: '2x2x1', 16: '2x2x4'}, 1.75e9),
    'v6e': Target('tpu', 32 * GIB, {4: '2x2', 16: '4x4', 256: '16x16'}, 1.75e9),
    'h100': Target('cuda', 80 * GIB),
}

# What the compilers need on a machine without their devices. The accelerator type only has to be a valid one.
ENVIRONMENT = {
    'JAX_PLATFORMS': 'cpu',
    'JAX_SKIP_CUDA_CONSTRAINTS_CHECK': '1',
    'TPU_SKIP_MDS_QUERY': '1',
    'TPU_WORKER_HOSTNAMES': 'localhost',
    'TPU_ACCELERATOR_TYPE': 'v5litepod-4',
    'ALLOW_MULTIPLE_LIBTPU_LOAD': '1',
}

_PACKAGES = {'tpu': 'libtpu', 'cuda': 'jax_plugins.xla_cuda12'}
_H100_DESCRIPTION = pathlib.Path(__file__).with_name('descriptions') / 'h100.txtpb'


def check_devices(target: str, devices: int) -> None:
    """Raises InputError where no slice of a TPU has that many devices."""
    slices = TARGETS[target].slices
    if slices and devices not in slices and devices > min(slices):
        allowed = ','.join(map(str, [1, *slices]))
        raise InputError(f'--devices={devices}: for {target} it must be one of {allowed}')


def missing_compiler(target: str) -> str:
    """The Python package that is missing to compile for `target`, or ''."""
    package = _PACKAGES[TARGETS[target].platform]
    try:
        found = importlib.util.find_spec(package)
    except ModuleNotFoundError:  # of the parent package
        found = None
    return '' if found else package


def prepare_environment() -> None:
    """Sets the environment variables of the compilers; call it before the first use of jax."""
    os.environ.update(ENVIRONMENT)


def open_devices(target: str, count: int = 1) -> list[jax.Device]:
    """`count` devices of a target that programs can be compiled for, but not run on."""
    spec = TARGETS[target]
    if spec.platform == 'cuda':
        description = _H100_DESCRIPTION.read_text()
        topology = topologies.get_topology_desc('', platform='cuda', target_config=description, topology=f'1x{count}x1')
    else:
        size = min(size for size in spec.slices if size >= count)
        topology = topologies.get_topology_desc(f'{target}:{spec.slices[size]}', platform='tpu')
    return list(topology.devices)[:count]
