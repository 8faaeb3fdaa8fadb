"""Quickstart: perturbation layers on the handwritten digits of scikit-learn, in about a minute on two CPU cores.

Claim: none; it shows the software at work. No download is needed. The first layer is a perturbation layer too, so no
layer sees the neighbours of a pixel: digits are recognised by the position and brightness of single pixels.
Ours:    python -m pnn_jax.main --config=configs/quickstart.py
"""

from configs import default


def get_config():
    config = default.get_config()
    config.num_epochs = 20
    config.batch_size = 32
    config.model.name = 'lenet'
    config.model.num_filters = 64
    config.model.num_masks = 8
    config.model.mix_channels = True
    config.model.dropout_rate = 0.0
    config.data.source = 'digits'
    config.data.name = 'digits'
    config.data.image_size = 16
    config.data.augment = 'none'
    config.data.mean = (0.3,)
    config.data.std = (0.35,)
    config.optimizer.name = 'adam'
    config.optimizer.learning_rate = 2e-3
    config.schedule.milestones = (12, 17)
    return config
