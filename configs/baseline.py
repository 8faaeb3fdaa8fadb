"""Row 1: ResNet-18 with 3x3 convolutions. 44 filters give it as many parameters as the perturbative networks have.

Claim: this is what an ordinary network of the same size reaches. Published: 91.8% (the audit, exact at batch size 10).
PyTorch: python main.py --net-type resnet18 --nfilters 44 --batch-size 10 --learning-rate 1e-3
Ours:    python -m pnn_jax.main --config=configs/baseline.py
"""

from configs import default


def get_config():
    config = default.get_config()
    config.batch_size = 10
    config.model.name = 'resnet18'
    config.model.num_filters = 44
    return config
