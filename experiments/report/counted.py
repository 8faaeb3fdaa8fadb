"""One run counted in every historical way, for every batch size and order that the page can show.

Everything is computed here, by `experiments.counting`. The page only chooses what it shows, so that no estimator is
written a second time, in another language.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from experiments.counting.curves import label_of, recount
from experiments.counting.orders import random_order

BATCH_SIZES = (5, 10, 16, 20, 25, 32, 50, 64, 100, 128, 250)
SHOWN_FIRST = 10  # the batch size of the run whose smoothed accuracy the audit compares with the exact one
RANDOM_ORDERS = 5
STORED = 'as stored'


class Counted(NamedTuple):
    """A run in every way of counting.

    Attributes:
        name: of the run.
        examples: number of images.
        batch_sizes: that can be chosen; only those that leave a full batch.
        orders: that can be chosen: as stored, and random ones by their seed.
        curves: [batch size][order][way of counting] -> percent [epochs], rounded to four decimals.
        best: [batch size][order][way of counting] -> the best epoch as text, in percent.
    """

    name: str
    examples: int
    batch_sizes: list[int]
    orders: list[str]
    curves: list[list[dict[str, list[float]]]]
    best: list[list[dict[str, str]]]

    @property
    def first(self) -> int:
        """Index of the batch size that is shown first."""
        return self.batch_sizes.index(SHOWN_FIRST) if SHOWN_FIRST in self.batch_sizes else 0

    def values(self, batch_size: int, order: int) -> list[dict[str, Any]]:
        """The rows of the chart for the batch size and the order of these indices."""
        return [
            {'counted': way, 'epoch': epoch, 'accuracy': value}
            for way, curve in reversed(self.curves[batch_size][order].items())  # exact is drawn last, above the others
            for epoch, value in enumerate(curve, start=1)
        ]


def count_all(name: str, correct: np.ndarray) -> Counted:
    """Counts the outcomes [epochs, examples] of a run for every batch size and order."""
    examples = correct.shape[1]
    batch_sizes = [size for size in BATCH_SIZES if size <= examples]
    orders = {STORED: np.arange(examples)}
    orders |= {f'random {seed}': random_order(examples, seed) for seed in range(RANDOM_ORDERS)}
    counted = [[recount(correct[:, order], size) for order in orders.values()] for size in batch_sizes]
    rounded = lambda ways: {label_of(way): np.round(curve, 4).tolist() for way, curve in ways.items()}
    best = lambda ways: {label_of(way): f'{curve.max():.2f}' for way, curve in ways.items()}
    return Counted(
        name,
        examples,
        batch_sizes,
        list(orders),
        [[rounded(ways) for ways in of_size] for of_size in counted],
        [[best(ways) for ways in of_size] for of_size in counted],
    )
