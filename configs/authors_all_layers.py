"""The authors' answer with noise in every layer: many strong masks and a sigmoid in the first layer, 256 filters.

Claim: noise alone reaches 85.92% (the authors). The first layer has 5 x 256 masks per channel at 20 times the level.
PyTorch: python main.py --net-type perturb_resnet18 --nfilters 256 --batch-size 20 --learning-rate 1e-4
         --first_filter_size 0 --filter_size 0 --nmasks 1 --level 0.1 --optim-method Adam --nepochs 450
         (in pnn.pytorch.update)
Ours:    python -m pnn_jax.main --config=configs/authors_all_layers.py
"""

from configs import default


def get_config():
    config = default.get_config()
    config.num_epochs = 450
    config.batch_size = 20
    config.model.name = 'answer_resnet18'
    config.model.num_filters = 256
    config.model.noise_level = 0.1
    config.optimizer.name = 'adam'
    config.optimizer.learning_rate = 1e-4
    config.schedule.milestones = (149, 249, 299, 349, 399)
    return config
