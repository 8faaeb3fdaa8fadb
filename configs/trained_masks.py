"""Row 8: the shared masks of row 7, trained like any other parameter, weight decay included.

Claim: even trained masks are hardly better than 1x1 convolutions. Published: 85.9% (the audit, floored at batch size
16).
PyTorch: python main.py --net-type perturb_resnet18 --nfilters 128 --batch-size 16 --learning-rate 1e-3
         --first_filter_size 3 --filter_size 0 --nmasks 64 --no-unique_masks --train_masks
Ours:    python -m pnn_jax.main --config=configs/trained_masks.py
"""

from configs import shared_masks


def get_config():
    config = shared_masks.get_config()
    config.model.trainable_masks = True
    return config
