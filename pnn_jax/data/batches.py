"""Which examples make up which step. It depends on the run's key, the epoch and the step, and on nothing else."""

from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

HostBatch = dict[str, np.ndarray]

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


def padded_batches(images: np.ndarray, labels: np.ndarray, batch_size: int) -> Iterator[HostBatch]:
    """Splits n examples into this host's part of equal batches.

    Yields image [devices, b, ...], label, index (position in the set) and batch_mask, each [devices, b], for the local
    devices; b is batch_size over all devices, rounded up. The same number of batches on every host.
    """
    devices, hosts, host = jax.local_device_count(), jax.process_count(), jax.process_index()
    count = len(images)
    per_device = -(-min(batch_size, count) // (devices * hosts))
    host_size = per_device * devices
    for start in range(host * host_size, count + host * host_size, host_size * hosts):
        index = np.arange(start, start + host_size)
        valid = index < count
        index = np.where(valid, index, 0)
        batch = {
            'image': images[index],
            'label': labels[index],
            'index': index.astype(np.int32),
            'batch_mask': valid,
        }
        yield {name: value.reshape((devices, per_device) + value.shape[1:]) for name, value in batch.items()}
