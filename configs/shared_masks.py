"""Row 7: 64 masks, the same for every channel, and no mixing convolution; 1.22M weights instead of about 5.5M.

Claim: sharing the masks costs little accuracy. Published: 82.4% (the audit, floored at batch size 16).
PyTorch: python main.py --net-type perturb_resnet18 --nfilters 128 --batch-size 16 --learning-rate 1e-3
         --first_filter_size 3 --filter_size 0 --nmasks 64 --no-unique_masks
Ours:    python -m pnn_jax.main --config=configs/shared_masks.py
"""

from configs import noise_masks


def get_config():
    config = noise_masks.get_config()
    config.model.share_masks = True
    config.model.mix_channels = False
    return config
