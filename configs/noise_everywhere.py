"""Row 5: noise in every layer, also the first, so that no layer sees the neighbours of a pixel.

Claim: without a single spatial filter the accuracy is far lower. Published: 72.6% (the audit, floored at batch size
16).
PyTorch: python main.py --net-type perturb_resnet18 --nfilters 128 --batch-size 16 --learning-rate 1e-3
         --first_filter_size 0 --filter_size 0 --nmasks 1
Ours:    python -m pnn_jax.main --config=configs/noise_everywhere.py
"""

from configs import default


def get_config():
    config = default.get_config()
    config.batch_size = 16
    return config
