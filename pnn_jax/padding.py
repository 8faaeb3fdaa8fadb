"""Equal batches for every device of every host, so that evaluation counts each example exactly once."""

from collections.abc import Iterator

import jax
import numpy as np

# image [devices, b, ...], label, index (position in the set) and batch_mask (False: padding), each [devices, b].
HostBatch = dict[str, np.ndarray]


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
