"""LeNet with perturbation layers on MNIST.

Claim: noise masks are enough for MNIST. Published: none by the audit; one reader got 99.40% with the authors' network.
PyTorch: python main.py --net-type lenet --dataset-test MNIST --dataset-train MNIST --nfilters 64
         --first_filter_size 3 --filter_size 0 --nmasks 1
Ours:    python -m pnn_jax.main --config=configs/lenet_mnist.py
"""

from configs import default


def get_config():
    config = default.get_config()
    config.model.name = 'lenet'
    config.model.num_filters = 64
    config.model.stem_layer = 'conv'
    config.data.name = 'mnist'
    config.data.augment = 'none'
    config.data.mean = default.MNIST_MEAN
    config.data.std = default.MNIST_STD
    config.schedule.milestones = (29, 59, 89)
    return config
