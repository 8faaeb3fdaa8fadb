"""What is measured: the rows of the audit, in training and evaluation, and one quantity varied at a time."""

from __future__ import annotations

import dataclasses
import importlib

ROWS = {
    1: 'baseline',
    2: 'original',
    3: 'original_stem3',
    4: 'no_noise',
    5: 'noise_everywhere',
    6: 'noise_masks',
    7: 'shared_masks',
    8: 'trained_masks',
}
MODES = ('train', 'eval')
PEERS = ('torch', 'torch_compile')
# Steps, or batches of evaluation, between two waits for an accelerator: pnn_jax.trainer.STEPS_PER_DISPATCH.
STEPS_PER_CALL = 20
IMAGE_SIZE, NUM_CLASSES = 32, 10

# Quantity -> its values in the scaling tables. They all measure row 7 in training.
SCALING_ROW = 7
SCALING = {
    'num_masks': (1, 4, 16, 64, 256),
    'batch': (16, 64, 256, 1024),
    'seeds': (1, 2, 4, 8),
    'devices': (1, 2, 4),
}
# Ways to train several seeds: one after another; or in one program, as `config.seeds_at_once` does.
SEED_STYLES = ('loop', 'vmap')


@dataclasses.dataclass(frozen=True)
class Case:
    """What one process measures.

    Attributes:
        row: of the audit.
        mode: 'train' or 'eval'.
        batch_size: images per step of one seed.
        num_filters, num_masks, devices: 0 keeps the value of the config, or of the machine.
        seeds: networks that are trained side by side.
        seed_style: how they are: one of `SEED_STYLES`.
    """

    row: int
    mode: str
    batch_size: int
    num_filters: int = 0
    num_masks: int = 0
    devices: int = 0
    seeds: int = 1
    seed_style: str = 'loop'

    def config(self):
        config = importlib.import_module(f'configs.{ROWS[self.row]}').get_config()
        config.batch_size = config.eval_batch_size = self.batch_size
        if self.num_filters:
            config.model.num_filters = self.num_filters
        if self.num_masks:
            config.model.num_masks = self.num_masks
        return config


def scaling_cases(quantity: str, options) -> list[tuple[int, Case]]:
    """(value, case) of every line of the table over one quantity."""
    base = Case(SCALING_ROW, 'train', options.batch_size, num_filters=options.num_filters)
    field = 'batch_size' if quantity == 'batch' else quantity
    values = SCALING[quantity]
    cases = [(value, dataclasses.replace(base, **{field: value})) for value in values]
    if quantity != 'seeds':
        return cases
    return [(value, dataclasses.replace(case, seed_style=style)) for value, case in cases for style in SEED_STYLES]
