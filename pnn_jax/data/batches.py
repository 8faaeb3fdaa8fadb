"""Which examples make up which step. It depends on the run's key, the epoch and the step, and on nothing else."""

import jax
import jax.numpy as jnp

# The keys of steps are fold_in(key, step). No run has this many steps, so the keys of orders differ from them.
_ORDER = 2**32 - 1


def epoch_order(key: jax.Array, epoch: int, n: int) -> jax.Array:
    """The order of the n training examples in an epoch (from 0): a permutation, int32 [n], on the device."""
    epoch_key = jax.random.fold_in(jax.random.fold_in(key, _ORDER), epoch)
    return jax.random.permutation(epoch_key, n).astype(jnp.int32)


def steps_per_epoch(n: int, batch_size: int) -> int:
    """Steps to see n examples once; the last batch may be smaller."""
    return -(-n // batch_size)


def host_share(batch_size: int, *, device_count: int, process_index: int, process_count: int) -> slice:
    """The part of a batch that one process loads.

    A batch that divides evenly over all devices is sharded: processes hold equal, consecutive parts. Any other batch
    (the last one of an epoch) is replicated: every process holds all of it.
    """
    if batch_size % device_count:
        return slice(0, batch_size)
    share = batch_size // process_count
    return slice(process_index * share, (process_index + 1) * share)
