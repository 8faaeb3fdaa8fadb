"""The code published with the CVPR'18 paper, with its default options: 64 filters, Adam, noise level 0.1, 500 epochs.

Claim: the demo printed about 92-93% after 80 epochs. That was a smoothed running value; run `experiments.counting` on
the finished workdir to see what the demo would have printed here.
PyTorch: python main.py   (in juefeix/pnn.pytorch; options as in its config.py)
Ours:    python -m pnn_jax.main --config=configs/cvpr_original.py
"""

from configs import original


def get_config():
    config = original.get_config()
    config.num_epochs = 500
    config.batch_size = 64
    config.model.num_filters = 64
    config.model.noise_level = 0.1
    config.optimizer.name = 'adam'
    config.optimizer.learning_rate = 1e-3
    config.schedule.factor = 0.1
    return config
