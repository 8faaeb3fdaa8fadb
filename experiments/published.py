"""What others published for CIFAR-10: test accuracy in percent, always the maximum over epochs on the test set."""

from __future__ import annotations

from typing import NamedTuple

from pnn_jax.accounting import undo_flooring


class AuditRow(NamedTuple):
    """A row of the audit's README (michaelklachko/pnn.pytorch), trained for 150 epochs.

    Attributes:
        number: of the row there.
        what: the network.
        accuracy: as published, in percent. It is too low where `batch_size` does not divide 100 (integer division).
        batch_size: of training and evaluation.
    """

    number: int
    what: str
    accuracy: float
    batch_size: int

    @property
    def inferred(self) -> float:
        """The published accuracy with the integer division undone, in percent; an inference."""
        return undo_flooring(self.accuracy, self.batch_size)


class Replication(NamedTuple):
    """A number published by the authors, or by somebody who ran a published command."""

    what: str
    accuracy: str  # in percent, as written there
    where: str
    how_it_differs: str


AUDIT_ROWS = (
    AuditRow(1, '3x3 convolutions', 91.8, 10),
    AuditRow(2, 'original implementation', 85.7, 10),
    AuditRow(3, 'original, 3x3 first layer', 86.2, 10),
    AuditRow(4, '1x1 convolutions, no noise', 85.5, 16),
    AuditRow(5, 'noise in every layer', 72.6, 16),
    AuditRow(6, '64 masks, own set for each channel', 82.7, 16),
    AuditRow(7, '64 masks, one set', 82.4, 16),
    AuditRow(8, '64 masks, one set, trained', 85.9, 16),
)

REPLICATIONS = (
    Replication('the smoothing in one run', '90.53 reported, 85.91 exact', 'audit README', 'row 2 or 3, one run'),
    Replication('CVPR demo', 'about 92-93', 'juefeix/pnn.pytorch README', 'smoothed accuracy, 80 epochs'),
    Replication(
        "authors' answer, 128 filters",
        '90.35',
        'juefeix/pnn.pytorch.update README',
        'Adam, level 0.1, frozen first layer, 450 epochs',
    ),
    Replication('the same command, first reader', '89.79', 'its issue 2', 'best epoch 353'),
    Replication('the same command, second reader', '89.38', 'its issue 3', ''),
    Replication('the same with 256 filters', '90.76', 'its issue 3', 'twice the width'),
    Replication(
        "authors' all-layer answer",
        '85.92',
        'juefeix/pnn.pytorch.update README',
        '256 filters, 23.5M weights',
    ),
)
