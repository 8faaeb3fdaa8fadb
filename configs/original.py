"""Row 2: the authors' network as the audit ran it, with a 7x7 convolution and a pooling in front.

Claim: counted exactly, the authors' design is far below an ordinary network. Published: 85.7% (the audit).
PyTorch: python main.py --net-type noiseresnet18 --nfilters 128 --batch-size 10 --learning-rate 1e-4
         --first_filter_size 7
Ours:    python -m pnn_jax.main --config=configs/original.py
"""

from configs import default


def get_config():
    config = default.get_config()
    config.batch_size = 10
    config.model.name = 'noise_resnet18'
    config.model.stem_kernel_size = 7
    config.optimizer.learning_rate = 1e-4
    return config
