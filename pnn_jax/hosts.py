"""Several processes that act as one: joining, replicating arrays, broadcasting from process 0, leaving.

A process that dies takes the others with it: those in a collective operation usually notice at once, all within
`LOST_HOST_SECONDS` plus the time that the system takes to tell them. Their checkpoints stay.
"""

import os
import pickle
import sys
from collections.abc import Callable
from typing import Any, NoReturn, TypeVar

import jax
import numpy as np
from jax.experimental.multihost_utils import broadcast_one_to_all, process_allgather

from pnn_jax.errors import InputError, RunError

T = TypeVar('T')

# A host is given up after so long without a sign of life.
LOST_HOST_SECONDS = 30


def join(coordinator: str | None = None, num_processes: int | None = None, process_id: int | None = None) -> None:
    """Connects to the other processes; without arguments they are found through the environment (TPU pods, Slurm).

    Raises:
        InputError: the environment does not tell, an argument is missing, or the others cannot be reached.
    """
    try:
        jax.distributed.initialize(
            coordinator,
            num_processes,
            process_id,
            heartbeat_timeout_seconds=LOST_HOST_SECONDS,
            shutdown_timeout_seconds=LOST_HOST_SECONDS,
        )
    except (ValueError, TypeError, RuntimeError) as error:
        where = f'--coordinator={coordinator}' if coordinator else '--multihost'
        raise InputError(f'{where}: cannot join the other processes: {" ".join(str(error).split())[:300]}') from None


def leave(code: int) -> NoReturn:
    """Ends this process at once, after an error.

    An orderly end would wait for the other hosts, which wait for this one. It would also let libraries print what they
    find in a failed save after the line that says what went wrong.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def replicate(tree: Any, sharding: jax.sharding.Sharding) -> Any:
    """Puts every array of a tree, the same on all hosts, where `sharding` says, other hosts' devices included."""

    def put(leaf):
        if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            return jax.random.wrap_key_data(put(jax.random.key_data(leaf)), impl=jax.random.key_impl(leaf))
        array = np.asarray(leaf)
        return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])

    return jax.device_put(tree, sharding) if jax.process_count() == 1 else jax.tree.map(put, tree)


def from_process_0(read: Callable[[], T]) -> T:
    """Calls `read` on process 0 and returns its value, or raises its InputError or RunError, on every process.

    Every process must call this at the same point. The value must pickle.
    """
    if jax.process_count() == 1:
        return read()
    outcome: tuple[T | None, InputError | RunError | None] = None, None
    if jax.process_index() == 0:
        try:
            outcome = read(), None
        except (InputError, RunError) as error:
            outcome = None, error
    value, failure = pickle.loads(_broadcast(pickle.dumps(outcome)))
    if failure is not None:
        raise failure
    return value


def agreed(reason: str) -> str:
    """The reason to stop that any host has, the same on all of them; '' where none has. Every process must call it."""
    if jax.process_count() == 1:
        return reason
    anyone = np.any(process_allgather(np.array(bool(reason))))
    return (reason or 'another host was asked to stop') if anyone else ''


def _broadcast(data: bytes) -> bytes:
    """The bytes of process 0. As bytes, because a broadcast is a sum, in which floats lose the sign of -0."""
    megabytes, rest = broadcast_one_to_all(np.asarray(divmod(len(data), 2**20), np.int32)).tolist()
    is_source = jax.process_index() == 0
    buffer = np.frombuffer(data, np.uint8) if is_source else np.zeros(megabytes * 2**20 + rest, np.uint8)
    return broadcast_one_to_all(buffer).tobytes()
